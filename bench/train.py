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
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
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


@dataclass
class Outcome:
    """What a contestant's best round gave, or why it gave nothing."""

    contestant: Contestant
    num_rows: int
    rounds: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def best(self) -> dict[str, Any]:
        return min(self.rounds, key=loop_cpu_seconds)

    @property
    def ms_per_row(self) -> float:
        return 1000 * loop_cpu_seconds(self.best) / self.num_rows

    @property
    def first_ms_per_row(self) -> float:
        return 1000 * (self.best["steps"][0]["cpu"] - self.best["begins"]["cpu"]) / min(RECORDS_PER_STEP, self.num_rows)

    @property
    def later_ms_per_row(self) -> float:
        """Of all steps but the first, which pays for first-touch page faults; of the first when there is no other."""
        rest = self.num_rows - RECORDS_PER_STEP
        if rest <= 0:
            return self.first_ms_per_row
        return 1000 * (self.best["steps"][-1]["cpu"] - self.best["steps"][0]["cpu"]) / rest

    @property
    def start_seconds(self) -> float:
        return min(run["begins"]["cpu"] for run in self.rounds)

    @property
    def first_step_done_seconds(self) -> float:
        return min(run["steps"][0]["cpu"] for run in self.rounds)

    @property
    def wall_share(self) -> float:
        wall = self.best["steps"][-1]["wall"] - self.best["begins"]["wall"]
        return wall / loop_cpu_seconds(self.best)

    @property
    def peak_mib(self) -> float:
        return self.best["peak_rss_bytes"] / MIB

    @property
    def losses(self) -> list[float]:
        return self.best["losses"]


def loop_cpu_seconds(run: dict[str, Any]) -> float:
    return run["steps"][-1]["cpu"] - run["begins"]["cpu"]


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


@dataclass
class Bench:
    """Where things lie and how processes are started."""

    cache: Path
    core: int
    pythons: dict[str, str]
    console: Console

    def child(self, job: dict[str, Any], python: str = sys.executable) -> dict[str, Any]:
        """One process of contestants.py. Raises RuntimeError with the end of what it said when it fails."""
        with tempfile.TemporaryDirectory(dir=self.cache) as place:
            folder = Path(place)
            job = {**job, "output_dir": str(folder / "out"), "started": time.time()}
            (folder / "job.json").write_text(json.dumps(job))
            done = subprocess.run(
                ["taskset", "-c", str(self.core), python]
                + [str(HERE / "contestants.py"), str(folder / "job.json"), str(folder / "result.json")],
                env=self._environment(),
                capture_output=True,
                text=True,
                cwd=folder,
            )
            if done.returncode or not (folder / "result.json").is_file():
                said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")
            return json.loads((folder / "result.json").read_text())

    def _environment(self) -> dict[str, str]:
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        offline = {name: "1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")}
        homes = {"HF_HOME": str(self.cache / "hf"), "MODELSCOPE_CACHE": str(self.cache / "modelscope")}
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, **threads, **offline, **homes, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}

    def run(self, outcome: Outcome, files: dict[str, str]) -> None:
        one = outcome.contestant
        job = {
            "runner": one.runner,
            "model": files["model"],
            "data": files["rows"] if one.runner == "evergreen" else files["ordered_rows"],
            "dtype": one.dtype,
            "gradient_checkpointing": one.gradient_checkpointing,
            **dict(one.extra),
        }
        try:
            outcome.rounds.append(self.child(job, self.pythons[one.runner]))
        except RuntimeError as error:
            outcome.error = str(error)


def measure(bench: Bench, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All contestants on one model; a document with its outcomes, comparisons and curve."""
    files, work = prepare(bench, model, options.rows or NUM_ROWS[model])
    peaks = bench.child({"runner": "products"})
    chosen = contestants(model, options.peers, options.quick)
    if model == "q05b" and not options.quick:
        chosen += curve()
    outcomes = [Outcome(one, work["num_rows"]) for one in chosen if any(part in one.name for part in options.match)]
    rounds = options.rounds or (2 if model == "small" and not options.quick else 1)
    for number in range(rounds):
        for outcome in outcomes:
            if outcome.error:
                continue
            bench.run(outcome, files)
            said = outcome.error or f"{outcome.ms_per_row:.1f} ms/row, {outcome.peak_mib:.0f} MiB"
            bench.console.print(f"{model} round {number + 1}/{rounds}  {outcome.contestant.name}: {said}", style="dim")
    return document(model, work, peaks, outcomes)


def prepare(bench: Bench, model: str, num_rows: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Model and data files, and the work they are: rows, tokens, targets, floating point operations."""
    files = {
        "model": str(bench.cache / model),
        "rows": str(bench.cache / f"{model}-rows.json"),
        "ordered_rows": str(bench.cache / f"{model}-rows-ordered.json"),
    }
    job = {"records": str(RECORDS), "num_rows": num_rows, "shape": SHAPES[model], "tokenizer": str(TOKENIZER)}
    counts = bench.child({"runner": "prepare", **files, **job})
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


def document(model: str, work: dict[str, Any], peaks: dict[str, float], outcomes: list[Outcome]) -> dict[str, Any]:
    done = [outcome for outcome in outcomes if outcome.rounds and not outcome.error]
    return {
        "model": model,
        **work,
        "gemm_peak_gflops": peaks,
        "contestants": [figures(outcome, work, peaks) for outcome in done],
        "failed": {outcome.contestant.name: outcome.error for outcome in outcomes if outcome.error},
        "comparisons": comparisons(model, done),
        "losses": compare_losses(done),
    }


def figures(outcome: Outcome, work: dict[str, Any], peaks: dict[str, float]) -> dict[str, Any]:
    seconds = outcome.ms_per_row * outcome.num_rows / 1000
    gflops = work["gflop"] / seconds
    spread = [1000 * loop_cpu_seconds(run) / outcome.num_rows for run in outcome.rounds]
    return {
        "name": outcome.contestant.name,
        "role": outcome.contestant.role,
        "ms_per_row": outcome.ms_per_row,
        "first_step_ms_per_row": outcome.first_ms_per_row,
        "later_steps_ms_per_row": outcome.later_ms_per_row,
        "rounds_ms_per_row": spread,
        "wall_per_cpu": outcome.wall_share,
        "tokens_per_cpu_second": work["tokens"] / seconds,
        "useful_gflops": gflops,
        "share_of_gemm_peak": gflops / max(peaks.values()),
        "cpu_seconds_to_first_step": outcome.start_seconds,
        "cpu_seconds_to_first_step_done": outcome.first_step_done_seconds,
        "peak_rss_mib": outcome.peak_mib,
        "mean_loss": statistics.fmean(outcome.losses),
    }


def comparisons(model: str, done: list[Outcome]) -> list[dict[str, Any]]:
    """Ours against each peer: the goals, and how many times as fast we were."""
    found: list[dict[str, Any]] = []

    def add(what: str, ours: Outcome | None, theirs: Outcome | None, goal: float, value: Any = None) -> None:
        if ours and theirs:
            value = value or (lambda outcome: outcome.ms_per_row)
            ratio = value(theirs) / value(ours)
            found.append({"what": what, "peer": theirs.contestant.name, "ratio": ratio, "goal": goal})

    auto, bf16 = _find(done, "evergreen", "best"), _find(done, "evergreen", "tutorial")
    for peer in PEERS:
        tutorial, best = _find(done, peer, "tutorial"), _find(done, peer, "best")
        if model == "small":
            add("both bf16, tutorial settings", bf16, tutorial, 2.5)
            add("ours auto, theirs tutorial settings", auto, tutorial, 5.0 if peer == "trl" else 4.0)
            add("ours auto, theirs best", auto, best, 3.0)
        else:
            add("ours auto, theirs tutorial settings", auto, tutorial, 3.0)
            for share, goal in ((1.0, 1.3), (1.5, 1.6)):
                add(f"at {share:g}x the memory of theirs best", _within(done, best, share), best, goal)
        if peer == "trl":
            add("start-up to the first step", auto, tutorial, 1.0, lambda outcome: outcome.start_seconds)
    return found


def _find(done: list[Outcome], runner: str, role: str) -> Outcome | None:
    found = [one for one in done if one.contestant.runner == runner and one.contestant.role == role]
    return min(found, key=lambda outcome: outcome.ms_per_row, default=None)


def _within(done: list[Outcome], theirs: Outcome | None, share: float) -> Outcome | None:
    """The fastest of ours that needs at most `share` times the memory of theirs."""
    fitting = [
        one
        for one in done
        if theirs and one.contestant.runner == "evergreen" and one.peak_mib <= share * theirs.peak_mib
    ]
    return min(fitting, key=lambda outcome: outcome.ms_per_row, default=None)


def compare_losses(done: list[Outcome]) -> dict[str, Any]:
    """Largest difference of a step's loss from ours in fp32 (else our first): the same work, or not."""
    ours = [one for one in done if one.contestant.runner == "evergreen"]
    if not ours:
        return {}
    twin = next((one for one in ours if one.contestant.dtype == "fp32"), ours[0])
    return {
        "reference": twin.contestant.name,
        "first_step": {one.contestant.name: one.losses[0] for one in done},
        "largest_difference": {
            one.contestant.name: max(abs(a - b) for a, b in zip(one.losses, twin.losses, strict=True)) for one in done
        },
    }


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
        console.print(
            f"{row['ratio']:5.2f}x  (goal {row['goal']:g}x, {verdict})  {row['what']}: {row['peer']}", highlight=False
        )
    console.print(f"largest difference of a step's loss: {worst_losses(result)}", highlight=False)


def contestant_table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['model']}: CPU time on one core, best round")
    for name in ("contestant", "ms/row", "1st step", "later", "wall/CPU", "tokens/s", "GFLOP/s", "of peak"):
        table.add_column(name, justify="left" if name == "contestant" else "right")
    for name in ("start s", "1st done s", "RSS MiB", "loss"):
        table.add_column(name, justify="right")
    for row in result["contestants"]:
        times = (row["ms_per_row"], row["first_step_ms_per_row"], row["later_steps_ms_per_row"])
        starts = (row["cpu_seconds_to_first_step"], row["cpu_seconds_to_first_step_done"])
        table.add_row(
            row["name"],
            *(f"{value:.1f}" for value in times),
            f"{row['wall_per_cpu']:.2f}",
            f"{row['tokens_per_cpu_second']:.0f}",
            f"{row['useful_gflops']:.0f}",
            f"{row['share_of_gemm_peak']:.0%}",
            *(f"{value:.1f}" for value in starts),
            f"{row['peak_rss_mib']:.0f}",
            f"{row['mean_loss']:.4f}",
        )
    return table


def worst_losses(result: dict[str, Any]) -> str:
    differences = result["losses"].get("largest_difference", {})
    return ", ".join(f"{name} {value:.4f}" for name, value in differences.items())


def show_profile(bench: Bench, model: str, console: Console) -> None:
    """Where our second optimizer step spends its time, by operator."""
    files, _ = prepare(bench, model, 2 * RECORDS_PER_STEP)
    job = {"runner": "evergreen", "model": files["model"], "data": files["rows"], "dtype": "auto"}
    result = bench.child({**job, "gradient_checkpointing": False, "profiled_step": 2})
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
    parser.add_argument("--match", nargs="+", default=[""], help="only contestants whose name holds one of these")
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
    bench = Bench(cache, options.core, present_peers(options, console), console)
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
