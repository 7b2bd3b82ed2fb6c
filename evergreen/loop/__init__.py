"""A line of increments: learnt one after another and judged (`run_evolve`), or again on another base (`run_rebase`)."""

from evergreen.loop.evolve import run_evolve
from evergreen.loop.rebase import run_rebase

__all__ = ["run_evolve", "run_rebase"]
