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

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evergreen.home import disk_failure, write_atomic
from evergreen.knowledge import vectors as vector_files
from evergreen.knowledge import words as word_cutting
from evergreen.knowledge.bm25 import Postings
from evergreen.knowledge.entries import utc_now
from evergreen.knowledge.store import Row, Store
from evergreen.knowledge.table import Filter, Table, key_column, milliseconds, text_of
from evergreen.knowledge.words import words
from evergreen.records import BadInput

FORMAT = "2"  # of words.npz
SAVE_ROWS = 2000  # words.npz is written when more rows than these, and than an eighth of it, are not in it


@dataclass(frozen=True)
class Found:
    """A row's place in `Store.rows`, its score, and, by words, the share of the question that it holds (by idf)."""

    row: int
    score: float
    coverage: float = 0.0


class Vectors(Protocol):
    """Where vectors are kept and searched. What may wait for another machine is `carry_out` and `ask`: they are called
    without a lock, by several threads; the others under the one of who owns the table."""

    def sync(self, table: Table, changed: Sequence[int] | None) -> None:
        """Take in new ends and rows that are gone (`changed` None: compare everything)."""

    def put(self, table: Table, rows: Sequence[int], vectors: np.ndarray) -> None:
        """Store the vectors [n, dim] of rows, with the next `carry_out`."""

    def carry_out(self, wait: bool = True) -> bool:
        """Do elsewhere what `sync` and `put` have noted; False, without `wait`, when another thread is about it."""

    def lacking(self) -> list[int]:
        """The rows without a vector, as of the last `sync` and `carry_out`."""

    def ask(self, vector: np.ndarray, wanted: Filter, top_k: int) -> Any:
        """What is found elsewhere."""

    def search(
        self, table: Table, vector: np.ndarray, wanted: Filter, top_k: int, asked: Any
    ) -> list[tuple[int, float]]:
        """(row, cosine) of the nearest rows that pass the filter, best first. `asked` is what `ask` gave."""


class Embedded:
    """Vectors in this process, from a file in the home."""

    def __init__(self, folder: Path, embedder: str):
        self.file = vector_files.VectorFile(folder, embedder)
        self.slots = np.zeros(0, np.int32)
        self._is_lacking = np.zeros(0, bool)

    def sync(self, table: Table, changed: Sequence[int] | None) -> None:
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
        self._is_lacking = (self.slots < 0) & (table.keys != 0)

    def put(self, table: Table, rows: Sequence[int], vectors: np.ndarray) -> None:
        self.file.put(table.keys[rows].tolist(), vectors)
        self.slots[rows] = self.file.slots(table.keys[rows])
        self._is_lacking[rows] = self.slots[rows] < 0

    def carry_out(self, wait: bool = True) -> bool:
        return True

    def lacking(self) -> list[int]:
        return np.flatnonzero(self._is_lacking).tolist()

    def ask(self, vector: np.ndarray, wanted: Filter, top_k: int) -> None:
        return None

    def search(
        self, table: Table, vector: np.ndarray, wanted: Filter, top_k: int, asked: None = None
    ) -> list[tuple[int, float]]:
        allowed = table.visible(wanted)
        if (tagged := table.tagged(wanted.tags)) is not None:
            allowed = allowed & tagged
        return self.file.search(vector, self.slots, allowed, top_k)


class Index:
    """Words and vectors of one store's rows. Not for two threads at once, but for `carry_out` and `ask`: Retriever sees
    to that."""

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
        """Take in what the store has got since; the rows without a vector, for `put`. For one thread: it waits for a
        database elsewhere."""
        return self.lacking() if self.take_in(store) and self.carry_out() else []

    def take_in(self, store: Store) -> bool:
        """What is new, as far as it lies here; whether `carry_out` and `lacking` may have something to say."""
        n = store.refresh()
        changed = store.changed(self.n) if store.generation == self._generation else None
        self.rows = store.rows
        if changed is None:
            self._reconcile(store)
        else:
            self._append_and_end(store, changed)
        self.n = n
        if self.vectors is None or (changed == [] and not self._num_lacking):
            return False
        self._num_lacking = max(1, self._num_lacking)  # for all that is known, should this fail
        self.vectors.sync(self.table, changed)
        return True

    def carry_out(self, wait: bool = True) -> bool:
        """Bring a database elsewhere up to date; without any lock. False when, without `wait`, another thread is about
        it. Raises Failure."""
        return self.vectors is None or self.vectors.carry_out(wait)

    def lacking(self) -> list[int]:
        """The rows without a vector, for `put`."""
        found = [] if self.vectors is None else self.vectors.lacking()
        self._num_lacking = len(found)
        return found

    def texts(self, rows: Sequence[int]) -> tuple[np.ndarray, list[str]]:
        """(keys, texts) of rows, as `put` and the embedder want them."""
        return self.table.keys[rows], [text_of(self.rows[row]) for row in rows]

    def put(self, rows: Sequence[int], keys: np.ndarray, vectors: np.ndarray) -> None:
        """Store the vectors [n, dim] of rows, but not of those whose text (known by its key) has changed since. A
        database elsewhere has them with the next `carry_out`."""
        rows = np.asarray(rows)
        is_same = np.zeros(len(rows), bool)
        is_there = rows < len(self.table)
        is_same[is_there] = self.table.keys[rows[is_there]] == keys[is_there]
        if self.vectors is not None and is_same.any():
            self.vectors.put(self.table, rows[is_same], np.asarray(vectors, np.float32)[is_same])
            self._num_lacking -= int(is_same.sum())

    def _append_and_end(self, store: Store, changed: Sequence[int]) -> None:
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
        self, vector: np.ndarray, n: int | None = None, when: str = "", tags: Sequence[str] = (), top_k: int = 5,
        asked: Any = None,
    ) -> list[Found]:  # fmt: skip
        """The rows whose vectors are nearest to `vector` [dim], unit length, by cosine; none without vectors. `asked`
        is what `ask` gave for the same, where a lock is held that must not wait for a database elsewhere."""
        if self.vectors is None:
            return []
        wanted = self._filter(n, when, tags)
        asked = self.vectors.ask(vector, wanted, top_k) if asked is None else asked
        found = self.vectors.search(self.table, vector, wanted, top_k, asked)
        return [Found(row, score) for row, score in found]

    def ask(
        self, vector: np.ndarray, n: int | None = None, when: str = "", tags: Sequence[str] = (), top_k: int = 5
    ) -> Any:
        """What a database elsewhere finds, for `search_vector`; without any lock. None where there is none. Raises
        Failure."""
        return None if self.vectors is None else self.vectors.ask(vector, self._filter(n, when, tags), top_k)

    def _filter(self, n: int | None, when: str, tags: Sequence[str]) -> Filter:
        return Filter(self.n if n is None else n, milliseconds(when or utc_now(), 0), tuple(tags))


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
