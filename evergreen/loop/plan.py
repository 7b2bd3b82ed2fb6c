"""What an increment is trained with: the command's flags, its own over them, and what of it cannot hold.

Promises: what somebody asked for and cannot have is an error, before anything is trained; only what nobody asked for,
a default, is left out, and `note`d in a line. An increment's own settings are asked for; so is a flag that was typed,
be it as its default. Flags about earlier data (replay, penalties, chains) begin with the first increment that has some.

What a trained version depends on (`asked_of`) is what was asked for: a default that another version of the program
changes unlearns nothing, nor does data that lies elsewhere now.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from evergreen.data.increments import Increment
from evergreen.data.sources import resolve as locate
from evergreen.data.sources import split_sources
from evergreen.evaluate.harness import Version
from evergreen.options import build
from evergreen.records import BadInput
from evergreen.settings import EvolveSettings, SftSettings
from evergreen.train.rules import check_settings

OFF = {"regularization": "l2sp", "regularization_alpha": 0.0}
NEEDS_HISTORY = {
    "replay_samples": 0.0, "replay_repeats": 1, "replay_answers": "gold", "unfreeze": "", "orthogonal_lambda": 0.0,
    "chain": "continue", "merge_chain": "", **OFF,
}  # fmt: skip
NAMES = {one.name for one in fields(SftSettings)}
NO_PART_OF_A_VERSION = {
    "json", "home", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "prev_model", "model", "adapters",
    "dataset", "general_replay", "dataset_dir", "val_dataset", "report_to", "plot_loss", "save_steps", "save_strategy",
    "save_total_limit", "save_only_model", "logging_steps", "eval_steps", "eval_strategy", "ddp_timeout",
    "per_device_eval_batch_size", "dataloader_num_workers", "preprocessing_num_workers", "overwrite_cache", "device",
}  # fmt: skip


def start_of(previous: Version) -> dict[str, Any]:
    """How `sft` is told to begin with a version: an earlier run by --prev_model, any other model by --model."""
    place = previous.adapters[-1] if previous.adapters else previous.reference
    if (Path(place) / "args.json").is_file():
        return {"prev_model": str(place)}
    return {"model": previous.reference, "adapters": list(previous.adapters)}


def settings_of(
    given: EvolveSettings,
    increment: Increment,
    output_dir: Path,
    start: dict[str, Any],
    note: Callable[[str], None],
    is_first: bool = False,
) -> SftSettings:
    """The settings of an increment that is learnt from `start`, see `start_of`. `is_first`: no earlier increment could
    have left data, so that what the increment itself asks of it is an error; later ones may all have been rejected.
    Raises BadInput, the increment's name in front."""
    own = {name: value for name, value in increment.settings.items() if name in NAMES}
    values = {name: value for name, value in vars(given).items() if name in NAMES} | own
    penalty_off = _penalty_off(given, own, values)
    if "prev_model" in start:
        values |= OFF if penalty_off is not None else {}
        if penalty_off:
            note(penalty_off)
    else:
        values |= _without_history(given, own if is_first else {}, penalty_off is None, note)
    values |= {"dataset": list(increment.train), "output_dir": str(output_dir), "json": False,
               "overwrite_output_dir": False, "resume_from_checkpoint": "true"}  # fmt: skip
    values |= {"model": "", "adapters": [], "prev_model": ""} | start
    try:
        settings = build(SftSettings, values)
        check_settings(settings)
    except BadInput as error:
        raise BadInput(f"{increment.name}: {error}") from None
    return settings


def asked_of(given: EvolveSettings, increment: Increment, previous: Version) -> dict[str, Any]:
    """What the trained version depends on: equal ones need not be learnt again. Data counts by its content, and flags
    about earlier data where there is some."""
    defaults = type(given)()
    has_history = "prev_model" in start_of(previous)
    counts = NAMES - NO_PART_OF_A_VERSION - (set() if has_history else set(NEEDS_HISTORY) - set(increment.settings))
    values = {name: getattr(given, name) for name in NAMES} | increment.settings
    matters = values["regularization_alpha"] and _why_default_is_off(values)
    told = _asked_penalty(given, increment.settings) if matters else set()
    kept = {name: values[name] for name in sorted(counts) if values[name] != getattr(defaults, name) or name in told}
    general = values["general_replay"]
    data = [[_content(text, given.dataset_dir) for text in sources] for sources in (increment.train, general)]
    return {"previous": previous.digest, "settings": kept, "data": data}


def lasting(given: EvolveSettings) -> dict[str, Any]:
    """What plan.json keeps: the settings with full paths, so that they hold in another working directory."""
    values = asdict(given)
    for name in ("increments", "gate", "dataset_dir"):
        values[name] = _full(values[name])
    for name in ("adapters", "retention", "general_replay", "val_dataset"):
        values[name] = [_full(text) for text in values[name]]
    return values


def difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, what of `asked_of` is another now: `--learning_rate 0.005, not 0.001`."""
    before, after = then.get("settings", {}), now["settings"]
    names = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
    found = [f"{_spelt(name, before)}, not {_value(name, after)}" for name in names]
    found += ["other data"] * (then.get("data") != now["data"])
    return " and ".join(found or ["another version before it"])


def _without_history(
    given: EvolveSettings, own: dict[str, Any], has_penalty: bool, note: Callable[[str], None]
) -> dict[str, Any]:
    """Values without what needs earlier data, but for what `own` asks for. Whoever asks for a penalty's kind gets the
    line's strength, and the other way round."""
    kept = set(own) | (set(OFF) if set(OFF) & set(own) else set())
    silent = {*kept, *OFF, "replay_repeats"}
    left_out = [name for name, value in NEEDS_HISTORY.items() if name not in silent and getattr(given, name) != value]
    words = [*[given.regularization] * (has_penalty and not kept & set(OFF)), *(f"--{name}" for name in left_out)]
    if words:
        note(f"nothing was learnt before it, so {' and '.join(words)} begin{'s' * (len(words) == 1)} with the next")
    return {name: value for name, value in NEEDS_HISTORY.items() if name not in kept}


def _penalty_off(given: EvolveSettings, own: dict[str, Any], values: dict[str, Any]) -> str | None:
    """Why the penalty is off: "" where its strength is 0, a sentence where it is the default and cannot be had or costs
    too much; None where it holds."""
    if not values["regularization_alpha"]:
        return "" if "regularization" not in own else None
    return None if _asked_penalty(given, own) else _why_default_is_off(values)


def _asked_penalty(given: EvolveSettings, own: dict[str, Any]) -> set[str]:
    """Which of a penalty's kind and strength somebody asked for."""
    defaults = type(given)()
    return {
        name for name in OFF if name in own or name in given.asked or getattr(given, name) != getattr(defaults, name)
    }


def _why_default_is_off(values: dict[str, Any]) -> str | None:
    kind = values["regularization"]
    if kind == "l2sp":
        return None
    if values["train_type"] in ("full", "freeze"):  # 8 bytes for each of 7 billion weights
        return f"{kind}, the default, would hold 8 more bytes for each weight: off with {values['train_type']}"
    if not values["replay_samples"] and not values["general_replay"]:
        return f"{kind}, the default, is measured on old rows, and no old rows are mixed in: off"
    return None


def _content(text: str, dataset_dir: str) -> list[Any]:
    """A source by its content and how much of it is taken; a set on a hub by its name."""
    (source,) = split_sources([text])
    located = locate(source, dataset_dir)
    return [located.sha256 or located.path, located.num_samples]


def _spelt(name: str, settings: dict[str, Any]) -> str:
    return f"--{name} {_value(name, settings)}"


def _value(name: str, settings: dict[str, Any]) -> str:
    value = settings.get(name, "the default")
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _full(text: str) -> str:
    """A path, perhaps with #N, as a full one; any other word as it is."""
    name, mark, count = text.rpartition("#") if not Path(text).exists() else (text, "", "")
    return f"{Path(name).resolve()}{mark}{count}" if name and Path(name).exists() else text
