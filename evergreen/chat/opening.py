"""What a chat and a file of questions need alike: the model that the settings name, and how to draw from it."""

from typing import TYPE_CHECKING

from evergreen.records import Sampling
from evergreen.settings import InferSettings

if TYPE_CHECKING:
    from evergreen.engine.engine import Engine
    from evergreen.model.load import LoadedModel


def load_engine(settings: InferSettings) -> "tuple[LoadedModel, Engine]":
    """The model that the settings name, ready to answer."""
    from evergreen.engine.engine import Engine, settings_for
    from evergreen.model.load import load_for

    loaded = load_for(settings, settings.model, settings.adapters)
    return loaded, Engine(loaded, settings_for(settings.batch_size))


def sampling_of(settings: InferSettings) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        max_new_tokens=settings.max_new_tokens,
        stop=tuple(settings.stop),
        seed=settings.seed,
    )
