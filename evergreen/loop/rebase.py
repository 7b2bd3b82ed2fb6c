"""The increments of an evolve on a newer base; the last versions of both lines side by side."""

from pathlib import Path
from typing import Any

from evergreen.evaluate import harness
from evergreen.evaluate.compare import write_comparison
from evergreen.home import exclusive, read_object
from evergreen.loop.evolve import PLAN_FILE, Evolve
from evergreen.loop.step import read_state
from evergreen.options import build
from evergreen.records import BadInput
from evergreen.settings import EvolveSettings, RebaseSettings

CURE = "evergreen evolve with the flags that it was made with writes it anew"


def run_rebase(given: RebaseSettings) -> dict[str, Any]:
    """`evergreen rebase`. Returns evolve's document and `compared`, compare.json's content (a is the old line, b the
    new). Raises BadInput when there is no line to compare with."""
    old, settings = _evolved(given)
    new = Evolve(settings)
    with exclusive(new.folder / ".lock", "evolving into this folder"):
        document = new.run()
        tasks = [step.task for step in new.steps]
        last = new.board.scores(harness.version_of(str(old), [], new.board.settings), tasks)
        compared = write_comparison(last, new.board.scores(new.line[-1], tasks), tasks, new.folder)
    return document | {"compared": compared}


def _evolved(given: RebaseSettings) -> tuple[Path, EvolveSettings]:
    """The last version that passed in an evolve's folder, and its settings with the new base. Raises BadInput."""
    folder = Path(given.evolved).expanduser()
    if not given.evolved or not (folder / PLAN_FILE).is_file():
        raise BadInput(f"rebase wants the output folder of an evolve, and {given.evolved or 'none'} has no {PLAN_FILE}")
    if not given.model:
        raise BadInput("rebase wants the newer base: --model FOLDER")
    plan = read_object(folder / PLAN_FILE, {"increments": list, "settings": dict}, CURE)
    states = [(folder / str(name), read_state(folder / str(name))) for name in plan["increments"]]
    passed = [(run, state) for run, state in states if state.get("verdict") and state["verdict"].promoted]
    if not passed:
        raise BadInput(f"no increment in {folder} has passed: there is no line to compare with")
    run, state = passed[-1]
    out = given.output_dir or f"{folder}-on-{Path(given.model).name}"
    own = {"model": given.model, "adapters": [], "output_dir": out, "json": given.json, "home": given.home,
           "overwrite_output_dir": False}  # fmt: skip
    values = {"asked": []} | plan["settings"] | own
    try:
        return run / state["version"]["place"], build(EvolveSettings, values)
    except TypeError as error:  # a flag that this version of the program does not have
        raise BadInput(f"{folder / PLAN_FILE} holds settings that are not evolve's ({error}): {CURE}") from None
