"""What filters need of every row of a store, as columns: when it holds, its tags, a digest of its text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from evergreen.knowledge.store import OPEN, Row


@dataclass(frozen=True)
class Filter:
    """What may be found: visible at change `n`, valid at `when` (milliseconds since 1970), with every one of `tags`."""

    n: int
    when: int
    tags: tuple[str, ...] = ()


class Table:
    """What filters need of every row, as columns, in the order of `Store.rows`."""

    COLUMNS = ("keys", "begins", "ends", "valid_from", "valid_until")

    def __init__(self) -> None:
        self.keys = np.zeros(0, np.uint64)  # digests of the rows' texts; 0: redacted
        self.begins, self.ends = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.valid_from, self.valid_until = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.rows_of_tag: dict[str, list[int]] = {}
        self._has_times = False
        self._kept: tuple | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def append(self, rows: Sequence[Row], keys: np.ndarray | None = None) -> None:
        """`keys` where they are known."""
        self._kept = None
        first = len(self)
        entries = [row.entry for row in rows]
        columns = {
            "keys": key_column(rows) if keys is None else keys,
            "begins": np.array([row.begins for row in rows], np.int64),
            "ends": np.array([row.ends for row in rows], np.int64),
            "valid_from": np.array([milliseconds(entry.valid_from, 0) for entry in entries], np.int64),
            "valid_until": np.array([milliseconds(entry.valid_until, OPEN) for entry in entries], np.int64),
        }
        for name in self.COLUMNS:
            setattr(self, name, np.concatenate([getattr(self, name), columns[name]]))
        self._has_times = self._has_times or any(entry.valid_from or entry.valid_until for entry in entries)
        for place, entry in enumerate(entries, first):
            for tag in entry.tags:
                self.rows_of_tag.setdefault(tag, []).append(place)

    def end(self, place: int, ends: int) -> None:
        self.ends[place], self._kept = ends, None

    def forget(self, places: Sequence[int]) -> None:
        """Redacted rows are never visible."""
        self.keys[places], self._kept = 0, None
        if len(places):
            left = {tag: [row for row in rows if self.keys[row]] for tag, rows in self.rows_of_tag.items()}
            self.rows_of_tag = {tag: rows for tag, rows in left.items() if rows}

    def visible(self, wanted: Filter) -> np.ndarray:
        """[rows] bool, whatever their tags; not to be written to. The last is kept: most questions are of now."""
        seen = (wanted.n, wanted.when if self._has_times else 0)
        if self._kept is None or self._kept[0] != seen:
            found = (self.begins <= wanted.n) & (self.ends > wanted.n) & (self.keys != 0)
            if self._has_times:
                found &= (self.valid_from <= wanted.when) & (self.valid_until > wanted.when)
            self._kept = (seen, found)
        return self._kept[1]

    def tagged(self, tags: Sequence[str]) -> np.ndarray | None:
        """[rows] bool: those with every one of the tags; None where none is asked for."""
        if not tags:
            return None
        found = np.ones(len(self), bool)
        for tag in tags:
            has = np.zeros(len(self), bool)
            has[self.rows_of_tag.get(tag, [])] = True
            found &= has
        return found


def text_of(row: Row) -> str:
    """What of a row is searched; empty when it was redacted."""
    entry = row.entry
    return f"{entry.title}\n{entry.content}" if entry.title else entry.content


def key_column(rows: Sequence[Row]) -> np.ndarray:
    """[rows] uint64: the first 64 bits of the texts' BLAKE2b; 0 for redacted rows."""
    return np.array([0 if row.is_redacted else key_of(text_of(row)) for row in rows], np.uint64)


def key_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def milliseconds(moment: str, default: int) -> int:
    """Of a UTC time in the store's spelling, since 1970; `default` for none."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else default
