"""Releases, and the aliases that say which of them is served.

Promises: a release is named by its content and never changes; promote and rollback move one pointer in one
transaction, so that a reader finds the old or the new, whoever else writes, is killed or has a full disk; every move
stays in the history with who, when, from, to and why; nothing is promoted, or served, whose files have changed.
Does not: judge (the gate's report is handed to it), or delete a record: `prune` frees files, lineage stays readable.

A `ref` is an alias, a release's id, a version's digest (its newest release), or an unambiguous beginning of either.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import canonical_json, digest_of
from evergreen.records import BadInput, Failure, Release
from evergreen.registry import store
from evergreen.registry.versions import VersionRecord, Versions, now, recorded_digest

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

ALIASES = ("stable", "candidate")
MIN_KEPT = 3
JSON_FIELDS = ("prompt", "sampling", "gate")
NO_DIFFERENCE = ("home", "json", "output_dir")  # settings that are no part of what was learnt
LOOKS_LIKE_A_NAME = re.compile("[0-9a-f]{6,64}")


@dataclass(frozen=True)
class Move:
    """One line of an alias's history. `forced`: without a passed gate."""

    alias: str
    action: str
    release: str
    previous: str | None
    reason: str
    forced: bool
    by: str
    at: str


@dataclass(frozen=True)
class Pruned:
    """What a prune gave up, or with `dry_run` would: release ids, version digests, bytes on the disk; ids kept."""

    releases: tuple[str, ...]
    versions: tuple[str, ...]
    freed_bytes: int
    kept: tuple[str, ...]


class Registry:
    """One home's versions, releases and aliases. Every public method is one transaction."""

    def __init__(self, home: Path, url: str = "", digest: Callable[[Path], str] = recorded_digest):
        """`url` (else $EVERGREEN_DB) is a PostgreSQL database; "" is SQLite at HOME/evergreen.db. `digest` names a
        folder of weights by its content; without it a folder's own version.json is believed."""
        from evergreen import database

        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.db = database.Database(self.home, url or database.url_of_environment())
        self.versions = Versions(self.home, self.db, digest)
        self.releases, self.pointers, self.moves = database.releases, database.aliases, database.moves

    # -- versions and releases

    def add_version(self, folder: str | Path, report: str = "") -> str:
        """Keep a run's adapter or model at HOME/adapters/DIGEST or HOME/models/DIGEST, with what it stands on; the
        digest. See `Versions.add`."""
        return self.versions.add(Path(folder), report)

    def add_base(self, place: str, digest: str = "") -> str:
        """Name a base that stays where it is. See `Versions.add_base`."""
        return self.versions.add_base(place, digest)

    def create(
        self,
        base: str = "",
        adapter: str | None = None,
        knowledge: str = "live",
        edits: str | None = None,
        prompt: dict | None = None,
        sampling: dict | None = None,
        parent: str | None = None,
        gate: dict | None = None,
    ) -> Release:
        """A release of an added adapter, or of a base alone; the same content is the same release.

        `base` is a known digest, a folder or a hub name; "" is the base that the adapter was trained on. `gate` is the
        gate's report; its "decision" must be "promote" for the release to become stable without force."""
        if base and not LOOKS_LIKE_A_NAME.fullmatch(base):
            base = self.add_base(base)
        with self.db.write() as tx:
            own = self.versions.get(tx, adapter) if adapter else None
            base = self._base_for(tx, own, base)
            content = {"base": base, "adapter": own.digest if own else None, "knowledge": knowledge, "edits": edits,
                       "prompt": prompt, "sampling": sampling, "gate": gate,
                       "parent": self._release(tx, parent).id if parent else None}  # fmt: skip
            return self._write(tx, Release(digest_of(content), **content, created=now()))

    def get(self, ref: str) -> Release:
        """Raises BadInput for a reference that names nothing, or more than one release."""
        with self.db.read() as tx:
            return self._release(tx, ref)

    def parts(self, ref: str) -> list[VersionRecord]:
        """The versions that a release runs on: its base, the adapters below its own, its own."""
        with self.db.read() as tx:
            return self._parts(tx, self._release(tx, ref))

    def diff(self, a: str, b: str) -> dict[str, tuple[Any, Any]]:
        """What differs between two releases: their fields, and of their versions the data and the settings."""
        with self.db.read() as tx:
            left, right = (self._flat(tx, self._release(tx, ref)) for ref in (a, b))
        settings = [{name for name in side if name.startswith("settings.")} for side in (left, right)]
        odd = set() if all(settings) else settings[0] | settings[1]  # a base has none to compare with
        names = [name for name in dict.fromkeys([*left, *right]) if name not in odd]
        return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}

    def damage(self, ref: str) -> str:
        """What of the files behind a release is not what was kept, every byte compared; "" for nothing."""
        found = (f"version {part.digest[:12]} was pruned" if part.pruned else self.versions.damage(part, thorough=True)
                 for part in self.parts(ref))  # fmt: skip
        return next(filter(None, found), "")

    def locate(self, ref: str) -> tuple[str, tuple[str, ...]] | None:
        """The model and the adapters to load for a release, an alias or a version; None for what is none of these.

        Raises BadInput for what is ambiguous or pruned, Failure for damaged files."""
        with self.db.read() as tx:
            versions = self.versions.beginning_with(tx, ref)
            releases = self._beginning_with(tx, ref)
            if ref not in ALIASES and not versions and not releases:
                return None
            if len(versions) == 1 and not releases:
                own, base = versions[0], versions[0].base
                parts = [self.versions.get(tx, base), own] if own.kind == "adapter" and base else [own]
            else:
                parts = self._parts(tx, self._release(tx, ref))
        for part in parts:
            if part.pruned:
                raise BadInput(f"{ref} was pruned ({part.pruned}), its files are gone")
            if found := self.versions.damage(part):
                raise Failure(f"{ref} is damaged: {found}; bring back a backup, or serve another release")
        model, *adapters = map(self.versions.place_to_load, parts)
        return model, tuple(adapters[-1:])  # those below are found beside it, by its own record

    def prompt(self, ref: str) -> dict[str, Any]:
        """The system prompt and template of a release or an alias; {} for a version, whose own run says them."""
        with self.db.read() as tx:
            is_release = ref in ALIASES or self._beginning_with(tx, ref)
            return (self._release(tx, ref).prompt or {}) if is_release else {}

    # -- aliases

    def alias(self, name: str) -> Release | None:
        """The release that an alias points to; None before its first promotion."""
        _check_alias(name)
        with self.db.read() as tx:
            pointer = self._pointer(tx, name)
            return self._release(tx, pointer) if pointer else None

    def promote(self, ref: str, to: str = "stable", force: str = "", share: float = 0.0) -> dict[str, str | None]:
        """Point an alias at a release: {alias: id, "previous": id}. `stable` wants a passed gate, or `force`, a reason
        that stays in the history. What the alias points to already is no move. `share` of the users of stable get the
        candidate instead, until the next move of either."""
        _check_alias(to)
        reason = " ".join(force.split())
        with self.db.read() as tx:
            release = self._release(tx, ref)
            self._check_kept(tx, release)
        has_passed = verdict_of(release) == "promote"
        if to == "stable" and not has_passed and not reason:
            raise BadInput(f"release {release.id[:12]} has not passed a gate ({verdict_of(release)}): "
                           "--force \"reason\" promotes it all the same and keeps the reason")  # fmt: skip
        if found := self.damage(release.id):
            raise Failure(f"release {release.id[:12]} is damaged ({found}): it is not promoted")
        with self.db.write() as tx:
            self._check_kept(tx, release)
            previous = self._pointer(tx, to)
            if previous != release.id:
                self._move(tx, Move(to, "promote", release.id, previous, reason, not has_passed, _who(), now()))
            if to == "candidate":
                self._split(tx, share)
        return {to: release.id, "previous": previous}

    def share(self, alias: str = "candidate") -> float:
        """How many of the users of stable get the alias's release instead, a fraction."""
        with self.db.read() as tx:
            row = tx.execute(self.pointers.select().where(self.pointers.c.name == alias)).first()
        return (row.share if row else None) or 0.0

    def rollback(self, alias: str = "stable", reason: str = "") -> dict[str, str | None]:
        """Take back the last promotion that still stands: {alias: id, "previous": id}.

        Promotions pile up and a rollback takes the topmost off, so a second one goes further back, never to what the
        first has left. To go forward again, promote. Raises BadInput when nothing lies below."""
        _check_alias(alias)
        with self.db.write() as tx:
            pile = self._pile(tx, alias)
            if len(pile) < 2:
                raise BadInput(f"{alias} cannot be rolled back: " + (
                    f"{pile[0][:12]} is the first that it pointed to" if pile else "it has never pointed to anything"
                ))  # fmt: skip
            target = self._release(tx, pile[-2])
            self._check_kept(tx, target)
            if found := next(filter(None, map(self.versions.damage, self._parts(tx, target))), ""):
                raise Failure(
                    f"{alias} stays: release {target.id[:12]} before it is damaged ({found}); promote another"
                )
            self._move(tx, Move(alias, "rollback", target.id, pile[-1], reason, False, _who(), now()))
        return {alias: target.id, "previous": pile[-1]}

    def history(self, alias: str = "stable") -> list[Move]:
        """Every move of an alias, newest first."""
        _check_alias(alias)
        with self.db.read() as tx:
            return self._moves(tx, alias)[::-1]

    # -- making room

    def prune(self, keep: int = MIN_KEPT, dry_run: bool = False) -> Pruned:
        """Give up the files of versions that no kept release runs on.

        Kept are the releases that an alias points to or would come to in `keep` - 1 rollbacks, the last `keep`
        promoted, and the newest `keep`; `keep` is at least 3. For a day, so are a release that the gate did not reject
        and nobody has promoted yet, and a version without a release."""
        with store.locked(self.home, "prune"):
            with self.db.write() as tx:
                kept = self._kept(tx, max(keep, MIN_KEPT))
                gone = [row.id for row in self._rows(tx) if not row.pruned and row.id not in kept]
                doomed = self._doomed(tx, kept)
                strays = self.versions.strays(tx)
                if not dry_run:
                    tx.execute(self.releases.update().where(self.releases.c.id.in_(gone)).values(pruned=now()))
                    self.versions.mark_pruned(tx, doomed)
            give_up = store.size_of if dry_run else store.remove
            freed = sum(map(give_up, [*map(self.versions.folder_of, doomed), *strays]))
        return Pruned(tuple(gone), tuple(one.digest for one in doomed), freed, tuple(kept))

    def _kept(self, tx: "Connection", keep: int) -> list[str]:
        rows = [row for row in self._rows(tx) if not row.pruned]
        moves = [move for alias in ALIASES for move in self._moves(tx, alias)]
        kept = [row.id for row in rows[-keep:]]
        for alias in ALIASES:
            promoted = [move.release for move in moves if move.alias == alias and move.action == "promote"]
            kept += _last_distinct(promoted, keep) + _last_distinct(self._pile(tx, alias), keep)
        has_been, yesterday = {move.release for move in moves}, now(timedelta(days=1))
        kept += [
            row.id
            for row in rows
            if row.created > yesterday and row.id not in has_been and verdict_of(_as_release(row)) != "reject"
        ]
        return [row.id for row in rows if row.id in set(kept)]

    def _doomed(self, tx: "Connection", kept: list[str]) -> list[VersionRecord]:
        releases = [_as_release(row) for row in self._rows(tx)]
        needed = {part.digest for release in releases if release.id in kept for part in self._parts(tx, release)}
        named = {digest for release in releases for digest in (release.base, release.adapter)}
        yesterday = now(timedelta(days=1))
        return [
            one
            for one in self.versions.all(tx)
            if one.kind != "base" and not one.pruned and one.digest not in needed
            and (one.digest in named or one.created < yesterday)
        ]  # fmt: skip

    # -- inside a transaction

    def _rows(self, tx: "Connection") -> "list[Row]":
        return tx.execute(self.releases.select().order_by(self.releases.c.number)).all()

    def _release(self, tx: "Connection", ref: str) -> Release:
        if ref in ALIASES:
            pointer = self._pointer(tx, ref)
            if not pointer:
                raise BadInput(f"{ref} points to nothing yet: evergreen release promote RELEASE --to {ref}")
            ref = pointer
        found = {row.id: row for row in [*self._beginning_with(tx, ref), *self._newest_of_versions(tx, ref)]}
        if len(found) == 1:
            return _as_release(found.popitem()[1])
        if found:
            raise BadInput(f"{ref} may be any of {', '.join(one[:16] for one in [*found][:4])}: give more of it")
        raise BadInput(f"no release {ref!r}: evergreen release list shows them; at least 4 characters of one will do")

    def _beginning_with(self, tx: "Connection", ref: str) -> "list[Row]":
        if not re.fullmatch("[0-9a-f]{4,64}", ref):
            return []
        return tx.execute(self.releases.select().where(self.releases.c.id.startswith(ref))).all()

    def _newest_of_versions(self, tx: "Connection", ref: str) -> "list[Row]":
        table, found = self.releases, []
        for version in self.versions.beginning_with(tx, ref):
            own = (table.c.adapter == version.digest) | (table.c.adapter.is_(None) & (table.c.base == version.digest))
            found.append(tx.execute(table.select().where(own).order_by(table.c.number.desc())).first())
        return [row for row in found if row]

    def _parts(self, tx: "Connection", release: Release) -> list[VersionRecord]:
        own = [self.versions.get(tx, release.adapter)] if release.adapter else []
        below = [self.versions.get(tx, digest) for one in own for digest in one.chain]
        return [self.versions.get(tx, release.base), *below, *own]

    def _base_for(self, tx: "Connection", adapter: VersionRecord | None, base: str) -> str:
        """The digest of the base that a release names, or its adapter's own."""
        if adapter and adapter.kind != "adapter":
            raise BadInput(f"version {adapter.digest[:12]} is a whole model, not an adapter: give it as the base")
        own = (adapter.base if adapter else None) or ""
        if not base and not own:
            raise BadInput("a release wants a base, and the adapter does not say which it was trained on: name it")
        digest = self.versions.get(tx, base or own).digest
        if own and own != digest:
            raise BadInput(f"the adapter was trained on {own[:12]}, not on {digest[:12]}")
        return digest

    def _check_kept(self, tx: "Connection", release: Release) -> None:
        row = tx.execute(self.releases.select().where(self.releases.c.id == release.id)).one()
        if row.pruned or any(part.pruned for part in self._parts(tx, release)):
            raise BadInput(f"release {release.id[:12]} was pruned, its files are gone: evergreen release list shows "
                           "those there are")  # fmt: skip

    def _write(self, tx: "Connection", release: Release) -> Release:
        """A new row; a known release keeps its own, and is no longer pruned."""
        for part in self._parts(tx, release):
            if part.pruned:
                raise BadInput(f"version {part.digest[:12]} was pruned: add its folder again first")
        is_it = self.releases.c.id == release.id
        if row := tx.execute(self.releases.select().where(is_it)).first():
            tx.execute(self.releases.update().where(is_it).values(pruned=None))
            return _as_release(row)
        values = asdict(release)
        values |= {name: None if values[name] is None else canonical_json(values[name]) for name in JSON_FIELDS}
        tx.execute(self.releases.insert().values(values))
        return release

    def _pointer(self, tx: "Connection", alias: str) -> str | None:
        row = tx.execute(self.pointers.select().where(self.pointers.c.name == alias)).first()
        return row.release if row else None

    def _moves(self, tx: "Connection", alias: str) -> list[Move]:
        rows = tx.execute(self.moves.select().where(self.moves.c.alias == alias).order_by(self.moves.c.number))
        return [Move(one.alias, one.action, one.release, one.previous, one.reason, bool(one.forced), one.by, one.at)
                for one in rows]  # fmt: skip

    def _pile(self, tx: "Connection", alias: str) -> list[str]:
        """The promotions that still stand, oldest first; the last is what the alias points to."""
        pile: list[str] = []
        for move in self._moves(tx, alias):
            if move.action == "promote":
                pile.append(move.release)
            else:
                pile.pop()
        return pile

    def _move(self, tx: "Connection", move: Move) -> None:
        if move.previous is None:
            tx.execute(self.pointers.insert().values(name=move.alias, release=move.release))
        else:
            tx.execute(self.pointers.update().where(self.pointers.c.name == move.alias).values(release=move.release))
        tx.execute(self.moves.insert().values({**asdict(move), "forced": int(move.forced)}))
        self._split(tx, 0.0)  # it was a try of one against the other

    def _split(self, tx: "Connection", share: float) -> None:
        tx.execute(self.pointers.update().where(self.pointers.c.name == "candidate").values(share=share))

    def _flat(self, tx: "Connection", release: Release) -> dict[str, Any]:
        """A release and its adapter's (else its base's) data and settings, one value a name."""
        flat = {name: value for name, value in asdict(release).items() if name not in ("id", "created", *JSON_FIELDS)}
        for name in JSON_FIELDS:
            flat |= {f"{name}.{key}": value for key, value in (getattr(release, name) or {}).items()}
        facts = self.versions.get(tx, release.adapter or release.base).facts or {}
        flat |= {name: facts.get(name) for name in ("method", "seed", "steps", "train_loss", "evergreen")}
        data, settings = facts.get("data") or {}, facts.get("settings") or {}
        flat |= {"data.hash": data.get("hash"), "data.rows": data.get("rows")}
        flat["data.sources"] = " ".join(str(source.get("name")) for source in data.get("sources") or ())
        return flat | {f"settings.{name}": value for name, value in settings.items() if name not in NO_DIFFERENCE}

    def list(self, pruned: bool = False) -> list[Release]:  # last: below it `list` would mean this method
        """Newest first; with `pruned` also those whose files are gone."""
        with self.db.read() as tx:
            return [_as_release(row) for row in self._rows(tx)[::-1] if pruned or not row.pruned]


def locate(ref: str, home: str | Path) -> tuple[str, tuple[str, ...]] | None:
    """`Registry.locate`, without opening a database for what cannot be in it. A folder of that name goes first."""
    if Path(ref).exists() or not (ref in ALIASES or LOOKS_LIKE_A_NAME.fullmatch(ref)):
        return None
    if not os.environ.get("EVERGREEN_DB") and not (Path(home) / "evergreen.db").is_file():
        return None
    return Registry(Path(home)).locate(ref)


def prompt_of(ref: str, home: str | Path) -> dict[str, Any]:
    """The prompt of what `locate` has found."""
    return Registry(Path(home)).prompt(ref)


def verdict_of(release: Release) -> str:
    """What the gate said, in a word."""
    return (release.gate or {}).get("decision") or "never judged"


def _as_release(row: "Row") -> Release:
    values = {name: value for name, value in row._mapping.items() if name not in ("number", "pruned")}
    return Release(**values | {name: json.loads(values[name]) if values[name] else None for name in JSON_FIELDS})


def _last_distinct(names: list[str], count: int) -> list[str]:
    """The last `count` different names of a list."""
    return list(dict.fromkeys(reversed(names)))[:count]


def _check_alias(name: str) -> None:
    if name not in ALIASES:
        raise BadInput(f"no alias {name!r}: there are {' and '.join(ALIASES)}")


def _who() -> str:
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
