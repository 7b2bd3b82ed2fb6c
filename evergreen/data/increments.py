"""The increments that a model learns one after the other: a folder of folders, or a YAML list.

    dataset/base/          train.json  dev.json      optional: without it version 0 is the model as it is given
    dataset/increment_1/   train.jsonl dev.jsonl     the files, or train/ and dev/ folders with any files in them
    dataset/increment_2_cities/ ...                  increment_02 and increment-2 are the same number

Promises: a gap in the numbers, no dev set or an unknown key is refused at once; a test set is scored only where there
is no dev set, and never trained. Does not: read a row (see leaks.py), or choose a metric.
"""

import dataclasses
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evergreen.data.check import split_of
from evergreen.data.files import RowError, is_data_file, scan_rows
from evergreen.data.sources import files_of_folder
from evergreen.home import write_atomic
from evergreen.options import parse
from evergreen.records import BadInput
from evergreen.settings import SftSettings

NUMBERED = re.compile(r"increment[_-]?(\d+)(?:[_-].*)?", re.IGNORECASE)
NAME = re.compile(r"\w[\w .-]*")
OF_EVOLVE = re.compile(r"scores|(?:plan|matrix|dev_all|compare|report)\.\w+", re.IGNORECASE)
FILES = ("name", "train", "dev", "test")  # keys of a YAML entry beside settings
SHORT = {"method": "train_type", "replay": "replay_samples", "rank": "lora_rank", "steps": "max_steps"}
FROM_THE_LINE = {
    "model", "adapters", "prev_model", "dataset", "output_dir", "overwrite_output_dir", "resume_from_checkpoint",
    "resume_only_model", "home", "json", "do_train", "stage",
}  # fmt: skip


@dataclass(frozen=True)
class Increment:
    """One data set of the line. `train` are sources as `--dataset` takes them; `dev` is scored, `test` only kept out
    of training; `settings` are its own values by field of SftSettings, and `metric`. The base is number 0."""

    name: str
    number: int
    train: tuple[str, ...]
    dev: tuple[Path, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    test: tuple[Path, ...] = ()


def read_increments(path: str, names: Sequence[str] = ()) -> tuple[Increment, ...]:
    """The increments of a folder or of a YAML list, in order; with `names` only these. Nothing but names is read yet.

    Raises BadInput for a missing file, dev set or number, an unknown key, a value out of range."""
    place = Path(path).expanduser()
    if not path or not place.exists():
        problem = f"no such folder or file as {path}" if path else "no increments given"
        raise BadInput(f"{problem}: they are a folder with base/, increment_1/, ... or a YAML list")
    if place.is_dir():
        increments = _of_folder(place)
    elif place.suffix in (".yaml", ".yml"):
        increments = _of_list(place)
    else:
        raise BadInput(f"{path} is neither a folder with base/, increment_1/, ... nor a YAML list (.yaml)")
    known = [increment.name for increment in increments]
    for name in names:
        if name not in known:
            raise BadInput(f"{path} has no increment {name}{_near(name, known)}; it has {', '.join(known)}")
    return tuple(increment for increment in increments if not names or increment.name in names)


def write_dev_all(increments: Sequence[Increment], path: str | Path) -> int:
    """All dev items in one file that `evergreen eval` reads: the rows as they are, each with `task`, `id` and the
    metric that its increment asks for. Returns how many there are."""
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in _dev_rows(increments)]
    write_atomic(path, "[\n" + ",\n".join(lines) + "\n]\n")
    return len(lines)


# A folder of folders


def _of_folder(place: Path) -> list[Increment]:
    numbered: dict[int, Path] = {}
    others: list[Path] = []
    for entry in sorted(place.iterdir()):
        number = _number(entry.name) if entry.is_dir() else None
        if number is None:
            others += [entry] if _holds_data(entry) else []
        elif number in numbered:
            raise BadInput(f"{place} holds {numbered[number].name} and {entry.name}: both are number {number}")
        else:
            numbered[number] = entry
    if not numbered:
        raise BadInput(f"{place} {_no_increment(others)}")
    for missing in range(1, max(numbered)):
        if missing not in numbered:
            inside = ", ".join(numbered[number].name for number in sorted(numbered))
            raise BadInput(f"{place} has no increment_{missing}: it holds {inside}; number them without a gap")
    if others:
        name = others[0].name
        near = _near(name, ["base", *(f"increment_{number}" for number in range(1, max(numbered) + 2))])
        raise BadInput(f"{others[0]} is neither base nor increment_N{near}: rename it or take it out of {place}")
    return [_of_one_folder(numbered[number], number) for number in sorted(numbered)]


def _number(name: str) -> int | None:
    """0 for the base, 2 for increment_2, increment_02 and increment-2-cities; None for other names."""
    match = NUMBERED.fullmatch(name)
    return 0 if name.lower() == "base" else int(match[1]) if match else None


def _holds_data(entry: Path) -> bool:
    """Whether this would be training data by another name; notes, and what evolve itself writes, are not."""
    if entry.name.startswith((".", "dataset_info", "dev_all")) or entry.suffix == ".txt":
        return False
    return is_data_file(entry) or (entry.is_dir() and any(map(is_data_file, [*entry.glob("*"), *entry.glob("*/*")])))


def _no_increment(others: Sequence[Path]) -> str:
    names = ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in others[:8]) or "no data"
    if any(path.is_file() or path.name in ("train", "dev") for path in others):
        return f"holds {names}: that is one increment; give the folder above it, in which it is called increment_1"
    return f"holds no base/ or increment_1/ but {names}: rename them, or give a YAML list that names them in order"


def _of_one_folder(folder: Path, number: int) -> Increment:
    train, dev, test = _files(folder)
    return Increment(folder.name, number, tuple(map(str, train)), dev, {}, test)


def _files(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...], tuple[Path, ...]]:
    """A folder's training files, those that are scored, and the other held-out ones."""
    train, dev = files_of_folder(folder, "train"), files_of_folder(folder, "validation")
    named_otherwise = [path for path in train if split_of(path) != "train"]
    if named_otherwise:
        raise BadInput(f"{named_otherwise[0]} is named as a dev or test set but would be trained: put it into dev/")
    held = [path for path in sorted(folder.rglob("*")) if is_data_file(path) and split_of(path) != "train"]
    return train, dev, tuple(path for path in held if path not in dev)


# A YAML list


def _of_list(path: Path) -> list[Increment]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(value, dict) and set(value) == {"increments"}:
        value = value["increments"]
    if not isinstance(value, list) or not value:
        raise BadInput(f"{path} wants `increments:` with a list of {{name, train, dev, ...}}, and nothing beside it")
    starts_at = 0 if _name(value[0]).lower() == "base" else 1
    increments = [_of_entry(entry, number, path) for number, entry in enumerate(value, starts_at)]
    _check_names(increments, path)
    return increments


def _name(entry: Any) -> str:
    return str(entry.get("name", "") if isinstance(entry, dict) else entry)


def _of_entry(entry: Any, number: int, path: Path) -> Increment:
    """One entry: a mapping, or the name of a folder beside the list. What it does not name is looked for there."""
    name = _name(entry) or f"increment_{number}"
    where = f"{path}, {name}"
    if not isinstance(entry, dict | str) or not NAME.fullmatch(Path(name).name):
        raise BadInput(f"{path}: an increment wants {{name, train, dev, ...}} or a folder's name, got {entry!r}")
    entry = entry if isinstance(entry, dict) else {}
    settings = _settings(entry, where, path.parent)
    train = [_source(text, path.parent) for text in _texts(entry, "train", where)]
    place = Path(train[0]) if len(train) == 1 and Path(train[0]).is_dir() else path.parent / name
    beside = _files(place) if place.is_dir() and not (train and entry.get("dev")) else ((), (), ())
    dev = [file for text in _texts(entry, "dev", where) for file in _held_files(text, path.parent, where)]
    test = [file for text in _texts(entry, "test", where) for file in _held_files(text, path.parent, where)]
    for key, found in (("train", train or beside[0]), ("dev", dev or beside[1])):
        if not found:
            raise BadInput(f"{where} has no {key} set: `{key}:` wants files (there is no folder {place} to look in)")
    train = train or list(map(str, beside[0]))
    return Increment(Path(name).name, number, tuple(train), tuple(dev) or beside[1], settings, tuple(test) or beside[2])


def _check_names(increments: Sequence[Increment], path: Path) -> None:
    for increment in increments:
        if OF_EVOLVE.fullmatch(increment.name):
            raise BadInput(f"{path}: evolve itself writes {increment.name} beside the increments: name yours otherwise")
    doubled = [name for name, count in Counter(increment.name for increment in increments).items() if count > 1]
    if doubled:
        raise BadInput(f"{path} names two increments {doubled[0]}: every one needs a name of its own")
    numbers = [(_number(increment.name), increment.name) for increment in increments]
    numbers = [(number, name) for number, name in numbers if number is not None]
    for (before, name), (after, other) in zip(numbers, numbers[1:], strict=False):
        if after <= before:
            raise BadInput(f"{path} has {other} after {name}: put them in the order of their numbers or rename them")


def _texts(entry: dict, key: str, where: str) -> list[str]:
    value = entry.get(key)
    value = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and text.strip() for text in value):
        raise BadInput(f"{where}: `{key}:` wants a file or a list of files, got {value}")
    return value


def _source(text: str, folder: Path) -> str:
    """A source of the list: a path beside it if there is one, else whatever `--dataset` would make of it."""
    name, mark, count = text.rpartition("#")
    for path, rest in ((text, ""), (name, mark + count)):
        local = folder / Path(path).expanduser()
        if path and local.exists():
            return f"{local}{rest}"
    return text


def _held_files(text: str, folder: Path, where: str) -> tuple[Path, ...]:
    path = folder / Path(text).expanduser()
    if path.is_dir():
        is_split = path.name.lower() in ("dev", "eval", "valid", "validation", "test")
        return tuple(filter(is_data_file, sorted(path.iterdir()))) if is_split else files_of_folder(path, "validation")
    if not path.is_file():
        raise BadInput(f"{where}: no file {path}")
    return (path,)


def _settings(entry: dict, where: str, folder: Path) -> dict[str, Any]:
    """An entry's own settings by field of SftSettings, typed as the flags would type them."""
    fields = {one.name: one for one in dataclasses.fields(SftSettings)}
    known = {word: name for name, one in fields.items() for word in (name, *one.metadata["aliases"])} | SHORT
    settings: dict[str, Any] = {}
    for key, value in entry.items():
        word = str(key).replace("-", "_")
        name = known.get(word, word)
        if word in FILES or value is None:
            continue
        if name in FROM_THE_LINE:
            raise BadInput(f"{where}: {key} is the same for all increments or made by evolve: leave it out here")
        if name == "metric":
            settings["metric"] = str(value)
        elif name not in fields:
            raise BadInput(f"{where}: unknown key {key}{_near(word, [*FILES, 'metric', *known])}")
        else:
            settings[name] = _typed(fields[name], value, where)
    if "general_replay" in settings:
        settings["general_replay"] = [_source(text, folder) for text in settings["general_replay"]]
    return settings


def _typed(one: dataclasses.Field, value: Any, where: str) -> Any:
    if value is False and "no" in one.metadata["choices"]:  # YAML reads a bare `no` as false
        value = "no"
    words = [f"--{one.name}", *map(str, value)] if isinstance(value, list) else [f"--{one.name}={value}"]
    try:
        return getattr(parse(SftSettings, words, "sft"), one.name)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; the nearest is {near[0]}" if near else ""


# All dev items


def _dev_rows(increments: Sequence[Increment]) -> Iterator[dict]:
    for increment in increments:
        metric = increment.settings.get("metric")
        for path in increment.dev:
            for line, row in scan_rows(path):
                if isinstance(row, RowError):  # left out under --on_bad_row skip, as the scores leave it out
                    continue
                own = str(row.get("id", line))
                name = own if len(increment.dev) == 1 else f"{path.name}:{own}"
                yield row | {"task": increment.name, "id": name} | ({"metric": metric} if metric else {})
