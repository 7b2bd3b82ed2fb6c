"""What an alias points to, asked at every request: some microseconds with SQLite, at most once a second a server.

Promises: with SQLite, a move that has been committed, by whichever process, is in the next answer. A database that
cannot be read for a moment gives what it said last.
"""

import os
import sqlite3
import threading
import time

from evergreen.records import EvergreenError
from evergreen.registry.registry import ALIASES, Registry

POLL_SECONDS = 1.0  # of PostgreSQL


class Pointers:
    """The aliases of a registry. `get` may be called from any thread."""

    def __init__(self, registry: Registry):
        self.registry, self.path = registry, registry.db.path
        self._lock, self._asked = threading.Lock(), 0.0
        self._known: dict[str, tuple[str, float]] = {}  # alias -> release, share
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def get(self, alias: str) -> str | None:
        """The id of the release that the alias points to; None before its first promotion."""
        return self._now().get(alias, (None, 0.0))[0]

    def share(self, alias: str = "candidate") -> float:
        """How many of the users of stable get the alias's release instead, a fraction."""
        return self._now().get(alias, (None, 0.0))[1]

    def _now(self) -> dict[str, tuple[str, float]]:
        with self._lock:
            if self.path:
                self._read_file()
            elif time.monotonic() - self._asked > POLL_SECONDS:
                self._ask_server()
            return self._known

    def close(self) -> None:
        with self._lock:
            if self._connection:
                self._connection.close()
            self._connection = None

    def _read_file(self) -> None:
        """By a connection of its own that stays open: opening one takes fifty times as long as asking."""
        try:
            status = os.stat(self.path)
            if self._connection is None or self._file != (status.st_dev, status.st_ino):  # a restored home
                if self._connection:
                    self._connection.close()
                self._connection = sqlite3.connect(self.path, timeout=1, check_same_thread=False, isolation_level=None)
                self._file = (status.st_dev, status.st_ino)
            rows = self._connection.execute("SELECT name, release, share FROM aliases")
            self._known = {name: (release, share or 0.0) for name, release, share in rows}
        except (OSError, sqlite3.Error):
            self._file = None

    def _ask_server(self) -> None:
        self._asked = time.monotonic()
        try:
            found = {name: self.registry.alias(name) for name in ALIASES}
            shares = {name: self.registry.share(name) for name in found}
            self._known = {name: (release.id, shares[name]) for name, release in found.items() if release}
        except EvergreenError:
            pass
