"""The report of an evolve, for people: what passed, what was lost, why, and everything needed to do it again.

Promises: `report.md` reads well as plain text; `report.html` is the same in one file, pictures inside, and needs no
network. Both are written anew after every increment.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from evergreen.home import read_object, write_atomic
from evergreen.model.find import NO_RECORD, VERSION_FILE

MEASURES = {
    "OP": "overall performance: mean of the last version's scores on all tasks so far",
    "BWT": "backward transfer: what old tasks gained (+) or lost (-) since they were learnt",
    "forgetting": "largest past score minus the last one, mean over old tasks",
    "FWT": "forward transfer: score on a task before it was learnt, against the start",
    "GAD": "general ability delta: retention suites of the last version, less the start's",
    "LA": "learning accuracy: mean score on each task right after it was learnt",
}
STYLE = """
body { font: 16px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; font-variant-numeric: tabular-nums }
th { background: #f3f3f3 } code { background: #f3f3f3; padding: 0 .2rem } img { max-width: 100% }
h2 { border-bottom: 1px solid #ddd; margin-top: 2rem }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd } th, code { background: #2b2b2b } td, th { border-color: #444 }
  img { background: #fff }
}"""


def write(folder: Path, matrix: dict[str, Any], steps: Sequence[dict[str, Any]], settings: dict[str, Any]) -> None:
    """report.md and report.html in `folder`, from matrix.json's content and each increment's state."""
    text = markdown(folder, matrix, steps, settings)
    write_atomic(folder / "report.md", text)
    write_atomic(folder / "report.html", _html(text, folder))


def markdown(folder: Path, matrix: dict[str, Any], steps: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    judged = [step for step in steps if step["verdict"]]
    num_passed, num_left = sum(step["verdict"]["promoted"] for step in judged), len(steps) - len(judged)
    parts = [
        f"# {folder.name}: {num_passed} of {len(steps)} increments passed" + f", {num_left} to come" * bool(num_left),
        _summary(judged),
        "## What each version can do",
        "![scores of every version on every task](matrix.png)",
        _measures(matrix),
        _costs(matrix),
        *(part for step in judged for part in _increment(folder, step)),
        "## Settings",
        _table(("flag", "value"), [(f"`--{name}`", _shown(value)) for name, value in settings.items() if value not in
                                   ("", None, [], False)]),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(judged: Sequence[dict[str, Any]]) -> str:
    rows = [(step["name"], _decision(step), _version(step), f"{step['seconds'] / 60:.1f}") for step in judged]
    return _table(("increment", "verdict", "version", "minutes"), rows)


def _decision(step: dict[str, Any]) -> str:
    share = f", with {step['share']:g} of the step" if step["share"] != 1 else ""
    return f"**{step['verdict']['decision']}**{share}"


def _version(step: dict[str, Any]) -> str:
    return f"`{step['version']['digest'][:12]}`" + (f" (release `{step['release'][:12]}`)" if step["release"] else "")


def _measures(matrix: dict[str, Any]) -> str:
    rows = []
    for name, meaning in MEASURES.items():
        value = matrix.get(name)
        if value and value.get("mean") is not None:
            divisor = f" (divisor {value['divisor']})" if "divisor" in value else ""
            rows.append((name, _points(value["mean"]), f"{_points(value['low'])} to {_points(value['high'])}",
                         meaning + divisor))  # fmt: skip
    return _table(("measure", "points", "95% interval", "meaning"), rows)


def _costs(matrix: dict[str, Any]) -> str:
    """Drift and latency of every version that has them."""
    rows = []
    for row in matrix["rows"]:
        latency, drift = row.get("latency_ms") or {}, row.get("drift") or {}
        if latency or drift:
            rows.append((row["version"], _spanned(latency, "p50", ".0f"), _spanned(latency, "p95", ".0f"),
                         _spanned(drift, "mean", ".3g")))  # fmt: skip
    return _table(("version", "ms per answer, median", "95% below", "drift, nats a token"), rows)


def _spanned(found: dict[str, Any], name: str, shape: str) -> str:
    """`12 (11 to 14)`: a value with the ends of its 95% interval, where they are known."""
    if found.get(name) is None:
        return ""
    low, high = ("low", "high") if name == "mean" else (f"{name}_low", f"{name}_high")
    ends = f" ({found[low]:{shape}} to {found[high]:{shape}})" if low in found and high in found else ""
    return f"{found[name]:{shape}}{ends}"


def _increment(folder: Path, step: dict[str, Any]) -> list[str]:
    verdict, run = step["verdict"], folder / step["name"]
    path = run / VERSION_FILE
    made = read_object(path, {"data": dict | None}, NO_RECORD) if path.is_file() else {}
    facts = [
        ("data", f"{made.get('data', {}).get('rows')} rows, hash `{str(made.get('data', {}).get('hash'))[:12]}`"),
        ("learnt from", f"`{str(made.get('parent') or made.get('base_digest'))[:12]}`"),
        (
            "method",
            f"{made.get('method')}, {made.get('steps')} steps, {made.get('tokens')} tokens, seed {made.get('seed')}",
        ),
        ("training loss", f"{made.get('train_loss')}"),
    ]
    checks = [
        (check["name"], check["task"], *(_shown_in(check["name"], value) for value in _told(check)),
         {True: "holds", False: "**fails**", None: "cannot be told"}[check["passed"]])
        for check in verdict["checks"]
    ]  # fmt: skip
    return [
        f"## {step['name']}: {verdict['decision']}",
        "\n".join(f"- {reason}" for reason in verdict["reasons"]),
        _table(("check", "task", "value", "95% bound", "limit", ""), checks),
        "\n".join(f"- Advice: {advice}" for advice in (*verdict["advice"], *step["shift"].get("advice", ()))),
        _table(("", ""), facts),
        f"![training loss of {step['name']}](<{step['name']}/training_loss.png>)"
        if (run / "training_loss.png").is_file() else "",
    ]  # fmt: skip


def _told(check: dict[str, Any]) -> tuple[float | None, ...]:
    """Value, the bound that is held against the limit, and the limit."""
    bound = "high" if check["name"] in ("drift", "latency") else "low"
    return check["value"], check[bound], check["limit"]


def _points(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _shown_in(check: str, value: float | None) -> str:
    """Nats and ratios as they are, differences as points."""
    return _points(value) if check not in ("drift", "latency") or value is None else f"{value:.3g}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing for no rows."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells]]
    return "\n".join(lines) if rows else ""


def _html(text: str, folder: Path) -> str:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for part in (part for token in tokens for part in token.children or ()):
        if part.type == "image":
            part.attrs["src"] = _data_uri(folder / unquote(str(part.attrs["src"])))
    body = parser.renderer.render(tokens, parser.options, {})
    return (f"<!doctype html><html><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
            f"<title>{folder.name}</title><style>{STYLE}</style></head><body>{body}</body></html>\n")  # fmt: skip


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""
