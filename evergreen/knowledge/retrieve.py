"""Hybrid retrieval: the entries that answer a question best, by words and by meaning.

Promises: `search` sees every write that was acknowledged before it, of this process and of others, found by words at
once and by meaning as soon as it is embedded (up to 16 new texts in the same call, more of them in the background).
Ranks of BM25 and of the vectors are fused by reciprocal rank fusion (Cormack, Clarke and Buettcher 2009); the same
filter (change number, time, tags) holds for both. When the embedder or the reranker fails, the words' ranks stand, and
`say` hears of it once.
Does not: decide whether what it found should be used (route does).
"""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evergreen.knowledge.embed import open_embedder, open_reranker
from evergreen.knowledge.index import Found, Index, open_vectors, remove_files
from evergreen.knowledge.store import Row, Store
from evergreen.knowledge.words import words
from evergreen.records import EvergreenError

RRF_K = 60
NUM_CANDIDATES = 50  # of each kind that are fused
NUM_RERANKED = 20
EMBED_AT_ONCE = 16  # new texts that a search waits for
EMBED_BATCH = 256  # texts between two writes


@dataclass(frozen=True)
class Hit:
    """A row that was found. `score` orders one search's hits and says little across searches; `coverage`, the share of
    the question's words in the row by their rarity, and `cosine` compare across searches. Ranks count from 1."""

    row: Row
    score: float
    dense_rank: int | None = None
    bm25_rank: int | None = None
    coverage: float = 0.0
    cosine: float | None = None


class Embedder(Protocol):
    """Texts as unit vectors [n, dim]. `query`, where there is one, is for questions, and `knows(text)` tells whether
    vectors of such a text mean anything."""

    def __call__(self, texts: list[str]) -> np.ndarray: ...


class Retriever:
    """Search in one store. Threads may share it: it works under the store's lock, but for what may take long, which is
    the embedding and a database elsewhere; a slow call there holds up the search that makes it and no other."""

    def __init__(
        self,
        store: Store,
        index: Index,
        embedder: Embedder | None = None,
        reranker: Callable[[str, list[str]], np.ndarray] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ):
        self.store, self.index, self.embedder, self.reranker, self.say = store, index, embedder, reranker, say
        self._lock = store.lock  # others read the same rows meanwhile
        self._behind: threading.Thread | None = None
        self._said: set[str] = set()

    # -- keeping up

    def sync(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Take in all news, embed all of it; `progress` hears how many of how many texts are embedded. Raises Failure
        when the embedder fails; what it has embedded by then is kept."""
        self._sync(progress)

    def _sync(self, progress: Callable[[int, int], None] = lambda done, total: None, wait: bool = True) -> None:
        """Not `wait`: what another thread is bringing to a database elsewhere is left to it."""
        done = 0
        while True:
            with self._lock:
                self.index.take_in(self.store)
            if not self.index.carry_out(wait):
                return
            with self._lock:
                lacking = self.index.lacking()
                rows = lacking[:EMBED_BATCH]
                keys, texts = self.index.texts(rows)
            if not rows or self.embedder is None:
                return
            vectors = self.embedder(texts)
            with self._lock:
                self.index.put(rows, keys, vectors)
            if not self.index.carry_out(wait):
                return
            done += len(rows)
            progress(done, done + len(lacking) - len(rows))

    def save(self) -> None:
        """Bring the index to the disk, so that the next process need not make it."""
        with self._lock:
            self.index.take_in(self.store)
            self.index.save(self.store)

    def _keep_up(self) -> None:
        """As `sync`, but many new texts are embedded by a thread of their own."""
        with self._lock:
            has_news = self.index.take_in(self.store)
        if not has_news or not self.index.carry_out(wait=False):
            return
        with self._lock:
            lacking = len(self.index.lacking())
        if not lacking or self.embedder is None:
            return
        if lacking <= EMBED_AT_ONCE:
            self._sync(wait=False)
        elif self._behind is None or not self._behind.is_alive():
            self._behind = threading.Thread(target=self._catch_up, name="embed", daemon=True)
            self._behind.start()

    def _catch_up(self) -> None:
        self._or_words_alone(self.sync)

    # -- searching

    def search(
        self, query: str, top_k: int = 5, n: int | None = None, when: str = "", tags: Sequence[str] = ()
    ) -> list[Hit]:
        """The best `top_k` entries at change `n` (default: now) for a question asked at the UTC time `when` (default:
        now), which have all the `tags`; best first."""
        vector = self._query_vector(query)
        self._or_words_alone(self._keep_up)
        nearest = self._nearest(vector, n, when, tags) if vector is not None else list
        with self._lock:
            self._or_words_alone(partial(self.index.take_in, self.store))  # what came meanwhile
            by_words = self.index.search_words(words(query), n, when, tags, NUM_CANDIDATES)
            hits = fused(by_words, self._or_words_alone(nearest) or [], self.store.rows)
        return self._reranked(query, hits)[:top_k]

    def _nearest(self, vector: np.ndarray, n: int | None, when: str, tags: Sequence[str]) -> Callable[[], list[Found]]:
        """What looks the nearest rows up, under the lock; a database elsewhere has been asked by then."""
        how = (vector, n, when, tags, NUM_CANDIDATES)
        asked = self._or_words_alone(lambda: (self.index.ask(*how),))
        return partial(self.index.search_vector, *how, *asked) if asked else list

    def _or_words_alone(self, call: Callable[[], Any]) -> Any:
        """What the call gives; None, and a word about it, when the embedder or the vectors' database fails."""
        try:
            return call()
        except EvergreenError as error:
            self._say_once(f"entries are found by words alone: {error}")
            return None

    def _query_vector(self, query: str) -> np.ndarray | None:
        if self.embedder is None or not getattr(self.embedder, "knows", lambda text: True)(query):
            return None
        embed = getattr(self.embedder, "query", self.embedder)
        vectors = self._or_words_alone(lambda: embed([query]))
        return None if vectors is None else vectors[0]

    def _reranked(self, query: str, hits: list[Hit]) -> list[Hit]:
        if self.reranker is None or not hits:
            return hits
        first = hits[:NUM_RERANKED]
        try:
            scores = self.reranker(query, [hit.row.entry.content for hit in first])
        except EvergreenError as error:
            self._say_once(f"results are not reranked: {error}")
            return hits
        order = np.argsort(-np.asarray(scores), kind="stable")
        return [replace(first[place], score=float(scores[place])) for place in order] + hits[NUM_RERANKED:]

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)


def fused(by_words: Sequence[Found], by_vector: Sequence[Found], rows: Sequence[Row]) -> list[Hit]:
    """Reciprocal rank fusion: the sum of 1 / (k + rank); best first, earlier rows first among equals."""
    worded = {found.row: (rank, found.coverage) for rank, found in enumerate(by_words, 1)}
    dense = {found.row: (rank, found.score) for rank, found in enumerate(by_vector, 1)}
    scores = {
        row: sum(1 / (RRF_K + ranks[row][0]) for ranks in (worded, dense) if row in ranks) for row in worded | dense
    }
    hits = []
    for row in sorted(scores, key=lambda row: (-scores[row], row)):
        bm25_rank, coverage = worded.get(row, (None, 0.0))
        dense_rank, cosine = dense.get(row, (None, None))
        hits.append(Hit(rows[row], scores[row], dense_rank, bm25_rank, coverage, cosine))
    return hits


def open_retriever(
    folder: Path, store: Store, say: Callable[[str], None] = lambda _: None, anew: bool = False
) -> Retriever:
    """The retriever of a home's knowledge folder, by the environment: EVERGREEN_INDEX ("" or embedded; a Milvus URI or
    .db file; pinecone:NAME), EVERGREEN_EMBEDDER and EVERGREEN_RERANKER (a folder, or a URL with the model behind #;
    EVERGREEN_EMBEDDER_KEY, EVERGREEN_RERANKER_KEY are the endpoints' keys). `anew` forgets the index that is there:
    with `sync` and `save` behind it, that is a reindex. Raises BadInput for what cannot be used, Failure for what does
    not answer."""
    given = os.environ.get
    embedder = open_embedder(given("EVERGREEN_EMBEDDER", ""), given("EVERGREEN_EMBEDDER_KEY", ""))
    reranker = open_reranker(given("EVERGREEN_RERANKER", ""), given("EVERGREEN_RERANKER_KEY", ""))
    if embedder is None:
        say("knowledge is searched by words alone: EVERGREEN_EMBEDDER names a model for meaning")
    if anew:
        remove_files(folder / "index")
    vectors = open_vectors(given("EVERGREEN_INDEX", ""), folder / "index", embedder, anew)
    return Retriever(store, Index(folder / "index", vectors), embedder, reranker, say)
