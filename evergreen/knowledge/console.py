"""What the knowledge commands share: the store, whom to tell, who asks, which moment is read."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from evergreen.home import home_dir
from evergreen.knowledge.documents import unseen
from evergreen.knowledge.entries import end_of, utc_now
from evergreen.knowledge.store import Store
from evergreen.records import BadInput

Apart = Callable[[str], str]


class Console:
    """One command's flags, and what stands behind them."""

    def __init__(self, given: Any, apart: Apart):
        self.apart = apart
        self.given, self.folder = given, home_dir(given.home or None) / "knowledge"
        self.store = Store(self.folder, self.warn)

    def say(self, line: str = "") -> None:
        print(line, file=sys.stderr if self.given.json else sys.stdout)

    def warn(self, line: str) -> None:
        print(line, file=sys.stderr)

    def wanted_id(self, command: str) -> str:
        if not self.given.id:
            raise BadInput(f"knowledge {command} wants an entry: evergreen knowledge list shows those there are")
        return self.store.full_id(self.given.id)

    def wanted_ids(self, command: str) -> "list[str]":
        found = list(dict.fromkeys(self.store.full_id(id) for id in self.given.ids if id))
        if not found:
            raise BadInput(f"knowledge {command} wants entries by id: evergreen knowledge list shows those there are")
        return found

    def warn_if_pinned(self, what: str) -> None:
        """A change that some answers do not follow is told of: after a rollback they stand on a snapshot."""
        if clause := self.apart(self.given.home):
            self.warn(f"evergreen: {unseen(clause, what)}")

    @cached_property
    def cache(self) -> Any:
        """Asked for before a change, so that a wrong EVERGREEN_CACHE is told of while nothing is changed yet."""
        from evergreen.knowledge.cache import open_cache

        return open_cache(self.folder, self.warn)

    @property
    def author(self) -> str:
        return self.given.author or _user()

    def moment(self) -> tuple[int, str, str | int]:
        """(change number, the time that validity goes by, "live" or the snapshot or the date) that is read."""
        given, now = self.given, utc_now()
        if given.as_of and given.snapshot not in ("", "live"):
            raise BadInput("--snapshot and --as_of name a state each: give one of them")
        if given.as_of:
            return self.store.at(given.as_of), end_of(given.as_of), given.as_of
        n = self.store.at(given.snapshot)
        if given.snapshot in ("", "live"):
            return n, now, "live"
        return n, now, len(self.store.snapshots) if given.snapshot == "latest" else int(given.snapshot)

    def retriever(self, say: Callable[[str], None] | None = None, anew: bool = False) -> Any:
        from evergreen.knowledge.retrieve import open_retriever

        return open_retriever(self.folder, self.store, say or self.warn, anew)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar with ETA on a terminal, nothing elsewhere; gives `progress(done, total)`."""
    from rich import console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    terminal = console.Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("ETA"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as shown:
        task = shown.add_task("reading", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
