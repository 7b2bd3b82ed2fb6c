"""Contestants as children: each a fresh process on one core with one thread, if its job does not say `num_threads`."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).resolve().parent


@dataclass
class Children:
    """Where things lie and how processes are started. `script` stands beside this file and takes JOB.json RESULT.json;
    `homes` are folders that it gets as environment variables."""

    script: str
    cache: Path
    core: int
    pythons: dict[str, str]
    console: Console
    homes: dict[str, Path] = field(default_factory=dict)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """What one process makes of a job, in the environment of its `runner`. Raises RuntimeError with the end of what
        it said when it fails."""
        python = self.pythons.get(job.get("runner", ""), sys.executable)
        with tempfile.TemporaryDirectory(dir=self.cache) as place:
            folder = Path(place)
            (folder / "job.json").write_text(
                json.dumps({**job, "output_dir": str(folder / "out"), "started": time.time()})
            )
            num_threads = job.get("num_threads", 1)
            pinned = ["taskset", "-c", str(self.core)] if num_threads == 1 else []
            done = subprocess.run(
                [*pinned, python, str(HERE / self.script)] + [str(folder / "job.json"), str(folder / "result.json")],
                env=self._environment(num_threads),
                capture_output=True,
                text=True,
                cwd=folder,
            )
            if done.returncode or not (folder / "result.json").is_file():
                said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")
            return json.loads((folder / "result.json").read_text())

    def say(self, text: str) -> None:
        self.console.print(text, style="dim", highlight=False)

    def _environment(self, num_threads: int) -> dict[str, str]:
        threads = {name: str(num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        offline = {name: "1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")}
        homes = {name: str(place) for name, place in self.homes.items()}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, **threads, **offline, **homes, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
