"""sft, evolve, rebase."""

from dataclasses import dataclass, field

from evergreen.options import option
from evergreen.settings.common import CommonSettings, DataSettings, ModelSettings


@dataclass
class SftSettings(ModelSettings, DataSettings):
    """Supervised fine-tuning: lora, qlora, full or freeze; packed rows, shared prefixes, logits only at targets."""

    stage: str = option("sft", "accepted for habit's sake", (), ("sft", "pt"))
    do_train: bool = option(True, "accepted for habit's sake")
    train_type: str = option(
        "lora", "what is trained", ("tuner_type", "finetuning_type"), ("lora", "qlora", "full", "freeze")
    )
    output_dir: str = option("output", "where the adapter or model, its checkpoints and its logs go")
    overwrite_output_dir: bool = option(False, "delete the run that output_dir holds and start again")

    lora_rank: int = option(8, "rank of the LoRA matrices", ("lora_r",), at_least=1)
    lora_alpha: float = option(32, "LoRA scale is alpha/rank (alpha/sqrt(rank) with use_rslora)", (), above=0)
    lora_dropout: float = option(0.0, "dropout before lora_A", (), at_least=0, at_most=0.99)
    target_modules: list[str] = option(
        ["all-linear"], "all-linear or module names such as q_proj v_proj", ("lora_target",)
    )
    modules_to_save: list[str] = option([], "modules trained in full beside the adapter", ("additional_target",))
    use_rslora: bool = option(False, "rank-stabilised scale alpha/sqrt(rank)")
    use_dora: bool = option(False, "weight-decomposed LoRA (DoRA)")
    freeze_layers: str = option("", "decoder layers that stay as they are, e.g. 0-7 or 0,2,5-7")
    trainable_layers: str = option(
        "",
        "decoder layers that learn: all, 8-23, ...; with train_type freeze the default is the last two",
        (),
    )
    quantization_bit: int | None = option(None, "bits of the frozen base (4); lora becomes qlora", ("quant_bits",))
    quantization_method: str = option("bnb", "accepted for habit's sake", ("quant_method",), ("bnb", "bitsandbytes"))
    bnb_4bit_quant_type: str = option("nf4", "4-bit number format under qlora", (), ("nf4", "fp4"))
    bnb_4bit_use_double_quant: bool = option(True, "quantise the quantisation constants too")

    num_train_epochs: float = option(1.0, "passes over the data", ("num_epochs", "epochs"), above=0)
    max_steps: int = option(-1, "stop after so many optimizer steps instead of epochs", (), at_least=-1)
    per_device_train_batch_size: int = option(1, "records a micro-batch", ("batch_size",), at_least=1)
    per_device_eval_batch_size: int = option(1, "records an evaluation batch", (), at_least=1)
    gradient_accumulation_steps: int = option(1, "micro-batches an optimizer step", (), at_least=1)
    learning_rate: float = option(1e-4, "peak learning rate", ("lr",), above=0)
    lr_scheduler_type: str = option(
        "cosine",
        "schedule after warm-up",
        (),
        ("linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
    )
    warmup_ratio: float = option(0.0, "share of the steps with rising learning rate", (), at_least=0, at_most=1)
    warmup_steps: int = option(0, "steps with rising learning rate (goes before warmup_ratio)", (), at_least=0)
    weight_decay: float = option(0.0, "AdamW weight decay", (), at_least=0)
    adam_beta1: float = option(0.9, "AdamW", (), at_least=0, at_most=0.999999)
    adam_beta2: float = option(0.999, "AdamW", (), at_least=0, at_most=0.999999)
    adam_epsilon: float = option(1e-8, "AdamW", (), above=0)
    max_grad_norm: float = option(1.0, "gradient clipping; 0 turns it off", (), at_least=0)
    optim: str = option("adamw_torch", "optimizer, by transformers' name")
    bf16: bool = option(False, "same as --torch_dtype bfloat16")
    fp16: bool = option(False, "same as --torch_dtype float16")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")
    max_length: int = option(2048, "tokens a record may have", ("cutoff_len", "model_max_length"), at_least=8)
    truncation_strategy: str = option(
        "error",
        "a record over max_length: an error, left out and counted, or cut at its end",
        (),
        ("error", "delete", "right"),
    )
    loss_on: str = option("all", "assistant turns that are trained", (), ("all", "last"))
    packing: bool = option(True, "several records in a row, shared prefixes computed once; false pads one by one")
    max_row_tokens: int | None = option(
        None, "tokens a packed row may hold (default per_device_train_batch_size x max_length)", (), at_least=8
    )
    dataloader_num_workers: int = option(
        0, "accepted for habit's sake: rows are encoded before the first step", (), at_least=0
    )
    preprocessing_num_workers: int = option(0, "accepted for habit's sake", ("dataset_num_proc",), at_least=0)
    overwrite_cache: bool = option(False, "accepted for habit's sake: nothing is cached")
    ddp_timeout: int = option(1800, "seconds that one process waits for another", (), at_least=1)

    logging_steps: int = option(5, "steps between two log lines", (), at_least=1)
    eval_steps: int | None = option(None, "steps between two evaluations of the loss", (), at_least=1)
    eval_strategy: str = option(
        "", "no, steps or epoch (default: steps when eval_steps is given)", (), ("", "no", "steps", "epoch")
    )
    save_steps: int = option(500, "steps between two checkpoints; the last step is always saved", (), at_least=1)
    save_strategy: str = option("steps", "steps or epoch", (), ("steps", "epoch"))
    save_total_limit: int | None = option(None, "how many checkpoints to keep", (), at_least=1)
    save_only_model: bool = option(False, "checkpoints without optimizer: smaller, resumed with weights only")
    report_to: str = option("tensorboard", "tensorboard or none", (), ("tensorboard", "none"))
    plot_loss: bool = option(True, "write training_loss.png")
    resume_from_checkpoint: str = option("", "a checkpoint folder, or true for the newest one in output_dir")
    resume_only_model: bool = option(False, "take the checkpoint's weights only: fresh schedule and optimizer")

    prev_model: str = option("", "learn on top of an earlier run's output", ())
    chain: str = option(
        "continue",
        "what becomes of prev_model's adapter: trained further, left as it is below a new one, or merged into the base",
        (),
        ("continue", "stack", "merge"),
    )
    merge_chain: str = option(
        "",
        "also write output_dir/merged, one adapter that equals the chain: exactly (concat) or at a lower rank (svd)",
        (),
        ("", "concat", "svd"),
    )
    replay_samples: float = option(
        0.0, "rows of prev_model's own data to mix in: below 1 a share of the new data, from 1 a count", (), at_least=0
    )
    replay_repeats: int = option(1, "how often an epoch shows each replayed row", (), at_least=1)
    replay_answers: str = option(
        "gold", "what replayed prompts are answered with: as recorded, or by prev_model", (), ("gold", "onpolicy")
    )
    general_replay: list[str] = option([], "sources FILE#N of general data, mixed in beside replay_samples")
    regularization_alpha: float = option(0.0, "how strongly the model is held near its start; 0 is off", (), at_least=0)
    regularization: str = option(
        "l2sp",
        "held by its weights (l2sp), by those that matter to old data (ewc), or by its answers to old data (kl)",
        (),
        ("l2sp", "ewc", "kl"),
    )
    orthogonal_lambda: float = option(
        0.0, "O-LoRA: how strongly a stacked adapter keeps away from those below; 0 is off", (), at_least=0
    )
    unfreeze: str = option(
        "", "auto: measure which layers gain without harm to old data, train those", (), ("", "auto")
    )


@dataclass
class EvolveSettings(SftSettings):
    """Learn increment after increment: train, score everything so far, judge by the gate, release what passes."""

    increments: str = option("", "a folder with base/, increment_1/, ... or a YAML list (also given without the flag)")
    output_dir: str = option("evolved", "where every version, the matrix and the report go")
    replay_samples: float = option(
        0.05,
        "rows of all earlier increments to mix in: below 1 a share of the new data, from 1 a count",
        (),
        at_least=0,
    )
    replay_repeats: int = option(3, "how often an epoch shows each replayed row", (), at_least=1)
    regularization: str = option(
        "ewc",
        "held by its weights (l2sp), by those that matter to old data (ewc), or by its answers to old data (kl)",
        (),
        ("l2sp", "ewc", "kl"),
    )
    regularization_alpha: float = option(3.0, "how strongly the model is held near its start; 0 is off", (), at_least=0)
    save_steps: int = option(20, "steps between two checkpoints: what a kill can cost", (), at_least=1)
    save_total_limit: int | None = option(1, "checkpoints kept beside each increment's own adapter", (), at_least=1)
    metric: str = option("auto", "exact, contains, choice, numeric, rouge_l, edit, sari, json or auto per dev set")
    max_items: int | None = option(None, "at most so many items of each dev set", ("limit",), at_least=1)
    max_new_tokens: int = option(256, "longest answer when scoring", ("max_tokens",), at_least=1)
    eval_batch_size: int = option(16, "prompts generated at a time", (), at_least=1)
    retention: list[str] = option([], "task files of general abilities that every version is scored on")
    forward: bool = option(False, "score the dev sets that are still to come, too (forward transfer)")
    allow_leak: bool = option(False, "train although rows repeat items of a dev or test set")
    sweep: bool = option(True, "before a rejection, try 0.8, 0.6 and 0.4 of the step")
    gate: str = option("", "a gate.yaml with limits, or off to let everything through")
    print_gate: bool = option(False, "print the limits that would hold, as a gate.yaml, and stop")
    min_gain: float | None = option(None, "gate: the new task must gain more than this (0)", (), at_least=-1, at_most=1)
    max_drop: float | None = option(None, "gate: what an old task may lose (0.03)", (), above=0, at_most=1)
    max_forgetting: float | None = option(
        None, "gate: what an old task may lose against its best version (0.05)", (), above=0, at_most=1
    )
    max_retention_drop: float | None = option(
        None, "gate: what a retention suite may lose (0.03)", (), above=0, at_most=1
    )
    max_drift: float | None = option(None, "gate: nats a token from the previous version (no limit)", (), above=0)
    max_latency_ratio: float | None = option(None, "gate: answer time against the previous one (no limit)", (), above=0)
    min_items: int | None = option(
        None, "gate: a task with fewer items can reject, and need not be passed (0)", (), at_least=0
    )
    on_undecided: str | None = option(None, "gate: what too few items lead to (reject)", (), ("reject", "promote"))
    asked: list[str] = field(default_factory=list)  # no flag: the fields that were given, be it as their default


@dataclass
class RebaseSettings(CommonSettings):
    """Learn the increments of an evolve again on another base, and compare the two lines item by item."""

    evolved: str = option("", "output folder of the evolve (also given without the flag)")
    model: str = option("", "the newer base: a folder or a hub name", ("model_name_or_path",))
    output_dir: str = option("", "where the new line goes (default: EVOLVED-on-MODEL)")
