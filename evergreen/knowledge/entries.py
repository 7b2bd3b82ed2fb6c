"""What an entry may be: its parts checked, its version raised, its times in one spelling, as the log keeps it."""

import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from evergreen.records import BadInput, Entry

BUMPS = ("major", "minor", "patch")
VERSION = re.compile(r"(0|[1-9]\d{0,17})\.(0|[1-9]\d{0,17})\.(0|[1-9]\d{0,17})", re.ASCII)


def check(entry: Entry) -> Entry:
    """The entry with its times in one spelling. Raises BadInput for what an entry cannot be."""
    if not entry.content.strip():
        raise BadInput("an entry needs a content")
    _check_text(entry)
    checked_version(entry.version)
    times = {
        name: moment_of(value, name) if (value := getattr(entry, name)) else ""
        for name in ("update_time", "valid_from", "valid_until")
    }
    if times["valid_from"] and times["valid_until"] and times["valid_until"] <= times["valid_from"]:
        raise BadInput(f"valid_until {times['valid_until']} is not after valid_from {times['valid_from']}")
    if bad := [tag for tag in entry.tags if not tag.strip() or "|" in tag]:
        raise BadInput(f"the tag {bad[0]!r}: a tag is a word without |")
    return replace(entry, **times)


def _check_text(entry: Entry) -> None:
    """Raises BadInput for what UTF-8 cannot say: half of a surrogate pair, from "\\ud800" in JSON or a stray byte."""
    for name, value in stored(entry).items():
        try:
            "".join(value).encode()
        except UnicodeEncodeError as error:
            raise BadInput(f"{name}: character {error.start + 1:,} is {error.object[error.start]!a}, half of one: "
                           "write it anew") from None  # fmt: skip


def checked_version(version: str, above: str = "") -> str:
    """Raises BadInput unless `version` is MAJOR.MINOR.PATCH and higher than `above`."""
    if not VERSION.fullmatch(version):
        raise BadInput(f"the version {version!r} is not MAJOR.MINOR.PATCH, such as 1.0.3")
    if above and _numbers(version) <= _numbers(above):
        raise BadInput(f"the version {version} is not above {above}, which the entry has")
    return version


def bumped(version: str, part: str) -> str:
    """Semantic versioning 2.0: the part rises by one, those behind it are 0."""
    if part not in BUMPS:
        raise BadInput(f"bump {part}: it is one of {', '.join(BUMPS)}")
    place, numbers = BUMPS.index(part), _numbers(version)
    return ".".join(map(str, [*numbers[:place], numbers[place] + 1, *[0] * (2 - place)]))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(text: str, name: str = "a time") -> str:
    """An ISO 8601 date or time as UTC in the log's spelling; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise BadInput(f"{name} {text!r} is not a date such as 2026-11-21 or 2026-11-21T08:30:00Z") from None
    try:
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except OverflowError:
        raise BadInput(f"{name} {text!r} is not within the years 1 to 9999 in UTC") from None
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def end_of(text: str) -> str:
    """The last moment that a date or time names: a bare date includes its whole day."""
    start = moment_of(text, "as_of")
    return start if len(text.strip()) > len("2026-11-21") else start[: len("2026-11-21")] + "T23:59:59.999Z"


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def stored(entry: Entry) -> dict[str, Any]:
    """The entry as the log keeps it: without what is empty."""
    values = {name: getattr(entry, name) for name in Entry.__dataclass_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}


def entry_of(values: dict[str, Any]) -> Entry:
    return Entry(**{**values, "tags": tuple(values.get("tags", ()))})
