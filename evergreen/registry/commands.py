"""`evergreen release ...`: what the registry says, as tables for people and as JSON."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen import settings
from evergreen.home import home_dir
from evergreen.records import BadInput
from evergreen.registry.registry import ALIASES, Move, Registry, verdict_of
from evergreen.registry.versions import recorded_digest

if TYPE_CHECKING:
    from rich.console import Console

SHORT = 12


def run_release(
    action: str,
    given: Any,
    digest: Callable[[Path], str] = recorded_digest,
    resolve: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """One of list, show, diff, create, promote, rollback, prune, history. `digest` names a folder by its content and
    `resolve(model, adapters)` finds base and adapter folders; both are the model room's. Returns the JSON document."""
    registry = Registry(home_dir(given.home or None), digest=digest)
    console = _console(given.json)
    if action == "create":
        return _create(registry, given, console, resolve)
    return ACTIONS[action](registry, given, console)


def _list(registry: Registry, given: "settings.ReleaseListSettings", console: "Console") -> dict[str, Any]:
    aliases = {name: found.id if (found := registry.alias(name)) else None for name in ALIASES}
    releases = registry.list(given.all)
    rows = [
        (release.id[:SHORT], release.created[:16].replace("T", " "), (release.adapter or release.base)[:SHORT],
         (release.parent or "")[:SHORT], (release.gate or {}).get("decision", "none"), _names(aliases, release.id))
        for release in releases
    ]  # fmt: skip
    if rows:
        _table(console, ("release", "created (UTC)", "version", "parent", "gate", "alias"), rows)
    else:
        console.print("no releases yet: evergreen release create --model MODEL, or evergreen evolve")
    documents = [
        {"id": one.id, "version": one.adapter or one.base, "parent": one.parent, "created": one.created,
         "gate": (one.gate or {}).get("decision")}
        for one in releases
    ]  # fmt: skip
    return {"releases": documents, "aliases": aliases}


def _show(registry: Registry, given: "settings.ReleaseShowSettings", console: "Console") -> dict[str, Any]:
    release = registry.get(_one(given.release, "release show wants a release, an alias or a version"))
    parts, damage = registry.parts(release.id), registry.damage(release.id)
    moves = [move for name in ALIASES for move in registry.history(name)]
    rows = [(name, _text(value)) for name, value in asdict(release).items() if value is not None and name != "gate"]
    rows.append(("gate", verdict_of(release)))
    rows += [("", reason) for reason in (release.gate or {}).get("reasons", ())]
    for part in parts:
        facts, place = part.facts or {}, registry.versions.place_to_load(part)
        rows.append((part.kind, f"{part.digest[:SHORT]} at {place}"))
        rows += [("", f"{name} {_text(facts[name])}") for name in ("parent", "method", "seed", "evergreen")
                 if facts.get(name) is not None]  # fmt: skip
        if data := facts.get("data"):
            rows.append(("", f"data {str(data.get('hash'))[:SHORT]}, {data.get('rows')} rows"))
        if part.report:
            rows.append(("", f"report {part.report}"))
    rows.append(("files", f"DAMAGED: {damage}" if damage else "whole"))
    rows += [("moved", _sentence(move)) for move in moves if release.id in (move.release, move.previous)]
    for word, text in rows:
        console.print(f"{word:<10} {text}")
    aliases = [name for name in ALIASES if (found := registry.alias(name)) and found.id == release.id]
    versions = [{name: value for name, value in asdict(part).items() if name != "files"} for part in parts]
    return {**asdict(release), "aliases": aliases, "versions": versions, "damaged": damage or None}


def _diff(registry: Registry, given: "settings.ReleaseDiffSettings", console: "Console") -> dict[str, Any]:
    if len(given.releases) != 2:
        raise BadInput(f"release diff wants two releases, got {len(given.releases)}: evergreen release diff A B")
    differences = registry.diff(*given.releases)
    rows = [(name, _text(left), _text(right)) for name, (left, right) in differences.items()]
    if rows:
        _table(console, ("", *(ref[:SHORT] for ref in given.releases)), rows)
    else:
        console.print("no difference")
    return {"differences": {name: list(pair) for name, pair in differences.items()}}


def _create(
    registry: Registry, given: "settings.ReleaseCreateSettings", console: "Console", resolve: Callable[..., Any] | None
) -> dict[str, Any]:
    if resolve is None:
        raise ValueError("release create needs `resolve`")
    found = resolve(given.model, given.adapters)  # complains about what is not there
    own = found.adapters[-1] if found.adapters else None
    adapter = registry.add_version(own) if own else None
    base = registry.add_base(found.base)
    chain = registry.versions.find(adapter).chain if adapter else ()
    if len(found.adapters) > 1 + len(chain):
        raise BadInput("a release holds one adapter and those it was trained over: combine the others into one first")
    brought = found.args or {}
    prompt = {
        "system": brought.get("system") if given.system is None else given.system,
        "template": given.template or brought.get("template") or "",
    }
    release = registry.create(base, adapter, prompt=prompt, parent=given.parent or None)
    console.print(
        f"release {release.id[:SHORT]}: {'adapter ' + adapter[:SHORT] + ' on ' if adapter else ''}{found.base}"
    )
    console.print(f'serve it with: evergreen release promote {release.id[:SHORT]} --force "why it needs no gate"')
    return asdict(release)


def _promote(registry: Registry, given: "settings.ReleasePromoteSettings", console: "Console") -> dict[str, Any]:
    ref = _one(given.release, "release promote wants a release, an alias or a version")
    return _moved(registry.promote(ref, given.to, given.force), given.to, console)


def _rollback(registry: Registry, given: "settings.ReleaseRollbackSettings", console: "Console") -> dict[str, Any]:
    return _moved(registry.rollback(given.alias, given.reason), given.alias, console)


def _moved(moved: dict[str, str | None], alias: str, console: "Console") -> dict[str, Any]:
    now, before = moved[alias] or "", moved["previous"]
    was = "for the first time" if before is None else f"before it was {before[:SHORT]}"
    console.print(f"{alias} is {now[:SHORT]}" + (" already" if now == before else f"; {was}"))
    return moved


def _prune(registry: Registry, given: "settings.ReleasePruneSettings", console: "Console") -> dict[str, Any]:
    done = registry.prune(given.keep, given.dry_run)
    verb = "would free" if given.dry_run else "freed"
    console.print(
        f"{verb} {done.freed_bytes / 2**20:,.1f} MiB: {len(done.versions)} versions of {len(done.releases)} releases; "
        f"{len(done.kept)} releases are kept"
    )
    for name in done.releases:
        console.print(f"  {name[:SHORT]}")
    return asdict(done) | {"dry_run": given.dry_run}


def _history(registry: Registry, given: "settings.ReleaseHistorySettings", console: "Console") -> dict[str, Any]:
    moves = registry.history(given.alias)
    rows = [
        (move.at[:16].replace("T", " "), move.action, (move.previous or "")[:SHORT], move.release[:SHORT],
         "forced" if move.forced else "", move.by, move.reason)
        for move in moves
    ]  # fmt: skip
    if rows:
        _table(console, ("when (UTC)", "what", "from", "to", "gate", "who", "why"), rows)
    else:
        console.print(f"{given.alias} has never pointed to anything")
    return {"alias": given.alias, "history": [asdict(move) for move in moves]}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "list": _list,
    "show": _show,
    "diff": _diff,
    "promote": _promote,
    "rollback": _rollback,
    "prune": _prune,
    "history": _history,
}


def _console(is_json: bool) -> "Console":
    from rich.console import Console

    console = Console(stderr=is_json, highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:  # nobody wants digests folded in a pipe
        console.width = 200
    return console


def _table(console: "Console", columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*row)
    console.print(table, soft_wrap=False)


def _names(aliases: dict[str, str | None], release: str) -> str:
    return " ".join(name for name, pointer in aliases.items() if pointer == release)


def _sentence(move: Move) -> str:
    way = f"{(move.previous or 'nothing')[:SHORT]} -> {move.release[:SHORT]}"
    why = f": {move.reason}" if move.reason else ""
    return f"{move.at[:16]} {move.alias} {move.action} {way} by {move.by}{' (forced)' if move.forced else ''}{why}"


def _text(value: Any) -> str:
    from evergreen.home import canonical_json

    return value if isinstance(value, str) else "" if value is None else canonical_json(value)


def _one(name: str, wanted: str) -> str:
    if not name:
        raise BadInput(f"{wanted}: evergreen release list shows them")
    return name
