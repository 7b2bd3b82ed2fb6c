"""Which knowledge the served releases answer from: a child of the stable release, the same but for its `knowledge`.

Promises: one transaction an alias, in the history like every move; the server follows at its next request. Rolling
knowledge back never touches model or adapter, and `rollback` of the release takes it back in turn.
Does not: know what a snapshot holds; the number is checked by the caller.
"""

from dataclasses import asdict
from typing import Any

from evergreen.records import BadInput, Release
from evergreen.registry.pointers import Pointers
from evergreen.registry.registry import ALIASES, Registry

CARRIED = ("base", "adapter", "edits", "prompt", "sampling", "gate")
NO_RELEASE = (
    "nothing is released yet, and snapshots are served through releases: evergreen release create --model MODEL, "
    "then evergreen release promote RELEASE --force REASON"
)


def serve_knowledge(registry: Registry, knowledge: str, share: float | None = None, reason: str = "") -> dict[str, Any]:
    """Have the stable release answer from "live" or a snapshot's number; with `share`, the candidate for that fraction
    of its users. Returns {alias: id, "previous": id}. Raises BadInput without a stable release."""
    if share is not None and not 0 < share <= 1:
        raise BadInput(f"--share wants a fraction above 0 and up to 1, got {share}")
    stable = _stable(registry)
    child = _child(registry, stable, knowledge)
    said = f"knowledge {'live' if knowledge == 'live' else f'snapshot {knowledge}'}"
    said = " ".join(f"{said} {reason}".split())
    if share is None:
        return registry.promote(child.id, "stable", said)
    return registry.promote(child.id, "candidate", f"{said}, for {share:.3g} of the users", share)


def _stable(registry: Registry) -> Release:
    stable = registry.alias("stable")
    if stable is None:
        raise BadInput(NO_RELEASE)
    return stable


def _child(registry: Registry, stable: Release, knowledge: str) -> Release:
    """The stable release itself when it answers from that already."""
    if stable.knowledge == knowledge:
        return stable
    carried = {name: value for name, value in asdict(stable).items() if name in CARRIED}
    return registry.create(**carried, knowledge=knowledge, parent=stable.id)


def serving(registry: Registry) -> dict[str, Any]:
    """What stable and candidate answer from, and for how many of the users of stable the candidate does."""
    found = {name: registry.alias(name) for name in ALIASES}
    return {name: release.knowledge if release else None for name, release in found.items()} | {
        "share": registry.share("candidate")
    }


class Pinned:
    """What the stable release answers from, asked at every request; live before the first release."""

    def __init__(self, registry: Registry):
        self.registry, self.pointers = registry, Pointers(registry)
        self._known: dict[str, str] = {}

    def now(self) -> str:
        """ "live" or a snapshot's number."""
        id = self.pointers.get("stable")
        if id is None:
            return "live"
        if id not in self._known:
            self._known[id] = self.registry.get(id).knowledge
        return self._known[id]

    def close(self) -> None:
        self.pointers.close()
