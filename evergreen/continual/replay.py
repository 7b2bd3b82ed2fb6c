"""Old records among the new: what an earlier run and its ancestors were trained on, a part of it, balanced by run."""

from pathlib import Path
from typing import Any

from evergreen.home import read_json
from evergreen.records import BadInput, Record


def replay_records(prev_model: str, samples: float, seed: int, num_new: int) -> list[Record]:
    """Records of `prev_model`'s run and of the runs before it, each giving the same number where it has that many.

    `samples` below 1 is a share of `num_new`, from 1 on a count. Raises BadInput when no earlier data is recorded."""
    wanted = round(samples * num_new) if samples < 1 else int(samples)
    runs = _history(Path(prev_model))
    taken: list[Record] = []
    for place, run in enumerate(runs):
        share = (wanted - len(taken)) // (len(runs) - place)
        taken += _sample(run, share, seed)
    return taken


def _history(folder: Path) -> list[dict[str, Any]]:
    """args.json of the run and of every run it was built on, newest first."""
    runs: list[dict[str, Any]] = []
    seen: set[Path] = set()
    while folder.resolve() not in seen and (path := _args_file(folder)) is not None:
        seen.add(folder.resolve())
        runs.append(read_json(path))
        before = runs[-1].get("settings", {}).get("prev_model")
        if not before:
            return runs
        folder = Path(before)
    if not runs:
        raise BadInput(f"--replay_samples needs a record of earlier data, and {folder} has no args.json")
    return runs


def _args_file(folder: Path) -> Path | None:
    return next((place / "args.json" for place in (folder, folder.parent) if (place / "args.json").is_file()), None)


def _sample(run: dict[str, Any], count: int, seed: int) -> list[Record]:
    from evergreen.data.mixture import load_mixture, sample_indices

    settings = run.get("settings", {})
    sources = [source["path"] for source in run.get("sources", [])]
    if not sources:
        raise BadInput(f"--replay_samples: the run on {run.get('base')} does not say which data it was trained on")
    names = {key: settings.get(key, "") for key in ("model_name", "model_author", "dataset_dir")}
    records = load_mixture(sources, seed=seed, on_bad_row="skip", **names)
    return [records[i] for i in sample_indices(len(records), min(count, len(records)), seed)]
