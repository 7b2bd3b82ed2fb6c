"""One contestant of the serving benchmark in a process and an environment of its own: the same prompts, its own engine.

usage: python serve_contestants.py JOB.json RESULT.json

Promises: every contestant gets the same token ids, answers greedily, ignores the end of the text and makes the same
number of tokens. Times are of the answering alone, after a short warm-up, by the wall and by the CPU of the process.
Imports nothing of Evergreen unless Evergreen is the contestant.
"""

import hashlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
Prompts = list[list[int]]


class Clock:
    """Wall and CPU seconds of a `with` block; CPU is that of this process and of the children it has waited for."""

    def __enter__(self) -> "Clock":
        self.wall, self.cpu = time.perf_counter(), self._cpu()
        return self

    def __exit__(self, *_: Any) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, self._cpu() - self.cpu

    @staticmethod
    def _cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(answer: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """The best of `repeats` by CPU, with all of them."""
    rounds = []
    for _ in range(repeats):
        with Clock() as clock:
            answer()
        rounds.append({"wall_seconds": clock.wall, "cpu_seconds": clock.cpu})
    return {**min(rounds, key=lambda one: one["cpu_seconds"]), "rounds": rounds}


# -- contestants: each gives a function (prompts, number of new tokens) -> answers as token ids


def open_evergreen(job: dict[str, Any]) -> Callable[[Prompts, int], list[list[int]]]:
    from evergreen.engine.base import EngineSettings
    from evergreen.engine.engine import Engine
    from evergreen.model.load import load_model
    from evergreen.records import Sampling

    loaded = load_model(job["model"], torch_dtype=DTYPES.get(job["dtype"], "auto"))
    settings = EngineSettings(
        quantization=job.get("quantization", ""),
        prefix_caching=job.get("prefix_caching", True),
        **job.get("settings", {}),
    )
    engine = Engine(loaded, settings)
    for digest, folder in job.get("adapters", {}).items():
        engine.load_adapter(digest, [Path(folder)])
    turns = [*job.get("turns", [])]

    def answer(prompts: Prompts, num_new: int) -> list[list[int]]:
        adapters = [turns[number % len(turns)] for number in range(len(prompts))] if turns else ()
        done = engine.generate(
            prompts, Sampling(max_new_tokens=num_new, ignore_eos=True), len(prompts), adapters=adapters
        )
        return [list(one.token_ids) for one in done]

    return answer


def open_transformers(job: dict[str, Any]) -> Callable[[Prompts, int], list[list[int]]]:
    """`way`: one (one prompt after the other), static (all in one padded batch) or continuous (its own batching)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, DTYPES[job["dtype"]])).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    if job.get("adapters"):
        model, names = _with_peft(model, job["adapters"]), job["turns"]
    else:
        names = []

    def batch(prompts: Prompts, num_new: int, first: int = 0) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        extra = {}
        if names:
            extra["adapter_names"] = [names[(first + row) % len(names)] or "__base__" for row in range(len(prompts))]
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=num_new,
                max_new_tokens=num_new,
                **extra,
            )
        return out[:, width:].tolist()

    def one_by_one(prompts: Prompts, num_new: int) -> list[list[int]]:
        return [batch([prompt], num_new, place)[0] for place, prompt in enumerate(prompts)]

    def continuous(prompts: Prompts, num_new: int) -> list[list[int]]:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        longest = max(map(len, prompts)) + num_new
        settings = ContinuousBatchingConfig(
            page_size=16, num_blocks=len(prompts) * (longest // 16 + 2), max_batch_tokens=512
        )
        config = GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0)
        done = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=settings)
        return [one.generated_tokens for one in done.values()]

    def gaps(prompts: Prompts, answers: list[list[int]]) -> list[list[float]]:
        """How far the likeliest token is ahead of the second at each place of each answer."""
        found = []
        for place, (prompt, made) in enumerate(zip(prompts, answers, strict=True)):
            extra = {"adapter_names": [names[place % len(names)] or "__base__"]} if names else {}
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + made]), **extra).logits[0, len(prompt) - 1 : -1]
            top = logits.float().topk(2).values
            found.append((top[:, 0] - top[:, 1]).tolist())
        return found

    one_by_one.gaps = gaps
    return {"one": one_by_one, "static": batch, "continuous": continuous}[job["way"]]


def _with_peft(model: Any, adapters: dict[str, str]) -> Any:
    from peft import PeftModel

    for name, folder in adapters.items():
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
    return model.eval()


def open_openvino(job: dict[str, Any]) -> Callable[[Prompts, int], list[list[int]]]:
    """OpenVINO GenAI's continuous batching on a GGUF file."""
    import numpy
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 1, 16, 2048
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        job["gguf"], scheduler, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    )

    def answer(prompts: Prompts, num_new: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_new
        config.set_eos_token_id(0)  # that of a model which names none is -1, and refused
        config.ignore_eos = True
        inputs = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        done = pipeline.generate(inputs, [config] * len(inputs))
        return [one.m_generation_ids[0] for one in done]

    return answer


def open_llamacpp(job: dict[str, Any]) -> Callable[[Prompts, int], list[list[int]]]:
    """llama.cpp's server in this process (the xllamacpp package), asked over HTTP by one thread a prompt."""
    import urllib.request
    from concurrent.futures import ThreadPoolExecutor

    import xllamacpp

    num_slots = job.get("num_slots", 1)
    params = xllamacpp.CommonParams()
    params.model.path = job["gguf"]
    params.n_ctx, params.n_parallel = 1280 * num_slots, num_slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_batch, params.n_ubatch = 2048, 512
    params.port = job.get("port", 18080)
    server = xllamacpp.Server(params)

    def ask(prompt: list[int], num_new: int) -> list[int]:
        body = {"prompt": prompt, "n_predict": num_new, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps({**body, "return_tokens": True}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as reply:
            return json.loads(reply.read()).get("tokens", [])

    def answer(prompts: Prompts, num_new: int) -> list[list[int]]:
        with ThreadPoolExecutor(num_slots) as pool:
            return list(pool.map(lambda prompt: ask(prompt, num_new), prompts))

    return answer


def open_vllm(job: dict[str, Any]) -> Callable[[Prompts, int], list[list[int]]]:
    os.environ.update(
        VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1"
    )
    from vllm import LLM, SamplingParams

    model = LLM(
        job["model"], dtype=DTYPES[job["dtype"]], enforce_eager=True, max_model_len=1200, max_num_seqs=16,
        max_num_batched_tokens=2048, enable_prefix_caching=False, skip_tokenizer_init=True,
    )  # fmt: skip

    def answer(prompts: Prompts, num_new: int) -> list[list[int]]:
        sampling = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False)
        done = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in done]

    return answer


OPENERS = {
    "evergreen": open_evergreen,
    "transformers": open_transformers,
    "openvino": open_openvino,
    "llamacpp": open_llamacpp,
    "vllm": open_vllm,
}


# -- what is asked of them


def run_answers(job: dict[str, Any]) -> dict[str, Any]:
    """All prompts at once: seconds, and the answers."""
    answer = OPENERS[job["runner"]](job)
    answer([job["prompts"][0][:16]], 2)
    found: list[list[int]] = []

    def once() -> None:
        found[:] = answer(job["prompts"], job["num_new"])

    seconds = timed(once, job.get("repeats", 1))
    return {**seconds, "answers": found, **({"gaps": answer.gaps(job["prompts"], found)} if job.get("gaps") else {})}


def run_each(job: dict[str, Any]) -> dict[str, Any]:
    """One prompt after the other on one engine: CPU seconds of each."""
    answer = OPENERS[job["runner"]](job)
    answer([job["prompts"][0][-16:]], 2)
    return {"cpu_seconds": [timed(lambda p=p: answer([p], job["num_new"]), 1)["cpu_seconds"] for p in job["prompts"]]}


def run_single(job: dict[str, Any]) -> dict[str, Any]:
    """One prompt at a time: seconds to the first token, and seconds a token after it, medians of CPU time."""
    answer = OPENERS[job["runner"]](job)
    answer([job["prompts"][0][:16]], 2)
    first, rest = [], []
    for prompt in job["prompts"]:
        once = timed(lambda prompt=prompt: answer([prompt], 1), 1)
        whole = timed(lambda prompt=prompt: answer([prompt], job["num_new"]), 1)
        first.append(once["cpu_seconds"])
        rest.append((whole["cpu_seconds"] - once["cpu_seconds"]) / (job["num_new"] - 1))
    return {"first_token_seconds": statistics.median(first), "token_seconds": statistics.median(rest), "rounds": rest}


def run_bandwidth(job: dict[str, Any]) -> dict[str, Any]:
    """What one thread reads from memory, in bytes a second: 40 matrices of 896 x 9728 times one row, best of five."""
    import torch

    torch.set_num_threads(1)
    weights = [torch.randn(9728, 896) for _ in range(40)]
    row = torch.randn(1, 896)
    seconds = timed(lambda: [torch.nn.functional.linear(row, weight) for weight in weights], 5)["cpu_seconds"]
    return {"bytes_per_second": sum(weight.nbytes for weight in weights) / seconds}


def make_model(job: dict[str, Any]) -> dict[str, Any]:
    """A model folder of the shape with random weights and, beside it, adapters on all seven linears."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = Path(job["model"])
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        config = Qwen2Config(**job["shape"], max_position_embeddings=4096, initializer_range=0.05, dtype="float32")
        Qwen2ForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(job["tokenizer"]).save_pretrained(folder)
    made = {}
    for number in range(job.get("num_adapters", 0)):
        place = folder / ("adapter" if job.get("kind", "lora") == "lora" else "dora") / str(number)
        made[digest_for(place)] = str(place)
        if not place.is_dir():
            _make_adapter(folder, place, number, job.get("kind") == "dora")
    return {"adapters": made}


def digest_for(place: Path) -> str:
    """A name as long as a digest: contents do not matter here."""
    return hashlib.sha256(str(place).encode()).hexdigest()


def _make_adapter(base: Path, folder: Path, seed: int, is_dora: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1000 + seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=is_dora)
    model = get_peft_model(model, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)


def make_gguf(job: dict[str, Any]) -> dict[str, Any]:
    from evergreen.engine.gguf import write_model

    write_model(Path(job["model"]), Path(job["gguf"]), job["kind"])
    return {}


def run_loading(job: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds between a stream's tokens, alone and while adapters of each kind are loaded one after the other."""
    import tempfile
    import threading

    from evergreen.engine.base import EngineSettings, Request
    from evergreen.engine.process import Embedded, ProcessEngine
    from evergreen.records import Sampling

    folder = Path(tempfile.mkdtemp(dir=job["output_dir"] if Path(job["output_dir"]).is_dir() else "."))
    made = Embedded(job["model"], torch_dtype=DTYPES.get(job["dtype"], "auto"), settings=EngineSettings())
    engine = ProcessEngine(made, folder / "engine.log", start_timeout=600)
    arrived: list[float] = []
    is_over = threading.Event()

    def hear(output: Any) -> None:
        arrived.append(time.perf_counter())
        if output.is_last:
            is_over.set()

    def gaps(work: Callable[[], Any]) -> dict[str, float]:
        begun = time.perf_counter()
        work()
        ended = time.perf_counter()
        times = [moment for moment in arrived if begun <= moment <= ended]
        between = [1000 * (b - a) for a, b in zip(times, times[1:], strict=False)]
        return {"seconds": ended - begun, "median_ms": statistics.median(between), "longest_ms": max(between)}

    def load_all(folders: dict[str, str]) -> None:
        for digest, place in folders.items():
            engine.load_adapter(digest, [Path(place)])

    engine.submit(Request("stream", tuple(job["prompt"]), Sampling(max_new_tokens=3000, ignore_eos=True)), hear)
    while len(arrived) < 10:
        time.sleep(0.1)
    found = {"undisturbed": gaps(lambda: time.sleep(10))}
    for kind, folders in job["adapters"].items():
        found[kind] = gaps(lambda folders=folders: load_all(folders))
    found["undisturbed again"] = gaps(lambda: time.sleep(10))
    engine.cancel("stream")
    is_over.wait(60)
    engine.close()
    return found


def run_quality(job: dict[str, Any]) -> dict[str, Any]:
    """Points of each ability, and the mean KL divergence of the next token's distribution from that of fp32."""
    import random

    import torch
    from transformers import AutoModelForCausalLM

    from evergreen.engine.base import EngineSettings
    from evergreen.engine.engine import Engine
    from evergreen.model.load import load_model
    from evergreen.records import Sampling

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    import measure_nano

    settings = EngineSettings(quantization=job.get("quantization", ""))
    engine = Engine(load_model(job["model"], torch_dtype=DTYPES[job["dtype"]]), settings)
    exact = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    points: dict[str, float] = {}
    divergences: list[torch.Tensor] = []
    for ability, make in measure_nano.ABILITIES.items():
        r = random.Random(f"2 {ability}")
        items = [make(r, ("zh", "en")[place % 2]) for place in range(job["num_items"])]
        heads = [
            engine.tokenizer.apply_chat_template(
                [{"role": "user", "content": item.prompt}], tokenize=False, add_generation_prompt=True
            )
            + item.begun
            for item in items
        ]
        prompts = [engine.tokenizer(head)["input_ids"] for head in heads]
        sampling = Sampling(max_new_tokens=measure_nano.MAX_NEW_TOKENS.get(ability, 48))
        answers = engine.generate(prompts, sampling, batch_size=64)
        right = [
            item.passes(engine.tokenizer.decode(answer.token_ids, skip_special_tokens=True))
            for item, answer in zip(items, answers, strict=True)
        ]
        points[ability] = 100 * sum(right) / len(right)
        for head, item in zip(heads[:20], items, strict=False):
            ids = torch.tensor([engine.tokenizer(head + item.wanted)["input_ids"]])
            with torch.no_grad():
                theirs, ours = (
                    model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
                    for model in (exact, engine.model)
                )
            divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
    return {**points, "kl": float(torch.cat(divergences).mean())}


TASKS = {
    "answers": run_answers,
    "each": run_each,
    "single": run_single,
    "bandwidth": run_bandwidth,
    "model": make_model,
    "gguf": make_gguf,
    "loading": run_loading,
    "quality": run_quality,
}


def main(job_file: str, result_file: str) -> None:
    import contextlib

    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(job.get("num_threads", 1))
    result: dict[str, Any] = TASKS[job["task"]](job)
    Path(result_file).write_text(json.dumps(result))


def summary(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main(*sys.argv[1:])
