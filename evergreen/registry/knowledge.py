"""Which knowledge the served releases answer from: a child of the stable release, the same but for its `knowledge`.

Promises: one transaction an alias, in the history like every move; a server that answers from stable follows at its
next request, and of one that does not it is told. Rolling knowledge back never touches model or adapter, and `rollback`
of the release takes it back in turn.
Does not: know what a snapshot holds; the number is checked by the caller.
"""

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from evergreen.records import BadInput, EvergreenError, Release
from evergreen.registry.pointers import Pointers
from evergreen.registry.registry import ALIASES, Registry

LOOK_SECONDS = 0.5
CARRIED = ("base", "adapter", "edits", "prompt", "sampling", "gate")
NO_RELEASE = (
    "nothing is released yet, and snapshots are served through releases: evergreen release create --model MODEL, "
    "then evergreen release promote RELEASE --force REASON"
)


def serve_knowledge(registry: Registry, knowledge: str, share: float | None = None, reason: str = "") -> dict[str, Any]:
    """Have the stable release answer from "live" or a snapshot's number, and no user from another; with `share`, the
    candidate for that fraction of its users. Returns {alias: id, "previous": id}. Raises BadInput without a stable
    release."""
    if share is not None and not 0 < share <= 1:
        raise BadInput(f"--share wants a fraction above 0 and up to 1, got {share}")
    stable = _stable(registry)
    child = _child(registry, stable, knowledge)
    said = f"knowledge {'live' if knowledge == 'live' else f'snapshot {knowledge}'}"
    said = " ".join(f"{said} {reason}".split())
    if share is None:
        moved = registry.promote(child.id, "stable", said)
        candidate = registry.alias("candidate")
        if registry.share() and candidate and candidate.knowledge != knowledge:  # stable did not move: no trial ended
            registry.promote(candidate.id, "candidate", said, 0.0)
        return moved
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


def apart(registry: Registry) -> str:
    """Which answers do not come from what is newest, as a clause; "" when all do."""
    now = serving(registry)
    if now["stable"] not in (None, "live"):
        return f"answers come from snapshot {now['stable']}"
    if now["share"] and now["candidate"] not in (None, "live"):
        return f"{100 * now['share']:.3g}% of the users are answered from snapshot {now['candidate']}"
    return ""


@contextmanager
def standing_aside(home: Path, default: str, pointers: Pointers, say: Callable[[str], None]) -> Iterator[None]:
    """Around a server whose answers do not follow the stable release, since `--model` names another `default`: who has
    a snapshot served hears of it (`is_anyone_aside`), and the server says it. Nothing for a server that follows."""
    if default == "stable":
        yield
        return
    with _aside_file(home, "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # freed by the kernel, also after kill -9
        over = threading.Event()
        watcher = threading.Thread(target=_tell_of_moves, args=(default, pointers, say, over), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _tell_of_moves(default: str, pointers: Pointers, say: Callable[[str], None], over: threading.Event) -> None:
    told: dict[str, str | None] = {}
    while True:
        for alias in ALIASES:
            id = pointers.get(alias)
            if id != told.get(alias):
                told[alias] = id
                with suppress(EvergreenError):
                    if (number := pointers.registry.get(id).knowledge) != "live":
                        say(f"{alias} answers from knowledge snapshot {number}, and this server from {default}, which "
                            "does not follow: evergreen serve without --model does")  # fmt: skip
        if over.wait(LOOK_SECONDS):
            return


def is_anyone_aside(home: Path) -> bool:
    """Whether a server of this home, on this machine, answers without following the stable release."""
    try:
        with _aside_file(home, "r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there has been no such server, or none of this user's
        return False
    return False


def _aside_file(home: Path, mode: str) -> IO[str]:
    if mode == "a":
        (home / "knowledge").mkdir(parents=True, exist_ok=True)
    return open(home / "knowledge" / "aside.lock", mode)


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
