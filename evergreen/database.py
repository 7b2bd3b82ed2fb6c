"""One SQL database per home: SQLite at HOME/evergreen.db, or PostgreSQL by URL. Tables, transactions, migrations.

Promises: a transaction is all or nothing, also under kill -9 and on a full disk; writers take turns, so what a write
transaction reads cannot change before it commits; readers never wait. The schema is brought up to date when the
database is opened, and a database that is newer than this program is refused.
Does not: work over a network file system with SQLite (its locks are not reliable there): take PostgreSQL for that.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
    exc,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy import create_engine as engine_of
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from evergreen.records import BadInput, Failure

DATABASE_FILE = "evergreen.db"
BUSY_SECONDS = 30
ADVISORY_LOCK = 0x657667  # any number, the same in every process
METADATA = MetaData()

versions = Table(
    "versions",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("digest", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),  # adapter and model are stored in the home, base only named
    Column("place", String, nullable=False),  # of a base: where it is; else where the version came from
    Column("base", String),
    Column("parent", String),
    Column("chain", Text, nullable=False),  # JSON: digests of the adapters below this one, innermost first
    Column("facts", Text, nullable=False),  # JSON: version.json and the settings of the run
    Column("report", String, nullable=False),
    Column("files", Text, nullable=False),  # JSON: name -> [bytes, SHA-256]
    Column("created", String, nullable=False),
    Column("pruned", String),
)
releases = Table(
    "releases",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("base", String, ForeignKey("versions.digest"), nullable=False),
    Column("adapter", String, ForeignKey("versions.digest")),
    Column("knowledge", String, nullable=False),
    Column("edits", String),
    Column("prompt", Text),  # JSON
    Column("sampling", Text),  # JSON
    Column("parent", String, ForeignKey("releases.id")),
    Column("gate", Text),  # JSON
    Column("created", String, nullable=False),
    Column("pruned", String),
)
aliases = Table(
    "aliases",
    METADATA,
    Column("name", String, primary_key=True),
    Column("release", String, ForeignKey("releases.id"), nullable=False),
    Column("share", Float),  # of the users of `stable` who get this alias's release instead
)
moves = Table(
    "moves",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("alias", String, nullable=False),
    Column("action", String, nullable=False),  # promote or rollback
    Column("release", String, ForeignKey("releases.id"), nullable=False),
    Column("previous", String, ForeignKey("releases.id")),
    Column("reason", String, nullable=False),
    Column("forced", Integer, nullable=False),
    Column("by", String, nullable=False),
    Column("at", String, nullable=False),
)
requests = Table(
    "requests",
    METADATA,
    Column("id", String, primary_key=True),  # UUIDv7: in the order of time
    Column("at", String, nullable=False),
    Column("route", String, nullable=False),
    Column("key", String, nullable=False),  # the API key's name, never the key
    Column("user", String, nullable=False),
    Column("model", String, nullable=False),  # the name that was asked for
    Column("release", String),
    Column("base", String),
    Column("adapter", String),
    Column("knowledge", Integer),  # the number of the last change that the answer saw
    Column("input", Text),  # JSON, a digest, or nothing
    Column("output", Text),
    Column("status", Integer, nullable=False),
    Column("finish_reason", String, nullable=False),
    Column("error", String, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("first_token_seconds", Float),
    Column("latency_seconds", Float, nullable=False),
    Column("session", String),  # the page's cookie; with it, a user who gives no name
    Column("grounding", Text),  # JSON: what knowledge came to: decision, reasons, outcome, problems, sources
    Column("cached", Integer),  # 1: the answer was found in the cache
)
ratings = Table(
    "ratings",
    METADATA,
    Column("id", String, primary_key=True),
    Column("request", String, nullable=False, index=True),
    Column("at", String, nullable=False),
    Column("key", String, nullable=False),
    Column("user", String, nullable=False),
    Column("trusted", Integer, nullable=False),  # sent with an admin key
    Column("thumb", String),
    Column("correction", Text),
    Column("comment", Text),
    Column("dwell_ms", Integer),
    Column("action", String),
)
schema = Table("schema_number", METADATA, Column("number", Integer, nullable=False))

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (  # 1 -> 2
        "ALTER TABLE versions ADD COLUMN pruned VARCHAR",
        "ALTER TABLE releases ADD COLUMN pruned VARCHAR",
    ),
    (  # 2 -> 3
        "CREATE TABLE requests (id VARCHAR NOT NULL PRIMARY KEY, at VARCHAR NOT NULL, route VARCHAR NOT NULL, "
        '"key" VARCHAR NOT NULL, "user" VARCHAR NOT NULL, model VARCHAR NOT NULL, release VARCHAR, base VARCHAR, '
        "adapter VARCHAR, knowledge INTEGER, input TEXT, output TEXT, status INTEGER NOT NULL, "
        "finish_reason VARCHAR NOT NULL, error VARCHAR NOT NULL, prompt_tokens INTEGER NOT NULL, "
        "cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, first_token_seconds FLOAT, "
        "latency_seconds FLOAT NOT NULL)",
        "CREATE TABLE ratings (id VARCHAR NOT NULL PRIMARY KEY, request VARCHAR NOT NULL, at VARCHAR NOT NULL, "
        '"key" VARCHAR NOT NULL, "user" VARCHAR NOT NULL, trusted INTEGER NOT NULL, thumb VARCHAR, correction TEXT, '
        "comment TEXT, dwell_ms INTEGER, action VARCHAR)",
        "CREATE INDEX ix_ratings_request ON ratings (request)",
    ),
    (  # 3 -> 4
        "ALTER TABLE aliases ADD COLUMN share FLOAT",
        "ALTER TABLE requests ADD COLUMN session VARCHAR",
        "ALTER TABLE requests ADD COLUMN grounding TEXT",
        "ALTER TABLE requests ADD COLUMN cached INTEGER",
    ),
)  # statements that both SQLite and PostgreSQL know; a step once shipped is never changed
SCHEMA = 1 + len(MIGRATIONS)


def url_of_environment() -> str:
    """$EVERGREEN_DB, "" for SQLite in the home."""
    return os.environ.get("EVERGREEN_DB", "")


class Database:
    """`with database.read() as connection` and `with database.write() as connection`; nothing else touches the file."""

    def __init__(self, home: Path, url: str = ""):
        """`url` "" is SQLite in the home. Raises BadInput for a URL or a schema that this program cannot use, Failure
        for a server that cannot be reached."""
        self.path = None if url else home / DATABASE_FILE
        self.engine = _sqlite(self.path) if self.path else _postgres(url)
        self.name = str(self.path or self.engine.url.render_as_string(hide_password=True))
        if self.path and not self.path.exists():
            self._create(self.path)
        self._bring_up_to_date()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view, however others write meanwhile; of SQLite also when the disk is full."""
        with self._in_one_line(), self._connected_to_read() as connection:
            if not self.path:
                connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Committed when the block ends, taken back when it raises; one writer at a time, the others wait."""
        with self._in_one_line(), self.engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            with connection.begin():
                if not self.path:
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
                yield connection

    def _connected_to_read(self) -> Connection:
        """With write-ahead logging even the first reader writes a small index file, for which a full disk has no room.
        Then the index is held in memory, which takes that no other process has the file open."""
        connection = self.engine.connect()
        if not self.path:
            return connection
        try:
            connection.exec_driver_sql("SELECT 1 FROM sqlite_master")
            return connection
        except exc.OperationalError as error:
            connection.close()
            if "disk" not in str(error.orig):
                raise
        return _sqlite(self.path, alone=True).connect()

    def snapshot(self, folder: Path) -> None:
        """Everything as it is now in one SQLite file of `folder`, while others go on writing."""
        target = folder / DATABASE_FILE
        if self.path:
            try:
                with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(target)) as copy:
                    source.backup(copy)
            except sqlite3.Error as error:
                raise self._failure(error) from None
            return
        copy = Database(folder)
        with copy.write() as connection:
            copy.fill(self, connection)

    def fill(self, source: "Database", connection: Connection) -> None:
        """Replace every row by those of `source`, inside the caller's write transaction."""
        for table in reversed(METADATA.sorted_tables):
            connection.execute(table.delete())
        with source.read() as rows:
            _copy_rows(rows, connection)

    def is_empty(self) -> bool:
        """Whether no table holds a row, be it one of the request log."""
        with self.read() as connection:
            tables = [table for table in METADATA.sorted_tables if table is not schema]
            return not any(connection.execute(select(func.count()).select_from(table)).scalar() for table in tables)

    def _create(self, path: Path) -> None:
        """A whole database is made beside and linked into place: of several processes that come first, one wins."""
        staged = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            with closing(sqlite3.connect(staged)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            engine = _sqlite(staged)
            with self._in_one_line(), engine.connect().execution_options(writes=True) as connection, connection.begin():
                _create_tables(connection)
            _name(staged, path)
        except sqlite3.Error as error:
            raise self._failure(error) from None
        finally:
            for rest in path.parent.glob(f"{staged.name}*"):
                rest.unlink(missing_ok=True)

    def _bring_up_to_date(self) -> None:
        with self.read() as connection:
            number = _schema_of(connection)
        if number == SCHEMA:
            return
        with self.write() as connection:
            number = _schema_of(connection)  # another process may have been first
            if number > SCHEMA:
                raise BadInput(
                    f"{self.name} has schema {number}, this program knows up to {SCHEMA}: use a newer evergreen"
                )
            if number == 0:
                _create_tables(connection)
            else:
                _migrate(connection, number)

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise self._failure(error.orig or error) from None

    def _failure(self, error: BaseException) -> Failure:
        said = " ".join(str(error).split())
        if "locked" in said:
            return Failure(f"{self.name} was busy for {BUSY_SECONDS} s; nothing was changed: try again")
        if "is full" in said or "disk I/O" in said or "No space left" in said:
            return Failure(f"{self.name} could not be written: the disk is full; nothing was changed")
        if "not a database" in said or "malformed" in said:
            return Failure(f"{self.name} is damaged ({said}): bring back a backup with evergreen restore")
        return Failure(f"the database {self.name} cannot be used: {said[:300]}")


def _name(staged: Path, path: Path) -> None:
    try:
        os.link(staged, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        staged.rename(path)


def _sqlite(path: Path, alone: bool = False) -> Engine:
    """An engine whose every connection is opened when needed and closed after, so that forks and kills leave none."""
    engine = engine_of(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions of its own, and too late
        if alone:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN")
            return
        connection.exec_driver_sql("PRAGMA synchronous=FULL")  # else the last commits may be lost with the power
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgres(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise BadInput(f"EVERGREEN_DB wants postgresql://user@host/database, got {url!r}") from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise BadInput(
            f"EVERGREEN_DB takes a postgresql:// URL, got {parsed.drivername}:// (leave it away for SQLite in the home)"
        )
    try:
        return engine_of(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except ModuleNotFoundError:
        raise BadInput("EVERGREEN_DB names PostgreSQL, whose driver is absent: "
                       "pip install 'evergreen-lm[postgres]'") from None  # fmt: skip


def _schema_of(connection: Connection) -> int:
    """0 for a database without our tables."""
    if not inspect(connection).has_table(schema.name):
        return 0
    return connection.execute(select(schema.c.number)).scalar() or 0


def _create_tables(connection: Connection) -> None:
    METADATA.create_all(connection)
    connection.execute(schema.insert().values(number=SCHEMA))


def _migrate(connection: Connection, number: int) -> None:
    for step in MIGRATIONS[number - 1 :]:
        for statement in step:
            connection.execute(text(statement))
    connection.execute(schema.update().values(number=SCHEMA))


def _copy_rows(source: Connection, target: Connection) -> None:
    target.execute(schema.delete())
    for table in METADATA.sorted_tables:
        order = [table.c.number] if "number" in table.c else []
        rows = [dict(row) for row in source.execute(select(table).order_by(*order)).mappings()]
        if rows:
            target.execute(table.insert(), rows)
        if target.dialect.name == "postgresql" and rows and table is not schema and "number" in table.c:
            last = max(row["number"] for row in rows)
            target.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'number'), {last})"))
