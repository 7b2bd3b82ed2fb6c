"""Supervised fine-tuning from settings to a finished output folder: lora, qlora, full and freeze.

Promises: what cannot work is said before the model is loaded; every checkpoint is usable by itself; a killed run goes on
from its last whole checkpoint with the batches and weights it would have had; files are those listed in the docs.
"""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import evergreen
from evergreen.home import digest_of, disk_failure, write_json
from evergreen.records import BadInput, Failure
from evergreen.settings import SftSettings
from evergreen.train import output

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from evergreen.data.mixture import Mixture
    from evergreen.model.template import Encoded


def run_sft(settings: SftSettings, penalty: Callable | None = None, extra_records: Sequence = ()) -> dict[str, Any]:
    """Train, and return what `--json` prints: version, output_dir, train_loss, steps, tokens_per_second, ...

    `penalty(model)` joins the loss once a step; `extra_records` (replay) are mixed with the data.
    Raises BadInput for what the user can mend and Failure for what the machine could not do."""
    check_settings(settings)
    console = Console(stderr=settings.json, quiet=not output.is_main_process())
    with output.claimed(settings) as folder:
        try:
            return _Run(settings, folder, console, penalty, extra_records).train()
        except OSError as error:
            raise disk_failure(error, f"writing {folder}") from error


def check_settings(settings: SftSettings) -> None:
    """What contradicts itself, before anything is read."""
    problems = []
    if not settings.model and not settings.adapters and not settings.prev_model:
        problems.append("--model is missing (nano, a folder or a hub name)")
    if not settings.dataset:
        problems.append("--dataset is missing (a file, a folder, or a name in dataset_info.json)")
    if settings.stage == "pt" and settings.loss_on == "last":
        problems.append("--stage pt trains every token, --loss_on last does not")
    if (
        (settings.eval_steps or settings.eval_strategy in ("steps", "epoch"))
        and not settings.val_dataset
        and not settings.split_dataset_ratio
    ):
        problems.append("--eval_steps needs something to evaluate: give --val_dataset or --split_dataset_ratio 0.05")
    if settings.bf16 and settings.fp16:
        problems.append("--bf16 and --fp16 contradict each other")
    if settings.quantization_bit and settings.train_type != "qlora":
        problems.append("--quantization_bit is for --train_type qlora")
    if settings.quantization_bit not in (None, 4):
        problems.append(f"--quantization_bit {settings.quantization_bit}: qlora has 4-bit bases")
    if settings.streaming and settings.max_steps < 1:
        problems.append("--streaming true needs --max_steps, since the number of rows is not known")
    if settings.streaming and settings.split_dataset_ratio:
        problems.append("--split_dataset_ratio cannot split a stream: give --val_dataset")
    if problems:
        raise BadInput("; ".join(problems))
    if settings.bf16 or settings.fp16:
        settings.torch_dtype = "bfloat16" if settings.bf16 else "float16"


class _Run:
    """One training run; its steps in order are the methods that `train` calls."""

    def __init__(
        self, settings: SftSettings, folder: Path, console: Console, penalty: Callable | None, extra: Sequence
    ):
        self.settings, self.folder, self.console, self.penalty, self.extra = settings, folder, console, penalty, extra
        self.started = datetime.now(UTC)

    def train(self) -> dict[str, Any]:
        from evergreen.model import load

        checkpoint = output.find_checkpoint(self.settings)
        self.mixture, self.validation = self._read_data()
        self.reference = load.resolve(self.settings.prev_model or self.settings.model, self.settings.adapters)
        self.base_digest = load.model_digest(self.reference.base)
        self.resume = checkpoint and output.resume_mode(self.settings, checkpoint, self.mixture.hash, self.base_digest)
        self._inherit()
        self._quiet_libraries()
        self.device = self.settings.device or load.default_device()
        self.dtype = load.resolve_dtype(self.settings.torch_dtype, self.device)
        self._encode(load)
        self.model = self._load_model()
        self._say_plan()
        return self._fit()

    def _read_data(self) -> tuple["Mixture", "Mixture | None"]:
        from evergreen.data.mixture import load_mixture

        settings = self.settings
        common = {
            "dataset_dir": settings.dataset_dir,
            "seed": settings.seed,
            "max_samples": settings.max_samples,
            "on_bad_row": settings.on_bad_row,
            "model_name": settings.model_name,
            "model_author": settings.model_author,
        }
        mixture = load_mixture(
            settings.dataset,
            probabilities=settings.interleave_prob,
            streaming=settings.streaming,
            stopping_strategy=settings.stopping_strategy,
            **common,
        )
        validation = load_mixture(settings.val_dataset, split="dev", **common) if settings.val_dataset else None
        return mixture, validation

    def _inherit(self) -> None:
        """Template and system prompt of an earlier run hold for its continuation, unless given anew."""
        args = self.reference.args or {}
        if self.settings.system is None:
            self.settings.system = args.get("system")
        self.settings.template = self.settings.template or args.get("template") or ""

    def _quiet_libraries(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()

    # -- data

    def _encode(self, load: Any) -> None:
        from transformers import AutoConfig

        from evergreen.train.encode import Encoder
        from evergreen.train.loss import can_pack

        place = str(self.reference.adapters[-1]) if self.reference.adapters else self.reference.base
        self.tokenizer = load.load_tokenizer(place, self.reference.base, self.settings.template)
        self.config = AutoConfig.from_pretrained(self.reference.base)
        self._check_model_type()
        self.no_packing = can_pack(self.config) if self.settings.packing else ""
        self.encoder = Encoder(self.tokenizer, self.settings, getattr(self.config, "max_position_embeddings", 1 << 30))
        if self.settings.streaming:
            self.records: list[Encoded] = []
        else:
            records = [*self.mixture, *self.extra]
            with self.console.status(f"encoding {len(records):,} records"):
                self.records = list(self.encoder(records))
            if not self.records:
                raise BadInput(
                    f"none of the {len(records)} records can be trained: {(self.encoder.skipped or ['?'])[0]}"
                )
        self.eval_records = list(self.encoder(self.validation)) if self.validation is not None else self._split_off()

    def _split_off(self) -> list["Encoded"]:
        import random

        count = int(len(self.records) * self.settings.split_dataset_ratio)
        if not count:
            return []
        order = random.Random(self.settings.seed).sample(range(len(self.records)), len(self.records))
        held = [self.records[i] for i in order[:count]]
        self.records = [self.records[i] for i in sorted(order[count:])]
        return held

    def _check_model_type(self) -> None:
        wanted, is_type = self.settings.model_type.replace(".", "_").lower(), self.config.model_type.lower()
        if wanted and not (wanted.startswith(is_type.rstrip("0123456789_")) or is_type.startswith(wanted)):
            raise BadInput(
                f"--model_type {self.settings.model_type}: the model at {self.reference.base} is a {is_type}"
            )

    # -- model

    def _load_model(self) -> "PreTrainedModel":
        import torch

        from evergreen.model import adapters, load

        settings = self.settings
        if self.dtype is torch.float16 and self.device == "cpu":
            raise BadInput("--torch_dtype float16 needs a GPU: use float32 or bfloat16 on a CPU")
        torch.manual_seed(settings.seed)
        trains_weights = settings.train_type in ("full", "freeze")
        start = self._weights_to_go_on_from()
        base = str(start) if trains_weights and start else self.reference.base
        with self.console.status("loading the model"):
            model = load.load_base(
                base, torch.float32 if trains_weights else self.dtype, self.device, self._quantization()
            )
        model.config.use_cache = False
        if settings.train_type == "qlora":
            from peft import prepare_model_for_kbit_training

            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        if trains_weights:
            return self._unfreeze(
                adapters.attach(model, self.reference.adapters).merge_and_unload()
                if self.reference.adapters and not start
                else model
            )
        chain = [*self.reference.adapters[:-1], start] if start else list(self.reference.adapters)
        if chain:
            return adapters.attach(model, chain, trainable=True)
        return adapters.add_lora(
            model,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            target_modules=settings.target_modules,
            modules_to_save=settings.modules_to_save,
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
            layers=self._lora_layers(),
        )

    def _weights_to_go_on_from(self) -> Path | None:
        return self.resume.checkpoint if self.resume and not self.resume.exact else None

    def _quantization(self) -> Any:
        if self.settings.train_type != "qlora":
            return None
        import importlib.util

        if importlib.util.find_spec("bitsandbytes") is None:
            raise BadInput("--train_type qlora needs bitsandbytes: pip install 'evergreen-lm[qlora]'")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.settings.bnb_4bit_quant_type,
            bnb_4bit_compute_dtype=self.dtype,
            bnb_4bit_use_double_quant=self.settings.bnb_4bit_use_double_quant,
        )

    def _unfreeze(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """full: everything but --freeze_layers; freeze: only --trainable_layers (the last two unless said)."""
        layers = self._learning_layers()
        if layers is None:
            return model
        blocks = _decoder_layers(model)
        model.requires_grad_(self.settings.train_type == "full")
        for i, block in enumerate(blocks):
            block.requires_grad_(i in layers)
        return model

    def _learning_layers(self) -> set[int] | None:
        count = self.config.get_text_config().num_hidden_layers
        frozen = parse_layers(self.settings.freeze_layers, count, "--freeze_layers") or set()
        wanted = parse_layers(self.settings.trainable_layers, count, "--trainable_layers")
        if wanted is None and self.settings.train_type == "freeze" and not frozen:
            wanted = set(range(max(0, count - 2), count))
        if wanted is None and not frozen:
            return None
        learning = (set(range(count)) if wanted is None else wanted) - frozen
        if not learning:
            raise BadInput("--freeze_layers and --trainable_layers leave no layer that learns")
        return learning

    def _lora_layers(self) -> list[int] | None:
        layers = self._learning_layers()
        return None if layers is None else sorted(layers)

    # -- words

    def _say_plan(self) -> None:
        from evergreen.train import memory

        settings, say = self.settings, partial(self.console.print, highlight=False)
        for source in self.mixture.sources:
            say(f"data       {_source_line(source)}")
        skipped = [*map(str, self.mixture.skipped), *self.encoder.skipped]
        for reason in skipped[:5]:
            say(f"skipped    {reason}", style="yellow")
        if skipped:
            say(f"skipped    {len(skipped)} rows in all", style="yellow")
        if self.records:
            tokens, targets = (sum(len(r.ids) for r in self.records), sum(r.num_targets for r in self.records))
            say(
                f"records    {len(self.records):,} with {tokens:,} tokens, {targets:,} of them targets; mixture {self.mixture.hash[:12]}"
            )
            self._say_example(say)
        trainable, total = _count_parameters(self.model)
        say(
            f"trainable  {trainable:,} of {total:,} parameters ({100 * trainable / total:.2f}%), {settings.train_type}, "
            f"computing in {str(self.dtype).removeprefix('torch.')} on {self.device}"
        )
        if self.no_packing:
            say(f"packing    off: {self.no_packing}", style="yellow")
        if self.resume:
            mode = (
                "exact: optimizer, schedule and batches go on" if self.resume.exact else "weights only, fresh schedule"
            )
            say(f"resuming   {self.resume.checkpoint} ({mode}; {self.resume.reason})")
        self.forecast = memory.forecast(self.model, settings, self.dtype, self._longest(), self._step_tokens())
        free = memory.available_bytes(self.device)
        say(f"memory     forecast {self.forecast}; {free / memory.GIB:.1f} GiB are free")
        if self.forecast.total - self.forecast.process - self.forecast.weights > free:
            fits = memory.fitting_settings(settings, self.forecast, free, self._longest())
            say(f"memory     this may not fit; what would: {' '.join(fits)}", style="yellow")

    def _say_example(self, say: Callable) -> None:
        """The start of one record with its targets in green: a wrong mask is seen at once."""
        from rich.text import Text

        record = min(self.records, key=lambda record: abs(len(record.ids) - 40))
        text = Text("example    ")
        for token, target in list(zip(record.ids, record.is_target, strict=True))[:80]:
            text.append(self.tokenizer.decode([token]).replace("\n", "⏎"), style="green" if target else "dim")
        say(text, soft_wrap=True)

    def _longest(self) -> int:
        return max((len(record.ids) for record in self.records), default=self.settings.max_length)

    def _step_tokens(self) -> int:
        mean = sum(len(r.ids) for r in self.records) / len(self.records) if self.records else self.settings.max_length
        return int(mean * self.settings.per_device_train_batch_size * self.settings.gradient_accumulation_steps)

    # -- training

    def _fit(self) -> dict[str, Any]:
        import torch

        from evergreen.train import loss, memory
        from evergreen.train.progress import ProgressCallback, plot_loss

        loss.install(self.model)
        memory.keep_freed_memory()
        trainer = self._make_trainer()
        progress = ProgressCallback(
            self.folder, self.device, self.console, lambda: trainer.num_tokens_seen, output.is_main_process()
        )
        trainer.add_callback(progress)
        output.write_args(self.folder, self.settings, self._facts())
        try:
            result = trainer.train(
                resume_from_checkpoint=str(self.resume.checkpoint) if self.resume and self.resume.exact else None
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise self._out_of_memory(error) or error from error
        finally:
            progress.stop()
        self._save(trainer)
        seconds = max(progress.loop_seconds, 1e-9)
        document = {
            "version": "",
            "output_dir": str(self.folder),
            "train_loss": round(result.training_loss, 6),
            "steps": trainer.state.global_step,
            "tokens_per_second": round(trainer.num_tokens_seen / seconds, 1),
            "loop_seconds": round(seconds, 3),
            "peak_memory_bytes": memory.peak_bytes(self.device),
            "trainable_parameters": _count_parameters(self.model)[0],
            "skipped_rows": len(self.mixture.skipped) + len(self.encoder.skipped),
            "data_hash": self.mixture.hash,
        }
        if output.is_main_process():
            trainer.state.save_to_json(str(self.folder / "trainer_state.json"))
            document["version"] = self._write_version(trainer, document)
            picture = plot_loss(self.folder) if self.settings.plot_loss else None
            self._say_end(document, picture)
        return document

    def _make_trainer(self) -> Any:
        from evergreen.train import memory
        from evergreen.train.trainer import Endless, EvergreenTrainer

        settings = self.settings
        dataset: Any = self.records
        if settings.streaming:
            dataset = Endless(lambda: self.encoder(self.mixture))
        trainer = EvergreenTrainer(
            model=self.model,
            args=self._training_arguments(),
            train_dataset=dataset,
            eval_dataset=self.eval_records or None,
            processing_class=self.tokenizer,
            data_collator=list,
            batch_size=settings.per_device_train_batch_size,
            max_row_tokens=memory.max_row_tokens(settings),
            packing=settings.packing and not self.no_packing,
            pad_id=self.tokenizer.pad_token_id or 0,
            penalty=self.penalty and self.penalty(self.model),
            finish_checkpoint=lambda folder: output.write_args(folder, settings, self._facts()),
        )
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        return trainer

    def _training_arguments(self) -> Any:
        import torch
        from transformers import TrainingArguments

        s = self.settings
        evaluates = "no" if not self.eval_records else s.eval_strategy or ("steps" if s.eval_steps else "no")
        return TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=s.per_device_train_batch_size * s.gradient_accumulation_steps,
            per_device_eval_batch_size=s.per_device_eval_batch_size,
            gradient_accumulation_steps=1,
            num_train_epochs=s.num_train_epochs,
            max_steps=s.max_steps,
            learning_rate=s.learning_rate,
            lr_scheduler_type=s.lr_scheduler_type,
            warmup_steps=s.warmup_steps or min(s.warmup_ratio, 1 - 1e-9),
            weight_decay=s.weight_decay,
            adam_beta1=s.adam_beta1,
            adam_beta2=s.adam_beta2,
            adam_epsilon=s.adam_epsilon,
            max_grad_norm=s.max_grad_norm,
            optim=s.optim,
            seed=s.seed,
            bf16=self.dtype is torch.bfloat16,
            fp16=self.dtype is torch.float16,
            use_cpu=self.device == "cpu",
            gradient_checkpointing=s.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if s.gradient_checkpointing else None,
            logging_steps=s.logging_steps,
            eval_strategy=evaluates,
            eval_steps=s.eval_steps,
            save_strategy=s.save_strategy,
            save_steps=s.save_steps,
            save_total_limit=s.save_total_limit,
            report_to=s.report_to,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
            logging_nan_inf_filter=False,
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "base": _absolute(self.reference.base),
            "base_digest": self.base_digest,
            "data_hash": self.mixture.hash,
            "dtype": str(self.dtype).removeprefix("torch."),
            "evergreen": evergreen.__version__,
        }

    def _out_of_memory(self, error: BaseException) -> Failure | None:
        """The settings that would fit, when memory was what ran out; None for any other error."""
        import torch

        from evergreen.train import memory

        text = str(error)
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in text:
            return None
        fits = memory.fitting_settings(
            self.settings, self.forecast, memory.available_bytes(self.device), self._longest()
        )
        return Failure(
            f"out of memory on {self.device} (the forecast was {self.forecast.total / memory.GIB:.1f} GiB); what "
            f"would fit: {' '.join(fits)}; checkpoints in {self.folder} are whole, --resume_from_checkpoint true "
            "goes on from the last one"
        )

    # -- what remains

    def _save(self, trainer: Any) -> None:
        import torch

        if self.settings.train_type in ("full", "freeze") and self.dtype is not torch.float32:
            trainer.model.to(self.dtype)  # checkpoints keep the fp32 master weights; the finished model need not
        trainer.model.config.use_cache = True
        trainer.save_model(str(self.folder))

    def _write_version(self, trainer: Any, document: dict[str, Any]) -> str:
        from evergreen.model.adapters import adapter_digest
        from evergreen.model.load import model_digest

        is_adapter = (self.folder / "adapter_config.json").is_file()
        digest = adapter_digest(self.folder) if is_adapter else model_digest(self.folder)
        settings_hash = digest_of(
            {key: value for key, value in vars(self.settings).items() if key not in ("output_dir", "json", "home")}
        )
        write_json(
            self.folder / output.VERSION_FILE,
            {
                "digest": digest,
                "base": _absolute(self.reference.base),
                "base_digest": self.base_digest,
                "parent": _parent(self.reference),
                "method": self.settings.train_type,
                "data": {"hash": self.mixture.hash, "sources": self.mixture.sources, "rows": len(self.records)},
                "args_hash": settings_hash,
                "seed": self.settings.seed,
                "started": self.started.isoformat(timespec="seconds"),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "steps": document["steps"],
                "train_loss": document["train_loss"],
                "tokens": trainer.num_tokens_seen,
                "tokens_per_second": document["tokens_per_second"],
                "peak_memory_bytes": document["peak_memory_bytes"],
                "evergreen": evergreen.__version__,
            },
        )
        return digest

    def _say_end(self, document: dict[str, Any], picture: Path | None) -> None:
        say = partial(self.console.print, highlight=False)
        say(
            f"trained    {document['steps']} steps in {document['loop_seconds']:.1f} s, loss {document['train_loss']:.4f}, "
            f"{document['tokens_per_second']:,.0f} tokens/s, peak {document['peak_memory_bytes'] / (1 << 30):.2f} GiB"
        )
        say(f"version    {document['version'][:12]} in {self.folder}" + (f", loss curve {picture}" if picture else ""))
        flag = "--adapters" if (self.folder / "adapter_config.json").is_file() else "--model"
        say(f"try it     evergreen infer {flag} {self.folder}")


def parse_layers(text: str, count: int, flag: str) -> set[int] | None:
    """ "0-7" or "0,2,5-7" or "all" as layer numbers; None for "". Raises BadInput outside 0..count-1."""
    if not text:
        return None
    if text == "all":
        return set(range(count))
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise BadInput(f"{flag} wants layers such as 0-7 or 0,2,5-7, got {text!r}")
        layers |= set(range(int(first), int(last if dash else first) + 1))
    if not layers or max(layers) >= count:
        raise BadInput(f"{flag} {text}: the model has layers 0-{count - 1}")
    return layers


def _decoder_layers(model: "PreTrainedModel") -> "torch.nn.ModuleList":
    import torch

    return max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)


def _count_parameters(model: "PreTrainedModel") -> tuple[int, int]:
    """Trainable and all parameters; 4-bit weights hold two in a byte and count as two."""
    if hasattr(model, "get_nb_trainable_parameters"):
        return model.get_nb_trainable_parameters()
    return sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())


def _absolute(base: str) -> str:
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def _parent(reference: Any) -> str | None:
    from evergreen.home import read_json

    folder = reference.adapters[-1] if reference.adapters else Path(reference.base)
    path = folder / output.VERSION_FILE
    return read_json(path)["digest"] if path.is_file() else None


def _source_line(source: dict[str, Any]) -> str:
    return f"{source.get('name')}: {source.get('used', '?')} of {source.get('rows', '?')} rows ({source.get('format', '?')})"
