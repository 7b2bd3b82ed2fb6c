"""The search index of a store: its rows' words and vectors, and when each row may be found.

    HOME/knowledge/index/words.npz                 postings, so that opening does not cut the texts anew
    HOME/knowledge/index/vectors-<embedder>.bin    see vectors.py

Promises: `sync` takes in what the store has got since, at the cost of the news; a search filters by change number, time
and tags before it counts, so results of the past are those that an index of only that past would give. What was
redacted leaves memory and files in the `sync` that hears of it. Both files can be deleted at any time: they are made
again from the log.
Does not: rank words against vectors (retrieve does), or make vectors (it is handed what does).

Where vectors are searched is the one thing that varies. `Vectors` is that seam: Embedded here, remote.py.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evergreen.home import disk_failure, write_atomic
from evergreen.knowledge import vectors as vector_files
from evergreen.knowledge import words as word_cutting
from evergreen.knowledge.bm25 import Postings
from evergreen.knowledge.store import OPEN, Row, Store, utc_now
from evergreen.knowledge.words import words
from evergreen.records import BadInput

FORMAT = "2"  # of words.npz
SAVE_ROWS = 2000  # words.npz is written when more rows than these, and than an eighth of it, are not in it


@dataclass(frozen=True)
class Filter:
    """What may be found: visible at change `n`, valid at `when` (milliseconds since 1970), with every one of `tags`."""

    n: int
    when: int
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A row's place in `Store.rows`, its score, and, by words, the share of the question that it holds (by idf)."""

    row: int
    score: float
    coverage: float = 0.0


class Vectors(Protocol):
    """Where vectors are kept and searched."""

    def sync(self, table: "Table", changed: Sequence[int] | None) -> list[int]:
        """Take in new ends and rows that are gone (`changed` None: compare everything); the rows without a vector."""

    def put(self, table: "Table", rows: Sequence[int], vectors: np.ndarray) -> None:
        """Store the vectors [n, dim] of rows."""

    def search(self, table: "Table", vector: np.ndarray, wanted: Filter, top_k: int) -> list[tuple[int, float]]:
        """(row, cosine) of the nearest rows that pass the filter, best first."""


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


class Embedded:
    """Vectors in this process, from a file in the home."""

    def __init__(self, folder: Path, embedder: str):
        self.file = vector_files.VectorFile(folder, embedder)
        self.slots = np.zeros(0, np.int32)

    def sync(self, table: Table, changed: Sequence[int] | None) -> list[int]:
        if changed is None and len(self.slots):
            self.file.forget()  # what was redacted and written again has a new slot
            self.slots = np.zeros(0, np.int32)
        gone = np.flatnonzero((self.slots >= 0) & (table.keys[: len(self.slots)] == 0))
        if len(gone):
            self.file.keep(set(table.keys.tolist()))
            self.slots[gone] = -1
        self.file.refresh()
        self.slots = np.concatenate([self.slots, self.file.slots(table.keys[len(self.slots) :])])
        lacking = np.flatnonzero((self.slots < 0) & (table.keys != 0))
        if len(lacking):
            self.slots[lacking] = self.file.slots(table.keys[lacking])
        return np.flatnonzero((self.slots < 0) & (table.keys != 0)).tolist()

    def put(self, table: Table, rows: Sequence[int], vectors: np.ndarray) -> None:
        self.file.put(table.keys[rows].tolist(), vectors)
        self.slots[rows] = self.file.slots(table.keys[rows])

    def search(self, table: Table, vector: np.ndarray, wanted: Filter, top_k: int) -> list[tuple[int, float]]:
        allowed = table.visible(wanted)
        if (tagged := table.tagged(wanted.tags)) is not None:
            allowed = allowed & tagged
        return self.file.search(vector, self.slots, allowed, top_k)


class Index:
    """Words and vectors of one store's rows. Not for two threads at once: Retriever sees to that."""

    def __init__(self, folder: Path, vectors: Vectors | None = None):
        """folder: of words.npz; vectors: None searches by words alone."""
        self.folder, self.vectors = folder, vectors
        self.n = 0  # the last change that was taken in
        self.rows: list[Row] = []  # the store's own
        self.table, self.postings = Table(), Postings()
        self._generation: int | None = None  # of the store's rows; None: nothing was taken in
        self._num_saved = 0  # rows in words.npz
        self._num_lacking = 0

    # -- taking in what is new

    def sync(self, store: Store) -> list[int]:
        """Take in what the store has got since; the rows without a vector, for `put`."""
        n = store.refresh()
        changed = store.changed(self.n) if store.generation == self._generation else None
        self.rows = store.rows
        if changed is None:
            self._reconcile(store)
        else:
            self._take_in(store, changed)
        self.n = n
        if self.vectors is None or (changed == [] and not self._num_lacking):
            return []
        self._num_lacking = 1  # for all that is known, should this fail
        lacking = self.vectors.sync(self.table, changed)
        self._num_lacking = len(lacking)
        return lacking

    def texts(self, rows: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """(keys, texts) of rows, as `put` and the embedder want them."""
        return self.table.keys[rows], [text_of(self.rows[row]) for row in rows]

    def put(self, rows: Sequence[int], keys: np.ndarray, vectors: np.ndarray) -> None:
        """Store the vectors [n, dim] of rows, but not of those whose text (known by its key) has changed since."""
        rows = np.asarray(rows)
        is_same = np.zeros(len(rows), bool)
        is_there = rows < len(self.table)
        is_same[is_there] = self.table.keys[rows[is_there]] == keys[is_there]
        if self.vectors is not None and is_same.any():
            self.vectors.put(self.table, rows[is_same], np.asarray(vectors, np.float32)[is_same])
            self._num_lacking -= int(is_same.sum())

    def _take_in(self, store: Store, changed: Sequence[int]) -> None:
        """New rows, new ends, redacted rows."""
        first = len(self.table)
        old = [place for place in changed if place < first]
        for place in old:
            self.table.end(place, store.rows[place].ends)
        gone = [place for place in old if store.rows[place].is_redacted and self.table.keys[place]]
        self.table.forget(gone)
        self.postings.remove(gone)
        self._append(store.rows[first:])
        if gone:
            self._save_and_sweep(store)
        elif len(self.table) - self._num_saved > max(SAVE_ROWS, self._num_saved // 8):
            self.save(store)

    def _append(self, new: Sequence[Row]) -> None:
        if new:
            self.table.append(new)
            self.postings.add(words(text_of(row)) for row in new)

    def _reconcile(self, store: Store) -> None:
        """The rows may be others than before: what memory or file hold of them is kept where the texts are the same."""
        keys, postings, generation = self._known()
        rows = store.rows
        if generation is not None and generation == store.log.generation:
            now = keys[: len(rows)].copy()
            now[[place for place, row in enumerate(rows[: len(now)]) if row.is_redacted]] = 0
        else:
            now = key_column(rows[: len(keys)])
        if len(now) < len(keys) or ((now != keys) & (now != 0)).any():
            keys, now, postings = now[:0], now[:0], Postings()
        gone = (now != keys).nonzero()[0]
        postings.remove(gone)
        self.table, self.postings = Table(), postings
        self.table.append(rows[: len(now)], now)
        self._append(rows[len(now) :])
        self._generation = store.generation
        if len(gone) or generation != store.log.generation or len(rows) - len(now) > SAVE_ROWS:
            self._save_and_sweep(store)

    def _known(self) -> tuple[np.ndarray, Postings, int | None]:
        """(keys, postings, the log's generation that they are of): from memory, else from the file, else empty."""
        if self._generation is not None:
            return self.table.keys, self.postings, None
        try:
            with np.load(self.folder / "words.npz") as arrays:
                if arrays["format"].tolist() == [FORMAT, word_cutting.version()]:
                    self._num_saved = len(arrays["keys"])
                    return arrays["keys"], Postings.of_arrays(arrays), int(arrays["generation"])
        except (EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
            pass
        return Table().keys, Postings(), None

    # -- the file

    def save(self, store: Store) -> None:
        """Write the postings; a crash leaves the old file or the new one. Raises Failure when the disk is full."""
        try:
            with vector_files.locked(self.folder):
                store.refresh()
                if store.generation == self._generation:  # else they may hold what another process has just redacted
                    self._write(store)
        except OSError as error:
            raise disk_failure(error, "writing the knowledge index") from None

    def _write(self, store: Store) -> None:
        file = io.BytesIO()
        np.savez(file, format=np.array([FORMAT, word_cutting.version()]), generation=np.array(store.log.generation),
                 keys=self.table.keys, **self.postings.arrays())  # fmt: skip
        write_atomic(self.folder / "words.npz", file.getbuffer())
        self._num_saved = len(self.table)

    def _save_and_sweep(self, store: Store) -> None:
        """What was redacted leaves the files. Rows that others have added since keep their vectors."""

        def kept() -> set[int]:
            store.refresh()
            return set(self.table.keys.tolist()) | set(key_column(store.rows[len(self.table) :]).tolist())

        self.save(store)
        vector_files.sweep(self.folder, kept)

    # -- searching

    def search_words(
        self, tokens: Sequence[str], n: int | None = None, when: str = "", tags: Sequence[str] = (), top_k: int = 5
    ) -> list[Found]:
        """The rows that hold the words best (BM25), best first."""
        visible = self.table.visible(self._filter(n, when, tags))
        return [Found(*found) for found in self.postings.search(tokens, visible, self.table.tagged(tags), top_k)]

    def search_vector(
        self, vector: np.ndarray, n: int | None = None, when: str = "", tags: Sequence[str] = (), top_k: int = 5
    ) -> list[Found]:
        """The rows whose vectors are nearest to `vector` [dim], unit length, by cosine; none without vectors."""
        if self.vectors is None:
            return []
        found = self.vectors.search(self.table, vector, self._filter(n, when, tags), top_k)
        return [Found(row, score) for row, score in found]

    def _filter(self, n: int | None, when: str, tags: Sequence[str]) -> Filter:
        return Filter(self.n if n is None else n, milliseconds(when or utc_now(), 0), tuple(tags))


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


def remove_files(folder: Path) -> None:
    """Delete what can be made again from the log."""
    for path in [*folder.glob("words.npz"), *folder.glob("vectors-*.bin")]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_failure(error, "removing the knowledge index") from None


def open_vectors(name: str, folder: Path, embedder: Any, anew: bool = False) -> Vectors | None:
    """What EVERGREEN_INDEX names; `anew` forgets what is there. Raises BadInput for a name that says nothing, Failure
    for what does not answer."""
    if name in ("", "embedded"):
        return Embedded(folder, embedder.digest) if embedder else None
    if embedder is None:
        raise BadInput(f"EVERGREEN_INDEX={name} keeps vectors: set EVERGREEN_EMBEDDER to what makes them")
    if name.startswith("pinecone:"):
        from evergreen.knowledge.pinecone import open_pinecone

        return open_pinecone(name.removeprefix("pinecone:"), embedder.digest, embedder.dim, anew)
    if name.startswith(("http://", "https://", "tcp://")) or name.partition("#")[0].endswith(".db"):
        from evergreen.knowledge.milvus import open_milvus

        return open_milvus(name, embedder.digest, embedder.dim, anew)
    raise BadInput(f"EVERGREEN_INDEX={name}: it is embedded, a Milvus URI or .db file, or pinecone:NAME")
