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
        self._lock, self._known, self._asked = threading.Lock(), dict[str, str](), 0.0
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def get(self, alias: str) -> str | None:
        """The id of the release that the alias points to; None before its first promotion."""
        with self._lock:
            if self.path:
                self._read_file()
            elif time.monotonic() - self._asked > POLL_SECONDS:
                self._ask_server()
            return self._known.get(alias)

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
            self._known = dict(self._connection.execute("SELECT name, release FROM aliases"))
        except (OSError, sqlite3.Error):
            self._file = None

    def _ask_server(self) -> None:
        self._asked = time.monotonic()
        try:
            found = {name: self.registry.alias(name) for name in ALIASES}
            self._known = {name: release.id for name, release in found.items() if release}
        except EvergreenError:
            pass
