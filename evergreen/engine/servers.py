"""The servers that `launch` starts: their words at the start, and for llama.cpp the files that they are given.

Every option that decides what an answer is, is said: servers have defaults of their own.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evergreen.engine.dialects import Dialect, LlamaCpp, Vllm

NUM_SLOTS = 8  # answers that llama.cpp works on at a time
MAX_SHARE = 0.25  # of the memory that is free, for vLLM's keys and values on a CPU
Adapters = dict[str, tuple[Path, ...]]  # chains by digest


class Kind(Protocol):
    """What differs between servers."""

    name: str

    def command(self, adapters: Adapters, port: int, key: str) -> tuple[list[str], dict[str, str]]:
        """Its words, and what its environment has besides."""

    def dialect(self, adapters: Adapters) -> Dialect: ...


@dataclass
class VllmServer:
    python: Path
    model: Path
    tensor_parallel_size: int
    max_adapters: int
    dtype: str = "auto"
    max_rank: int = 64
    kv_cache_bytes: int = 0
    name: str = "vllm"

    def command(self, adapters: Adapters, port: int, key: str) -> tuple[list[str], dict[str, str]]:
        from evergreen.model.load import DTYPE_NAMES

        words = [
            str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
            "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port),
            "--tensor-parallel-size", str(self.tensor_parallel_size), "--generation-config", "vllm",
            "--dtype", DTYPE_NAMES.get(self.dtype, self.dtype),
            "--enable-prompt-tokens-details", "--enable-lora", "--max-lora-rank", str(self.max_rank),
            # one slot more than adapters: with all taken, base rows of a mixed batch got the last one's weights
            "--max-loras", str(self.max_adapters + 1),
        ]  # fmt: skip
        if kv_cache_bytes := self.kv_cache_bytes or _kv_share():
            words += ["--kv-cache-memory-bytes", str(kv_cache_bytes)]
        return words, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_API_KEY": key, "HF_HUB_OFFLINE": "1"}

    def dialect(self, adapters: Adapters) -> Dialect:
        return Vllm()


@dataclass
class LlamaServer:
    """`folder` keeps the GGUF files, named by what they were made from."""

    program: tuple[str, ...]
    model: Path
    folder: Path
    gguf_type: str
    is_binary: bool
    name: str = "llamacpp"

    def command(self, adapters: Adapters, port: int, key: str) -> tuple[list[str], dict[str, str]]:
        model, context = self._model_file(), _context_of(self.model)
        files = [self.adapter_file(digest, chain) for digest, chain in adapters.items()]
        if not self.is_binary:
            given = {"model": str(model), "adapters": [str(file) for file in files], "port": port, "api_key": key,
                     "num_slots": NUM_SLOTS, "max_context_tokens": context,
                     "is_exact": self.gguf_type == "f32",
                     "num_threads": os.cpu_count() or 1}  # fmt: skip
            return [*self.program, json.dumps(given)], {}
        words = [
            *self.program, "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
            "--ctx-size", str(NUM_SLOTS * context), "--parallel", str(NUM_SLOTS), "--cache-ram", "0",
            "--lora-init-without-apply",
            *(("--cache-type-k", "f32", "--cache-type-v", "f32") if self.gguf_type == "f32" else ()),
        ]  # fmt: skip
        return words + [word for file in files for word in ("--lora-scaled", f"{file}:0")], {"LLAMA_API_KEY": key}

    def dialect(self, adapters: Adapters) -> Dialect:
        return LlamaCpp(list(adapters))

    def _model_file(self) -> Path:
        from evergreen.engine.gguf import write_model
        from evergreen.model.find import model_digest

        path = self.folder / f"{model_digest(self.model)[:16]}-{self.gguf_type}.gguf"
        return _once(path, lambda part: write_model(self.model, part, self.gguf_type))

    def adapter_file(self, digest: str, chain: Sequence[Path]) -> Path:
        from evergreen.engine.gguf import write_adapter

        name = hashlib.sha256(f"{digest} {self.model.resolve()}".encode()).hexdigest()[:16]
        return _once(self.folder / f"adapter-{name}.gguf", lambda part: write_adapter(chain, self.model, part))


def _kv_share() -> int:
    """0 where there is a GPU, of which vLLM takes what is free; on a CPU it would have 92% of the machine's memory and
    refuse to start when so much is not free."""
    import psutil

    has_gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))
    return 0 if has_gpu else int(MAX_SHARE * psutil.virtual_memory().available)


def _once(path: Path, write: Callable[[Path], None]) -> Path:
    """A file that is made when it is not there yet, and never half."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _context_of(model: Path) -> int:
    """Tokens of a llama.cpp slot: the model's, and no more than 8,192, since slots are allocated in full."""
    from transformers import AutoConfig

    return min(AutoConfig.from_pretrained(model).max_position_embeddings, 8192)
