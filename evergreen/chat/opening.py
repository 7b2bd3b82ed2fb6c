"""What a chat and a file of questions need alike: the model that the settings name, and how to draw from it."""

from typing import TYPE_CHECKING

from evergreen.records import Sampling
from evergreen.settings import InferSettings

if TYPE_CHECKING:
    from evergreen.engine.engine import Engine
    from evergreen.model.load import LoadedModel


def load_engine(settings: InferSettings) -> "tuple[LoadedModel, Engine]":
    """The model that the settings name, ready to answer."""
    from evergreen.engine.engine import Engine
    from evergreen.model.load import load_for

    loaded = load_for(settings, settings.model, settings.adapters)
    return loaded, Engine(loaded)


def sampling_of(settings: InferSettings) -> Sampling:
    return Sampling(
        settings.temperature,
        settings.top_p,
        settings.top_k,
        settings.repetition_penalty,
        settings.max_new_tokens,
        tuple(settings.stop),
        settings.seed,
    )
