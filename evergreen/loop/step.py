"""One increment on its way, and what its folder keeps of it: OUTPUT/increment_1/increment.json.

Promises: the file is written whole and read back as it was; a version is named by its place in the increment's folder
and by its digest, so that a line that was moved or copied finds its own; a file of another shape is refused in a line
that names it. A state without a verdict is that of an increment under way.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evergreen.data.increments import Increment
from evergreen.evaluate import gates
from evergreen.evaluate.harness import Version
from evergreen.evaluate.tasks import Task
from evergreen.home import digest_of, read_object, write_json
from evergreen.records import BadInput, Verdict

STATE_FILE, VERSION_FILE = "increment.json", "version.json"
CURE = "delete it, and the increment is judged anew from what was trained and answered"
UNDER_WAY = {"key": str, "asked": dict}
JUDGED = {"version": dict, "share": int | float, "verdict": dict, "shift": dict, "release": str,
          "seconds": int | float, "gate": str}  # fmt: skip


@dataclass
class Step:
    """One increment: what it is, and what has become of it."""

    increment: Increment
    task: Task
    folder: Path  # of the run
    status: str = "to come"
    asked: dict[str, Any] = field(default_factory=dict)  # what the trained version depends on, see plan.asked_of
    version: Version | None = None  # what was judged last: the candidate, or a shortened step of it
    previous: Version | None = None
    share: float = 1.0
    verdict: Verdict | None = None
    shift: dict[str, Any] = field(default_factory=dict)
    release: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.increment.name

    @property
    def key(self) -> str:
        return digest_of(self.asked)

    @property
    def is_trained(self) -> bool:
        return (self.folder / VERSION_FILE).is_file()

    def document(self) -> dict[str, Any]:
        """What increment.json holds of a judged increment, and a report tells."""
        return {
            "key": self.key,
            "asked": self.asked,
            "name": self.name,
            "version": self._version_document(),
            "share": self.share,
            "verdict": gates.document(self.verdict) if self.verdict else None,
            "shift": self.shift,
            "release": self.release,
            "seconds": round(self.seconds, 1),
        }

    def _version_document(self) -> dict[str, Any] | None:
        if not self.version:
            return None
        place = Path(self.version.reference)
        return {"name": self.version.name, "place": str(place.relative_to(self.folder)), "digest": self.version.digest}

    def write_begun(self) -> None:
        write_json(self.folder / STATE_FILE, {"key": self.key, "asked": self.asked})

    def write_judged(self, gate: str) -> None:
        """`gate` is the digest of what the verdict depends on beside the increment."""
        write_json(self.folder / STATE_FILE, self.document() | {"gate": gate})

    def take_over(self, state: dict[str, Any]) -> None:
        """All of a judged state but the version, whose weights are looked at first."""
        self.share, self.shift, self.release = state["share"], state["shift"], state["release"]
        self.verdict, self.seconds = state["verdict"], state["seconds"]


def read_state(folder: Path) -> dict[str, Any]:
    """increment.json with its verdict as one, {} where there is none. Raises BadInput for a file of another shape."""
    path = folder / STATE_FILE
    if not path.is_file():
        return {}
    state = read_object(path, UNDER_WAY, CURE)
    if not state.get("verdict"):
        return state
    read_object(path, JUDGED, CURE)
    try:
        verdict = gates.verdict_of(state["verdict"])
        return state | {
            "verdict": verdict,
            "version": {name: str(state["version"][name]) for name in ("place", "digest")},
        }
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path} is not what evolve writes ({type(error).__name__}: {error}): {CURE}") from None
