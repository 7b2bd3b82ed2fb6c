"""How often the gate errs, by simulation: `evergreen.evaluate.gates.judge` on candidates whose truth is known.

Promises: every candidate is judged as `evergreen evolve` judges it, with the default gate. Items are right or wrong; a
share of them changes between the versions, and a true drop moves the balance of lost to gained. Every candidate learns
its new task (30 points). A candidate is falsely promoted when an old task truly falls by the 3 points that the gate
does not allow, which is the hardest case, and falsely rejected when none falls. Items suffice when there are as many as
the gate itself says would decide. The exact chance is the sum over all outcomes of one task, without simulation.
Last line of stdout: one JSON line.

    python bench/gate.py                      2,000 candidates a cell, some ten minutes on one free core
    python bench/gate.py --candidates 200     a look
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from evergreen.evaluate import bounds
from evergreen.evaluate.gates import ALPHA, Gate, judge
from evergreen.evaluate.statistics import Pairs, wilson

GATE = Gate()
DROP = GATE.max_drop
SHARES = (1.0, 0.8, 0.6, 0.4)  # of a step, as evolve tries them
Draw = Callable[[np.random.Generator, float], Pairs]


@dataclass(frozen=True)
class Cell:
    """`num_dropped` of `num_tasks` old tasks truly fall by 3 points; `changed` is the share of items that change."""

    items: int
    changed: float
    num_tasks: int
    num_dropped: int
    promoted: float = 0.0
    rejected: float = 0.0
    undecided: float = 0.0
    would_do: int = 0  # items that decide, by the gate's own reckoning from the true shares
    named: float = 0.0  # median of what the undecided verdicts name
    exact: float | None = None  # chance that the one old task passes

    @property
    def suffices(self) -> bool:
        return self.items >= self.would_do


def of_counts(n: int, lost: int, gained: int) -> Pairs:
    before, after = np.zeros(n), np.zeros(n)
    before[:lost] = 1
    after[lost : lost + gained] = 1
    return before, after


def right_or_wrong(n: int, changed: float) -> Draw:
    def draw(random: np.random.Generator, drop: float) -> Pairs:
        lost, gained, _ = random.multinomial(n, [(changed + drop) / 2, (changed - drop) / 2, 1 - changed])
        return of_counts(n, int(lost), int(gained))

    return draw


def graded(n: int, changed: float) -> Draw:
    """Scores such as ROUGE-L: an item that changes moves by a tenth to nine tenths (Beta(2, 2), mean a half)."""

    def draw(random: np.random.Generator, drop: float) -> Pairs:
        kind = random.choice(3, n, p=[(changed + 2 * drop) / 2, (changed - 2 * drop) / 2, 1 - changed])
        moved = random.beta(2, 2, n) * np.array([-1, 1, 0])[kind]
        return np.where(kind == 0, 1.0, 0.0), np.where(kind == 0, 1.0, 0.0) + moved

    return draw


def noisy(n: int, spread: float) -> Draw:
    """Scores that all move a little."""
    return lambda random, drop: (np.full(n, 0.6), np.clip(0.6 + random.normal(-drop, spread, n), 0, 1))


def simulate(cell: Cell, candidates: int, seed: int, draw: Draw | None = None) -> Cell:
    random, decisions, named = np.random.default_rng(seed), Counter(), []
    draw = draw or right_or_wrong(cell.items, cell.changed)
    for _ in range(candidates):
        lost, gained, _ = random.multinomial(cell.items, [0.05, 0.35, 0.6])
        old = {f"old {place}": draw(random, DROP * (place < cell.num_dropped)) for place in range(cell.num_tasks)}
        verdict = judge(GATE, {"new": of_counts(cell.items, int(lost), int(gained))}, old)
        decisions[verdict.decision] += 1
        named += [verdict.items_needed] if verdict.decision == "undecided" else []
    shares = {name: decisions[name] / candidates for name in ("promote", "reject", "undecided")}
    return Cell(
        *(cell.items, cell.changed, cell.num_tasks, cell.num_dropped),
        *(shares["promote"], shares["reject"], shares["undecided"]),
        would_do(cell.changed, cell.num_tasks),
        float(np.median(named)) if named else 0.0,
        exact_chance(cell.items, cell.changed, DROP * bool(cell.num_dropped)) if cell.num_tasks == 1 else None,
    )


def would_do(changed: float, num_tasks: int) -> int:
    half = round(10_000 * changed / 2)
    return bounds.items_to_decide(of_counts(10_000, half, half), -DROP, 0.0, ALPHA, ALPHA / num_tasks)


def exact_chance(n: int, changed: float, drop: float) -> float:
    """That the lower bound of one task lies above the limit: the sum over all counts of lost and gained items."""
    p_lost, p_gained = (changed + drop) / 2, (changed - drop) / 2
    most = math.ceil(n * changed + 7 * math.sqrt(n * changed) + 5)
    total = 0.0
    for lost in range(min(n, most) + 1):
        gained = first_passing(n, lost)
        for count in range(gained, min(n - lost, most) + 1):
            total += math.exp(
                math.lgamma(n + 1) - math.lgamma(lost + 1) - math.lgamma(count + 1) - math.lgamma(n - lost - count + 1)
                + _times_log(lost, p_lost) + _times_log(count, p_gained) + _times_log(n - lost - count, 1 - changed)
            )  # fmt: skip
    return total


def first_passing(n: int, lost: int) -> int:
    """The least number of gained items with which so many lost ones pass; more gained pass, too."""
    low, high = 0, n - lost + 1
    while low < high:
        middle = (low + high) // 2
        passes = bounds.evidence(of_counts(n, lost, middle), -DROP) < ALPHA
        low, high = (low, middle) if passes else (middle + 1, high)
    return low


def _times_log(count: int, p: float) -> float:
    return count * (math.log(p) if p else -math.inf) if count else 0.0


def pooled(items: int, changed: float, candidates: int, seed: int) -> float:
    """How often five old tasks, of which one falls by 3 points, would pass if only their mean had to."""
    random, passed = np.random.default_rng(seed), 0
    for _ in range(candidates):
        lost = random.binomial(items, [(changed + DROP) / 2] + [changed / 2] * 4).sum()
        gained = random.binomial(items, [(changed - DROP) / 2] + [changed / 2] * 4).sum()
        passed += bounds.evidence(of_counts(5 * items, int(lost), int(gained)), -DROP) < ALPHA
    return passed / candidates


def sweep(items: int, changed: float, drop: float, candidates: int, seed: int) -> float:
    """How often a full step that truly drops by `drop`, or a shortened one that still drops by 3 points, is promoted
    when the shares are tried in turn. Drop and changes shrink with the share, and the same items move."""
    random, false = np.random.default_rng(seed), 0
    p_lost, p_gained = (changed + drop) / 2, (changed - drop) / 2
    for _ in range(candidates):
        at = random.random(items)
        for share in SHARES:
            lost, gained = int((at < share * p_lost).sum()), int((at > 1 - share * p_gained).sum())
            if bounds.evidence(of_counts(items, lost, gained), -DROP) < ALPHA:
                false += share * drop >= DROP - 1e-12
                break
    return false / candidates


def grid(candidates: int, seed: int, say: Callable[[str], None]) -> list[Cell]:
    cells = [
        Cell(items, changed, num_tasks, num_dropped)
        for items in (500, 1000)
        for changed in (0.05, 0.1)
        for num_tasks, dropped in ((1, (1, 0)), (5, (1, 5, 0)))
        for num_dropped in dropped
    ]
    promise = [
        Cell(would_do(changed, num_tasks), changed, num_tasks, num_dropped)
        for changed in (0.05, 0.1)
        for num_tasks in (1, 5)
        for num_dropped in (1, 0)
    ]
    few = [
        Cell(items, changed, 1, num_dropped) for items in (12, 100) for changed in (0.04, 0.1) for num_dropped in (1, 0)
    ] + [Cell(100, 0.0, 1, 0), Cell(100, 0.002, 1, 0)]
    done = []
    for place, cell in enumerate(cells + promise + few):
        say(f"cell {place + 1} of {len(cells + promise + few)}: {cell.items} items")
        done.append(simulate(cell, candidates, seed + place))
    return done


def other_scores(candidates: int, seed: int) -> list[tuple[str, Cell]]:
    kinds = {
        "graded, 10% of the items change": (graded, 0.1),
        "graded, 20% of the items change": (graded, 0.2),
        "all move, spread 15 points": (noisy, 0.15),
    }
    return [
        (name, simulate(Cell(500, much, 1, num_dropped), candidates, seed + place, make(500, much)))
        for place, (name, (make, much)) in enumerate(kinds.items())
        for num_dropped in (1, 0)
    ]


def show(cells: list[Cell], console: Console, title: str, names: list[str] | None = None) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "items", "change", "old tasks", "truly fall", "promoted", "(exact)", "rejected", "undecided",
                   "would do", "named"):  # fmt: skip
        table.add_column(column, justify="right")
    for name, cell in zip(names or [""] * len(cells), cells, strict=True):
        table.add_row(
            *(name, str(cell.items), f"{cell.changed:.1%}", str(cell.num_tasks), str(cell.num_dropped)),
            f"{cell.promoted:.1%}",
            "" if cell.exact is None or names else f"{cell.exact:.2%}",
            *(f"{cell.rejected:.1%}", f"{cell.undecided:.1%}"),
            "" if names else f"{cell.would_do:,}" + (" *" if cell.suffices else ""),
            f"{cell.named:,.0f}" if cell.named else "",
        )
    console.print(table)


def conclude(cells: list[Cell]) -> dict[str, Any]:
    dropped, harmless = [cell for cell in cells if cell.num_dropped], [cell for cell in cells if not cell.num_dropped]
    enough = [cell for cell in harmless if cell.suffices]
    return {
        "most_false_promotions": max(cell.promoted for cell in dropped),
        "most_false_promotions_exact": max(cell.exact for cell in dropped if cell.exact is not None),
        "most_false_rejections": max(cell.rejected for cell in harmless),
        "most_not_promoted_where_items_suffice": max(1 - cell.promoted for cell in enough),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print nothing but the line of JSON to stdout")
    options = parser.parse_args()
    console = Console(stderr=options.json, width=150 if not sys.stdout.isatty() else None)
    began = time.perf_counter()
    cells = grid(options.candidates, options.seed, Console(stderr=True).print)
    show(cells, console, f"{options.candidates:,} candidates a cell; * items suffice")
    others = other_scores(options.candidates, options.seed)
    show([cell for _, cell in others], console, "scores that are not right or wrong", [name for name, _ in others])
    means = {f"{n} items, {share:.0%}": pooled(n, share, options.candidates, options.seed)
             for n in (500, 1000) for share in (0.05, 0.1)}  # fmt: skip
    swept = {f"drop {drop:g}": sweep(500, 0.12, drop, options.candidates, options.seed)
             for drop in (0.03, 0.0375, 0.05, 0.075)}  # fmt: skip
    result = conclude(cells)
    for title, figures in (("promoted if only the mean of five tasks had to hold, one falling by 3 points", means),
                           ("falsely promoted when four shares of a step are tried (500 items, 12% change)", swept),
                           ("in all", result)):  # fmt: skip
        console.print(f"{title}: " + ", ".join(f"{name} {figure:.1%}" for name, figure in figures.items()))
    low, high = wilson(round(0.05 * options.candidates), options.candidates)
    console.print(
        f"chance alone puts a true 5.0% between {low:.1%} and {high:.1%} of {options.candidates:,} candidates"
    )
    print(json.dumps({
        "bench": "gate", "candidates": options.candidates, "seed": options.seed, "gate": asdict(GATE), **result,
        "cells": [asdict(cell) for cell in cells], "other_scores": [[name, asdict(cell)] for name, cell in others],
        "pooled": means, "sweep": swept, "seconds": round(time.perf_counter() - began),
    }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
