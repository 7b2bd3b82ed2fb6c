"""What a file says now against what it said before: which entries are added, updated, given up.

for each chunk of a file:   as it was when the file was last read, against as it is
    the same     entry untouched, whatever people have done with it since: id, version, correction, withdrawal stay
    changed      entry updated, its version rises
    new          entry added, unless one says the same already
    gone         entry given up: withdrawn at the end of the import, unless another file says it
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from evergreen.knowledge.sources import Source, Sources
from evergreen.knowledge.store import OPEN, Row, Store
from evergreen.records import Entry

MARK = "import "  # what the reason of an import's changes begins with
MIN_ALIKE = 0.35  # share of equal pieces from which a changed chunk is an update of an old one
MAX_PAIRED = 200  # chunks of a file that are compared with each other; a file that changed more is taken as it stands


@dataclass(frozen=True)
class Wish:
    """One entry that a file wants to be there. `digest` is of all that would make it another."""

    entry: Entry
    digest: str
    text: str  # of its title and content: equal ones are one fact

    @classmethod
    def of(cls, entry: Entry) -> "Wish":
        return cls(entry, digest_of(entry), text_digest(entry))


@dataclass
class Plan:
    """What one file changes, and what is remembered of it when that is done."""

    source: Source
    added: list[Entry] = field(default_factory=list)
    updated: list[Entry] = field(default_factory=list)
    num_given_up: int = 0
    num_unchanged: int = 0
    num_duplicates: int = 0
    num_kept_out: int = 0  # redacted, or withdrawn by hand

    @property
    def num_changes(self) -> int:
        return len(self.added) + len(self.updated)


class Known:
    """What the entries say, as the store has it and as the plans so far would have it."""

    def __init__(self, store: Store, sources: Sources):
        self.sources = sources
        n = store.refresh()
        self.rows: dict[str, Row] = {row.entry.id: row for row in store.rows}  # id -> its newest version
        visible = [row.entry for row in self.rows.values() if row.begins <= n < row.ends and not row.is_redacted]
        self.said = {text_digest(entry): entry.id for entry in visible}
        self.given_up: set[str] = set()  # entries that no file says any more; the next file may take them over
        self.before = {entry.id: entry for entry in visible}  # those that no plan has changed

    def plan(self, wishes: list[Wish], source: Source, before: Source | None) -> Plan:
        """The way from what a file said `before` to what it wants now."""
        plan, known = Plan(source), dict(map(reversed, before.chunks)) if before else {}
        pairs = [(known[wish.digest], wish.digest) for wish in wishes if wish.digest in known]
        plan.num_unchanged = len(pairs)
        done = {digest for _, digest in pairs}
        gone = [id for digest, id in known.items() if digest not in done and self._is_there(id)]
        new = [wish for wish in wishes if wish.digest not in done]
        for wish, id in self._paired(new, gone):
            pairs.append((id, wish.digest))
            self._change(id, wish, plan)
        done = {digest for _, digest in pairs}
        pairs += [(self._add(wish, plan), wish.digest) for wish in new if wish.digest not in done]
        plan.source = replace(source, chunks=tuple(pairs))
        self.sources.take(plan.source)
        plan.num_given_up = self.give_up(gone)
        return plan

    def give_up(self, ids: Sequence[str]) -> int:
        """Let go of entries that a file says no more, but for those that some file says; how many there are."""
        free = {id for id in ids if self._is_there(id) and not self.sources.is_imported(id)}
        self.given_up |= free
        return len(free)

    def _is_there(self, id: str) -> bool:
        row = self.rows.get(id)
        return row is not None and row.ends == OPEN and not row.is_redacted

    def _paired(self, new: list[Wish], gone: list[str]) -> Iterator[tuple[Wish, str]]:
        """Which new chunk is which old one: what says it already, what has its id, what has most in common with it."""
        free, left = set(gone), []
        for wish in new:
            id = wish.entry.id or self.said.get(wish.text, "")
            if id in free:
                free.discard(id)
                yield wish, id
            else:
                left.append(wish)
        free = {id for id in free if not self.sources.is_shared(id)}
        left = [wish for wish in left if not wish.entry.id and wish.text not in self.said]
        if free and left and max(len(free), len(left)) <= MAX_PAIRED:
            yield from self._alike(left, free)

    def _alike(self, wishes: list[Wish], free: set[str]) -> Iterator[tuple[Wish, str]]:
        from evergreen.knowledge.near import similarity

        shares = [
            (similarity(wish.entry.content, self.rows[id].entry.content), place, id)
            for place, wish in enumerate(wishes)
            for id in free
        ]
        used: set[int] = set()
        for share, place, id in sorted(shares, key=lambda one: (-one[0], one[1])):
            if share >= MIN_ALIKE and id in free and place not in used:
                free.discard(id)
                used.add(place)
                yield wishes[place], id

    def _change(self, id: str, wish: Wish, plan: Plan) -> str:
        """Have an entry that is there say what the wish says; nothing to do when it does, after a crash or by hand."""
        self.given_up.discard(id)
        if digest_of(replace(self.rows[id].entry, id=wish.entry.id)) == wish.digest:
            plan.num_unchanged += 1
        else:
            plan.updated.append(replace(wish.entry, id=id))
            self._say(id, wish)
        return id

    def _add(self, wish: Wish, plan: Plan) -> str:
        """The id under which the file's fact is known from now on; "" when that is no import's to change."""
        own = wish.entry.id or id_of(plan.source.file, wish.text)
        if wish.entry.id and self._is_there(own):
            return self._change(own, wish, plan)
        if not wish.entry.id and (there := self.said.get(wish.text)) is not None:
            if there == own or there in self.given_up:
                return self._change(there, wish, plan)
            plan.num_duplicates += 1
            return there if self.sources.is_imported(there) else ""
        if self._is_kept_out(own):
            plan.num_kept_out += 1
            return own
        while self._is_there(own):  # it says something else by now
            own += "-"
        plan.added.append(replace(wish.entry, id=own))
        self._say(own, wish)
        return own

    def _is_kept_out(self, id: str) -> bool:
        """Whether people have taken the entry out."""
        row = self.rows.get(id)
        return row is not None and (row.is_redacted or (row.ends != OPEN and not row.end_reason.startswith(MARK)))

    def _say(self, id: str, wish: Wish) -> None:
        """From now on the entry says this: what comes later in this import is compared with it."""
        if (row := self.rows.get(id)) and self.said.get(text := text_digest(row.entry)) == id:
            del self.said[text]
        self.before.pop(id, None)
        self.said[wish.text] = id
        self.rows[id] = Row(replace(wish.entry, id=id), 0)


def words_of(entry: Entry) -> str:
    return f"{entry.title}\n{entry.content}"


def text_digest(entry: Entry) -> str:
    """What two entries have in common that say the same."""
    return hashlib.blake2b(" ".join(words_of(entry).split()).encode("utf-8", "replace"), digest_size=16).hexdigest()


def digest_of(entry: Entry) -> str:
    """Of all that makes a chunk another but its time, which changes with every touch of a file."""
    said = [entry.id, text_digest(entry), entry.source_url, *entry.tags, entry.valid_from, entry.valid_until]
    return hashlib.blake2b("\x00".join(said).encode("utf-8", "replace"), digest_size=8).hexdigest()


def id_of(file: str, text: str) -> str:
    """The same fact of the same file has the same id, so a killed import finds what it has written."""
    return hashlib.blake2b(f"{file}\x00{text}".encode("utf-8", "replace"), digest_size=6).hexdigest()
