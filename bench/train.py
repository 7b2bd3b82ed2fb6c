"""Training speed beside the peers: the same LoRA job, data and model, one core each, taking turns in one run.

    python bench/train.py [--quick] [--models small q05b] [--peers trl llamafactory swift] [--json]

Promises: every run is a fresh process pinned to one core with one thread; its figure is CPU time, so other load on the
machine matters little (wall time is shown as a ratio); rounds alternate and the best of each contestant counts; losses
are compared step by step, since the rows and their order are the same. Prints tables for people and, last, one line of
JSON. Does not: measure downloads or hub look-ups (everything is offline), or the quality of what was learnt.
The models have random weights; bench/peers.md tells how the peers are installed.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import HERE, Children
from rich.console import Console
from rich.table import Table

RECORDS = HERE.parent / "evergreen" / "assets" / "identity.json"
TOKENIZER = HERE.parent / "evergreen" / "model" / "nano"
RECORDS_PER_STEP = 16
MIB = 1 << 20
SHAPES = {
    "small": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "q05b": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
NUM_ROWS = {"small": 91, "q05b": 48}
TITLES = {"evergreen": "Evergreen", "trl": "TRL", "llamafactory": "LLaMA-Factory", "swift": "ms-swift"}
PEERS = ("trl", "llamafactory", "swift")


@dataclass(frozen=True)
class Contestant:
    """A runner with settings. `role` says which comparison it stands in: tutorial, best, curve or reference."""

    runner: str
    label: str
    role: str
    dtype: str
    gradient_checkpointing: bool = False
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{TITLES[self.runner]} {self.label}"


# -- who takes part


def contestants(model: str, peers: list[str], quick: bool) -> list[Contestant]:
    ours = [
        Contestant("evergreen", "auto", "best", "auto"),
        Contestant("evergreen", "bf16", "tutorial", "bf16"),
        Contestant("evergreen", "fp32", "reference", "fp32"),
        Contestant("evergreen", "auto, unpacked", "reference", "auto", extra=(("packing", False),)),
    ]
    theirs = {peer: _peer_settings(peer) for peer in peers}
    if quick:
        ours = ours[:2]
        theirs = {peer: found[:2] for peer, found in theirs.items()}
    return [*ours, *(one for found in theirs.values() for one in found)]


def _peer_settings(peer: str) -> list[Contestant]:
    """The tutorial's settings first, then what may be the peer's best: which dtype wins depends on the machine."""
    found = [
        Contestant(peer, "bf16, checkpointing", "tutorial", "bf16", True),
        Contestant(peer, "bf16", "best", "bf16"),
        Contestant(peer, "bf16, no autocast", "best", "bf16_pure"),
        Contestant(peer, "fp32", "best", "fp32"),
    ]
    if peer == "trl":
        found.append(Contestant(peer, "bf16, batch 16 x 1", "reference", "bf16", extra=(("batch_size", 16),)))
    return found


def curve() -> list[Contestant]:
    """Ours from little memory to much: shorter rows and recomputation cost time and save activations."""
    return [
        Contestant(
            "evergreen",
            f"auto, rows of {tokens or 'all'}{', checkpointing' if checkpointing else ''}",
            "curve",
            "auto",
            checkpointing,
            (("max_row_tokens", tokens),),
        )
        for checkpointing in (False, True)
        for tokens in (128, 256, 512, None)
        if tokens or checkpointing  # all without checkpointing is the plain auto
    ]


# -- running


class Bench(Children):
    """The training job, by each contestant."""

    def train(self, one: Contestant, files: dict[str, str]) -> dict[str, Any]:
        job = {
            "runner": one.runner,
            "model": files["model"],
            "data": files["rows" if one.runner == "evergreen" else "ordered_rows"],
            "dtype": one.dtype,
            "gradient_checkpointing": one.gradient_checkpointing,
            **dict(one.extra),
        }
        return self.run(job)


def measure(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contestants on one model, in rounds; a document with their figures and comparisons."""
    files, work = prepare(bench, model, options.rows or NUM_ROWS[model])
    peaks = bench.run({"runner": "products"})
    chosen = contestants(model, options.peers, options.quick)
    if model == "q05b" and not options.quick:
        chosen += curve()
    chosen = [one for one in chosen if re.search(options.match, one.name)]
    runs: dict[Contestant, list[dict[str, Any]]] = {one: [] for one in chosen}
    failed: dict[str, str] = {}
    rounds = options.rounds or (2 if model == "small" and not options.quick else 1)
    for number, one in ((number, one) for number in range(1, rounds + 1) for one in chosen):
        if one.name in failed:
            continue
        try:
            runs[one].append(bench.train(one, files))
            said = f"{1000 * loop_cpu_seconds(runs[one][-1]) / work['num_rows']:.1f} ms/row"
        except RuntimeError as error:
            failed[one.name] = said = str(error)
        bench.console.print(f"{model} round {number}/{rounds}  {one.name}: {said}", style="dim", highlight=False)
    done = [figures(one, runs[one], work, peaks) for one in chosen if one.name not in failed]
    return {
        "model": model,
        **work,
        "gemm_peak_gflops": peaks,
        "contestants": done,
        "failed": failed,
        "comparisons": comparisons(model, done),
        "loss_differences": loss_differences(done),
    }


def prepare(bench: Bench, model: str, num_rows: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Model and data files, and the work they are: rows, tokens, targets, floating point operations."""
    files = {
        "model": str(bench.cache / model),
        "rows": str(bench.cache / f"{model}-rows.json"),
        "ordered_rows": str(bench.cache / f"{model}-rows-ordered.json"),
    }
    job = {"records": str(RECORDS), "num_rows": num_rows, "shape": SHAPES[model], "tokenizer": str(TOKENIZER)}
    counts = bench.run({"runner": "prepare", **files, **job})
    lengths, targets = counts["lengths"], counts["targets"]
    work = {"num_rows": len(lengths), "tokens": sum(lengths), "targets": targets}
    return files, {**work, "gflop": useful_flop(SHAPES[model], lengths, targets) / 1e9}


def useful_flop(shape: dict[str, Any], lengths: list[int], targets: int, rank: int = 8) -> float:
    """Operations of one LoRA epoch without recomputation, sharing or logits that nothing is learnt from.

    A frozen weight costs 2 forward and 2 for the gradient of its input, a LoRA weight 2 more for its own."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    narrow = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    sides = [(hidden, hidden)] * 2 + [(hidden, narrow)] * 2 + [(hidden, inner)] * 3
    layers, tokens = shape["num_hidden_layers"], sum(lengths)
    frozen = layers * sum(a * b for a, b in sides)
    adapter = layers * sum(rank * (a + b) for a, b in sides)
    head = 4 * hidden * shape["vocab_size"] * targets
    attention = 6 * layers * hidden * sum(length**2 for length in lengths)
    return tokens * (4 * frozen + 6 * adapter) + head + attention


# -- what it comes to


def loop_cpu_seconds(run: dict[str, Any]) -> float:
    return run["steps"][-1]["cpu"] - run["begins"]["cpu"]


def figures(one: Contestant, rounds: list[dict[str, Any]], work: dict[str, Any], peaks: dict[str, float]) -> dict:
    """What a contestant's best round gave. Later steps leave out the first, which pays for first-touch page faults."""
    run, num_rows = min(rounds, key=loop_cpu_seconds), work["num_rows"]
    begins, steps, seconds = run["begins"], run["steps"], loop_cpu_seconds(run)
    first_rows = min(RECORDS_PER_STEP, num_rows)
    later_rows = num_rows - first_rows
    later = 1000 * (steps[-1]["cpu"] - steps[0]["cpu"]) / later_rows if later_rows else None
    return {
        "name": one.name,
        "runner": one.runner,
        "role": one.role,
        "dtype": one.dtype,
        "ms_per_row": 1000 * seconds / num_rows,
        "first_step_ms_per_row": 1000 * (steps[0]["cpu"] - begins["cpu"]) / first_rows,
        "later_steps_ms_per_row": later,
        "rounds_ms_per_row": [1000 * loop_cpu_seconds(each) / num_rows for each in rounds],
        "wall_per_cpu": (steps[-1]["wall"] - begins["wall"]) / seconds,
        "tokens_per_cpu_second": work["tokens"] / seconds,
        "useful_gflops": work["gflop"] / seconds,
        "share_of_gemm_peak": work["gflop"] / seconds / max(peaks.values()),
        "cpu_seconds_to_first_step": min(each["begins"]["cpu"] for each in rounds),
        "cpu_seconds_to_first_step_done": min(each["steps"][0]["cpu"] for each in rounds),
        "peak_rss_mib": run["peak_rss_bytes"] / MIB,
        "losses": run["losses"],
    }


def comparisons(model: str, done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours against each peer: the goals, and how many times as fast we were."""
    found: list[dict[str, Any]] = []

    def add(what: str, ours: dict | None, theirs: dict | None, goal: float, figure: str = "ms_per_row") -> None:
        if ours and theirs:
            names = {"what": what, "ours": ours["name"], "peer": theirs["name"]}
            found.append({**names, "ratio": theirs[figure] / ours[figure], "goal": goal})

    auto, bf16 = _fastest(done, "evergreen", "best"), _fastest(done, "evergreen", "tutorial")
    for peer in PEERS:
        tutorial, best = _fastest(done, peer, "tutorial"), _fastest(done, peer, "best")
        if model == "small":
            add("both bf16, tutorial settings", bf16, tutorial, 2.5)
            add("ours auto, theirs tutorial settings", auto, tutorial, 5.0 if peer == "trl" else 4.0)
            add("ours auto, theirs best", auto, best, 3.0)
        else:
            add("ours auto, theirs tutorial settings", auto, tutorial, 3.0)
            for share, goal in ((1.0, 1.3), (1.5, 1.6)):
                add(f"at {share:g}x the memory of their best", _fastest_within(done, best, share), best, goal)
        if peer == "trl":
            add("start-up to the first step", auto, tutorial, 1.0, "cpu_seconds_to_first_step")
    return found


def _fastest(done: list[dict[str, Any]], runner: str, role: str = "") -> dict[str, Any] | None:
    found = [row for row in done if row["runner"] == runner and role in ("", row["role"])]
    return min(found, key=lambda row: row["ms_per_row"], default=None)


def _fastest_within(done: list[dict[str, Any]], theirs: dict[str, Any] | None, share: float) -> dict[str, Any] | None:
    """The fastest of ours that needs at most `share` times the memory of theirs."""
    return _fastest(
        [row for row in done if theirs and row["peak_rss_mib"] <= share * theirs["peak_rss_mib"]], "evergreen"
    )


def loss_differences(done: list[dict[str, Any]]) -> dict[str, float]:
    """Largest difference of any step's loss from ours of the same precision: the same work, or not.

    bf16 weights give other losses than fp32 ones; what is compared is each with its like."""
    ours = {"fp32" if row["dtype"] == "fp32" else "bf16": row for row in reversed(done) if row["runner"] == "evergreen"}
    found = {}
    for row in done:
        twin = ours.get("fp32" if row["dtype"] == "fp32" else "bf16")
        if twin:
            found[row["name"]] = max(abs(a - b) for a, b in zip(row["losses"], twin["losses"], strict=True))
    return found


# -- words


def show(result: dict[str, Any], console: Console) -> None:
    peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in result["gemm_peak_gflops"].items())
    console.print(
        f"\n{result['model']}: {result['num_rows']} rows, {result['tokens']} tokens, {result['targets']} targets, "
        f"{result['gflop']:.0f} useful GFLOP; GEMM peak of one thread in GFLOP/s: {peaks}",
        highlight=False,
    )
    console.print(contestant_table(result))
    for name, error in result["failed"].items():
        console.print(f"failed  {name}: {error}", style="yellow", highlight=False)
    for row in result["comparisons"]:
        verdict = "reached" if row["ratio"] >= row["goal"] else "missed"
        text = f"{row['ratio']:5.2f}x  (goal {row['goal']:g}x, {verdict})  {row['what']}: {row['ours']} / {row['peer']}"
        console.print(text, highlight=False)
    differences = ", ".join(f"{name} {value:.4f}" for name, value in result["loss_differences"].items())
    console.print(f"largest difference of a step's loss from ours: {differences}", highlight=False)


def contestant_table(result: dict[str, Any]) -> Table:
    table = Table("contestant", title=f"{result['model']}: CPU time on one core, best round")
    for name in ("ms/row", "1st step", "later", "wall/CPU", "tokens/s", "GFLOP/s", "of peak"):
        table.add_column(name, justify="right")
    for name in ("start s", "1st done s", "RSS MiB", "loss"):
        table.add_column(name, justify="right")
    for row in result["contestants"]:
        table.add_row(
            row["name"],
            f"{row['ms_per_row']:.1f}",
            f"{row['first_step_ms_per_row']:.1f}",
            f"{row['later_steps_ms_per_row']:.1f}" if row["later_steps_ms_per_row"] else "-",
            f"{row['wall_per_cpu']:.2f}",
            f"{row['tokens_per_cpu_second']:.0f}",
            f"{row['useful_gflops']:.0f}",
            f"{row['share_of_gemm_peak']:.0%}",
            f"{row['cpu_seconds_to_first_step']:.1f}",
            f"{row['cpu_seconds_to_first_step_done']:.1f}",
            f"{row['peak_rss_mib']:.0f}",
            f"{statistics.fmean(row['losses']):.4f}",
        )
    return table


def show_profile(bench: Bench, model: str, console: Console) -> None:
    """Where our second optimizer step spends its time, by operator."""
    files, _ = prepare(bench, model, 2 * RECORDS_PER_STEP)
    job = {"runner": "evergreen", "model": files["model"], "data": files["rows"], "dtype": "auto"}
    result = bench.run({**job, "gradient_checkpointing": False, "profiled_step": 2})
    total = sum(row["self_ms"] for row in result["operators"])
    table = Table("operator", "self CPU ms", "share", "calls", title=f"{model}: one optimizer step of ours")
    for row in result["operators"]:
        table.add_row(row["name"], f"{row['self_ms']:.1f}", f"{row['self_ms'] / total:.0%}", str(row["calls"]))
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small only, two settings each, one round")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), help="default: small q05b")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--match", default="", help="only contestants whose name has this regular expression")
    parser.add_argument("--rounds", type=int, help="default: 2 for small, 1 for q05b; the best counts")
    parser.add_argument("--rows", type=int, help="records of an epoch (default: 91 for small, 48 for q05b)")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core to run on")
    parser.add_argument("--cache_dir", default=str(Path(tempfile.gettempdir()) / "evergreen-bench"))
    parser.add_argument("--llamafactory-python", help="python of an environment with LLaMA-Factory (bench/peers.md)")
    parser.add_argument("--swift-python", help="python of an environment with ms-swift (bench/peers.md)")
    parser.add_argument("--profile", action="store_true", help="only list where our time goes, by operator")
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON to stdout")
    return parser.parse_args()


def present_peers(options: argparse.Namespace, console: Console) -> dict[str, str]:
    """Python of every runner; peers without one are left out of `options.peers`, with the line that adds them."""
    pythons = {"evergreen": sys.executable, "trl": sys.executable}
    for peer in ("llamafactory", "swift"):
        pythons[peer] = getattr(options, f"{peer}_python") or ""
        if peer in options.peers and not shutil.which(pythons[peer]):
            options.peers.remove(peer)
            console.print(f"{TITLES[peer]} is left out: --{peer}-python PATH (see bench/peers.md)", style="yellow")
    return pythons


def main() -> None:
    options = parse()
    console = Console(stderr=options.json, width=150 if not sys.stdout.isatty() else None)
    models = options.models or (["small"] if options.quick else list(SHAPES))
    cache = Path(options.cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    homes = {"HF_HOME": cache / "hf", "MODELSCOPE_CACHE": cache / "modelscope"}
    bench = Bench("contestants.py", cache, options.core, present_peers(options, console), console, homes)
    if options.profile:
        for model in models:
            show_profile(bench, model, console)
        return
    results = [measure(bench, model, options) for model in models]
    for result in results:
        show(result, console)
    print(json.dumps({"bench": "train", "cpu": cpu_name(), "models": results}), flush=True)


def cpu_name() -> str:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else "unknown"


if __name__ == "__main__":
    main()
