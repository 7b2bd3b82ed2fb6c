"""What an evolve refuses before anything is trained: what a run would find only when its turn comes, perhaps at night.

Promises: every increment's settings and rows are looked at as its own run will look at them, the rows encoded by the
same encoder, and every item that is to be scored; the error is the run's own, with the increment's name in front.
Does not: foresee which rows are replayed. Where an increment has other limits than those before it, none of their rows
may be over its own.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evergreen.data.sources import resolve as locate
from evergreen.data.sources import split_sources
from evergreen.evaluate.harness import over_limit
from evergreen.evaluate.tasks import Item, Task
from evergreen.model.load import tokenizer_for
from evergreen.options import build
from evergreen.records import BadInput, Record
from evergreen.settings import EvalSettings, EvolveSettings, SftSettings
from evergreen.train.rules import check_model

if TYPE_CHECKING:
    from evergreen.model.find import Reference
    from evergreen.train.dataset import Encoder

SET_BY_EVOLVE = {
    "prev_model": "evolve sets it for each increment: give the start as --model",
    "dataset": "evolve sets it for each increment: give the data as folders, evergreen evolve dataset/",
    "resume_only_model": "evolve goes on by itself: give the same command with the same --output_dir",
    "resume_from_checkpoint": "evolve goes on by itself: give the same command with the same --output_dir",
}


def check_line(given: EvolveSettings) -> None:
    """Refuse the flags that evolve itself sets; `--resume_from_checkpoint true` is what it does anyway."""
    for name, why in SET_BY_EVOLVE.items():
        value = getattr(given, name)
        if value and str(value).lower() not in ("true", "false", "none") or value is True:
            shown = " ".join(value) if isinstance(value, list) else value
            raise BadInput(f"--{name} {shown}: {why}")


def check_step(settings: SftSettings, name: str, config: Any) -> None:
    """What a run would refuse once it has read the model's config. Raises BadInput, the increment's name in front."""
    from evergreen.continual.merge import check_merge_chain

    try:
        check_model(settings, config)
        if settings.merge_chain:
            check_merge_chain(build(SftSettings, vars(settings) | {"prev_model": "", "model": "", "adapters": []}))
        for source in split_sources(settings.val_dataset) if settings.val_dataset else ():
            locate(source, settings.dataset_dir, "validation")
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None


def check_rows(
    settings: SftSettings, name: str, earlier: Sequence[SftSettings], start: "Reference", config: Any
) -> None:
    """Encode the increment's rows, and of `earlier` increments those that it may replay under limits of its own.
    Raises BadInput for a row that is too long (a replayed one is left out), has nothing to learn, or that the chat
    template refuses."""
    from evergreen.train.dataset import encode_sources, read_sources

    encoder = _encoder(settings, start, config)
    try:
        general = (lambda _: _general(settings)) if settings.general_replay else None
        encode_sources(read_sources(settings, general), encoder)
        for one in earlier if settings.replay_samples else ():
            if _limits(one) != _limits(settings):
                _check_replay(encoder, one)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None


def check_items(tasks: Sequence[Task], settings: EvalSettings, start: "Reference", config: Any) -> None:
    """Raises BadInput for a prompt that fills the model's whole context, unless such items are to be left out."""
    from evergreen.model.template import prompt_ids

    limit = getattr(config, "max_position_embeddings", None)
    if not limit or settings.on_bad_row == "skip":
        return
    known = start.args or {}
    tokenizer = tokenizer_for(start, settings.template or known.get("template") or "")
    system = known.get("system") if settings.system is None else settings.system
    for item in (item for task in tasks for item in task.items if _most_tokens(item) >= limit):
        num_tokens = len(prompt_ids(item.messages, tokenizer, item.tools, system))
        if num_tokens >= limit:
            raise over_limit(item, num_tokens, limit)


def _most_tokens(item: Item) -> int:
    """A token is at least a byte, and a template adds little."""
    return len(json.dumps(item.tools)) + sum(len(message.content.encode()) + 40 for message in item.messages) + 1500


def _encoder(settings: SftSettings, start: "Reference", config: Any) -> "Encoder":
    """As `sft` makes it; every version of the line has the tokenizer of the first."""
    from evergreen.train.dataset import Encoder

    known = start.args or {}
    system = known.get("system") if settings.system is None else settings.system
    tokenizer = tokenizer_for(start, settings.template or known.get("template") or "")
    return Encoder(tokenizer, replace(settings, system=system), getattr(config, "max_position_embeddings", 1 << 30))


def _general(settings: SftSettings) -> Sequence[Record]:
    from evergreen.continual.replay import general_records

    names = settings.dataset_dir, settings.seed, settings.model_name, settings.model_author
    return general_records(settings.general_replay, *names)


def _limits(settings: SftSettings) -> tuple[Any, ...]:
    return settings.max_length, settings.truncation_strategy, settings.system, settings.template


def _check_replay(encoder: "Encoder", earlier: SftSettings) -> None:
    from evergreen.train.dataset import encode_old, read_sources

    try:
        encode_old(list(read_sources(replace(earlier, val_dataset=[])).mixture), encoder)
    except BadInput as error:
        raise BadInput(f"it may replay {' '.join(earlier.dataset)}: {error}") from None
