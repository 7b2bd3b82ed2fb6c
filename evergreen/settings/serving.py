"""What answers: infer, eval, conformance, serve, and the engines under them."""

from dataclasses import dataclass

from evergreen.options import option
from evergreen.settings.common import CommonSettings, ModelSettings


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
