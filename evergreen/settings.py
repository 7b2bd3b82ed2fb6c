"""Every command's flags. Names are those that users of ms-swift and LLaMA-Factory type; the aliases are theirs too."""

from dataclasses import dataclass, field

from evergreen.options import option


@dataclass
class CommonSettings:
    home: str = option("", "where state lives (else $EVERGREEN_HOME, else ./.evergreen)")
    json: bool = option(False, "the last line of stdout is one JSON document")


@dataclass
class ModelSettings(CommonSettings):
    model: str = option(
        "", "nano, a folder, a hub name, or an adapter's output folder", ("model_name_or_path", "model_id")
    )
    adapters: list[str] = option([], "LoRA adapters over the model (PEFT folders)", ("adapter_name_or_path", "adapter"))
    model_type: str = option("", "accepted for habit's sake; must agree with the model's own type")
    template: str = option(
        "", "chat template for a base without one: chatml, qwen or a .jinja file; 'auto' is the model's own"
    )
    system: str | None = option(
        None, "system prompt (default: the adapter's, else the template's own)", ("default_system",)
    )
    torch_dtype: str = option(
        "auto",
        "what to compute in; auto measures what this device is fast at",
        ("dtype",),
        ("auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"),
    )
    device: str = option("", "cpu or cuda (default: cuda where there is one)")
    seed: int = option(42, "for every random choice", ("data_seed",), at_least=0, at_most=2**32 - 1)
    trust_remote_code: bool = option(False, "accepted for habit's sake: model code comes from transformers alone")
    flash_attn: str = option("auto", "accepted for habit's sake", ("attn_impl", "attn_implementation"))


@dataclass
class DataSettings:
    dataset: list[str] = option(
        [], "sources: NAME[#N] in dataset_info.json, a folder dataset/NAME, a path or a hub name", ("train_dataset",)
    )
    val_dataset: list[str] = option([], "sources to evaluate the loss on while training", ("eval_dataset",))
    split_dataset_ratio: float = option(
        0.0, "share of the training data held out when no val_dataset is given", ("val_size",), at_least=0, at_most=0.99
    )
    dataset_dir: str = option("", "folder with dataset_info.json (default: ./data, then .)")
    interleave_prob: list[float] = option([], "mixing probabilities, one per source", ("interleave_probs",), at_least=0)
    stopping_strategy: str = option(
        "first_exhausted",
        "with interleave_prob: stop when the first or when every source is used up",
        (),
        ("first_exhausted", "all_exhausted"),
    )
    max_samples: int | None = option(None, "at most so many rows of each source", (), at_least=1)
    streaming: bool = option(False, "read rows as they are needed instead of holding the set in memory")
    on_bad_row: str = option("error", "what a row that cannot be used does", (), ("error", "skip"))
    model_name: str = option("", "fills {{name}} and {{NAME}} in identity data")
    model_author: str = option("", "fills {{author}} and {{AUTHOR}} in identity data")


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
class InferSettings(ModelSettings):
    """Talk to a model: a terminal chat, one prompt, a pipe or a whole file."""

    prompt: str | None = option(None, "answer this and leave", ("query",))
    infer_dataset: str = option("", "answer every record of a file", ("val_dataset",))
    result_path: str = option("", "where the answers of infer_dataset go (JSONL)")
    stream: bool = option(True, "print tokens as they come")
    temperature: float = option(0.0, "0 is greedy", (), at_least=0)
    top_p: float = option(1.0, "nucleus sampling", (), above=0, at_most=1)
    top_k: int = option(0, "0 is no limit", (), at_least=0)
    repetition_penalty: float = option(1.0, "above 1 discourages repeats", (), above=0)
    max_new_tokens: int = option(512, "longest answer", ("max_tokens",), at_least=1)
    stop: list[str] = option([], "strings that end an answer", ("stop_words",))
    thought: str = option("show", "show or hide what stands between <think> and </think>", (), ("show", "hide"))
    batch_size: int = option(8, "prompts generated at a time with infer_dataset", ("max_batch_size",), at_least=1)


@dataclass
class EvalSettings(ModelSettings):
    """Score a model on tasks, compare two, or compare all checkpoints of a run."""

    eval_dataset: list[str] = option(
        [], "task files: JSON or JSONL with a prompt and an answer", ("dataset", "val_dataset")
    )
    metric: str = option("auto", "exact, contains, choice, numeric, rouge_l, edit, sari, json or auto per task")
    compare: list[str] = option(
        [], "two models, adapters, checkpoints or releases: paired difference on identical items"
    )
    checkpoints: str = option("", "score every checkpoint in this output folder")
    output_dir: str = option("", "where results go (default: HOME/reports/eval-...)", ("result_dir",))
    max_samples: int | None = option(None, "at most so many items of each task", ("limit",), at_least=1)
    max_new_tokens: int = option(256, "longest answer", ("max_tokens",), at_least=1)
    batch_size: int = option(
        8, "prompts generated at a time", ("per_device_eval_batch_size", "max_batch_size"), at_least=1
    )
    on_bad_row: str = option("error", "what an item that cannot be used does", (), ("error", "skip"))


@dataclass
class OtherEngineSettings:
    """Which engine answers, and how one that is not ours is found or started."""

    engine: str = option("embedded", "what computes the answers", (), ("embedded", "vllm", "llamacpp"))
    engine_python: str = option("", "python of the environment that holds vllm or xllamacpp")
    engine_binary: str = option("", "a llama-server to start instead of xllamacpp")
    tensor_parallel_size: int = option(1, "GPUs that vllm spreads the model over", ("tp",), at_least=1)
    gguf_type: str = option("f16", "number format of the weights under llamacpp", (), ("f32", "f16", "q8_0"))
    url: str = option("", "an OpenAI-compatible server that runs already", ("base_url",))
    url_key: str = option("", "API key for --url")


@dataclass
class ConformanceSettings(OtherEngineSettings, CommonSettings):
    """Does an engine keep its models apart? Base and adapters in every order and mixed, compared with each alone."""

    model: str = option("", "the base (default: a tiny random one, made for this)", ("model_name_or_path", "model_id"))
    adapters: list[str] = option([], "its adapters, PEFT folders (default: two random ones)", ("adapter_name_or_path",))
    models: list[str] = option([], "names at --url: the base, then its adapters, as base,a,b")
    url_key: str = option("", "API key for --url", ("api_key",))
    gguf_type: str = option("f32", "number format of the weights under llamacpp", (), ("f32", "f16", "q8_0"))
    max_new_tokens: int = option(8, "tokens of each answer", ("max_tokens",), at_least=1)
    max_gap: float | None = option(
        None, "nats between its two best scores below which the reference is undecided (fp32: 0.001, else 0.25)", (),
        at_least=0,
    )  # fmt: skip
    torch_dtype: str = option(
        "float32", "what the engine computes in", ("dtype",), ("float32", "bfloat16", "float16", "fp32", "bf16", "fp16")
    )
    device: str = option("", "cpu or cuda, for the embedded engine (default: cuda where there is one)")


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


@dataclass
class EmbeddedEngineSettings:
    """How much the embedded engine may hold and run at a time."""

    kv_cache_bytes: int = option(
        0,
        "memory of the KV cache (default: 2,048 tokens a sequence, at most a quarter of what is free)",
        (),
        at_least=0,
    )
    block_size: int = option(16, "tokens of a KV block", (), at_least=1)
    max_num_seqs: int = option(64, "requests that run at a time", (), at_least=1)
    max_num_batched_tokens: int = option(512, "tokens of one forward pass", (), at_least=1)
    max_model_len: int = option(0, "longest prompt and answer together (default: the model's)", (), at_least=0)
    prefix_caching: bool = option(True, "beginnings that prompts share are computed once", ("enable_prefix_caching",))
    max_adapters: int = option(8, "adapters that are loaded at a time", ("max_loras", "max_cpu_loras"), at_least=1)
    max_lora_rank: int | None = option(None, "accepted for habit's sake: any rank is served", (), at_least=1)
    quantization: str = option("", "weights in fewer bits", (), ("", "int8", "int4", "nf4"))
    sliding_window: int = option(0, "tokens that attention looks back (default: the model's own)", (), at_least=0)
    rope_scaling: str = option(
        "", "yarn: more context than the model was trained for, with max_model_len", (), ("", "yarn")
    )


@dataclass
class KnowledgeSettings:
    """How answers use the knowledge base."""

    knowledge: str = option("auto", "entries in answers: where they matter, always, never", (), ("auto", "on", "off"))
    knowledge_top_k: int = option(5, "entries that an answer may stand on", (), at_least=1, at_most=100)
    knowledge_tokens: int = option(1024, "tokens that the entries may have in the prompt", (), at_least=16)
    knowledge_cutoff: str = option("", "date up to which the model knows the world; newer entries matter more")
    retrieval_timeout: float = option(0.3, "seconds until an answer goes on without its entries", (), at_least=0.0)
    cache_seconds: int = option(3600, "how long an answer may be given again; 0 is never", (), at_least=0)
    semantic_cache: bool = option(False, "also give it to a question that means the same (wants an embedder)")


@dataclass
class ServeSettings(ModelSettings, OtherEngineSettings, EmbeddedEngineSettings, KnowledgeSettings):
    """An OpenAI-compatible server and the chat page, over the stable release or a model, with adapters by name."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 is every one, and wants a key")
    port: int = option(8000, "port to listen at; 0 takes a free one and says it", (), at_least=0, at_most=65535)
    served_model_name: list[str] = option([], "names that the model answers to (default: as given)")
    enable_lora: bool = option(True, "accepted for habit's sake: adapters are always served")
    lora_modules: list[str] = option([], "adapters by name: NAME=FOLDER, or a folder, whose name it gets")
    api_key: list[str] = option([], "keys of users (also $EVERGREEN_API_KEY, comma-separated)")
    admin_key: list[str] = option([], "keys that may also change what is served (also $EVERGREEN_ADMIN_KEY)")
    api_key_file: str = option("", "a YAML list of keys with name, scope and limits (HOME/keys.yaml is read, too)")
    requests_per_minute: int = option(0, "of each key; 0 is no limit", ("rpm",), at_least=0)
    tokens_per_minute: int = option(0, "of each key, prompts and answers together; 0 is no limit", ("tpm",), at_least=0)
    max_waiting: int = option(256, "requests that may wait for the engine; more are answered 429", (), at_least=0)
    max_body_bytes: int = option(8 << 20, "longest request body", (), at_least=1024)
    allowed_origins: list[str] = option([], "web pages from elsewhere that may ask (CORS), * for all; none by default")
    trim_history: bool = option(False, "drop the oldest turns of a chat that does not fit, instead of an error")
    log_content: str = option("full", "what the request log keeps of prompts and answers", (), ("none", "hash", "full"))
    drain_seconds: int = option(30, "how long running requests may go on after SIGTERM", (), at_least=0)
    start_timeout: float = option(60.0, "how long a request waits for an engine that is started again", (), at_least=0)


@dataclass
class KnowledgeChangeSettings(CommonSettings):
    """Who changes the knowledge base and why, for its audit."""

    author: str = option("", "who changes it (default: the user of this machine)")
    reason: str = option("", "why, kept with the change for good")


@dataclass
class KnowledgeReadSettings(CommonSettings):
    """Which state of the knowledge base is read."""

    snapshot: str = option("live", "a published snapshot's number, latest, or live")
    as_of: str = option("", "the state at a date or time, such as 2026-11-21; a bare date includes its day")


@dataclass
class KnowledgeEntrySettings(KnowledgeChangeSettings):
    """What an entry says of itself."""

    title: str | None = option(None, "what it is about, such as the headings above it")
    source_url: str | None = option(None, "where it comes from", ("url",))
    update_time: str | None = option(None, "when the fact was true (default: now)", ("date",))
    version: str | None = option(None, "MAJOR.MINOR.PATCH (default: 1.0.0, then rising with every update)")
    tags: list[str] | None = option(None, "words to filter by")
    language: str | None = option(None, "of its content, such as zh or en")
    valid_from: str | None = option(None, "for questions asked from this date on")
    valid_until: str | None = option(None, "for questions asked before this date")


@dataclass
class KnowledgeAddSettings(KnowledgeEntrySettings):
    """Add an entry; it is in the next answer."""

    content: str = option("", "what it says, - for stdin (also given without the flag)", ("text",))
    id: str = option("", "its name (default: a new one)")


@dataclass
class KnowledgeUpdateSettings(KnowledgeEntrySettings):
    """Replace parts of an entry; what it said before stays in its history."""

    id: str = option("", "the entry (also given without the flag)")
    content: str | None = option(None, "what it says now, - for stdin", ("text",))
    bump: str = option("patch", "which part of the version rises", (), ("patch", "minor", "major"))


@dataclass
class KnowledgeWithdrawSettings(KnowledgeChangeSettings):
    """Take entries out of every answer from now on. Snapshots and the past keep them."""

    ids: list[str] = option([], "the entries (also given without the flag)", ("id",))


@dataclass
class KnowledgeRedactSettings(KnowledgeChangeSettings):
    """Take entries out of the past, too, for good: their contents leave the disk, every snapshot and every cache."""

    ids: list[str] = option([], "the entries (also given without the flag)", ("id",))


@dataclass
class KnowledgeImportSettings(KnowledgeChangeSettings):
    """Import files and folders: Markdown, text, HTML, PDF, CSV, JSONL. Again: what changed is updated."""

    files: list[str] = option([], "files and folders (also given without the flag)", ("file", "folder"))
    chunk_size: int = option(192, "longest chunk, in chunk_unit", (), at_least=16)
    chunk_unit: str = option("tokens", "what chunk_size counts", (), ("tokens", "characters"))
    model: str = option("", "whose tokenizer counts tokens (default: an estimate, 4 bytes a token)")
    source_url: str = option("", "address of the folder or file, for its entries' sources", ("url",))
    tags: list[str] = option([], "tags of every entry, besides those that the files give")
    update_time: str = option("", "when the facts were true (default: what a file says, else its time)", ("date",))
    encoding: str = option("", "of the text files (default: UTF-8, else GB18030, else an error)")
    content_column: str = option("", "of CSV and JSONL, where it is not called content, text, 内容, ...")
    title_column: str = option("", "of CSV and JSONL, where it is not called title, question, 标题, ...")
    withdraw_missing: bool = option(False, "withdraw the entries of files that have vanished from the folders")
    near_duplicates: float = option(
        0.8, "report chunks that share so much of their text; 0 is off", (), at_least=0, at_most=1
    )
    max_file_bytes: int = option(256 << 20, "longest file", (), at_least=1)
    on_bad_row: str = option("error", "what a row or file that cannot be used does", (), ("error", "skip"))


@dataclass
class KnowledgeListSettings(KnowledgeReadSettings):
    """The entries, those changed last first."""

    tags: list[str] = option([], "only those with all of these tags")
    limit: int = option(50, "how many; 0 is all", (), at_least=0)


@dataclass
class KnowledgeShowSettings(KnowledgeReadSettings):
    """One entry, whole."""

    id: str = option("", "the entry (also given without the flag)")


@dataclass
class KnowledgeSearchSettings(KnowledgeReadSettings):
    """The entries that answer a question best, as answers would find them."""

    query: str = option("", "the question (also given without the flag)")
    top_k: int = option(5, "how many", (), at_least=1, at_most=1000)
    tags: list[str] = option([], "only those with all of these tags")


@dataclass
class KnowledgeHistorySettings(CommonSettings):
    """Every version of an entry: when, who, why."""

    id: str = option("", "the entry (also given without the flag)")


@dataclass
class KnowledgeDiffSettings(CommonSettings):
    """What differs between two states: snapshots, dates, latest or live."""

    states: list[str] = option([], "the earlier and the later one (also given without the flag)")


@dataclass
class KnowledgePublishSettings(KnowledgeChangeSettings):
    """Name the present state as the next snapshot, which never changes."""


@dataclass
class KnowledgeRollbackSettings(KnowledgeChangeSettings):
    """Answer from a snapshot, from the next request on: a child of the stable release, pinned to it."""

    snapshot: int = option(0, "the snapshot's number (also given without the flag)", (), at_least=0)


@dataclass
class KnowledgeCanarySettings(KnowledgeChangeSettings):
    """Answer a share of the users from a snapshot: the candidate release, pinned to it."""

    snapshot: int = option(0, "the snapshot's number (also given without the flag)", (), at_least=0)
    share: float = option(0.1, "fraction of the users", (), above=0, at_most=1)


@dataclass
class KnowledgeLiveSettings(KnowledgeChangeSettings):
    """Answer from what is newest again, after a rollback."""


@dataclass
class KnowledgeAuditSettings(CommonSettings):
    """Every change: when, what, who, why."""

    id: str = option("", "only those of one entry (also given without the flag)")
    limit: int = option(50, "how many, the last ones; 0 is all", (), at_least=0)


@dataclass
class KnowledgeExportSettings(KnowledgeReadSettings):
    """Entries as JSONL, which `knowledge import` reads."""

    file: str = option("", "where to, - for stdout (also given without the flag)")
    all: bool = option(False, "every version that ever was, with its changes, for keeping")
    overwrite: bool = option(False, "replace the file if there is one")


@dataclass
class KnowledgeCompactSettings(CommonSettings):
    """Check every byte of the log, then merge its small segments. Nothing that was ever said is lost."""


@dataclass
class KnowledgeReindexSettings(CommonSettings):
    """Make the search index anew from the log."""


@dataclass
class KnowledgeServeSettings(CommonSettings):
    """The home's knowledge over HTTP, without a model: POST /latest-facts, and entries for admins."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 is every one, and wants a key")
    port: int = option(8001, "port to listen at; 0 takes a free one and says it", (), at_least=0, at_most=65535)
    api_key: list[str] = option([], "keys of users (also $EVERGREEN_API_KEY, comma-separated)")
    admin_key: list[str] = option([], "keys that may also change entries (also $EVERGREEN_ADMIN_KEY)")
    api_key_file: str = option("", "a YAML list of keys with name and scope (HOME/keys.yaml is read, too)")
    max_body_bytes: int = option(8 << 20, "longest request body", (), at_least=1024)
    drain_seconds: int = option(10, "how long running requests may go on after SIGTERM", (), at_least=0)


@dataclass
class DataCheckSettings(CommonSettings):
    """One report on data files: format, empty turns, roles, lengths, duplicates, leakage."""

    files: list[str] = option([], "files to check (also given without the flag)")
    model: str = option("nano", "whose tokenizer counts the tokens", ("model_name_or_path",))
    max_length: int = option(2048, "tokens a record may have", ("cutoff_len",), at_least=8)
    dataset_dir: str = option("", "folder with dataset_info.json")
    max_findings: int = option(50, "how many findings to print of each kind; --json lists all", (), at_least=1)


@dataclass
class ReleaseListSettings(CommonSettings):
    """The releases there are, and what the aliases stable and candidate point to."""

    all: bool = option(False, "also those that were pruned")


@dataclass
class ReleaseShowSettings(CommonSettings):
    """A release with its lineage: versions, data, gate, moves; every file behind it is checked."""

    release: str = option("", "an id, a version, a beginning of either, or an alias (also given without the flag)")


@dataclass
class ReleaseDiffSettings(CommonSettings):
    """What differs between two releases: parts, prompt, gate, data, settings."""

    releases: list[str] = option([], "the two releases (also given without the flag)")


@dataclass
class ReleaseCreateSettings(CommonSettings):
    """Make a release by hand from a model or an adapter. It has no gate report, so promoting it wants --force."""

    model: str = option("", "the base: a folder or a hub name (default: the adapter's own)", ("model_name_or_path",))
    adapters: list[str] = option([], "the adapter: a run's output folder", ("adapter_name_or_path", "adapter"))
    system: str | None = option(None, "system prompt (default: the run's)", ("default_system",))
    template: str = option("", "chat template (default: the run's)")
    parent: str = option("", "the release that this one comes after")


@dataclass
class ReleasePromoteSettings(CommonSettings):
    """Point an alias at a release. stable wants a passed gate."""

    release: str = option("", "an id, a version, a beginning of either, or an alias (also given without the flag)")
    to: str = option("stable", "which alias moves", (), ("stable", "candidate"))
    force: str = option("", "promote without a passed gate, for this reason, which is kept in the history")


@dataclass
class ReleaseRollbackSettings(CommonSettings):
    """Take back the last promotion that still stands; a second rollback goes one further back."""

    alias: str = option("stable", "which alias moves", (), ("stable", "candidate"))
    reason: str = option("", "kept in the history")


@dataclass
class ReleasePruneSettings(CommonSettings):
    """Free the disk from versions that no kept release runs on."""

    keep: int = option(3, "how many promoted releases to keep, and how many of the newest", (), at_least=3)
    dry_run: bool = option(False, "only say what would be freed")


@dataclass
class ReleaseHistorySettings(CommonSettings):
    """Every move of an alias: when, what, from, to, who and why."""

    alias: str = option("stable", "whose history (also given without the flag)", (), ("stable", "candidate"))


@dataclass
class BackupSettings(CommonSettings):
    """The whole home in one file, also while others write to it."""

    file: str = option("", "FILE.tar or FILE.tar.gz (also given without the flag)")


@dataclass
class RestoreSettings(CommonSettings):
    """Bring a backup back, every file checked, into an empty or new --home."""

    file: str = option("", "what backup wrote (also given without the flag)")
    force: bool = option(False, "set aside what the home holds now, as HOME.earlier-1")


@dataclass
class DoctorSettings(CommonSettings):
    """What this machine can do, what is missing, how to get it."""


@dataclass
class DemoSettings(CommonSettings):
    """The whole cycle on the nano model, about three minutes on a laptop."""

    output_dir: str = option("demo_output", "where the demo's adapter and reports go")
