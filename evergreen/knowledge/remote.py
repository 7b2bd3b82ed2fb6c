"""Vectors kept by a database elsewhere: what `index.Vectors` asks for, by five verbs that every such database has.

Promises: the database is a projection like any other: it is compared with the rows when it is opened, brought up to
date by what is lacking and relieved of what should not be there; what it finds is checked against the rows here, so
nothing ended, expired or redacted comes back even when the database lags. Calls of it hold no lock that a search wants.
While it cannot be reached, every call fails at once for ten seconds, so that questions do not wait for it.
Does not: hold words (BM25 stays beside the rows: a database reckons its statistics by segment).
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from evergreen.knowledge.table import Filter, Table
from evergreen.records import EvergreenError, Failure

BATCH = 500  # records of one request
PAUSE_SECONDS = 10
CONNECT_SECONDS = 1  # that a thread waits for another one, which connects


@dataclass(frozen=True)
class Columns:
    """The table's rows as of the last `sync`: numbers of the changes that began them, digests, ends."""

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


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
        self._connecting, self._busy = threading.Lock(), threading.Lock()
        self._failure, self._again = "", 0.0  # what went wrong last, and when to try again
        self._state = threading.Lock()  # of all below; never held while the database is called
        self._wanted = Columns()
        self._there = np.zeros(0, np.int64)  # of each row, the `ends` that the collection has; -1: it lacks the row
        self._is_compared, self._era = False, 0  # rises when what is known of the collection is void
        self._records: dict[int, dict[str, Any]] = {}  # row -> what is to be stored
        self._strange: list[int] = []  # ids of records that should not be there

    # -- under the lock of the table's owner

    def sync(self, table: Table, changed: Sequence[int] | None) -> None:
        with self._state:
            if changed is None:
                self._is_compared, self._era, self._there = False, self._era + 1, np.zeros(0, np.int64)
                self._records.clear()
            self._wanted = Columns(table.begins, table.keys.copy(), table.ends.copy())
            new = np.full(len(table) - len(self._there), -1, np.int64)
            self._there = np.concatenate([self._there, new])

    def put(self, table: Table, rows: Sequence[int], vectors: np.ndarray) -> None:
        tags = _tags_of(table, set(np.asarray(rows).tolist()))
        numbers = ("begins", "ends", "valid_from", "valid_until")
        records = {
            int(row): {
                "id": int(table.begins[row]),
                "key": int(table.keys[row].view(np.int64)),
                "tags": tags.get(int(row), []),
                "vector": vector.tolist(),
                **{name: int(getattr(table, name)[row]) for name in numbers},
            }
            for row, vector in zip(rows, vectors, strict=True)
        }
        with self._state:
            self._records |= records

    def lacking(self) -> list[int]:
        with self._state:
            is_lacking = (self._there < 0) & (self._wanted.keys != 0)
            is_lacking[list(self._records)] = False
            return np.flatnonzero(is_lacking).tolist() if self._is_compared else []

    def search(
        self, table: Table, vector: np.ndarray, wanted: Filter, top_k: int, asked: list[tuple[int, float]]
    ) -> list[tuple[int, float]]:
        allowed, tagged = table.visible(wanted), table.tagged(wanted.tags)
        places = table.begins.searchsorted([id for id, _ in asked])
        rows = [
            (int(row), score)
            for row, (id, score) in zip(places, asked, strict=True)
            if row < len(table) and table.begins[row] == id and allowed[row] and (tagged is None or tagged[row])
        ]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    # -- without it

    def ask(self, vector: np.ndarray, wanted: Filter, top_k: int) -> list[tuple[int, float]]:
        return self._call("search", vector.tolist(), wanted, top_k)

    def carry_out(self, wait: bool = True) -> bool:
        while True:
            if not self._busy.acquire(blocking=wait):
                return False  # whoever is about it looks again when it is done
            try:
                self._bring_up_to_date()
            finally:
                self._busy.release()
            if not self._has_work():
                return True

    def _has_work(self) -> bool:
        with self._state:
            return not self._is_compared or bool(self._records) or any(map(len, self._outdated()))

    def _bring_up_to_date(self) -> None:
        if not self._is_compared:
            self._compare()
        with self._state:
            era, (gone, moved), wanted = self._era, self._outdated(), self._wanted
            records, self._records = self._records, {}  # those that cannot be stored lack again, and are embedded anew
        self._do("delete", era, gone, [-1] * len(gone), lambda rows: wanted.ids[rows].tolist())
        for ids in _batches(self._strange):
            self._call("delete", ids)
        self._strange = []
        ends = wanted.ends
        self._do("set_ends", era, moved, ends[moved].tolist(),
                 lambda rows: dict(zip(wanted.ids[rows].tolist(), ends[rows].tolist(), strict=True)))  # fmt: skip
        self._do("put", era, list(records), [one["ends"] for one in records.values()],
                 lambda rows: [records[row] for row in rows])  # fmt: skip

    def _outdated(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that are there and should not be, and those that are there with another end."""
        is_there = self._there >= 0
        gone = is_there & (self._wanted.keys == 0)
        return np.flatnonzero(gone), np.flatnonzero(is_there & ~gone & (self._there != self._wanted.ends))

    def _compare(self) -> None:
        listed = self._call("listed")
        with self._state:
            wanted, there = self._wanted, np.full(len(self._there), -1, np.int64)
            for row, (id, key) in enumerate(zip(wanted.ids.tolist(), wanted.keys.view(np.int64).tolist(), strict=True)):
                if id in listed and listed[id][0] == key != 0:
                    there[row] = listed.pop(id)[1]
            self._there, self._strange, self._is_compared = there, list(listed), True

    def _do(self, verb: str, era: int, rows: Sequence[int], ends: list[int], values: Callable[[Any], Any]) -> None:
        """A call for each batch of rows, `values` of which it gets; behind it they have these ends there."""
        for some, after in zip(_batches(rows), _batches(ends), strict=True):
            self._call(verb, values(some))
            with self._state:
                if self._era == era:
                    self._there[some] = after

    def _call(self, verb: str, *values: Any) -> Any:
        """Raises Failure, in one line, for whatever the client raises; BadInput where `connect` does."""
        with self._state:
            if time.monotonic() < self._again:
                raise Failure(self._failure)
            if self._failure:  # this call tries whether it is back; the others go on without
                self._again = time.monotonic() + PAUSE_SECONDS
        try:
            found = getattr(self._connected(), verb)(*values)
        except EvergreenError:
            raise
        except Exception as error:  # noqa: BLE001 clients raise their own, and gRPC's
            self._failure = f"{self.name} cannot be used: {' '.join(str(error).split())[:200]}"
            self._again = time.monotonic() + PAUSE_SECONDS
            raise Failure(self._failure) from None
        self._failure, self._again = "", 0.0
        return found

    def _connected(self) -> Collection:
        if self.collection is None:
            if not self._connecting.acquire(timeout=CONNECT_SECONDS):
                raise Failure(f"{self.name} is slow to answer: it is being connected to")
            try:
                if self.collection is None:
                    self.collection = self._connect()
            finally:
                self._connecting.release()
        return self.collection


def _tags_of(table: Table, rows: set[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for tag, places in table.rows_of_tag.items():
        for row in rows.intersection(places):
            found.setdefault(row, []).append(tag)
    return found


def _batches(values: Any) -> list[Any]:
    return [values[start : start + BATCH] for start in range(0, len(values), BATCH)]
