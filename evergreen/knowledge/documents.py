"""Entries as the documents that `--json` prints and as the lines that people read."""

import json
from collections.abc import Sequence
from typing import Any

from evergreen.knowledge.store import OPEN, Row
from evergreen.records import Entry

PARTS = ("content", "title", "source_url", "update_time", "version", "tags", "language", "valid_from", "valid_until")
WIDTH = 72  # of a content in a list


def entry_document(row: Row) -> dict[str, Any]:
    entry = row.entry
    return {name: getattr(entry, name) for name in ("id", *PARTS)} | {"tags": list(entry.tags), "n": row.begins}


def version_document(row: Row) -> dict[str, Any]:
    ended = {"n": row.ends, "author": row.end_author, "reason": row.end_reason} if row.ends != OPEN else None
    begun = {"op": row.op, "at": row.at, "author": row.author, "reason": row.reason}
    return entry_document(row) | begun | {"ended": ended, "redacted": row.is_redacted}


def portable_document(row: Row) -> dict[str, Any]:
    """What another home needs to have the entry."""
    return {name: value for name, value in entry_document(row).items() if value and name != "n"}


def written(row: Row) -> dict[str, Any]:
    return {"id": row.entry.id, "version": row.entry.version, "snapshot": "live", "n": row.begins}


def taken_out(rows: Sequence[Row], n: int) -> dict[str, Any]:
    """The first entry's id and version, as a single one's are asked for; `ids` are all."""
    [first, *_] = rows
    return {"id": first.entry.id, "version": first.entry.version, "snapshot": "live", "n": n,
            "ids": [row.entry.id for row in rows]}  # fmt: skip


def unseen(clause: str, what: str) -> str:
    """The warning that some answers, which `clause` names, do not show a change; `what` says how they have it."""
    return f"{clause}, which {what}: evergreen knowledge live answers from what is newest"


def json_line(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def short(entry: Entry, width: int = WIDTH) -> str:
    text = " ".join((f"{entry.title}: " if entry.title else "").split() + entry.content.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def list_of(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5:,} more" if len(ids) > 5 else "")


def verb(ids: Sequence[str]) -> str:
    return "is" if len(ids) == 1 else "are"
