"""The output folder of a run: who may write there, what to go on from, and the files that outlive the process."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evergreen.home import exclusive, read_json, write_json
from evergreen.records import BadInput
from evergreen.settings import SftSettings

ARGS_FILE, VERSION_FILE = "args.json", "version.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
SAME_BATCHES = (
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "max_length",
    "loss_on",
    "system",
)  # what must not change for a resumed run to see the batches it would have seen
SAME_WEIGHTS = ("train_type", "lora_rank", "lora_alpha", "use_rslora", "use_dora")


@dataclass(frozen=True)
class Resume:
    """Where a run goes on: exactly (optimizer, schedule, batches) or from the weights alone."""

    checkpoint: Path
    exact: bool
    reason: str


@contextmanager
def claimed(settings: SftSettings) -> Iterator[Path]:
    """The output folder, locked against a second run and free of an earlier one, unless that one is resumed."""
    folder = Path(settings.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--output_dir {folder} cannot be made: {error.strerror}") from None
    if not is_main_process():  # the processes of one run share the main one's claim
        yield folder
        return
    with exclusive(folder / ".lock", "training into this folder"):
        shutil.rmtree(folder / ".saving", ignore_errors=True)
        if has_run(folder) and not settings.resume_from_checkpoint:
            if not settings.overwrite_output_dir:
                raise BadInput(
                    f"{folder} holds a run already: go on with --resume_from_checkpoint true, start again with "
                    "--overwrite_output_dir true, or choose another --output_dir"
                )
            _clear(folder)
        yield folder


def has_run(folder: Path) -> bool:
    return (
        (folder / ARGS_FILE).is_file()
        or any((folder / name).is_file() for name in WEIGHTS)
        or any(folder.glob("checkpoint-*"))
    )


def find_checkpoint(settings: SftSettings) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names. Raises BadInput that lists those there are."""
    from evergreen.train.checkpoints import checkpoints

    wanted = settings.resume_from_checkpoint
    if wanted.lower() in ("", "false", "none"):
        return None
    if wanted.lower() == "true":
        found = checkpoints(Path(settings.output_dir))
        return found[-1] if found else None
    path = Path(wanted)
    if any((path / name).is_file() for name in WEIGHTS):
        return path
    there = checkpoints(path if path.is_dir() else path.parent)
    listed = f"there are: {', '.join(str(place) for place in there)}" if there else f"there is none in {path.parent}"
    raise BadInput(f"no checkpoint at {wanted}; {listed}")


def resume_mode(settings: SftSettings, checkpoint: Path, data_hash: str, base_digest: str) -> Resume:
    """Exact with the same data, else weights only. Raises BadInput when the checkpoint is of another base or shape."""
    args = read_json(checkpoint / ARGS_FILE) if (checkpoint / ARGS_FILE).is_file() else {}
    if args.get("base_digest", base_digest) != base_digest:
        raise BadInput(f"{checkpoint} was trained on {args['base']}, not on {settings.model}: give that as --model")
    before = args.get("settings", {})
    changed = [name for name in SAME_WEIGHTS if name in before and before[name] != getattr(settings, name)]
    if changed:
        raise BadInput(f"{checkpoint} has {', '.join(f'--{name} {before[name]}' for name in changed)}: give the same")
    if settings.resume_only_model:
        return Resume(checkpoint, False, "--resume_only_model")
    if not (checkpoint / "optimizer.pt").is_file():
        return Resume(checkpoint, False, "it holds no optimizer state")
    if args.get("data_hash") != data_hash:
        return Resume(checkpoint, False, "the data differs from the checkpoint's")
    changed = [name for name in SAME_BATCHES if name in before and before[name] != getattr(settings, name)]
    if changed:
        raise BadInput(
            f"{checkpoint} was made with {', '.join(f'--{name} {before[name]}' for name in changed)}: give the "
            "same to go on exactly, or --resume_only_model true to take its weights only"
        )
    return Resume(checkpoint, True, "same data, same settings")


def write_args(folder: Path, settings: SftSettings, facts: dict[str, Any]) -> None:
    """args.json: every setting, and what inference needs without being told: base, template, system prompt."""
    write_json(
        folder / ARGS_FILE,
        {**facts, "template": settings.template, "system": settings.system, "settings": dataclasses.asdict(settings)},
    )


def is_main_process() -> bool:
    import os

    return int(os.environ.get("RANK", "0")) == 0


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir() and (path.name.startswith("checkpoint-") or path.name == "runs"):
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
