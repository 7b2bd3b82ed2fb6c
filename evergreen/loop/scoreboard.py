"""What the versions of a line were scored and measured at: OUTPUT/scores/DIGEST/.

Promises: an item that a version has answered is never asked again, and drift and latency are measured once a version;
a version counts by its digest, so that the same weights in another place are the same version.
Does not: judge.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evergreen.evaluate import harness, matrix
from evergreen.evaluate.harness import Scored, Version
from evergreen.evaluate.statistics import Interval
from evergreen.evaluate.tasks import Item, Task
from evergreen.home import read_object, write_json
from evergreen.settings import EvalSettings

MEASURES_FILE, SCORES_FILE = "measures.json", "scores.json"
MAX_DRIFT_ITEMS = 100
CURE = "delete it, and it is made anew"
MEASURED = {"latency_ms": dict | None, "drift": dict | None, "latency_ratios": dict | None}
SCORED = {"model": str, "digest": str}


class Scoreboard:
    """The scores below one output folder, asked for and measured in the way that `settings` say."""

    def __init__(self, folder: Path, settings: EvalSettings, is_quiet: bool):
        self.folder, self.settings, self.is_quiet = folder, settings, is_quiet
        self.scored: dict[str, Scored] = {}  # by version digest, on all tasks it has been asked so far
        self.measures: dict[str, dict[str, Any]] = {}

    def version(self, folder: Path) -> Version:
        """A trained folder as something to score; its name is short enough for a table."""
        name = str(folder.relative_to(self.folder)) if folder.is_relative_to(self.folder) else str(folder)
        return replace(harness.version_of(str(folder), [], self.settings), name=name)

    def scores(self, version: Version, tasks: Sequence[Task]) -> Scored:
        """Answers and scores on these tasks; what was answered before is read from the disk."""
        known = self.scored.get(version.digest)
        if known is None or any(task.name not in known.rows for task in tasks):
            out = self._folder_of(version)
            if (out / SCORES_FILE).is_file():
                read_object(out / SCORES_FILE, SCORED, CURE)
            known = harness.score_version(version, tasks, self.settings, out, is_quiet=self.is_quiet)
            self.scored[version.digest] = known
        return known

    def answered(self, version: Version, task: Task) -> list[Item]:
        """The items that the version was able to answer."""
        return [task.items[place] for place in self.scored[version.digest].rows[task.name]]

    def best(self, versions: Sequence[Version], task: Task) -> Scored:
        """Of these versions, the one that was best on the task."""
        found = [self.scored[version.digest] for version in versions]
        return max((scored for scored in found if task.name in scored.rows), key=lambda scored: _mean(scored, task))

    def means(self, version: Version) -> dict[str, float]:
        return {score.task: score.mean for score in self.scored[version.digest].scores}

    def needs_measuring(self, version: Version, before: Version | None) -> bool:
        known = self._known(version)
        return "latency_ms" not in known or (before is not None and "drift" not in known)

    def measure(self, version: Version, before: Version | None, items: Sequence[Item], timed: Sequence[Item]) -> dict:
        """{latency_ms, drift}: answer times on `timed`, and how far `items` are told otherwise than by `before`."""
        from evergreen.evaluate import drift, measures

        known = self._known(version)
        if self.needs_measuring(version, before):
            if before:
                found = drift.of_versions(before, version, items[:MAX_DRIFT_ITEMS], self.settings)
                known["drift"] = found.document()
            known["latency_ms"] = measures.latency_ms(version, timed, self.settings)
            write_json(self._folder_of(version) / MEASURES_FILE, known)
        return known

    def latency_ratios(self, version: Version, before: Version, timed: Sequence[Item]) -> dict[str, Interval]:
        """Answer times of `version` against those of `before`, see measures.latency_ratios."""
        from evergreen.evaluate import measures

        known = self._known(version)
        against = known.setdefault("latency_ratios", {})
        if before.digest not in against:
            found = measures.latency_ratios(before, version, timed, self.settings)
            against[before.digest] = {name: asdict(ratio) for name, ratio in found.items()}
            write_json(self._folder_of(version) / MEASURES_FILE, known)
        return {name: Interval(**ratio) for name, ratio in against[before.digest].items()}

    def row(self, name: str, version: Version, accepted: bool) -> matrix.VersionScores:
        """A version as the matrix takes it."""
        scored, measured = self.scored[version.digest], self._known(version)
        items = {  # by place: nobody promises that a file's own ids differ
            task: {str(place): row["score"] for place, row in rows.items()} for task, rows in scored.rows.items()
        }
        return matrix.VersionScores(name, version.digest, accepted, items,
                                    measured.get("latency_ms", {}), measured.get("drift"))  # fmt: skip

    def _folder_of(self, version: Version) -> Path:
        return self.folder / "scores" / version.digest[:16]

    def _known(self, version: Version) -> dict[str, Any]:
        path = self._folder_of(version) / MEASURES_FILE
        if version.digest not in self.measures:
            self.measures[version.digest] = read_object(path, MEASURED, CURE) if path.is_file() else {}
        return self.measures[version.digest]


def _mean(scored: Scored, task: Task) -> float:
    return next(one.mean for one in scored.scores if one.task == task.name)
