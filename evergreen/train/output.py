"""The output folder of a run: who may write there, what to go on from, and the files that outlive the process."""

import dataclasses
import itertools
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evergreen.home import exclusive, read_json, write_json
from evergreen.model.find import beside
from evergreen.records import BadInput
from evergreen.settings import SftSettings

ARGS_FILE, VERSION_FILE = "args.json", "version.json"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
OWN_FILES = (
    *("args.json", "version.json", "trainer_state.json", "trainer_log.jsonl", "training_loss.png", "training_args.bin"),
    *("adapter_model.*", "adapter_config.json", "model*.safetensors", "model.safetensors.index.json", "config.json"),
    *("generation_config.json", "merged", "checkpoint-*", "runs/**/events.out.tfevents.*"),
)  # what a run writes of its own; tokenizer files are only ever written over
NO_CHECKPOINT = ("", "false", "none")
SAME_COURSE = (
    *("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "loss_on", "system"),
    *("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "lora_dropout", "regularization", "regularization_alpha", "orthogonal_lambda", "unfreeze"),
)  # what must not change for a resumed run to see the batches and take the steps that it would have taken
SAME_WEIGHTS = (
    *("train_type", "lora_rank", "lora_alpha", "use_rslora", "use_dora", "target_modules", "modules_to_save"),
    *("freeze_layers", "trainable_layers", "chain"),
)
LENGTH = ("num_train_epochs", "max_steps", "warmup_ratio", "warmup_steps")  # may change: the schedule is then another


@dataclass(frozen=True)
class Resume:
    """Where a run goes on: exactly (optimizer, schedule, batches) or from the weights alone."""

    checkpoint: Path
    exact: bool
    reason: str


@contextmanager
def claimed(settings: SftSettings) -> Iterator[Path]:
    """The output folder, locked against a second run. An earlier run in it is refused, unless it is to be resumed or
    overwritten (see `make_room`)."""
    folder = Path(settings.output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        is_file = folder.exists() and not folder.is_dir()
        why = "it is a file" if is_file else error.strerror
        raise BadInput(f"--output_dir {folder} cannot be written: {why}; choose another folder") from None
    if not is_main_process():  # the processes of one run share the main one's claim
        yield folder
        return
    with exclusive(folder / ".lock", "training into this folder"):
        shutil.rmtree(folder / ".saving", ignore_errors=True)
        if has_run(folder) and not _resumes(settings) and not settings.overwrite_output_dir:
            raise BadInput(
                f"{folder} holds a run already: go on with --resume_from_checkpoint true, start again with "
                "--overwrite_output_dir true, or choose another --output_dir"
            )
        try:
            yield folder
        finally:
            shutil.rmtree(folder / ".saving", ignore_errors=True)  # after a full disk its room is wanted


def make_room(settings: SftSettings, folder: Path, needed: Iterable[str | Path]) -> None:
    """Delete the run that `--overwrite_output_dir` gives up, its own files and no others, once the new one can start.

    Raises BadInput when one of `needed` (the model that is trained further) lies in the folder."""
    if _resumes(settings) or not settings.overwrite_output_dir or not has_run(folder):
        return
    for place in needed:
        if Path(place).is_dir() and Path(place).resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"--overwrite_output_dir would delete {place}, which is trained further: choose another "
                           "--output_dir")  # fmt: skip
    for path in [path for pattern in OWN_FILES for path in folder.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def set_aside(folder: Path, resume: Resume) -> None:
    """Before a weights-only run into the folder of its own checkpoint: the earlier run moves to `earlier-N/`, so that
    its checkpoint numbers are not taken for the new run's."""
    if resume.exact or not resume.checkpoint.resolve().is_relative_to(folder.resolve()):
        return
    aside = next(folder / f"earlier-{n}" for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    aside.mkdir()
    for path in [path for pattern in OWN_FILES for path in folder.glob(pattern)]:
        path.rename(aside / path.name)


def _resumes(settings: SftSettings) -> bool:
    return settings.resume_from_checkpoint.lower() not in NO_CHECKPOINT


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
    if not _resumes(settings):
        return None
    if wanted.lower() == "true":
        found = checkpoints(Path(settings.output_dir).expanduser())
        return found[-1] if found else None
    path = Path(wanted).expanduser()
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
    if changed := _changed(settings, before, SAME_WEIGHTS):
        raise BadInput(f"{checkpoint} has {changed}: give the same")
    if settings.resume_only_model:
        return Resume(checkpoint, False, "--resume_only_model")
    if not (checkpoint / "optimizer.pt").is_file():
        return Resume(checkpoint, False, "it holds no optimizer state")
    if args.get("data_hash") != data_hash:
        return Resume(checkpoint, False, "the data differs from the checkpoint's")
    if changed := _changed(settings, before, SAME_COURSE):
        raise BadInput(
            f"{checkpoint} was made with {changed}: give the same to go on exactly, or --resume_only_model true to "
            "take its weights only"
        )
    changed = _changed(settings, before, LENGTH)
    return Resume(checkpoint, True, f"the run had {changed}" if changed else "same data, same settings")


def _changed(settings: SftSettings, before: dict[str, Any], names: Iterable[str]) -> str:
    """Flags of an earlier run that are another now, with the values they had; "" for none."""
    odd = [name for name in names if name in before and before[name] != getattr(settings, name)]
    values = [" ".join(map(str, before[name])) if isinstance(before[name], list) else before[name] for name in odd]
    return ", ".join(f"--{name} {value!r}" if value in ("", None) else f"--{name} {value}"
                     for name, value in zip(odd, values, strict=True))  # fmt: skip


def write_args(folder: Path, settings: SftSettings, facts: dict[str, Any], place: Path) -> None:
    """args.json: every setting, and what inference needs without being told: base, template, system prompt. `beside`
    says where the base, the earlier run and the data lie as seen from `place`, where the folder will be in the end, so
    that a copy of them all is whole."""
    near = {"base": beside(facts["base"], place), "prev_model": beside(settings.prev_model, place)}
    sources = [source | {"beside": beside(source["path"], place)} for source in facts["sources"]]
    write_json(
        folder / ARGS_FILE,
        {**facts, "sources": sources, "beside": near, "template": settings.template, "system": settings.system,
         "settings": dataclasses.asdict(settings)},
    )  # fmt: skip


def is_main_process() -> bool:
    import os

    return int(os.environ.get("RANK", "0")) == 0
