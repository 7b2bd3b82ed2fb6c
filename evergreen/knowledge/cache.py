"""Answers that were given before, for questions that would get the same one again.

    epoch = cache.epoch()                         # before the knowledge is read
    key = Key.of(question, epoch=epoch, sources=prepared.sources, history=..., release=..., prompt=..., sampling=...)
    value = cache.get(key)                        # or make the answer, check it, and
    cache.put(key, Value(text, citations, is_checked=True), ids, seconds)

**What a key is made from** is what the prompt is made from: the question as `normal` spells it, the turns before it,
the versions of the entries in the prompt, the release, the prompt's version and the sampling. So an answer stays
through changes of the knowledge that do not concern it. An addition that would make a better answer is found by the
retrieval, which every question passes through, and is another key; so are an update, a withdrawal, another snapshot.

**What a purge is**: `purge(ids)` numbers itself in a file which every process looks at before it gives a value out (one
stat), and a value that stands on an entry purged after the value's epoch is no value, in whatever level it still lies,
whoever writes it how late. See `purges`.

Promises: when `purge` returns, no `get` that begins later in any process on this home gives out a value that cites one
of the entries or was made from it, and the values are off the home's disk and, if it can be reached, out of Redis. A
value expires at the time that `put` set; no hit prolongs it. Only greedy or seeded answers that passed their check are
kept. No trouble with Redis or the disk costs a request its answer. A purge on a full disk forgets every answer; `purge`
raises Failure, and can be repeated, when not even that can be done.
Does not: read the knowledge, generate, or wait for another process that is making the same answer.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from evergreen.home import digest_of, disk_failure
from evergreen.knowledge.levels import Lines, Memory, Redis, Value
from evergreen.knowledge.purges import Purges
from evergreen.records import BadInput, Sampling

__all__ = ["Cache", "Key", "Value", "normal", "open_cache"]

MEMORY_BYTES = 64 << 20
LINES_BYTES = 32 << 20
VALUE_BYTES = 1 << 20  # a longer answer is not kept
HALF_LIFE_SECONDS = 3600.0  # in which a question's count falls to half when nobody asks it
HOT = 3.0  # the count from which a question is answered ahead
MAX_COUNTED = 1024
NEVER = -1
AHEAD = 0.1  # of a value's life, before its end, and
AHEAD_SECONDS = 60.0  # at most: when a hot question is due

CODE = re.compile(r"[\n`{}<>=;\\]")
CAPITALISED = re.compile(r"\b[A-Z][a-z]+\b")
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def normal(question: str) -> str:
    """One spelling for questions that differ in spaces, full-width characters, a capital first letter of a word or the
    question mark at the end. Nothing else is equal: US is not us, 5! is not 5, x² is not x2 (as in Unicode's NFKC), and
    what has several lines or code in it stays as it is."""
    question = question.strip()
    if CODE.search(question):
        return question
    text = " ".join(question.translate(HALF_WIDTH).split()).rstrip("? ")
    return CAPITALISED.sub(lambda word: word[0].lower(), text) or question


@dataclass(frozen=True)
class Key:
    """What decides an answer. `ask` is the question with its history, whatever the knowledge and the release are; `n`,
    the knowledge change that was seen, and `request`, from which the caller can ask again, are no part of the key."""

    question: str
    digest: str
    rest: str  # the digest of all but the question
    ask: str
    epoch: int
    is_cacheable: bool  # greedy or seeded; a cached answer has no logprobs
    ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = field(default=(), compare=False, repr=False)  # what each of them says
    n: int | None = field(default=None, compare=False)
    request: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, question: str, *, epoch: int, sources: Iterable[Any] = (), history: Any = (), release: str = "",
           prompt: str = "", sampling: Sampling | None = None, n: int | None = None,
           request: Any = None) -> "Key":  # fmt: skip
        """`epoch`: what `Cache.epoch` said before the knowledge was read. `sources`: those in the prompt, in its order,
        with their `id`, `version`, `title` and `content`. `history`: the turns before the question and the system
        prompt, as JSON or dataclasses. `prompt`: the version of the frame, and whatever else shapes the answer."""
        sources, sampling = list(sources), sampling or Sampling()
        turns = [asdict(turn) if is_dataclass(turn) else turn for turn in history]
        ask = {"question": normal(question), "history": turns, "sampling": _deciding(sampling)}
        rest = {"history": turns, "sampling": ask["sampling"], "release": release, "prompt": prompt,
                "sources": [(one.id, one.version, one.title, one.content) for one in sources]}  # fmt: skip
        return cls(
            question,
            digest_of({"question": ask["question"], "rest": rest})[:32],
            digest_of(rest)[:32],
            digest_of(ask)[:32],
            epoch,
            epoch != NEVER and (sampling.temperature == 0 or sampling.seed is not None) and sampling.logprobs is None,
            tuple(source.id for source in sources),
            tuple(f"{source.title}\n{source.content}" for source in sources),
            n,
            request,
        )


def _deciding(sampling: Sampling) -> dict[str, Any]:
    """The settings that can change the answer: a greedy one does not look at those of the draw."""
    drawn = ("temperature", "top_p", "top_k", "min_p", "seed")
    return {name: value for name, value in asdict(sampling).items() if sampling.temperature or name not in drawn}


class Cache:
    """One process's way to the cache of a home; safe in several threads. `counts` says how often what happened."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None, url: str = "", is_on: bool = True,
                 clock: Callable[[], float] = time.time):  # fmt: skip
        self.folder, self.say, self.clock, self.is_on = folder, say, clock, is_on
        self.purges = Purges(folder)
        self.lines = Lines(folder / "answers.jsonl", LINES_BYTES, clock)
        memory = Memory(MEMORY_BYTES)
        self.near = Redis(url, memory, self.purges, say, clock) if url else memory
        self.heat = Heat()
        self.counts = dict.fromkeys(("hits", "misses", "kept", "refused"), 0)
        self.alike = None  # an Alike, once `find_alike` was called
        self._news, self._told = threading.RLock(), set()
        self._n: int | None = None  # the last change that `due` heard of

    def find_alike(self, embed: Callable) -> None:
        """From now on an answer also serves questions that mean the same, as `alike` sees it. `embed`: texts ->
        float32 [n, d], each of length 1."""
        from evergreen.knowledge.alike import Alike

        self.alike = Alike(embed)
        self.lines.notice = lambda value: value.ids and self.alike.add(value.rest, value.key, value.question)
        self.lines.read_again()

    def epoch(self) -> int:
        """The number of the last purge. Take it before the knowledge is read that an answer is made from. An answer of
        the epoch NEVER is not kept."""
        if not self.is_on or not self._follow():
            return NEVER
        try:
            if not self.purges.id:
                self.purges.make()
        except (OSError, BadInput) as error:
            self._complain(f"answers cannot be cached: {error}")
            return NEVER
        return self.purges.epoch

    def get(self, key: Key, ahead: bool = False) -> Value | None:
        """The value, None for a miss. `ahead` is for answering what is due: it does not count as a question, and a
        value that is about to expire is a miss."""
        if not self.is_on or not key.is_cacheable:
            return None
        now = self.clock()
        self.heat.saw(key, now, is_question=not ahead)
        if ahead:
            value = self._find(key.digest)
            self.heat.tried(key, self._state(value, now))
            return None if value and _is_due(value, now) else value
        value = self._find(key.digest) or self._find_alike(key)
        self.counts["hits" if value else "misses"] += 1
        return value

    def put(self, key: Key, value: Value, ids: Iterable[str], seconds: float) -> bool:
        """Keep an answer that stands on these entries, and on those in the key, for so long; whether it was kept. It is
        not when it was not checked or cannot be repeated, or when one of its entries was purged since the key's
        epoch."""
        now = self.clock()
        value = replace(value, key=key.digest, question=key.question, rest=key.rest, epoch=key.epoch, made=now,
                        ids=tuple(dict.fromkeys([*key.ids, *ids])), expires=now + seconds)  # fmt: skip
        is_wanted = self.is_on and key.is_cacheable and value.is_checked and len(value.text) < VALUE_BYTES
        is_kept = is_wanted and self._keep(value)
        self.counts["kept" if is_kept else "refused"] += 1
        return is_kept

    def purge(self, ids: Iterable[str]) -> None:
        """Forget every answer that stands on one of these entries, everywhere, before this returns; every answer there
        is where the disk has no room to say which."""
        ids = list(dict.fromkeys(ids))
        if not ids or not self.purges.path.exists():  # nobody has ever cached here
            return
        try:
            with self.purges.locked():
                self._follow()
                self._forget(ids)
        except OSError as error:
            raise disk_failure(error, "purging the cache") from None
        finally:
            with self._news:
                self._follow()
                self.near.drop(ids)

    def _forget(self, ids: list[str]) -> None:
        """On the disk. Only within `locked`."""
        try:
            self.purges.add(ids)
            self.lines.drop(ids)
        except OSError as error:
            self.near.clear()  # while its names are known
            self.purges.void()
            self.lines.clear()
            self._complain(f"all cached answers are forgotten, the disk could not keep which are to be: {error}")

    def clear(self) -> None:
        """Forget every answer."""
        if not self.purges.path.exists():
            return
        with self.purges.locked():
            self.purges.begin()
            self.lines.clear()
        with self._news:
            self._follow()
            self.near.clear()

    def due(self, now: float | None = None, n: int | None = None) -> list[Key]:
        """The questions that are asked often and whose answer is gone, is about to expire or, given the number of the
        last knowledge change, was made before it; the hottest first. To be asked again with `get(key, ahead=True)`: one
        whose answer is not kept then is not due again before something has changed."""
        now, self._n = self.clock() if now is None else now, n
        return [key for key, tried in self.heat.hot(now) if self._is_wanted(key, tried, now)]

    def _is_wanted(self, key: Key, tried: tuple, now: float) -> bool:
        state = self._state(self._find(key.digest), now)
        return (state[0] or self._n not in (None, key.n)) and state != tried

    def _state(self, value: Value | None, now: float) -> tuple:
        """(whether an answer is wanted, which one there is, the last change)"""
        return value is None or _is_due(value, now), value and value.made, self._n

    # -- inside

    def _find(self, digest: str) -> Value | None:
        if not self.purges.id:  # whose keys in Redis are ours is not known yet
            self._follow()
        if value := self._good(self.near.get(digest)):
            return value
        try:
            value = self._good(self.lines.get(digest))
        except OSError as error:
            return self._complain(f"cached answers cannot be read: {error}")
        if value:
            self._put_near(value)
        return value

    def _find_alike(self, key: Key) -> Value | None:
        if self.alike is None or not key.sources:
            return None
        try:
            digests = self.alike.find(key.rest, key.question, key.sources)
        except Exception as error:  # an embedder can be an endpoint that is down
            return self._complain(f"questions that mean the same cannot be found: {error}")
        found = (value for digest in digests if digest != key.digest and (value := self._find(digest)))
        return next(found, None)

    def _good(self, value: Value | None) -> Value | None:
        """The value if it may be given out. It was fetched before what was purged is looked at: the other way round, a
        purge in between would be missed."""
        if value is None:
            return None
        return value if self._follow() and self._holds(value) else None

    def _holds(self, value: Value) -> bool:
        return self.clock() < value.expires and self.purges.holds(value.epoch, value.ids)

    def _keep(self, value: Value) -> bool:
        try:
            with self.purges.locked():
                if not (self._follow() and self._holds(value)):
                    return False
                self.lines.put(value)
        except (OSError, BadInput) as error:
            self._complain(f"cached answers cannot be kept on the disk: {error}")
        return self._put_near(value)

    def _put_near(self, value: Value) -> bool:
        """Whether it is still good: a purge may have come by just before it arrived."""
        self.near.put(value)
        if not (is_good := self._follow() and self._holds(value)):
            self.near.remove(value.key)
        return is_good

    def _follow(self) -> bool:
        """Take in what was purged; whether that could be seen. Purges are carried out one after another, since Redis
        keeps a mark of the last."""
        try:
            if self.purges.has_news():
                with self._news:
                    if news := self.purges.follow():
                        self.near.drop(news)
        except OSError as error:
            self._complain(f"answers cannot be cached: {error}")
            return False
        return True

    def _complain(self, trouble: str) -> None:
        if trouble not in self._told:
            self.say(f"{trouble}; requests are answered all the same")
        self._told.add(trouble)


def _is_due(value: Value, now: float) -> bool:
    return value.expires - now < min(AHEAD_SECONDS, AHEAD * (value.expires - value.made))


@dataclass
class Asked:
    """How often a question was asked, when that was counted, its newest key, and for what state of things it was last
    answered ahead."""

    count: float
    at: float
    key: Key
    tried: tuple = ()

    def heat(self, now: float) -> float:
        return self.count * 0.5 ** ((now - self.at) / HALF_LIFE_SECONDS)


class Heat:
    """How often each question was asked, lately: a count that halves every hour."""

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}
        self._lock = threading.Lock()

    def saw(self, key: Key, now: float, is_question: bool) -> None:
        with self._lock:
            if not is_question and key.ask not in self._asked:
                return
            one = self._asked.setdefault(key.ask, Asked(0.0, now, key))
            one.count, one.at, one.key = one.heat(now) + is_question, now, key
            if len(self._asked) > 2 * MAX_COUNTED:
                ranked = sorted(self._asked, key=lambda ask: -self._asked[ask].heat(now))
                self._asked = {ask: self._asked[ask] for ask in ranked[:MAX_COUNTED]}

    def tried(self, key: Key, state: tuple) -> None:
        with self._lock:
            if key.ask in self._asked:
                self._asked[key.ask].tried = state

    def hot(self, now: float) -> list[tuple[Key, tuple]]:
        """The newest keys, the hottest first, each with what it was tried for."""
        with self._lock:
            heated = sorted(((one.heat(now), one) for one in self._asked.values()), key=lambda pair: -pair[0])
            return [(one.key, one.tried) for heat, one in heated if heat >= HOT]


def open_cache(folder: Path, say: Callable[[str], None] = lambda _: None) -> Cache:
    """The cache of the knowledge in `folder` (HOME/knowledge). $EVERGREEN_CACHE: nothing for this process's memory,
    a redis:// URL, or off. Raises BadInput for anything else."""
    wanted = os.environ.get("EVERGREEN_CACHE", "").strip()
    if wanted in ("", "memory", "off"):
        return Cache(folder / "cache", say, is_on=wanted != "off")
    if not wanted.startswith(("redis://", "rediss://", "unix://")):
        raise BadInput(f"EVERGREEN_CACHE wants redis://host:6379/0, memory or off, got {wanted!r}")
    return Cache(folder / "cache", say, wanted)
