"""Supervised fine-tuning from settings to a finished output folder: lora, qlora, full and freeze.

Promises: what cannot work is said before the model is loaded; every checkpoint is usable by itself; a killed run goes
on from its last whole checkpoint with the batches and weights it would have had; files are those listed in the docs.
"""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import evergreen
from evergreen.data.parts import Parts
from evergreen.home import digest_of, disk_failure, is_disk_error, read_json, write_json
from evergreen.records import BadInput, Failure
from evergreen.settings import SftSettings
from evergreen.train import output
from evergreen.train.checkpoints import STATE_FILE, newest_checkpoint
from evergreen.train.dataset import Encoder, encode_sources, read_sources
from evergreen.train.rules import check_model, check_settings

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from evergreen.train.report import Report
    from evergreen.train.start import Start

NO_PARTS = Parts()


def run_sft(settings: SftSettings, parts: Parts = NO_PARTS, console: Console | None = None) -> dict[str, Any]:
    """Train, and return what `--json` prints: version, output_dir, train_loss, steps, tokens_per_second, ...

    `parts` is what continual learning adds; `console` is where the run reports (stdout, or stderr with --json). Raises
    BadInput for what the user can mend and Failure for what the machine could not do."""
    check_settings(settings)
    console = console or Console(stderr=settings.json, quiet=not output.is_main_process())
    with output.claimed(settings) as folder:
        try:
            return _Run(settings, folder, console).train(parts)
        except Exception as error:
            raise _failure(error, folder) or error from error


class _Run:
    """One training run: `train` is its story."""

    def __init__(self, settings: SftSettings, folder: Path, console: Console):
        self.settings, self.folder, self.console = settings, folder, console
        self.started = datetime.now(UTC)

    def train(self, parts: Parts) -> dict[str, Any]:
        from evergreen.train.start import Start

        checkpoint = output.find_checkpoint(self.settings)
        self.sources = read_sources(self.settings, parts.replay)
        self._resolve(checkpoint)
        self._encode()
        self._load()
        trainer = self._make_trainer()
        start = Start(trainer, self.data, self.dtype, self.settings.seed)
        self._choose_layers(parts, start)
        self._say_plan()
        self._stay_close(parts, start)
        self._say_notes(parts)
        train_loss = self._fit(trainer)
        self._save(trainer)
        if parts.finish and output.is_main_process():
            parts.finish(self.folder)
            self._say_notes(parts)
        return self._finish(trainer, train_loss)

    def _resolve(self, checkpoint: Path | None) -> None:
        from evergreen.model import load
        from evergreen.train.tune import starting_point

        settings = self.settings
        if settings.prev_model and not Path(load.find_model(settings.prev_model)).is_dir():
            raise BadInput(f"--prev_model {settings.prev_model}: no such folder; it wants an earlier run's output_dir")
        self.source = load.resolve(settings.prev_model or settings.model, settings.adapters)  # the version to build on
        if settings.prev_model and settings.model:
            given = load.resolve(settings.model).base
            known = (load.model_digest(self.source.base), self._args().get("base_digest"))
            if load.model_digest(given) not in known:
                raise BadInput(
                    f"--prev_model {settings.prev_model} was trained on {self.source.base}, not on {given}: "
                    "leave --model away or give the same"
                )
        say = lambda what: self._report().say("base", what)  # noqa: E731
        self.reference = starting_point(settings, self.source, self.folder, say)
        self.base_digest = load.model_digest(self.reference.base)
        self.resume = checkpoint and output.resume_mode(settings, checkpoint, self.sources.hash, self.base_digest)
        if settings.system is None:  # an earlier run's system prompt and template hold for its continuation
            settings.system = self._args().get("system")
        settings.template = settings.template or self._args().get("template") or ""

    def _args(self) -> dict[str, Any]:
        return self.source.args or {}

    def _report(self) -> "Report":
        from evergreen.train.report import Report

        return Report(self.console)

    def _encode(self) -> None:
        from evergreen.model import load
        from evergreen.train.attention import can_pack

        self.tokenizer = load.tokenizer_for(self.reference, self.settings.template)
        self.config = load.load_config(self.reference.base)
        check_model(self.settings, self.config)
        self.unpacked = can_pack(self.config) if self.settings.packing else ""
        encoder = Encoder(self.tokenizer, self.settings, getattr(self.config, "max_position_embeddings", 1 << 30))
        with self.console.status("encoding the records"):
            self.data = encode_sources(self.sources, encoder)

    def _load(self) -> None:
        from evergreen.model import load
        from evergreen.train import memory
        from evergreen.train.tune import load_trainable

        self.device = self.settings.device or load.default_device()
        self.dtype = load.resolve_dtype(self.settings.torch_dtype, self.device)
        self.held_before = memory.held_bytes(self.device)
        weights = self.resume.checkpoint if self.resume and not self.resume.exact else None
        with self.console.status("loading the model"):
            self.model = load_trainable(self.settings, self.reference, weights, self.dtype, self.device)
        self.model.config.use_cache = False

    # -- what continual learning adds, before the first step

    def _choose_layers(self, parts: Parts, start: "Start") -> None:
        """Freeze the decoder layers that are not to learn; a run that goes on exactly keeps those it had chosen."""
        from evergreen.train.tune import count_parameters, freeze_layers

        self.layers = None
        if parts.choose_layers:
            self.layers = sorted(self._recorded_layers() or start.choose_layers(parts))
            freeze_layers(self.model, set(self.layers))
        self.trainable, self.total = count_parameters(self.model)

    def _recorded_layers(self) -> set[int]:
        if not (self.resume and self.resume.exact):
            return set()
        return set(read_json(self.resume.checkpoint / output.ARGS_FILE).get("layers") or ())

    def _stay_close(self, parts: Parts, start: "Start") -> None:
        if parts.teach or parts.penalty or parts.pull:
            with self.console.status("measuring what is to be kept"):
                start.stay_close(parts, self.settings.replay_repeats)

    def _say_plan(self) -> None:
        from evergreen.train import memory

        settings = self.settings
        self.forecast = memory.forecast(
            self.model, settings, self.dtype, self.data.longest, self.data.mean_tokens, self.held_before
        )
        report = self._report()
        report.data(self.sources, self.data)
        report.model(settings, self.trainable, self.total, self.dtype, self.device, self.unpacked)
        goes_on = self._trains_adapter() and settings.chain == "continue" and bool(self.reference.adapters)
        report.adapter(self.model, goes_on)
        if settings.eval_steps and not self.data.evaluation:
            report.say(
                "evaluation",
                f"off: --eval_steps {settings.eval_steps} has no data to evaluate; give --val_dataset "
                "or --split_dataset_ratio 0.05",
                "yellow",
            )
        report.resume(self.resume)
        if self.settings.resume_from_checkpoint.lower() == "true" and not self.resume:
            report.say("resuming", f"no checkpoint in {self.folder} yet: the run starts from its first step")
        report.memory(settings, self.forecast, self.device, self.data.longest)

    def _say_notes(self, parts: Parts) -> None:
        for note in parts.notes:
            if isinstance(note, tuple):
                self._report().say(*note)
            else:
                self.console.print(note)
        parts.notes.clear()

    def _make_trainer(self) -> Any:
        from transformers import PrinterCallback

        from evergreen.train import fused, loss, memory
        from evergreen.train.progress import ProgressCallback
        from evergreen.train.trainer import Endless, EvergreenTrainer

        loss.install(self.model)
        fused.fuse(self.model)
        memory.keep_freed_memory()
        settings = self.settings
        trainer = EvergreenTrainer(
            model=self.model,
            args=self._training_arguments(),
            train_dataset=Endless(self.sources.mixture, self.data.encoder) if settings.streaming else self.data.train,
            eval_dataset=self.data.evaluation or None,
            processing_class=self.tokenizer,
            data_collator=list,
            batch_size=settings.per_device_train_batch_size,
            max_row_tokens=memory.max_row_tokens(settings),
            packing=settings.packing and not self.unpacked,
            pad_id=self.tokenizer.pad_token_id or 0,
            finish_checkpoint=self._write_args,
        )
        trainer.remove_callback(PrinterCallback)
        self.progress = ProgressCallback(self.folder, self.device, self.console, lambda: trainer.totals.num_tokens)
        trainer.add_callback(self.progress)
        return trainer

    def _training_arguments(self) -> "TrainingArguments":
        import torch
        from transformers import TrainingArguments

        given = self.settings
        same = """num_train_epochs max_steps learning_rate lr_scheduler_type weight_decay adam_beta1 adam_beta2
            adam_epsilon max_grad_norm optim seed per_device_eval_batch_size logging_steps eval_steps save_strategy
            save_steps save_total_limit save_only_model ddp_timeout report_to""".split()
        when = given.eval_strategy or ("steps" if given.eval_steps else "no")
        recompute = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        return TrainingArguments(
            **{name: getattr(given, name) for name in same},
            **(recompute if given.gradient_checkpointing else {}),
            output_dir=str(self.folder),
            per_device_train_batch_size=given.per_device_train_batch_size * given.gradient_accumulation_steps,
            warmup_steps=given.warmup_steps or min(given.warmup_ratio, 1 - 1e-9),  # below 1 it is a share
            bf16=self.dtype is torch.bfloat16,
            fp16=self.dtype is torch.float16,
            use_cpu=self.device == "cpu",
            eval_strategy=when if self.data.evaluation else "no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
            logging_nan_inf_filter=False,
        )

    def _fit(self, trainer: Any) -> float:
        """Run the loop; the mean loss of its steps."""
        import torch

        output.make_room(self.settings, self.folder, [self.source.base, *self.source.adapters])
        if self.resume and output.is_main_process():
            output.set_aside(self.folder, self.resume)
        self._write_args(self.folder)
        exact = self.resume and self.resume.exact
        if exact:
            self._check_steps_left(trainer)
        try:
            trainer.train(resume_from_checkpoint=str(self.resume.checkpoint) if exact else None)
            return trainer.mean_loss
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise self._out_of_memory(error) or error from error
        finally:
            self.progress.stop()

    def _check_steps_left(self, trainer: Any) -> None:
        """Transformers would take one step more of a run that has had them all, or too many."""
        checkpoint, given = self.resume.checkpoint, self.settings
        done = read_json(checkpoint / STATE_FILE)["global_step"]
        wanted = given.max_steps
        if wanted < 1:
            wanted = math.ceil(len(trainer.get_train_dataloader()) * given.num_train_epochs)
        if done > wanted:
            raise BadInput(f"{checkpoint} has {done} steps behind it, which is more than the {wanted} wanted: raise "
                           "--num_train_epochs or --max_steps, or name an earlier checkpoint")  # fmt: skip

    def _finish(self, trainer: Any, train_loss: float) -> dict[str, Any]:
        """The record of a run whose files are all written; version.json comes last and says so."""
        from evergreen.train import memory
        from evergreen.train.progress import plot_loss

        seconds = max(trainer.totals.loop_seconds, 1e-9)
        document = {
            "version": "",
            "output_dir": str(self.folder),
            "train_loss": round(train_loss, 6),
            "steps": trainer.state.global_step,
            "tokens_per_second": round(trainer.totals.num_tokens / seconds, 1),
            "loop_seconds": round(seconds, 3),
            "peak_memory_bytes": memory.peak_bytes(self.device),
            "trainable_parameters": self.trainable,
            "skipped_rows": self.sources.mixture.skipped.count + len(self.data.encoder.skipped),
            "data_hash": self.sources.hash,
        }
        if output.is_main_process():
            trainer.state.save_to_json(str(self.folder / "trainer_state.json"))
            known = self.folder / output.VERSION_FILE
            if not trainer.has_stepped and known.is_file():  # a finished run resumed: its record stays
                return document | {name: value for name, value in read_json(known).items() if name in document} | {
                    "version": read_json(known)["digest"]}  # fmt: skip
            document["version"] = self._write_version(trainer, document)
            picture = plot_loss(self.folder) if self.settings.plot_loss else None
            self._report().result(document, picture, "--adapters" if self._is_adapter() else "--model")
        return document

    def _save(self, trainer: Any) -> None:
        import torch

        if not self._trains_adapter() and self.dtype is not torch.float32:
            trainer.model.to(self.dtype)  # checkpoints keep the fp32 master weights; the finished model need not
        trainer.model.config.use_cache = True
        trainer.save_model(str(self.folder))

    def _trains_adapter(self) -> bool:
        return self.settings.train_type in ("lora", "qlora")

    def _is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").is_file()

    def _write_args(self, folder: Path) -> None:
        from evergreen.train.tune import chain_of

        place = self.folder if folder == self.folder else self.folder / folder.name  # of a checkpoint when it is whole
        output.write_args(folder, self.settings, {
            "base": self._base_name(),
            "base_digest": self.base_digest,
            "data_hash": self.sources.hash,
            "sources": self.sources.mixture.sources,
            "replayed": len(self.data.old),  # records of earlier runs and general ones: not this run's own data
            "layers": self.layers,
            "chain": chain_of(self.settings, self.reference, place),
            "dtype": str(self.dtype).removeprefix("torch."),
            "evergreen": evergreen.__version__,
        }, place)  # fmt: skip

    def _write_version(self, trainer: Any, document: dict[str, Any]) -> str:
        from evergreen.model.adapters import adapter_digest
        from evergreen.model.find import parent_of
        from evergreen.model.load import model_digest
        from evergreen.train.tune import chain_of

        digest = adapter_digest(self.folder) if self._is_adapter() else model_digest(self.folder)
        sources = self.sources.mixture.sources
        how = {name: value for name, value in vars(self.settings).items() if name not in ("output_dir", "json", "home")}
        write_json(self.folder / output.VERSION_FILE, {
            "digest": digest,
            "base": self._base_name(),
            "base_digest": self.base_digest,
            "parent": parent_of(self.source),
            "method": self.settings.train_type,
            "data": {"hash": self.sources.hash, "sources": sources, "rows": len(self.data.train) or None,
                     "replayed": len(self.data.old)},
            "chain": chain_of(self.settings, self.reference, self.folder),
            "args_hash": digest_of(how),
            "seed": self.settings.seed,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "steps": document["steps"],
            "train_loss": document["train_loss"],
            "tokens": trainer.totals.num_tokens,
            "tokens_per_second": document["tokens_per_second"],
            "peak_memory_bytes": document["peak_memory_bytes"],
            "evergreen": evergreen.__version__,
        })  # fmt: skip
        return digest

    def _base_name(self) -> str:
        base = self.reference.base
        return str(Path(base).resolve()) if Path(base).is_dir() else base

    def _out_of_memory(self, error: BaseException) -> Failure | None:
        """The settings that would fit, when memory was what ran out; None for any other error."""
        from evergreen.model.load import is_out_of_memory
        from evergreen.train import memory

        if not is_out_of_memory(error):
            return None
        run = memory.held_bytes(self.device) - self.forecast.weights - self.forecast.process
        free = memory.available_bytes(self.device) + max(0, run)
        fits = memory.fitting_settings(self.settings, self.forecast, free, self.data.longest)
        return Failure(
            f"out of memory on {self.device} (the forecast was {self.forecast.total / memory.GIB:.1f} GiB); what would "
            f"fit: {' '.join(fits)}; finished checkpoints in {self.folder} are whole, --resume_from_checkpoint true "
            "goes on from the last one"
        )


def _failure(error: Exception, folder: Path) -> Failure | None:
    """Memory or disk that ran out, as one line; None for any other error."""
    from evergreen.model.load import is_out_of_memory

    if is_out_of_memory(error):
        return Failure("out of memory before the first step: choose --train_type qlora, a lower --lora_rank or a "
                       "smaller model")  # fmt: skip
    if not is_disk_error(error):
        return None
    kept = newest_checkpoint(folder)
    rest = f"{kept} is whole: make room and go on with --resume_from_checkpoint true" if kept else "make room first"
    return Failure(f"{disk_failure(error, f'training into {folder}')}; {rest}")
