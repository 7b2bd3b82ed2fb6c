"""Vectors kept by a database elsewhere: what `index.Vectors` asks for, by five verbs that every such database has.

Promises: the database is a projection like any other: it is compared with the rows when it is opened, brought up to
date by what is lacking and relieved of what should not be there; what it finds is checked against the rows here, so
nothing ended, expired or redacted comes back even when the database lags. While it cannot be reached, every call fails
at once for ten seconds, so that questions do not wait for it.
Does not: hold words (BM25 stays beside the rows: a database reckons its statistics by segment).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from evergreen.knowledge.index import Filter, Table
from evergreen.records import BadInput, Failure

BATCH = 500  # records of one request
PAUSE_SECONDS = 10


class Collection(Protocol):
    """A database's records: `id` (the number of the change that began the row), `key` (of its text, signed), `begins`,
    `ends`, `valid_from`, `valid_until` (milliseconds), `tags`, `vector`. Calls raise whatever the client raises."""

    def listed(self) -> dict[int, tuple[int, int]]:
        """id -> (key, ends) of all there are."""

    def put(self, records: list[dict[str, Any]]) -> None: ...

    def set_ends(self, ends: dict[int, int]) -> None: ...

    def delete(self, ids: list[int]) -> None: ...

    def search(self, vector: list[float], wanted: Filter, top_k: int) -> list[tuple[int, float]]:
        """(id, cosine) of the nearest that pass the filter."""


class RemoteVectors:
    """`index.Vectors` over a collection; `name` is for messages."""

    def __init__(self, connect: Callable[[], Collection], name: str):
        """`connect` is called when it is needed, and again after it failed."""
        self._connect, self.name = connect, name
        self.collection: Collection | None = None
        self._there = np.zeros(0, np.int64)  # of each row, the `ends` that the collection has; -1: it lacks the row
        self._is_compared = False
        self._failure, self._again = "", 0.0  # what went wrong last, and when to try again

    def sync(self, table: Table, changed: Sequence[int] | None) -> list[int]:
        if changed is None or not self._is_compared:
            self._is_compared = False
            self._compare(table)
        new = np.full(len(table) - len(self._there), -1, np.int64)
        self._there = np.concatenate([self._there, new])
        self._delete(table, np.flatnonzero((self._there >= 0) & (table.keys == 0)))
        self._set_ends(table, np.flatnonzero((self._there >= 0) & (self._there != table.ends)))
        return np.flatnonzero((self._there < 0) & (table.keys != 0)).tolist()

    def _compare(self, table: Table) -> None:
        listed = self._call("listed")
        there = np.full(len(table), -1, np.int64)
        begins, keys = table.begins.tolist(), table.keys.view(np.int64).tolist()
        for row, (id, key) in enumerate(zip(begins, keys, strict=True)):
            if id in listed and listed[id][0] == key != 0:
                there[row] = listed.pop(id)[1]
        for ids in _batches(list(listed)):
            self._call("delete", ids)
        self._there, self._is_compared = there, True

    def _delete(self, table: Table, rows: np.ndarray) -> None:
        for part in _batches(rows):
            self._call("delete", table.begins[part].tolist())
            self._there[part] = -1

    def _set_ends(self, table: Table, rows: np.ndarray) -> None:
        for part in _batches(rows):
            ends = table.ends[part]
            self._call("set_ends", dict(zip(table.begins[part].tolist(), ends.tolist(), strict=True)))
            self._there[part] = ends

    def put(self, table: Table, rows: Sequence[int], vectors: np.ndarray) -> None:
        rows, tags = np.asarray(rows), _tags_of(table, set(rows.tolist()))
        for places in _batches(np.arange(len(rows))):
            records = [
                {
                    "id": int(table.begins[row]),
                    "key": int(table.keys[row].view(np.int64)),
                    "tags": tags.get(row, []),
                    "vector": vectors[place].tolist(),
                    **{
                        name: int(getattr(table, name)[row]) for name in ("begins", "ends", "valid_from", "valid_until")
                    },
                }
                for place, row in zip(places.tolist(), rows[places].tolist(), strict=True)
            ]
            self._call("put", records)
            self._there[rows[places]] = table.ends[rows[places]]

    def search(self, table: Table, vector: np.ndarray, wanted: Filter, top_k: int) -> list[tuple[int, float]]:
        found = self._call("search", vector.tolist(), wanted, top_k)
        allowed, tagged = table.visible(wanted), table.tagged(wanted.tags)
        places = table.begins.searchsorted([id for id, _ in found])
        rows = [
            (int(row), score)
            for row, (id, score) in zip(places, found, strict=True)
            if row < len(table) and table.begins[row] == id and allowed[row] and (tagged is None or tagged[row])
        ]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def _call(self, verb: str, *values: Any) -> Any:
        """Raises Failure, in one line, for whatever the client raises; BadInput where `connect` does."""
        if time.monotonic() < self._again:
            raise Failure(self._failure)
        try:
            if self.collection is None:
                self.collection = self._connect()
            return getattr(self.collection, verb)(*values)
        except BadInput:
            raise
        except Exception as error:  # noqa: BLE001 clients raise their own, and gRPC's
            self._failure = f"{self.name} cannot be used: {' '.join(str(error).split())[:200]}"
            self._again = time.monotonic() + PAUSE_SECONDS
            raise Failure(self._failure) from None


def _tags_of(table: Table, rows: set[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for tag, places in table.rows_of_tag.items():
        for row in rows.intersection(places):
            found.setdefault(row, []).append(tag)
    return found


def _batches(values: Any) -> list[Any]:
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
