"""The releases of a line: every version that passed, each the child of the one before it.

Promises: the same version with the same parent and verdict is the same release, however often it is made; the first one
is the child of the start. Does not: move `stable`.
"""

from pathlib import Path
from typing import Any

from evergreen.evaluate import gates
from evergreen.evaluate.harness import Version
from evergreen.home import home_dir
from evergreen.model import find
from evergreen.records import Release, Verdict
from evergreen.registry import Registry
from evergreen.settings import EvolveSettings


class Releases:
    """Of one line in one home. `start` is set before the first is published."""

    def __init__(self, given: EvolveSettings, folder: Path):
        self.given, self.folder, self.start = given, folder, Version("", "")
        self.registry = Registry(home_dir(given.home or None), digest=find.version_digest)
        self.parent = ""  # the release that the next one has as its parent

    def publish(self, version: Version, verdict: Verdict) -> str:
        """The version as a release, stored for good; its id."""
        self.parent = self.parent or self._release(self.start).id
        self.parent = self._release(version, parent=self.parent, gate=gates.document(verdict)).id
        return self.parent

    def promote(self, release: str) -> None:
        self.registry.promote(release, to="candidate")

    def _release(self, version: Version, **lineage: Any) -> Release:
        found = find.resolve(version.reference, version.adapters)
        said, known = self.given, found.args or {}
        prompt = {"system": known.get("system") if said.system is None else said.system,
                  "template": said.template or known.get("template") or ""}  # fmt: skip
        if not found.adapters:
            return self.registry.create(self.registry.add_base(found.base), prompt=prompt, **lineage)
        adapter = self.registry.add_version(found.adapters[-1], report=str(self.folder.resolve() / "report.html"))
        return self.registry.create(adapter=adapter, prompt=prompt, **lineage)
