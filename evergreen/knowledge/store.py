"""Knowledge entries and their versions, made from the log: what is visible now, in a snapshot, or on a date.

Promises: every version of an entry is kept with the numbers of the changes that began and ended it, so one comparison
(`begins <= n < ends`) gives the present, any snapshot and any past moment alike. A write returns when it is on the
disk, and is visible to every reader, in this process and in others, from then on. `redact` takes an entry out of the
past, too.
Does not: search (an index is made from the rows here), or decide what an answer may use.
"""

import gc
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from evergreen.home import disk_failure
from evergreen.knowledge.entries import bumped, check, checked_version, end_of, entry_of, new_id, stored, utc_now
from evergreen.knowledge.log import Change, Log
from evergreen.records import BadInput, Entry

OPEN = 1 << 62  # `ends` of a version that nothing has ended
MIN_BEGINNING = 6  # characters of an id that may stand for it


@dataclass(slots=True)
class Row:
    """One version of one entry: visible from change `begins` up to, not including, change `ends`."""

    entry: Entry
    begins: int
    ends: int = OPEN
    op: Literal["add", "update"] = "add"
    at: str = ""
    author: str = ""
    reason: str = ""
    end_author: str = ""
    end_reason: str = ""
    is_redacted: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A published state: everything visible at change `n`."""

    number: int
    n: int
    at: str
    author: str
    reason: str


@contextmanager
def uncollected() -> Iterator[None]:
    """Much is made and nothing thrown away: without the cyclic collector's rounds a log of 100,000 entries is read in
    0.74 s instead of 1.28."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Store:
    """The entries of one home. Reading calls look for news of other processes first; that costs two calls of stat.
    Threads that share a store hold its `lock` around what they do with it."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None):
        self.log, self.lock = Log(folder, say), threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self.rows: list[Row] = []  # in the order of `begins`
        self.snapshots: list[Snapshot] = []
        self.generation = getattr(self, "generation", -1) + 1  # rises when rows that were given out are void
        self._of: dict[str, list[int]] = {}  # id -> its rows, oldest first
        self._redactions: list[int] = []  # numbers of the changes that redact
        self._times: list[str] = []  # of change 1, 2, ...
        self._changes: list[tuple[str, str, str, str]] = []  # (op, id, author, reason) of change 1, 2, ...

    # -- what is there

    def refresh(self) -> int:
        """Take in what has been written since; the number of the last change."""
        with uncollected():
            is_new, changes = self.log.read()
            if is_new:
                self._clear()
            for change in changes:
                self._apply(change)
        return self.log.last

    def at(self, moment: "str | int | None" = None) -> int:
        """The change number that `moment` means: None or "live" is now, a number or "latest" a snapshot, a date the
        last change up to its end. Raises BadInput for what there is not."""
        last = self.refresh()
        if moment in (None, "", "live"):
            return last
        if moment == "latest":
            if not self.snapshots:
                raise BadInput("no snapshot has been published: evergreen knowledge publish makes one")
            return self.snapshots[-1].n
        if str(moment).isdecimal() and len(str(moment)) < 8:
            return self.snapshot(int(moment)).n
        return bisect_right(self._times, end_of(str(moment)))

    def snapshot(self, number: int) -> Snapshot:
        self.refresh()
        if not 1 <= number <= len(self.snapshots):
            there = f"there are 1 to {len(self.snapshots)}" if self.snapshots else "none has been published"
            raise BadInput(f"no snapshot {number}: {there}")
        return self.snapshots[number - 1]

    def visible(self, n: int | None = None, when: str = "") -> Iterator[Row]:
        """The rows visible at change `n` (default: now) whose validity includes the UTC time `when` (default: now)."""
        n = self.refresh() if n is None else n
        when = when or utc_now()
        return (row for row in self.rows if is_visible(row, n, when))

    def get(self, id: str, n: int | None = None) -> Row:
        """The row of an entry at change `n`. Raises BadInput when there is no such entry, or it is not visible then."""
        n = self.refresh() if n is None else n
        for place in reversed(self._places(id)):
            row = self.rows[place]
            if row.begins <= n < row.ends and not row.is_redacted:
                return row
        if n >= self.log.last:
            last = self.audit(id)[-1]
            fate = {"withdraw": "withdrawn", "redact": "redacted"}.get(last["op"], "taken out")
            raise BadInput(
                f"the entry {id} was {fate} on {last['at'][:10]}: evergreen knowledge history {id} tells more"
            )
        raise BadInput(f"the entry {id} is not visible there: evergreen knowledge history {id} tells why")

    def full_id(self, beginning: str) -> str:
        """The id that is named, or the only one that begins so, from six characters on (else what was given)."""
        self.refresh()
        if beginning in self._of or len(beginning) < MIN_BEGINNING:
            return beginning
        found = [id for id in self._of if id.startswith(beginning)]
        return found[0] if len(found) == 1 else beginning

    def history(self, id: str) -> list[Row]:
        """All versions of an entry, oldest first. Raises BadInput when there is no such entry."""
        self.refresh()
        return [self.rows[place] for place in self._places(id)]

    def audit(self, id: str = "") -> list[dict[str, Any]]:
        """Every change, or those of one entry: when, who, what, why."""
        self.refresh()
        return [
            {"n": n, "at": at, "op": op, "id": about, "author": author, "reason": reason}
            for n, (at, (op, about, author, reason)) in enumerate(zip(self._times, self._changes, strict=True), 1)
            if not id or about == id
        ]

    def diff(self, first: int, second: int) -> dict[str, list[Row]]:
        """Entries that differ between two change numbers; removed rows are the first's, the others the second's."""
        before = {row.entry.id: row for row in self.rows if row.begins <= first < row.ends}
        after = {row.entry.id: row for row in self.rows if row.begins <= second < row.ends}
        return {
            "added": [row for id, row in after.items() if id not in before],
            "removed": [row for id, row in before.items() if id not in after],
            "updated": [row for id, row in after.items() if id in before and before[id] is not row],
        }

    def changed(self, since: int) -> list[int]:
        """Places in `rows` of all versions of the entries that changes after number `since` are about, rising."""
        ids = {id for _, id, *_ in self._changes[since:] if id}
        return sorted(place for id in ids for place in self._of[id])

    def _places(self, id: str) -> list[int]:
        if id not in self._of:
            raise BadInput(f"no entry {id}: evergreen knowledge list shows those there are")
        return self._of[id]

    # -- writing

    def add(self, entries: Iterable[Entry], author: str = "", reason: str = "") -> list[Row]:
        """New entries; one without an id gets one. An id that is visible is refused: it is updated instead."""
        return self._write(lambda: [self._added(entry, author, reason) for entry in self._fresh(entries)])

    def update(self, id: str, author: str = "", reason: str = "", bump: str = "patch", **parts: Any) -> Row:
        """Replace parts of an entry (content, tags, ...); its version rises by `bump`, or is `version`, which may not
        fall; who repeats the whole with that version changes nothing. Raises BadInput for an unknown id."""

        def change() -> list[Change]:
            old = self.get(id).entry
            if "version" in parts and check(replace(old, **parts)) == old:
                return []
            wanted = parts.pop("version", None)
            version = checked_version(wanted, old.version) if wanted else bumped(old.version, bump)
            entry = replace(old, **{"update_time": utc_now(), **parts, "version": version})
            return [{"op": "update", "id": id, "entry": stored(check(entry)), **_who(author, reason)}]

        made = self._write(change)
        return made[0] if made else self.get(id)

    def withdraw(self, ids: Sequence[str], author: str = "", reason: str = "") -> int:
        """Take entries out of every answer from now on; snapshots and the past keep them. What was withdrawn before
        stays so. The last change's number."""
        return self._take_out("withdraw", ids, lambda row: row.ends == OPEN, author, reason)

    def redact(self, ids: Sequence[str], author: str = "", reason: str = "") -> int:
        """Take entries out of the past, too: their contents leave the disk's log and every snapshot for good. What was
        redacted before stays so, and is cleared if a full disk was in the way."""
        return self._take_out("redact", ids, lambda row: not row.is_redacted, author, reason)

    def _take_out(self, op: str, ids: Sequence[str], has_to: Callable[[Row], bool], author: str, reason: str) -> int:
        """One change for each entry that has a row which has to go, all or none. Raises BadInput for one that there is
        not. Doing it again does no harm: who failed behind it, at the caches, can repeat the whole."""

        def change() -> list[Change]:
            wanted = [id for id in dict.fromkeys(ids) if any(has_to(self.rows[place]) for place in self._places(id))]
            return [{"op": op, "id": id, **_who(author, reason)} for id in wanted]

        self._write(change)
        return self.log.last

    def publish(self, author: str = "", reason: str = "") -> Snapshot:
        """Name the present state as the next snapshot."""
        self._write(lambda: [{"op": "publish", **_who(author, reason)}])
        return self.snapshots[-1]

    def apply(self, added: Sequence[Entry], updated: Sequence[Entry], withdrawn: Sequence[str], author: str = "",
              reason: str = "") -> list[Row]:  # fmt: skip
        """Additions, new contents of existing ids and withdrawals as one write, all or none (imports, patches)."""

        def change() -> list[Change]:
            changes = [self._added(entry, author, reason) for entry in self._fresh(added)]
            for entry in updated:
                version = bumped(self.get(entry.id).entry.version, "patch")
                entry = check(replace(entry, version=version, update_time=entry.update_time or utc_now()))
                changes.append({"op": "update", "id": entry.id, "entry": stored(entry), **_who(author, reason)})
            return changes + [{"op": "withdraw", "id": id, **_who(author, reason)} for id in withdrawn]

        return self._write(change)

    def _fresh(self, entries: Iterable[Entry]) -> list[Entry]:
        made = [
            replace(entry, id=entry.id or new_id(), update_time=entry.update_time or utc_now()) for entry in entries
        ]
        seen: set[str] = set()
        for entry in made:
            if entry.id in seen or self._is_visible(entry.id):
                raise BadInput(f"the entry {entry.id} is there already: evergreen knowledge update --id {entry.id}")
            seen.add(entry.id)
        return made

    def _added(self, entry: Entry, author: str, reason: str) -> Change:
        """Adding what was withdrawn goes on from its last version."""
        if entry.id in self._of:
            entry = replace(entry, version=bumped(self.rows[self._of[entry.id][-1]].entry.version, "patch"))
        return {"op": "add", "id": entry.id, "entry": stored(check(entry)), **_who(author, reason)}

    def _is_visible(self, id: str) -> bool:
        return id in self._of and self.rows[self._of[id][-1]].ends == OPEN

    def _write(self, decide: Callable[[], list[Change]]) -> list[Row]:
        """Decide on all that came before, append, take in; the rows that began."""
        with self.log.writing():
            self.refresh()
            changes = decide()
            before = len(self.rows)
            for change in self.log.append(changes) if changes else ():
                self._apply(change)
            self._forget()
        return self.rows[before:]

    def _forget(self) -> None:
        """Clear what was redacted from the log's files; a crash in between leaves it to the next write."""
        wanted = [n for n in self._redactions if n > self.log.forgotten]
        if wanted:
            gone = {self._changes[n - 1][1] for n in wanted}
            try:
                self.log.rewrite(lambda change: _forgotten(change) if change.get("id") in gone else change, wanted[-1])
            except OSError as error:
                raise disk_failure(error, "what is redacted is in no answer any more, but clearing the log's files of "
                                   "it, which the next change will try again,") from None  # fmt: skip

    # -- a change's effect

    def _apply(self, change: Change) -> None:
        n, op, id = change["n"], change["op"], change.get("id", "")
        author, reason = change.get("author", ""), change.get("reason", "")
        self._times.append(change["at"])
        self._changes.append((op, id, author, reason))
        if op == "publish":
            self.snapshots.append(Snapshot(len(self.snapshots) + 1, n, change["at"], author, reason))
            return
        places = self._of.setdefault(id, [])
        if op == "redact":
            self._redactions.append(n)
            for place in places:
                row = self.rows[place]
                self.rows[place] = replace(row, entry=replace(row.entry, content="", title="", source_url="", tags=()),
                                           ends=min(row.ends, n), is_redacted=True)  # fmt: skip
            return
        if places and self.rows[places[-1]].ends == OPEN:
            row = self.rows[places[-1]]
            row.ends, row.end_author, row.end_reason = n, author, reason
        if op in ("add", "update"):
            places.append(len(self.rows))
            self.rows.append(Row(entry_of(change["entry"]), n, OPEN, op, change["at"], author, reason))


def is_visible(row: Row, n: int, when: str) -> bool:
    """Whether a row is visible at change `n` for a question that is asked at the UTC time `when`."""
    entry = row.entry
    return (
        row.begins <= n < row.ends
        and not row.is_redacted
        and (not entry.valid_from or entry.valid_from <= when)
        and (not entry.valid_until or when < entry.valid_until)
    )


def _who(author: str, reason: str) -> dict[str, str]:
    return {key: value for key, value in (("author", author), ("reason", reason)) if value}


def _forgotten(change: Change) -> Change:
    """A change whose contents must never be seen again: its number, time, kind and id stay."""
    if "entry" not in change:
        return change
    kept = {name: change["entry"][name] for name in ("id", "version", "update_time") if name in change["entry"]}
    return {**change, "entry": {**kept, "content": ""}}
