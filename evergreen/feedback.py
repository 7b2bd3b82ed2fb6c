"""What was asked and answered, one row a request, and what people said of it, one row a rating, in the home's database.

Promises: `add` returns at once and never raises; one thread writes, many rows in a transaction. A database that cannot
be written costs no request: rows wait in memory, the newest 10,000 of them, and it is said once. Rows are only added;
`forget` takes the words out of one and leaves the rest. A rating is answered for when it is on the disk.
Does not: keep what `content` "none" or "hash" holds back, or judge anything.
"""

import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from evergreen.home import canonical_json, new_id
from evergreen.records import EvergreenError, Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

    from evergreen.database import Database

Content = Literal["none", "hash", "full"]
T = TypeVar("T")
MAX_HELD = 10_000
BATCH_SECONDS, MAX_BATCH = 0.1, 500
RETRY_SECONDS = (1.0, 30.0)
ANONYMOUS = ("decision", "outcome", "sources", "seconds")  # of a grounding, what has no words of anybody's


def now() -> str:
    """The time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Interaction:
    """A request and how it ended. `input` is the body that was sent, with the conversation that it goes on from,
    `output` the choices that were answered or a whole response, both JSON values; `knowledge` is the number of the
    last change of knowledge that the answer saw, and `grounding` what came of it, with the [id, version] of the
    entries in its prompt: that and `at` are what it takes to ask again."""

    id: str
    at: str
    route: str
    key: str = ""
    user: str = ""
    model: str = ""
    release: str | None = None
    base: str | None = None
    adapter: str | None = None
    knowledge: int | None = None
    input: Any = None
    output: Any = None
    status: int = 200
    finish_reason: str = ""
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float | None = None
    latency_seconds: float = 0.0
    session: str | None = None
    grounding: dict | None = None
    cached: int | None = None


@dataclass(frozen=True)
class Rating:
    """What someone thinks of an answer, or did with it. `trusted`: sent with an admin key."""

    request: str
    key: str = ""
    user: str = ""
    trusted: bool = False
    thumb: Literal["up", "down"] | None = None
    correction: str | None = None
    comment: str | None = None
    dwell_ms: int | None = None
    action: str | None = None
    id: str = ""
    at: str = ""


class Log:
    """The requests and ratings of a home. Close it, so that what waits is written."""

    def __init__(self, database: "Database", content: Content = "full", say: Callable[[str], None] | None = None):
        from evergreen.database import ratings, requests

        self.db, self.content, self.requests, self.ratings = database, content, requests, ratings
        self.num_lost = 0
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._held: deque[dict[str, Any]] = deque()
        self._asked: deque[tuple[Callable[[Connection], Any], Future[Any]]] = deque()
        self._wake, self._is_closing, self._is_broken = threading.Condition(), False, False
        self._writer = threading.Thread(target=self._write_on, name="request log", daemon=True)
        self._writer.start()

    def add(self, interaction: Interaction) -> None:
        """Remember a request; written within a fraction of a second."""
        with self._wake:
            self._held.append({**vars(interaction)})
            if len(self._held) > MAX_HELD:
                self._held.popleft()
                self.num_lost += 1
            self._wake.notify()

    def rate(self, rating: Rating) -> "Future[str | None]":
        """The rating's id once it is stored; None when no request has the id that it names, Failure when it could not
        be stored."""
        return self._ask(lambda tx: self._rate(tx, rating))

    def seek(self, id: str) -> "Future[Row | None]":
        """As `find`, behind all that has been added until now. Failure when the database cannot be written."""
        return self._ask(lambda tx: tx.execute(self._one(id)).first())

    def forget(self, id: str) -> "Future[None]":
        """Done when what was asked and answered is no more in the request's row. Failure as above."""
        return self._ask(lambda tx: self._forget(tx, id))

    def close(self) -> None:
        """Writes what waits, if it can be written."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._writer.join()

    # -- reading

    def find(self, id: str) -> "Row | None":
        with self.db.read() as tx:
            return tx.execute(self._one(id)).first()

    def newest(self, limit: int = 100) -> "Sequence[Row]":
        """Requests, newest first."""
        with self.db.read() as tx:
            return tx.execute(self.requests.select().order_by(self.requests.c.id.desc()).limit(limit)).all()

    def ratings_of(self, request: str) -> "Sequence[Row]":
        """Oldest first."""
        table = self.ratings
        with self.db.read() as tx:
            return tx.execute(table.select().where(table.c.request == request).order_by(table.c.id)).all()

    def _one(self, id: str) -> "Select":
        return self.requests.select().where(self.requests.c.id == id)

    # -- the writer's thread

    def _ask(self, what: "Callable[[Connection], T]") -> "Future[T]":
        future: Future[T] = Future()
        with self._wake:
            self._asked.append((what, future))
            self._wake.notify()
        return future

    def _write_on(self) -> None:
        pause = RETRY_SECONDS[0]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._held or self._asked or self._is_closing)
                if not self._is_closing:
                    self._wake.wait_for(lambda: self._is_closing, timeout=BATCH_SECONDS)
                rows = [self._held.popleft() for _ in range(min(len(self._held), MAX_BATCH))]
                asked = [self._asked.popleft() for _ in range(len(self._asked))]
                asked = [one for one in asked if one[1].set_running_or_notify_cancel()]  # who has gone is not told
                if not rows and not asked and self._is_closing:
                    return
            if self._write(rows, asked):
                pause = RETRY_SECONDS[0]
            elif self._is_closing:
                return
            else:
                self._put_back(rows)
                with self._wake:
                    self._wake.wait_for(lambda: self._is_closing or self._asked, timeout=pause)
                pause = min(2 * pause, RETRY_SECONDS[1])

    def _write(
        self, rows: list[dict[str, Any]], asked: "list[tuple[Callable[[Connection], Any], Future[Any]]]"
    ) -> bool:
        try:
            with self.db.write() as tx:
                if rows:
                    tx.execute(self.requests.insert(), [self._stored(row) for row in rows])
                answers = [what(tx) for what, _ in asked]
        except Exception as error:  # a request must never fail for its log
            self._complain(error)
            for _, future in asked:
                future.set_exception(Failure(f"the log cannot be written now: {error}"))
            return False
        for (_, future), answer in zip(asked, answers, strict=True):
            future.set_result(answer)
        self._recover()
        return True

    def _stored(self, row: dict[str, Any]) -> dict[str, Any]:
        kept = {name: _kept(row[name], self.content) for name in ("input", "output")}
        grounding = row["grounding"]
        if grounding and self.content != "full":
            grounding = _anonymous(grounding)
        return _clean(row | kept | {"grounding": _kept(grounding, "full")})

    def _rate(self, tx: "Connection", rating: Rating) -> str | None:
        if not tx.execute(self._one(rating.request)).first():
            return None
        values = {field.name: getattr(rating, field.name) for field in fields(rating)}
        values |= {"id": rating.id or new_id(), "at": rating.at or now(), "trusted": int(rating.trusted)}
        tx.execute(self.ratings.insert().values(_clean(values)))
        return values["id"]

    def _forget(self, tx: "Connection", id: str) -> None:
        row = tx.execute(self._one(id)).first()
        kept = {"input": None, "output": None, "grounding": row and row.grounding}
        if kept["grounding"]:
            kept["grounding"] = canonical_json(_anonymous(json.loads(kept["grounding"])))
        tx.execute(self.requests.update().where(self.requests.c.id == id).values(**kept))

    def _put_back(self, rows: list[dict[str, Any]]) -> None:
        with self._wake:
            self._held.extendleft(reversed(rows))
            while len(self._held) > MAX_HELD:
                self._held.popleft()
                self.num_lost += 1

    def _complain(self, error: Exception) -> None:
        if not self._is_broken:
            reason = error if isinstance(error, EvergreenError) else f"{type(error).__name__}: {error}"
            self._say(f"the request log cannot be written, requests are answered all the same: {reason}")
        self._is_broken = True

    def _recover(self) -> None:
        if self._is_broken:
            self._say(f"the request log is written again; {self.num_lost} rows were lost")
        self._is_broken = False


def _anonymous(grounding: dict[str, Any]) -> dict[str, Any]:
    return {name: grounding[name] for name in ANONYMOUS if name in grounding}


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """Without half characters and NUL, which no database takes."""
    return {
        name: value.encode("utf-8", "replace").decode().replace("\0", "") if isinstance(value, str) else value
        for name, value in row.items()
    }


def _kept(value: Any, content: Content) -> str | None:
    """What of a request's content becomes part of its row."""
    if value is None or content == "none":
        return None
    text = canonical_json(value)
    if content == "full":
        return text
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
