"""What training runs made, each with its lineage and kept once under its digest; and the bases they stand on.

Promises: a version is kept with everything that it runs on: the adapters below it, and a base that a run made. A base
from elsewhere is named by place and digest, and stays where it is. A kept version's files are checked against what was
recorded when it was added.
Does not: know releases.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import canonical_json, read_json
from evergreen.records import BadInput
from evergreen.registry import store

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from evergreen.database import Database

ROOMS = {"adapter": "adapters", "model": "models"}  # under HOME, by kind
PACKAGE = Path(__file__).resolve().parents[1]
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class VersionRecord:
    """`kind` is adapter, model or base; `place` is where it came from, of a base where it is; `base` and `chain` are
    the digests of what an adapter runs on, the adapters below it innermost first; `facts` is its version.json with the
    run's settings; `pruned` is when its files were given up."""

    digest: str
    kind: str
    place: str
    base: str | None = None
    parent: str | None = None
    chain: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    report: str = ""
    files: store.Files | None = None
    created: str = ""
    pruned: str | None = None


def recorded_digest(folder: Path) -> str:
    """The digest that a run wrote into its version.json."""
    if not (folder / "version.json").is_file():
        raise BadInput(f"{folder} has no version.json, so its digest is unknown")
    return read_json(folder / "version.json")["digest"]


class Versions:
    """The versions of one home. Methods with a connection are part of the caller's transaction."""

    def __init__(self, home: Path, db: "Database", digest: Callable[[Path], str]):
        from evergreen.database import versions

        self.home, self.db, self.digest, self.table = home, db, digest, versions

    def add(self, folder: Path, report: str = "") -> str:
        """Keep an adapter or model with what it stands on; the digest. A version that is known and whole is not copied
        again. Raises BadInput when the folder holds neither or has changed since its run, Failure on a full disk."""
        kind, facts, digest = _kind_of(folder), _facts_of(folder), self.digest(folder)
        if facts.get("digest", digest) != digest:
            raise BadInput(f"{folder} has changed since its run: version.json says {facts['digest'][:12]}, the weights "
                           f"give {digest[:12]}")  # fmt: skip
        if self.is_whole(digest):
            return digest
        below = tuple(self._add_below(folder, link) for link in facts.get("chain") or ())
        base = self._add_base_of(folder, facts) if kind == "adapter" else facts.get("base_digest")
        staged, files = store.stage(folder, self.home / ROOMS[kind])
        record = VersionRecord(digest, kind, str(folder.resolve()), base, facts.get("parent"), below, facts, report,
                               files, now())  # fmt: skip
        try:
            with store.locked(self.home), self.db.write() as tx:
                store.put_in_place(staged, self.folder_of(record))
                self._write(tx, record)
        finally:
            store.remove(staged)
        return digest

    def add_base(self, place: str, digest: str = "") -> str:
        """Name a folder or hub name that versions stand on; what a run made is kept instead. The digest."""
        path = Path(self.place_of(place)).expanduser()
        if (path / "version.json").is_file():
            return self.add(path)
        digest = digest or self.digest(path)
        if self.find(digest) is None:
            with self.db.write() as tx:
                self._write(tx, VersionRecord(digest, "base", self._portable(place), created=now()))
        return digest

    def find(self, digest: str) -> VersionRecord | None:
        """The version of exactly this digest."""
        with self.db.read() as tx:
            row = tx.execute(self.table.select().where(self.table.c.digest == digest)).first()
        return _as_version(row) if row else None

    def get(self, tx: "Connection", ref: str) -> VersionRecord:
        """The version whose digest begins with `ref`. Raises BadInput for none or several."""
        found = self.beginning_with(tx, ref)
        if len(found) == 1:
            return found[0]
        if found:
            raise BadInput(f"{ref} is the beginning of {len(found)} versions: give more of it")
        raise BadInput(f"no version {ref!r}: add its folder first")

    def beginning_with(self, tx: "Connection", ref: str) -> list[VersionRecord]:
        if not re.fullmatch("[0-9a-f]{4,64}", ref):
            return []
        return [_as_version(row) for row in tx.execute(self.table.select().where(self.table.c.digest.startswith(ref)))]

    def all(self, tx: "Connection") -> list[VersionRecord]:
        """Oldest first."""
        return [_as_version(row) for row in tx.execute(self.table.select().order_by(self.table.c.number))]

    def folder_of(self, version: VersionRecord) -> Path:
        """Where a kept version's files are."""
        return self.home / ROOMS[version.kind] / version.digest

    def place_to_load(self, version: VersionRecord) -> str:
        """A folder, or a base's hub name."""
        return self.place_of(version.place) if version.kind == "base" else str(self.folder_of(version))

    def is_whole(self, digest: str) -> bool:
        known = self.find(digest)
        return bool(known and known.kind != "base" and not known.pruned and not self.damage(known))

    def damage(self, version: VersionRecord, thorough: bool = False) -> str:
        """What differs from what was added, "" for nothing; `thorough` reads every byte of large weights too."""
        if version.kind != "base":
            return store.damage(self.folder_of(version), version.files or {}, thorough)
        place = Path(self.place_of(version.place))
        if place.is_absolute() and not place.is_dir():
            return f"the base {place} is gone"
        if place.is_dir() and self.digest is not recorded_digest and self.digest(place) != version.digest:
            return f"the base {place} has changed"
        return ""

    def mark_pruned(self, tx: "Connection", versions: list[VersionRecord]) -> None:
        names = [version.digest for version in versions]
        tx.execute(self.table.update().where(self.table.c.digest.in_(names)).values(pruned=now()))

    def strays(self, tx: "Connection") -> list[Path]:
        """Folders that killed processes left: under a digest without a live record, or staged a day ago."""
        live = {version.digest for version in self.all(tx) if not version.pruned}
        rooms = [self.home / room for room in ROOMS.values()]
        kept = [folder for room in rooms for folder in room.glob("*") if DIGEST.fullmatch(folder.name)]
        return [
            *(folder for folder in kept if folder.name not in live),
            *(folder for room in rooms for folder in store.leftovers(room)),
        ]

    def place_of(self, place: str) -> str:
        """A recorded place as it is on this machine."""
        for word, root in self._roots():
            if place.startswith(word):
                return str(root / place.removeprefix(word))
        return place

    def _portable(self, place: str) -> str:
        """A place as it is recorded: one that still holds after the package or the home has moved."""
        path = Path(place).expanduser()
        if not path.is_dir():
            return place
        for word, root in self._roots():
            if path.resolve().is_relative_to(root):
                return word + str(path.resolve().relative_to(root))
        return str(path.resolve())

    def _roots(self) -> list[tuple[str, Path]]:
        return [("evergreen:", PACKAGE), ("home:", self.home.resolve())]

    def _add_below(self, folder: Path, link: dict[str, Any]) -> str:
        """An adapter below another: where it lay, in that place relative to this one, or beside it by its digest."""
        digest, relative = link["digest"], link.get("relative", link["path"])
        if self.is_whole(digest):
            return digest
        for place in (Path(link["path"]), folder / relative, folder.parent / digest):
            if (place / "adapter_config.json").is_file() and self.digest(place) == digest:
                return self.add(place)
        raise BadInput(f"{folder} stands on the adapter {digest[:12]}, which is not at {link['path']}: bring it back")

    def _add_base_of(self, folder: Path, facts: dict[str, Any]) -> str | None:
        place = facts.get("base")
        if not place:
            return None
        beside = next((one for one in (folder / "base", folder.parent / "base") if (one / "config.json").is_file()), "")
        if beside and not Path(place).is_dir():  # a run with --chain merge that has moved
            place = str(beside)
        return self.add_base(place, facts.get("base_digest") or "")

    def _write(self, tx: "Connection", record: VersionRecord) -> None:
        """A new row; a known version gets its files back, and a base that was only named may become a kept model."""
        table = self.table
        row = tx.execute(table.select().where(table.c.digest == record.digest)).first()
        values = asdict(record) | {name: canonical_json(getattr(record, name)) for name in ("chain", "facts", "files")}
        if not row:
            tx.execute(table.insert().values(values))
        elif record.kind != "base":
            tx.execute(table.update().where(table.c.digest == record.digest).values(values | {"created": row.created}))


def now(ago: timedelta = timedelta(0)) -> str:
    return (datetime.now(UTC) - ago).isoformat(timespec="seconds")


def _kind_of(folder: Path) -> str:
    for name, kind in (("adapter_config.json", "adapter"), ("config.json", "model")):
        if (folder / name).is_file():
            return kind
    raise BadInput(f"{folder} holds neither an adapter nor a model (adapter_config.json or config.json)")


def _facts_of(folder: Path) -> dict[str, Any]:
    """version.json and the settings of args.json; of an adapter from elsewhere, the base that its config names."""
    args, facts, config = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("args.json", "version.json", "adapter_config.json")
    )
    named = {"base": config["base_model_name_or_path"]} if config.get("base_model_name_or_path") else {}
    of_args = {name: args[name] for name in ("base", "base_digest", "chain", "settings") if name in args}
    return named | of_args | facts


def _as_version(row: "Row") -> VersionRecord:
    values = {name: value for name, value in row._mapping.items() if name != "number"}
    values |= {name: json.loads(values[name]) for name in ("chain", "facts", "files")}
    return VersionRecord(**values | {"chain": tuple(values["chain"])})
