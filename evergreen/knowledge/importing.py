"""Files and folders -> entries, again and again: what a file says now replaces what it said when it was last read.

Promises: what was read is written in batches of 1,000 changes, each all or none; an import that was killed goes on when
it is run again; an entry that was redacted does not come back from its file, and one withdrawn by hand not while the
file says the same. A file that has vanished is only told of, unless asked to withdraw its entries.
Does not: follow symbolic links to folders, look into archives, or read what starts with a dot.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evergreen.home import exclusive
from evergreen.knowledge.changes import MARK, Known, Plan, Wish, words_of
from evergreen.knowledge.parse import KINDS
from evergreen.knowledge.reading import File, How, Reader
from evergreen.knowledge.sources import Source, Sources
from evergreen.knowledge.store import Store
from evergreen.records import BadInput, Entry

__all__ = ["How", "Importer", "Report"]

HINT = "(--on_bad_row skip leaves it out; what was read before it stays)"
BATCH = 1000  # changes a write: one fsync


@dataclass
class Report:
    """What an import did, in entries unless it says files."""

    files: int = 0
    unchanged_files: int = 0
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    withdrawn: int = 0
    duplicates: int = 0
    kept_out: int = 0  # redacted or withdrawn by hand before
    near_duplicates: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # bad files and rows, one line each
    other_files: dict[str, int] = field(default_factory=dict)  # suffixes that are not read
    missing: list[str] = field(default_factory=list)  # files that have vanished
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Importer:
    """One import into a store. `after_write(ids)` hears of every entry that is changed or withdrawn, before the next
    write."""

    def __init__(
        self,
        store: Store,
        how: How | None = None,
        near_duplicates: float = 0.8,
        on_bad_row: str = "error",
        max_file_bytes: int = 256 << 20,
        author: str = "",
        reason: str = "",
        after_write: Callable[[Sequence[str]], None] = lambda _: None,
    ):
        self.store, self.threshold = store, near_duplicates
        self.on_bad_row, self.max_file_bytes = on_bad_row, max_file_bytes
        self.author, self.reason, self.after_write = author, reason, after_write
        self.report = Report()
        self.reader = Reader(how or How(), self._bad, self.report.notes.append)

    def run(
        self,
        places: Sequence[Path],
        withdraw_missing: bool = False,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Report:
        """Import files and folders; `progress(bytes done, bytes in all)`. Raises BadInput for what cannot be read,
        after what was read before it is in."""
        started = time.monotonic()
        with exclusive(self.store.log.folder / "import.lock", "importing"):
            self._open()
            files = list(dict.fromkeys(file for place in places for file in self._files(place)))
            missing = self._missing(places, files)
            if withdraw_missing:
                self._forget(missing)
            self._each(files, progress)
            self._withdraw()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _open(self) -> None:
        """Look up what the store holds: one pass over its entries."""
        self.sources = Sources(self.store.log.folder)
        self.sources.compact()
        self.known = Known(self.store, self.sources)
        self.named: dict[str, str] = {}  # ids that rows of this import have brought -> their file
        self.near: Any = None
        self.late: list[Source] = []  # remembered when what they have given up is withdrawn

    def _each(self, files: list[File], progress: Callable[[int, int], None]) -> None:
        total, done = sum(file.size for file in files), 0
        waiting: list[Plan] = []
        try:
            for file in files:
                self.reader.reached = lambda at, before=done, size=file.size: progress(before + min(at, size), total)
                with self._complaints():
                    waiting += self._plan(file)
                if sum(plan.num_changes for plan in waiting) >= BATCH:
                    self._write(waiting)
                done += file.size
                progress(done, total)
        except BadInput:
            self._write(waiting)
            raise
        self._write(waiting)

    def _plan(self, file: File) -> list[Plan]:
        """What a file changes; nothing when it has not changed since it was imported."""
        if file.size > self.max_file_bytes:
            size, limit = (f"{number / 2**20:,.0f} MiB" for number in (file.size, self.max_file_bytes))
            raise BadInput(f"{file.path} has {size}, the limit is {limit}: split it, or raise --max_file_bytes")
        try:
            file.key.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{printable(file.path)}: the name is not UTF-8, rename the file or its folder") from None
        self.report.files += 1
        before, how = self.sources.get(file.key), self.reader.how.digest()
        with open(file.path, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        if before and (before.sha256, before.how) == (sha256, how):
            self.report.unchanged_files += 1
            self.report.unchanged += len(before.chunks)
            return []
        plan = self.known.plan(self._wishes(file), Source(file.key, sha256, how), before)
        self.report.unchanged += plan.num_unchanged
        self.report.duplicates += plan.num_duplicates
        self.report.kept_out += plan.num_kept_out
        return [plan]

    def _wishes(self, file: File) -> list[Wish]:
        """The entries that the file stands for, each once."""
        found: dict[str, Wish] = {}
        ids: dict[str, str] = {}
        for entry in self.reader.entries(file):
            wish = Wish.of(entry)
            if found.setdefault(wish.digest, wish) is not wish:
                self.report.duplicates += 1
            elif entry.id and (ids.setdefault(entry.id, wish.digest) != wish.digest or self._is_elsewhere(entry, file)):
                del found[wish.digest]
                self._bad(BadInput(f"{file.path}: the id {entry.id} stands for two things: "
                                   f"the other is in {self.named[entry.id]}"))  # fmt: skip
        return list(found.values())

    def _is_elsewhere(self, entry: Entry, file: File) -> bool:
        return self.named.setdefault(entry.id, file.key) != file.key

    # -- which files

    def _files(self, place: Path) -> Iterator[File]:
        """The files of a place that can be read, in order of their names."""
        if place.is_file():
            if place.suffix.lower() not in KINDS:
                raise BadInput(f"{place} is not of a kind that can be imported: {', '.join(KINDS)}")
            yield File(place, place.name, place.stat().st_size, is_alone=True)
            return
        if not place.is_dir():
            raise BadInput(f"no file or folder {place}")
        home = self.store.log.folder.resolve()
        for folder, folders, names in os.walk(place, onerror=self._unreadable):
            here = Path(folder)
            folders[:] = sorted(name for name in folders if name[0] != "." and (here / name).resolve() != home)
            for name in sorted(names):
                path = here / name
                if name[0] == "." or not path.is_file():
                    continue
                if (suffix := path.suffix.lower()) in KINDS:
                    yield File(path, path.relative_to(place).as_posix(), path.stat().st_size)
                else:
                    kind = printable(suffix or name)
                    self.report.other_files[kind] = self.report.other_files.get(kind, 0) + 1

    @contextmanager
    def _complaints(self) -> Iterator[None]:
        try:
            yield
        except BadInput as error:
            self._bad(error)
        except OSError as error:
            self._unreadable(error)

    def _unreadable(self, error: OSError) -> None:
        self._bad(BadInput(f"{error.filename} cannot be read: {error.strerror}"))

    def _bad(self, error: BadInput) -> None:
        """A row or file that cannot be used."""
        if self.on_bad_row == "error":
            raise error if HINT in str(error) else BadInput(f"{error} {HINT}")
        self.report.left_out.append(str(error))

    def _missing(self, places: Sequence[Path], files: list[File]) -> list[Source]:
        """Sources that lay in the folders and are there no more. Raises BadInput for a folder that has lost them all:
        one whose disk is not mounted looks the same."""
        found = []
        for place in places:
            if not place.is_dir():
                continue
            known = self.sources.under(str(place.resolve()))
            gone = [source for source in known if _is_gone(Path(source.file))]
            if gone and len(gone) == len(known) and not any(file.path.is_relative_to(place) for file in files):
                raise BadInput(f"{place} holds nothing to import, and {len(known)} files were imported from it: is its "
                               "disk mounted? evergreen knowledge withdraw takes entries out by id")  # fmt: skip
            found += gone
        self.report.missing = [source.file for source in found]
        return found

    # -- writing

    def _write(self, plans: list[Plan]) -> None:
        """Bring what waits to the disk: entries first, then what is remembered of their files."""
        added, updated = ([entry for plan in plans for entry in getattr(plan, kind)] for kind in ("added", "updated"))
        reason = MARK + (self.reason or ", ".join(plan.source.file for plan in plans)[:200])
        for start in range(0, max(len(added), len(updated)), BATCH):
            new, changed = added[start : start + BATCH], updated[start : start + BATCH]
            self.store.apply(new, changed, [], self.author, reason)
            self.after_write([entry.id for entry in changed])
            self.report.added += len(new)
            self.report.updated += len(changed)
            self._compare(new + changed)
        self.late += [plan.source for plan in plans if plan.num_given_up]
        self.sources.write([plan.source for plan in plans if not plan.num_given_up])
        plans.clear()

    def _withdraw(self) -> None:
        """Withdraw what no file says any more and none has taken over."""
        ids = sorted(self.known.given_up)
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            self.store.apply([], [], some, self.author, MARK + (self.reason or "what no file says any more"))
            self.after_write(some)
            self.report.withdrawn += len(some)
        near = self.report.near_duplicates
        near[:] = [one for one in near if one["other"] not in self.known.given_up]
        self.sources.write(self.late)

    def _forget(self, missing: list[Source]) -> None:
        """Let go of what vanished files said; files that are read next may take it over."""
        self.late += [replace(source, chunks=()) for source in missing]
        for source in self.late:
            self.sources.take(source)
        self.known.give_up([id for source in missing for id, _ in source.chunks])

    def _compare(self, entries: list[Entry]) -> None:
        """Look for what is nearly the same; what was there before is taken in when the first new entry comes."""
        if not self.threshold or not entries:
            return
        if self.near is None:
            from evergreen.knowledge.near import Near

            self.near = Near(
                self.threshold, list(self.known.before), [words_of(entry) for entry in self.known.before.values()]
            )
        for id, other, share in self.near.add([entry.id for entry in entries], [words_of(entry) for entry in entries]):
            self.report.near_duplicates.append({"id": id, "other": other, "similarity": round(share, 3)})


def printable(name: str | Path) -> str:
    """A file's name with what is not UTF-8 in it as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_gone(path: Path) -> bool:
    """Not there; a file that may not be looked at is."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
