"""Every row of a line of increments read once, before anything is trained: what is bad in it, and what leaks.

Promises: a bad row, an empty set, and a training row that a dev or test set or a retention suite asks are refused, each
with its file and line; a doubt is said in a line. Does not: find paraphrases of held-out questions.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from evergreen.data.files import RowError, scan_rows
from evergreen.data.formats import ANSWERS, to_record
from evergreen.data.increments import Increment
from evergreen.data.sources import Located, resolve, split_sources
from evergreen.data.wording import prompt_hash
from evergreen.records import BadInput, Origin

FEW_ROWS = 1000
MAX_PLACES = 2


class Leak(NamedTuple):
    """A training row of `increment` whose prompt stands in the dev or test set of `owner`, or in a retention suite."""

    increment: str
    row: Origin
    owner: str
    item: Origin


def check_increments(
    increments: Sequence[Increment],
    allow_leak: bool,
    say: Callable[[str], None],
    dataset_dir: str = "",
    on_bad_row: str = "error",
    general: Sequence[str] = (),
    retention: Sequence[str] = (),
) -> None:
    """Read every row once. Raises BadInput for what must not be trained on; `say` hears what is only worth a warning.

    `general` are sources that every increment mixes in, `retention` task files that every version is scored on. With
    `allow_leak` a leak is a warning."""
    asked, repeats = _held_out(increments, on_bad_row)
    for path in map(Path, retention):
        for item, origin in _prompts(path, on_bad_row == "skip"):
            asked.setdefault(item, (f"the retention suite {path.name}", origin))
    leaks: list[Leak] = []
    num_rows: dict[str, int] = {}
    for increment in increments:
        skips = increment.settings.get("on_bad_row", on_bad_row)
        num_rows[increment.name] = 0
        for source in _located(increment.name, increment.train, dataset_dir):
            rows = _leaks_in(source, skips, increment.name, asked, leaks)
            num_rows[increment.name] += min(rows, source.num_samples or rows)
        for source in _located(increment.name, increment.settings.get("general_replay", general), dataset_dir):
            _leaks_in(source, skips, increment.name, asked, leaks)
        if not num_rows[increment.name]:
            raise BadInput(f"{increment.name} has no training row in {', '.join(increment.train)}")
    if leaks and not allow_leak:
        raise BadInput(_said_of(leaks) + ": take them out of the training data, or --allow_leak true")
    _warn(increments, leaks, repeats, num_rows, say)


def _held_out(
    increments: Sequence[Increment], on_bad_row: str
) -> tuple[dict[bytes, tuple[str, Origin]], Counter[tuple[str, str]]]:
    """Prompt -> where a dev or test set asks it first; and how many dev items an earlier increment asks too."""
    asked: dict[bytes, tuple[str, Origin]] = {}
    repeats: Counter[tuple[str, str]] = Counter()
    for increment in increments:
        skips = increment.settings.get("on_bad_row", on_bad_row) == "skip"
        for path in (*increment.dev, *increment.test):
            num_items = 0
            for item, origin in _prompts(path, skips):
                num_items += 1
                owner = asked.setdefault(item, (increment.name, origin))[0]
                if owner != increment.name and path in increment.dev:
                    repeats[increment.name, owner] += 1
            if not num_items:
                raise BadInput(f"{increment.name}: {path} holds no item to score")
    return asked, repeats


def _leaks_in(
    source: Located, on_bad_row: str, name: str, asked: dict[bytes, tuple[str, Origin]], leaks: list[Leak]
) -> int:
    """How many rows the source has; those that a dev or test set asks are added to `leaks`."""
    rows = 0
    for rows, record in enumerate(source.records(on_bad_row), 1):  # noqa: B007 the last number is the count
        if (held := asked.get(prompt_hash(record))) is not None:
            leaks.append(Leak(name, record.origin, *held))
    return rows


def _prompts(path: Path, skips_bad_rows: bool) -> Iterator[tuple[bytes, Origin]]:
    """What each item asks, hashed. Its references may stand in any of many columns, and are left aside."""
    for line, row in scan_rows(path):
        origin = Origin(str(path), line)
        try:
            if isinstance(row, RowError):
                raise row
            yield prompt_hash(to_record(_without_references(row), origin, needs_answer=False)), origin
        except RowError as error:
            if not skips_bad_rows or error.fatal:
                raise BadInput(f"{error} (--on_bad_row skip leaves such rows out)") from None


def _without_references(row: dict) -> dict:
    bare = {key: value for key, value in row.items() if key not in ANSWERS}
    if "input" in bare and "instruction" not in bare:
        bare["question"] = bare.pop("input")
    return bare


def _located(name: str, sources: Sequence[str], dataset_dir: str) -> list[Located]:
    try:
        return [resolve(source, dataset_dir) for source in split_sources(sources)] if sources else []
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None


def _said_of(leaks: Sequence[Leak]) -> str:
    """`increment_2 trains 14 rows that the dev or test set of base asks (train.json:3 = dev.json:7, ...)`, for each."""
    pairs: dict[tuple[str, str], list[Leak]] = {}
    for leak in leaks:
        pairs.setdefault((leak.increment, leak.owner), []).append(leak)
    parts = []
    for (increment, owner), found in pairs.items():
        places = ", ".join(f"{leak.row} = {leak.item}" for leak in found[:MAX_PLACES])
        more = ", ..." if len(found) > MAX_PLACES else ""
        whose = "its own dev or test set asks" if owner == increment else f"{_held(owner)} asks"
        parts.append(f"{increment} trains {_rows(len(found))} that {whose} ({places}{more})")
    return "; ".join(parts)


def _held(owner: str) -> str:
    return owner if owner.startswith("the retention suite ") else f"the dev or test set of {owner}"


def _warn(
    increments: Sequence[Increment],
    leaks: Sequence[Leak],
    repeats: Counter[tuple[str, str]],
    num_rows: dict[str, int],
    say: Callable[[str], None],
) -> None:
    if leaks:
        say(_said_of(leaks) + ": the scores there say little (--allow_leak)")
    for (name, owner), count in repeats.items():
        say(f"{count} dev items of {name} stand in the dev set of {owner} too: they count twice in every mean")
    few = [f"{name} ({count:,})" for name, count in num_rows.items() if count < FEW_ROWS]
    if few:
        say(
            f"under {FEW_ROWS:,} training rows in {', '.join(few)}: expect less gain and more forgetting; "
            "add rows or paraphrases of these, or replay more (--replay_samples)"
        )
    if increments[0].number:
        say(f"no base: version 0 is the model as given, and {increments[0].name} is learnt first")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
