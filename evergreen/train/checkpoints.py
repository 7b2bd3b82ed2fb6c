"""Which checkpoints a run has left. Only whole ones count: they get their name when everything is written."""

from pathlib import Path

STATE_FILE = "trainer_state.json"


def checkpoints(output_dir: str | Path) -> list[Path]:
    """Whole checkpoints in the order of their steps."""
    found = [
        path
        for path in Path(output_dir).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and (path / STATE_FILE).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    return (checkpoints(output_dir) or [None])[-1]
