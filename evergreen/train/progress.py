"""What a person sees of a run: a live bar, one log line every `logging_steps`, and a picture of the loss."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from evergreen.home import append_jsonl, read_jsonl
from evergreen.pictures import can_draw, drawing
from evergreen.train.memory import GIB, peak_bytes
from evergreen.train.output import is_main_process

LOG_FILE = "trainer_log.jsonl"
PLOT_FILE = "training_loss.png"


class ProgressCallback(TrainerCallback):
    """A progress bar with ETA, loss, lr, tokens/s and memory; the same figures as rows of trainer_log.jsonl."""

    def __init__(self, output_dir: Path, device: str, console: Console, tokens_seen: Callable[[], int]):
        self.output_dir, self.device, self.console, self.tokens_seen = output_dir, device, console, tokens_seen
        self.is_main = is_main_process()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first_step, self.first_tokens = time.monotonic(), state.global_step, self.tokens_seen()
        if not self.is_main:
            return
        self._forget_rows_after(state.global_step)
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not self.console.is_terminal,  # in a file the lines of each log step say it
        )
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, figures="")
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = control.should_log or state.global_step == state.max_steps
        if self.is_main:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if not self.is_main or not logs or not ({"loss", "eval_loss"} & set(logs)):
            return
        row = self._row(state, logs)
        append_jsonl(self.output_dir / LOG_FILE, row)
        figures = "  ".join(
            f"{name} {value:.4g}"
            for name, value in (
                ("loss", row.get("loss")),
                ("eval", row.get("eval_loss")),
                ("penalty", row.get("penalty")),
                ("lr", row.get("lr")),
                ("tok/s", row.get("tokens_per_second")),
                ("GiB", row["memory_bytes"] / GIB),
            )
            if value is not None
        )
        self.bar.update(self.task, completed=state.global_step, figures=figures)
        if not self.console.is_terminal:
            self.console.print(
                f"step {row['current_steps']}/{row['total_steps']}  {figures}  ETA {row['remaining_seconds']:.0f} s",
                highlight=False,
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        if self.is_main and hasattr(self, "bar"):
            self.bar.stop()

    def _row(self, state: Any, logs: dict) -> dict:
        elapsed = time.monotonic() - self.started
        done = max(1, state.global_step - self.first_step)
        row = {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            "loss": logs.get("loss"),
            "eval_loss": logs.get("eval_loss"),
            "lr": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "epoch": round(state.epoch or 0, 4),
            "percentage": round(100 * state.global_step / max(1, state.max_steps), 2),
            "elapsed_seconds": round(elapsed, 2),
            "remaining_seconds": round(elapsed / done * (state.max_steps - state.global_step), 2),
            "penalty": logs.get("penalty"),
            "tokens_per_second": round((self.tokens_seen() - self.first_tokens) / max(elapsed, 1e-9), 1),
            "total_tokens": self.tokens_seen(),
            "memory_bytes": peak_bytes(self.device),
        }
        return {key: value for key, value in row.items() if value is not None}

    def _forget_rows_after(self, step: int) -> None:
        """A resumed run logs its steps anew: rows beyond the checkpoint would show them twice."""
        from evergreen.home import write_jsonl

        path = self.output_dir / LOG_FILE
        if path.is_file():
            write_jsonl(path, [row for row in read_jsonl(path) if step and row["current_steps"] <= step])


def plot_loss(output_dir: Path) -> Path | None:
    """training_loss.png from trainer_log.jsonl: the loss, a smoothed line, the evaluation loss if any."""
    rows = list(read_jsonl(output_dir / LOG_FILE)) if (output_dir / LOG_FILE).is_file() else []
    train = [(row["current_steps"], row["loss"]) for row in rows if "loss" in row]
    evaluated = [(row["current_steps"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    if not train:
        return None
    title = output_dir.name if can_draw(output_dir.name) else ""
    with drawing() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        axes.plot(*zip(*train, strict=True), color="0.7", marker="." if len(train) < 60 else "", label="loss")
        smooth = _smoothed([value for _, value in train])
        axes.plot([step for step, _ in train], smooth, color="tab:green", label="smoothed")
        if evaluated:
            axes.plot(*zip(*evaluated, strict=True), color="tab:orange", marker="o", label="evaluation loss")
        axes.set(xlabel="optimizer step", ylabel="mean loss per target token", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(output_dir / PLOT_FILE, dpi=120)
        pyplot.close(figure)
    return output_dir / PLOT_FILE


def _smoothed(values: list[float], weight: float = 0.7) -> list[float]:
    """Exponential moving average without the bias of its start."""
    result, mean, mass = [], 0.0, 0.0
    for value in values:
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + (1 - weight)
        result.append(mean / mass)
    return result
