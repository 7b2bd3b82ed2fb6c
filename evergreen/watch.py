"""What a person sees while a line of increments is learnt: one table of what is done, running and to come."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergreen.home import read_jsonl

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LOG_FILE = "trainer_log.jsonl"


@contextmanager
def live(console: "Console", render: "Callable[[], Table]") -> Iterator[None]:
    """In a terminal, a table that is drawn anew twice a second; nothing in a file."""
    from rich.live import Live

    if not console.is_terminal:
        yield
        return
    with Live(get_renderable=render, console=console, refresh_per_second=2):
        yield


def table(title: str, steps: Sequence[Any]) -> "Table":
    """A row for each step of the loop: its name, dev items, state, and once it is judged its gain and worst loss."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for column in ("increment", "dev items", "state", "new task", "old tasks", "minutes"):
        made.add_column(column, justify="left" if column in ("increment", "state") else "right")
    for step in steps:
        made.add_row(*_cells(step))
    return made


def _cells(step: Any) -> tuple[str, ...]:
    from rich.markup import escape

    status = step.status + (_training_progress(step.folder) if step.status == "training" else "")
    items = str(len(step.task.items))
    if not step.verdict:
        return escape(step.name), items, escape(status), "", "", ""
    gains, losses = ([check.value for check in step.verdict.checks if check.name == name] for name in ("gain", "old"))
    gain, loss = (f"{100 * min(values):+.1f}" if values else "" for values in (gains, losses))
    return escape(step.name), items, escape(status), gain, loss, f"{step.seconds / 60:.1f}"


def _training_progress(folder: Path) -> str:
    """` 34/60, loss 0.81, 12 s left`, from the run's own log."""
    rows = list(read_jsonl(folder / LOG_FILE)) if (folder / LOG_FILE).is_file() else []
    if not rows:
        return ""
    row = rows[-1]
    steps, seconds = f"{row['current_steps']}/{row['total_steps']}", row["remaining_seconds"]
    return f" {steps}, loss {row.get('loss', 0):.3g}, {seconds:.0f} s left"
