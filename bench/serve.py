"""Serving beside the peers: the same prompts, models and weights, one core each, taking turns in one run.

    python bench/serve.py [--sections exact throughput ...] [--models small q05b] [--json]
                          [--openvino_python P] [--llamacpp_python P] [--vllm_python P] [--match 'int8|openvino']

Sections: exact (200 mixed requests over base and eight adapters against transformers), throughput (16 at once), single
(one prompt at a time, as a share of what memory allows), adapters (eight mixed against base alone), prefix (a cached
1,000-token prefix), loading (running streams while an adapter is loaded), quality (what a weight format costs).
Promises: every run is a fresh process pinned to one core with one thread; its figure is CPU time, so that other work on
the machine matters little (loading is by the wall). Weights are random except in quality. Prints tables for people
and, last, one line of JSON. Does not: measure a GPU, or the quality of random weights.
"""

import argparse
import json
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

from child import HERE, Children
from rich.console import Console
from rich.table import Table
from serve_contestants import DTYPES
from train import SHAPES

NANO = HERE.parent / "evergreen" / "model" / "nano"
PEERS = ("openvino", "llamacpp", "vllm")
BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.0, "int4": 5.0, "q8_0": 8.5, "q4_0": 4.5}
HEAD_BITS = {"int4": 8.0}  # where it is not that of the other weights


class Bench(Children):
    """The serving jobs, by each contestant."""

    def model(self, name: str, num_adapters: int = 0, kind: str = "lora") -> tuple[str, dict[str, str]]:
        """The folder of a model with random weights, and its adapters by digest."""
        folder = str(self.cache / name)
        job = {"task": "model", "model": folder, "shape": SHAPES[name], "tokenizer": str(NANO)}
        return folder, self.run({**job, "num_adapters": num_adapters, "kind": kind})["adapters"]

    def gguf(self, name: str, kind: str) -> str:
        """The model as a GGUF file of a number format; made once."""
        path = self.cache / f"{name}-{kind}.gguf"
        if not path.is_file():
            self.run({"task": "gguf", "model": str(self.cache / name), "gguf": str(path), "kind": kind})
        return str(path)

    def try_run(self, label: str, job: dict[str, Any], failed: dict[str, str]) -> dict[str, Any] | None:
        try:
            return self.run(job)
        except RuntimeError as error:
            failed[label] = str(error)
            self.say(f"{label}: {error}")
            return None


def prompts_of(count: int, low: int, high: int, seed: int = 0, vocabulary: int = 6000) -> list[list[int]]:
    """Random token ids; lengths from `low` to `high`."""
    rng = random.Random(seed)
    return [[rng.randrange(300, vocabulary) for _ in range(rng.randint(low, high))] for _ in range(count)]


# -- exact


def exact(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Mixed requests over base and eight adapters, all in flight at once, against PEFT and transformers one by one."""
    folder, adapters = bench.model(model, 8)
    turns = ["", *adapters]
    count = options.requests
    job = {
        "task": "answers", "model": folder, "dtype": "fp32", "adapters": adapters, "turns": turns,
        "prompts": prompts_of(count, 50, 400), "num_new": options.num_new,
    }  # fmt: skip
    ours = bench.run({**job, "runner": "evergreen", "settings": {"max_num_seqs": 32}})
    theirs = bench.run({**job, "runner": "transformers", "way": "one", "gaps": True})
    different = [place for place in range(count) if ours["answers"][place] != theirs["answers"][place]]
    gaps = [_gap_at_difference(ours["answers"][place], theirs, place) for place in different]
    return {
        "requests": count,
        "identical": count - len(different),
        "first_differences_with_a_top_two_gap_under_1e-4": sum(gap < 1e-4 for gap in gaps),
        "wrong": sum(gap >= 1e-4 for gap in gaps),
        "gaps": gaps,
        "seconds": {"evergreen": ours["cpu_seconds"], "transformers": theirs["cpu_seconds"]},
    }


def _gap_at_difference(ours: list[int], theirs: dict[str, Any], place: int) -> float:
    answer = theirs["answers"][place]
    first = next((i for i, (a, b) in enumerate(zip(ours, answer, strict=False)) if a != b), min(len(ours), len(answer)))
    return theirs["gaps"][place][first] if first < len(answer) else float("inf")


# -- throughput


def throughput(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """16 prompts of 128 tokens at once, 48 new tokens each; output tokens a second of CPU."""
    folder, _ = bench.model(model)
    job = {"task": "answers", "model": folder, "prompts": prompts_of(16, 128, 128), "num_new": 48,
           "prefix_caching": False, "repeats": options.repeats}  # fmt: skip
    few = {**job, "prompts": job["prompts"][:3]}
    rows: dict[str, float] = {}
    failed: dict[str, str] = {}
    for label, settings in _contestants(bench, model, options.match).items():
        one_by_one = settings.get("way") == "one"
        result = bench.try_run(label, {**(few if one_by_one else job), **settings}, failed)
        if result:
            num_tokens = sum(map(len, result["answers"])) or len(job["prompts"]) * 48
            rows[label] = num_tokens / result["cpu_seconds"]
            bench.say(f"{model} {label}: {rows[label]:.1f} output tokens/s")
    return {"tokens_per_second": rows, "failed": failed, "ratios": _throughput_ratios(rows)}


def _contestants(bench: Bench, model: str, match: str) -> dict[str, dict[str, Any]]:
    ours = {
        "evergreen fp32": {"runner": "evergreen", "dtype": "fp32"},
        "evergreen bf16": {"runner": "evergreen", "dtype": "bf16"},
        "evergreen int8": {"runner": "evergreen", "dtype": "auto", "quantization": "int8"},
        "evergreen int4": {"runner": "evergreen", "dtype": "bf16", "quantization": "int4"},
    }
    theirs = {
        f"transformers {title} {dtype}": {"runner": "transformers", "way": way, "dtype": dtype}
        for way, title in (("one", "one by one"), ("static", "static batch"), ("continuous", "continuous batching"))
        for dtype in ("fp32", "bf16")
    }
    if "openvino" in bench.pythons:
        for kind in ("q8_0", "q4_0"):
            theirs[f"openvino {kind}"] = {"runner": "openvino", "gguf": bench.gguf(model, kind)}
    if "llamacpp" in bench.pythons:
        for kind in ("q8_0", "q4_0"):
            theirs[f"llama.cpp {kind}"] = {"runner": "llamacpp", "gguf": bench.gguf(model, kind), "num_slots": 16}
    if "vllm" in bench.pythons:
        theirs["vllm bf16"] = {"runner": "vllm", "dtype": "bf16"}
    return {label: one for label, one in {**ours, **theirs}.items() if re.search(match, label)}


def _throughput_ratios(rows: dict[str, float]) -> list[dict[str, Any]]:
    best = max((rows.get("evergreen fp32", 0), rows.get("evergreen bf16", 0)))
    peers = {name: rate for name, rate in rows.items() if not name.startswith("evergreen")}

    def against(ours: float, mark: str, goal: float) -> dict[str, Any] | None:
        theirs = max((rate for name, rate in peers.items() if mark in name), default=0)
        return {"against": mark, "ratio": ours / theirs, "goal": goal} if theirs and ours else None

    found = [
        against(best, "one by one", 4.0),
        against(best, "continuous batching", 1.3),
        against(best, "vllm", 1.0),
        against(rows.get("evergreen int8", 0), "openvino q8_0", 1.3),
    ]
    return [one for one in found if one]


# -- one prompt at a time


def single(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Decode speed of one prompt, as a share of what memory allows: bytes a second by bytes of the weights."""
    folder, _ = bench.model(model)
    job = {"task": "single", "model": folder, "prompts": prompts_of(3, 128, 128), "num_new": 32}
    chosen = {
        label: one
        for label, one in _contestants(bench, model, options.match).items()
        if one.get("way") in (None, "one")
    }
    if "llamacpp" in bench.pythons:
        chosen["llama.cpp bf16"] = {"runner": "llamacpp", "gguf": bench.gguf(model, "bf16")}
    rows: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for label, settings in chosen.items():
        speed = bench.run({"task": "bandwidth"})["bytes_per_second"]
        result = bench.try_run(label, {**job, **settings, "num_slots": 1}, failed)
        if result:
            bound = speed / _bytes_per_token(model, label.split()[-1])
            rate = 1 / result["token_seconds"]
            rows[label] = {"first_token_seconds": result["first_token_seconds"], "tokens_per_second": rate,
                           "bound_tokens_per_second": bound, "share_of_bound": rate / bound}  # fmt: skip
            bench.say(f"{model} {label}: {rate:.1f} tokens/s, {rate / bound:.0%} of the bound")
    return {"rows": rows, "failed": failed}


def _bytes_per_token(model: str, kind: str) -> float:
    """Of the weights that are read for one token: all but an embedding that is only looked up."""
    shape = SHAPES[model]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    narrow = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * inner
    head_bits = HEAD_BITS.get(kind, BITS[kind])
    return (shape["num_hidden_layers"] * layer * BITS[kind] + hidden * shape["vocab_size"] * head_bits) / 8


# -- adapters and prefixes


def adapters(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """16 prompts at once, two for each of eight adapters, against the same prompts on the base."""
    folder, made = bench.model(model, 8)
    job = {"task": "answers", "model": folder, "dtype": options.dtype, "prompts": prompts_of(16, 128, 128),
           "num_new": 48, "repeats": options.repeats, "quantization": options.quantization}  # fmt: skip
    base = bench.run({**job, "runner": "evergreen", "prefix_caching": False})
    mixed = bench.run({**job, "runner": "evergreen", "prefix_caching": False, "adapters": made, "turns": [*made]})
    seconds = {"base": base["cpu_seconds"], "eight mixed": mixed["cpu_seconds"]}
    return {"cpu_seconds": seconds, "cost": mixed["cpu_seconds"] / base["cpu_seconds"] - 1, "goal": 0.10}


def prefix(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds to the first token of a prompt of 1,000 tokens and a short end, the 1,000 cached or not."""
    folder, _ = bench.model(model)
    head = prompts_of(1, 1000, 1000)[0]
    prompts = [head + tail for tail in prompts_of(4, 16, 16, seed=1)]
    job = {"task": "each", "runner": "evergreen", "model": folder, "dtype": options.dtype, "num_new": 1}
    cold, *warm = bench.run({**job, "prompts": prompts})["cpu_seconds"]
    return {"cold_seconds": cold, "cached_seconds": min(warm), "share": min(warm) / cold, "goal": 0.15}


# -- what a load does to others


def loading(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds between the tokens of a running stream: undisturbed, while LoRA adapters are loaded, while DoRA ones
    are. Wall time on every core that there is, in the engine's own process, as `serve` runs it."""
    folder, plain = bench.model(model, 2)
    dora = bench.model(model, 2, kind="dora")[1]
    job = {"task": "loading", "model": folder, "dtype": options.dtype, "num_threads": os.cpu_count(),
           "prompt": prompts_of(1, 64, 64)[0]}  # fmt: skip
    found = bench.run({**job, "adapters": {"lora": plain, "dora": dora}})
    stall = {kind: found[kind]["longest_ms"] - found["undisturbed"]["median_ms"] for kind in ("lora", "dora")}
    return {**found, "longest stall in ms": stall, "goal": 100}


# -- what a weight format costs


def quality(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """nano's abilities per weight format (scripts/measure_nano.py's items), and the KL to fp32 of each next token, in
    nats; `model` is of no account."""
    rows: dict[str, Any] = {}
    for kind in ("fp32", "bf16", "int8", "int4", "nf4"):
        job = {"task": "quality", "model": str(NANO), "num_items": options.items, "runner": "evergreen"}
        how = {"dtype": kind} if kind in DTYPES else {"dtype": "fp32", "quantization": kind}
        rows[kind] = bench.run({**job, **how})
        bench.say(f"nano {kind}: {_figure(rows[kind])}")
    lost = {kind: max(rows["fp32"][name] - row[name] for name in row if name != "kl") for kind, row in rows.items()}
    return {**rows, "most points lost": lost, "goal": 1}


SECTIONS = {
    "exact": exact,
    "throughput": throughput,
    "single": single,
    "adapters": adapters,
    "prefix": prefix,
    "loading": loading,
    "quality": quality,
}


def show(section: str, model: str, result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{section}, {model}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in result.items():
        for label, figure in value.items() if isinstance(value, dict) else [("", value)]:
            table.add_row(f"{name} {label}".strip(), _figure(figure))
    console.print(table)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "  ".join(f"{name} {_figure(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "\n".join(_figure(part) for part in value)
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["small"])
    parser.add_argument("--requests", type=int, default=200, help="of the section exact")
    parser.add_argument("--num_new", type=int, default=64, help="new tokens a request in the section exact")
    parser.add_argument("--dtype", default="auto", help="of the sections adapters, prefix and loading")
    parser.add_argument("--quantization", default="", help="of the section adapters")
    parser.add_argument("--items", type=int, default=200, help="an ability in the section quality")
    parser.add_argument(
        "--repeats", type=int, default=1, help="of the sections throughput and adapters: the best counts"
    )
    parser.add_argument("--match", default="", help="a regular expression: only these contestants")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--cache", default=str(Path(tempfile.gettempdir()) / "evergreen-bench-serve"))
    parser.add_argument("--json", action="store_true", help="only the line of JSON")
    for peer in PEERS:
        parser.add_argument(f"--{peer}_python", default="", help=f"the Python of an environment with {peer}")
    options = parser.parse_args()
    cache = Path(options.cache)
    cache.mkdir(parents=True, exist_ok=True)
    pythons = {peer: path for peer in PEERS if (path := getattr(options, f"{peer}_python"))}
    console = Console(quiet=options.json)
    bench = Bench("serve_contestants.py", cache, options.core, pythons, console)
    document: dict[str, Any] = {}
    for model in options.models:
        for section in options.sections:
            result = document.setdefault(model, {})[section] = SECTIONS[section](bench, model, options)
            show(section, model, result, console)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
