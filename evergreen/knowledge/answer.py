"""A question's way through the knowledge base: looked up, decided on, framed; its answer checked, repeated, withheld.

    looking = knowledge.look(question, ask)                 # at once; the search runs in a thread of its own
    prepared = knowledge.prepare(looking, count, room)      # waits for `retrieval_timeout` at most; `text` is the turn
    finished = knowledge.finish(prepared, answer, again)    # the ladder; `again(second)` answers a second frame, once

Promises: an answer that stands on entries is given out only when every check has passed, else an abstention in the
question's language; what was withdrawn while the answer was being made counts as withdrawn. A search that is late or
fails costs the answer its sources, never the answer, and it is said. What was seen is one number, `n`, from which the
same entries can be found again.
Does not: generate (callables do), or know of HTTP.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evergreen.home import canonical_json
from evergreen.knowledge import cite, prompt, route
from evergreen.knowledge.store import Store, end_of, is_visible, utc_now
from evergreen.records import BadInput, EvergreenError, Failure, Sampling
from evergreen.settings import KnowledgeSettings

if TYPE_CHECKING:
    from evergreen.knowledge.cache import Cache, Key, Value
    from evergreen.knowledge.retrieve import Hit, Retriever

Mode = Literal["auto", "on", "off"]
NUM_SEARCHES = 8  # at a time; those that hang make the next ones late, and late is without
WARMING = "最新的知识是什么?"
OPEN_SECONDS = 30.0  # the first search opens the index


@dataclass(frozen=True)
class Ask:
    """What a request wants of the knowledge base, and what its release answers from ("live" or a snapshot)."""

    mode: Mode = "auto"
    as_of: str = ""
    tags: tuple[str, ...] = ()
    knowledge: str = "live"


@dataclass(frozen=True)
class Found:
    """What a search saw: the last change, the time that validity goes by, the cache's epoch before it, the hits, best
    first."""

    n: int
    when: str
    epoch: int = 0
    hits: tuple["Hit", ...] = ()


@dataclass(frozen=True)
class Looking:
    """A search under way."""

    question: str
    ask: Ask
    started: float
    future: "Future[Found]"


@dataclass(frozen=True)
class Prepared:
    """A question with what was decided. `text` is the user's turn as the model shall read it; `sources` are numbered as
    in the text, and empty when nothing was injected."""

    question: str
    ask: Ask
    n: int | None  # None: the search did not come back
    when: str
    decision: Literal["inject", "skip", "late"]
    reasons: tuple[str, ...]
    text: str
    language: str = "en"
    sources: tuple[prompt.Source, ...] = ()
    hits: tuple["Hit", ...] = ()
    num_left_out: int = 0
    seconds: float = 0.0
    epoch: int = 0
    is_same_prompt: bool = False  # of a second try: only other sampling can change the answer

    @property
    def is_injected(self) -> bool:
        return self.decision == "inject"


@dataclass(frozen=True)
class Finished:
    """The answer that may be shown. `outcome`: checked, second (of two tries), abstained, or unchecked when nothing was
    injected. `problems` are those of the first try."""

    text: str
    outcome: Literal["checked", "second", "abstained", "unchecked"]
    prepared: Prepared
    cited: tuple[prompt.Source, ...] = ()
    problems: tuple[Any, ...] = ()
    is_abstention: bool = False


@dataclass
class Knowledge:
    """One home's knowledge, as answers use it. From any thread."""

    store: Store
    open_retriever: Callable[[Store], "Retriever"]
    cache: "Cache | None" = None
    rules: route.Rules | None = None
    settings: KnowledgeSettings = field(default_factory=KnowledgeSettings)
    say: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self._opening, self._retriever = threading.Lock(), None
        self._pool = ThreadPoolExecutor(NUM_SEARCHES, thread_name_prefix="knowledge")
        self._is_late = self._is_used = False

    # -- before the answer

    def has_entries(self) -> bool:
        """Whether anything was ever added. Costs next to nothing."""
        if not self._is_used:
            with self.store.lock:
                self._is_used = self.store.refresh() > 0
        return self._is_used

    def look(self, question: str, ask: Ask) -> Looking:
        """Begin to search. Returns at once."""
        return Looking(question, ask, time.perf_counter(), self._pool.submit(self._search, question, ask))

    def search(self, question: str, ask: Ask, top_k: int = 0) -> Found:
        """Search and wait. Raises BadInput for a moment that there is not."""
        return self._search(question, ask, top_k)

    def prepare(self, looking: Looking, count: Callable[[str], int], max_tokens: int = 0) -> Prepared:
        """The turn with its sources, or without them. `count` measures tokens, of which the block may have `max_tokens`
        (0: as set). Raises BadInput for an `as_of` that is no date."""
        question, ask = looking.question, looking.ask
        found, trouble = self._wait(looking)
        understood = route.understand(question, found.when if found else utc_now(), self.rules)
        if found is None:
            return self._without(looking, "late", (trouble,), understood.language)
        decision = route.decide(understood, list(found.hits), ask.mode, self.settings.knowledge_cutoff, self.rules)
        if not decision.inject:
            return self._without(looking, "skip", tuple(decision.reasons), understood.language, found)
        limit = min(max_tokens or self.settings.knowledge_tokens, self.settings.knowledge_tokens)
        framed = prompt.frame(question, decision.hits, understood.language, limit, count)
        if not framed.sources:
            return self._without(looking, "skip", ("no entry has room in the prompt",), understood.language, found)
        return Prepared(
            question,
            ask,
            found.n,
            found.when,
            "inject",
            tuple(decision.reasons),
            framed.text,
            understood.language,
            tuple(framed.sources),
            tuple(decision.hits),
            framed.num_left_out,
            time.perf_counter() - looking.started,
            found.epoch,
        )

    # -- the cache

    def key(
        self,
        prepared: Prepared,
        history: Sequence[Any],
        release: str,
        shape: Any,
        sampling: Sampling,
        request: Any = None,
    ) -> "Key | None":
        """What decides the answer; None where none is remembered. `shape` is what else of the request does, as JSON."""
        if self.cache is None or not self.settings.cache_seconds or prepared.n is None:
            return None
        from evergreen.knowledge.cache import Key

        frame = canonical_json([prompt.VERSION, cite.VERSION, prepared.language, prepared.is_injected, shape])
        return Key.of(prepared.question, epoch=prepared.epoch, sources=prepared.sources, history=history,
                      release=release, prompt=frame, sampling=sampling, n=prepared.n, request=request)  # fmt: skip

    def cached(self, key: "Key | None", is_ahead: bool = False) -> "Value | None":
        return None if key is None else self.cache.get(key, is_ahead)

    def keep(self, key: "Key", text: str, citations: Sequence[dict], more: dict[str, Any]) -> bool:
        """Remember an answer that was checked, or that stands on nothing."""
        from evergreen.knowledge.cache import Value

        value = Value(text, list(citations), more, is_checked=True)
        return self.cache.put(key, value, (), self.settings.cache_seconds)

    def due(self) -> "list[Key]":
        """Hot questions to be answered ahead of being asked."""
        if self.cache is None or not self.settings.cache_seconds:
            return []
        with self.store.lock:
            n = self.store.refresh()
        return self.cache.due(n=n)

    # -- after the answer

    def judge(self, prepared: Prepared, answer: str) -> cite.Citations:
        """The citation ladder over one answer, with what holds at this moment."""
        with self.store.lock:
            n, when = self.moment(prepared.ask)
        return cite.check(
            answer,
            list(prepared.sources),
            lambda id, version: self._holds(id, version, n, when),
            question=prepared.question,
        )

    def second(self, prepared: Prepared, judged: cite.Citations, count: Callable[[str], int]) -> Prepared:
        """The same question over fewer sources: those that the failed answer named, or the best one."""
        named = {source.id for source in prepared.sources if source.number in judged.cited}
        current = [hit for hit in prepared.hits if self._is_current(hit, prepared.ask)]
        kept = [hit for hit in current if hit.row.entry.id in named] or current[:1]
        framed = prompt.frame(prepared.question, kept, prepared.language, self.settings.knowledge_tokens, count)
        return replace(
            prepared,
            text=framed.text,
            sources=tuple(framed.sources),
            hits=tuple(kept),
            is_same_prompt=framed.text == prepared.text,
        )

    def passed(
        self, prepared: Prepared, judged: cite.Citations, answer: str, first: "Finished | None" = None
    ) -> Finished:
        """An answer whose check is good."""
        cited = tuple(source for source in prepared.sources if source.number in judged.cited)
        problems = first.problems if first else ()
        return Finished(answer, "second" if first else "checked", prepared, cited, problems, judged.is_abstention)

    def abstain(self, prepared: Prepared, problems: Sequence[Any]) -> Finished:
        """What is said instead of an answer that could not be shown to be right."""
        text = prompt.ABSTENTION[prepared.language]
        return Finished(text, "abstained", prepared, (), tuple(problems), is_abstention=True)

    def finish(
        self, prepared: Prepared, answer: str, again: Callable[[Prepared], str], count: Callable[[str], int]
    ) -> Finished:
        """The answer that may be shown; `again` generates from a second frame."""
        if not prepared.is_injected:
            return Finished(answer, "unchecked", prepared)
        judged = self.judge(prepared, answer)
        if judged.ok:
            return self.passed(prepared, judged, answer)
        second = self.second(prepared, judged, count)
        return self.after(prepared, judged, second, again(second))

    def after(self, prepared: Prepared, judged: cite.Citations, second: Prepared, answer: str) -> Finished:
        """The second try's answer when it is good, else the abstention."""
        failed = self.abstain(prepared, judged.problems)
        again = self.judge(second, answer)
        return self.passed(second, again, answer, failed) if again.ok else failed

    # -- moments

    def moment(self, ask: Ask) -> tuple[int, str]:
        """(the last change that the request may see, the time that validity goes by). Raises BadInput for what is no
        date.

        A release that is pinned to a snapshot bounds what a date can bring back."""
        with self.store.lock:
            try:
                n = self.store.at(ask.knowledge)
            except BadInput as error:
                raise Failure(f"the release wants a snapshot that is gone: {error}") from None
            if not ask.as_of:
                return n, utc_now()
            return min(n, self.store.at(ask.as_of)), end_of(ask.as_of)

    def write(self, change: Callable[[Store], Any], ids: Callable[[Any], Sequence[str]] = lambda _: ()) -> Any:
        """Change the store; when this returns, the next search sees it, and caches have forgotten the answers that
        stood on `ids(result)`."""
        with self.store.lock:
            result = change(self.store)
            if self.cache is not None and (gone := list(ids(result))):
                self.cache.purge(gone)
        if self._retriever is None:
            self._pool.submit(self.warm)
        return result

    def forget(self) -> None:
        """What was redacted leaves the index's files before this returns, also those of an index that is being opened.
        Raises Failure when the disk is full."""
        self.warm()
        self._retriever.save()

    def reading(self, read: Callable[[Store], Any]) -> Any:
        """What the store says, while nobody else changes it."""
        with self.store.lock:
            return read(self.store)

    def close(self) -> None:
        """Keep the index, so that the next start does not make it again."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._retriever is not None:
            try:
                self._retriever.save()
            except (EvergreenError, OSError) as error:
                self.say(f"the knowledge index is not kept, and is made again at the next start: {error}")

    # -- inside

    def warm(self) -> None:
        """Open the index, so that the first question does not wait for it."""
        with self._opening:
            if self._retriever is None:
                route.understand(WARMING, rules=self.rules)  # reads a dictionary
                retriever = self.open_retriever(self.store)
                retriever.search(WARMING, 1)
                self._find_alike(retriever)
                self._retriever = retriever

    def _find_alike(self, retriever: "Retriever") -> None:
        """Questions that mean the same share an answer, where that is asked for."""
        if not self.settings.semantic_cache or self.cache is None:
            return
        if retriever.embedder is None:
            self.say("semantic_cache wants an embedder, and none is set: only equal questions share an answer")
        else:
            self.cache.find_alike(retriever.embedder)

    def _search(self, question: str, ask: Ask, top_k: int = 0) -> Found:
        epoch = self.cache.epoch() if self.cache is not None else 0
        n, when = self.moment(ask)
        if n == 0:
            return Found(n, when, epoch)
        self.warm()
        hits = self._retriever.search(question, top_k or self.settings.knowledge_top_k, n, when, ask.tags)
        return Found(n, when, epoch, tuple(hits))

    def _wait(self, looking: Looking) -> tuple[Found | None, str]:
        """The search's result, or None and why there is none."""
        limit = self.settings.retrieval_timeout if self._retriever is not None else OPEN_SECONDS
        left = looking.started + limit - time.perf_counter()
        try:
            found = looking.future.result(max(0.0, left))
        except TookTooLong:
            looking.future.cancel()
            return None, f"the search took longer than {limit:g} s: answered without it"
        except BadInput:
            raise
        except Exception as error:
            return None, self._complain(error)
        self._is_late = False
        return found, ""

    def _complain(self, error: Exception) -> str:
        reason = str(error) if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"
        if not self._is_late:
            self.say(f"knowledge cannot be searched, answers are given without it: {reason}")
        self._is_late = True
        return f"the search failed: answered without it ({reason})"

    def _without(
        self, looking: Looking, decision: Any, reasons: tuple[str, ...], language: str, found: Found | None = None
    ) -> Prepared:
        n, when, epoch = (found.n, found.when, found.epoch) if found else (None, "", 0)
        seconds = time.perf_counter() - looking.started
        return Prepared(looking.question, looking.ask, n, when, decision, reasons, looking.question, language,
                        seconds=seconds, epoch=epoch)  # fmt: skip

    def _is_current(self, hit: "Hit", ask: Ask) -> bool:
        n, when = self.moment(ask)
        return self._holds(hit.row.entry.id, hit.row.entry.version, n, when)

    def _holds(self, id: str, version: str, n: int, when: str) -> bool:
        """Whether this very version of the entry is what a question would find now."""
        with self.store.lock:
            try:
                row = self.store.get(id, n)
            except BadInput:
                return False
        return row.entry.version == version and is_visible(row, n, when)


def open_knowledge(home: Path, settings: KnowledgeSettings, say: Callable[[str], None] = lambda _: None) -> Knowledge:
    """The knowledge of a home, whose HOME/routing.yaml changes the rules. The index is opened by the first question, or
    by `warm`. Raises BadInput for a damaged rule, a cache or an index that cannot be had."""
    from evergreen.knowledge.cache import open_cache
    from evergreen.knowledge.retrieve import open_retriever

    folder, rules = home / "knowledge", home / "routing.yaml"
    return Knowledge(
        Store(folder, say),
        lambda store: open_retriever(folder, store, say),
        open_cache(folder, say),
        route.load_rules(rules) if rules.is_file() else None,
        settings,
        say,
    )
