"""A matrix as a picture: a number in every cell, its lightness the value, so that it reads in black and white too.

Promises: the cell of the task that a version was to learn is outlined, the rows of rejected versions are hatched, tasks
that nobody scored stay white; 2 to 20 tasks fit. Names that no font of this machine can draw are replaced by the
column's number.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evergreen.evaluate.harness import points
from evergreen.pictures import can_draw, drawing

if TYPE_CHECKING:
    from evergreen.evaluate.matrix import Matrix
    from evergreen.records import Scores

DARK_TEXT_FROM = 0.3  # relative luminance; equal contrast by WCAG 2 is 0.18, but black on middle blue is hard to read
MAX_NAME_CELLS = 18
GAP = 0.35  # of a cell, before the retention suites
DPI = 150


def fit(text: str, max_cells: int) -> str:
    """A name in at most so many terminal cells (a Chinese character takes two), cut in the middle."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= max_cells:
        return text
    tail = text[::-1]
    head_cells, tail_cells = max_cells // 2, (max_cells - 1) // 2
    return set_cell_size(text, head_cells).rstrip() + "…" + set_cell_size(tail, tail_cells).rstrip()[::-1]


def picture(matrix: "Matrix") -> bytes:
    """The heat map as a PNG."""
    with drawing(hatch_linewidth=0.6) as pyplot:
        num_columns, num_rows = len(matrix.columns), len(matrix.rows)
        size = (2.9 + 0.72 * num_columns, 2.3 + 0.46 * num_rows)
        figure, axes = pyplot.subplots(figsize=(max(size[0], 5.2), size[1]), layout="constrained")
        _draw_cells(axes, matrix)
        _label(axes, matrix)
        figure.supxlabel(_measures(matrix), fontsize=8.5, ha="left", x=0.02, linespacing=1.5)
        content = io.BytesIO()
        figure.savefig(content, dpi=DPI, format="png")
        pyplot.close(figure)
    return content.getvalue()


def _draw_cells(axes: Any, matrix: "Matrix") -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("lightness", colormaps["Blues"]([0.04, 0.25, 0.45, 0.65, 0.88]))
    scale = Normalize(*_range([cell for row in matrix.cells for cell in row if cell]))
    for row, cells in enumerate(matrix.cells):
        for column, cell in enumerate(cells):
            colour = colours(scale(100 * cell.mean)) if cell else (1.0, 1.0, 1.0, 1.0)
            is_rejected = not matrix.is_accepted(row)
            _draw_cell(axes, _left(matrix, column), row, cell, colour, is_rejected, is_own=column == row - 1)
    axes.figure.colorbar(
        ScalarMappable(scale, colours), ax=axes, label="score in %", fraction=0.04, pad=0.02, aspect=18
    )


def _draw_cell(
    axes: Any, x: float, y: int, cell: "Scores | None", colour: tuple, is_rejected: bool, is_own: bool
) -> None:
    from matplotlib.patches import Rectangle

    is_light = _luminance(colour) > DARK_TEXT_FROM
    lines = (0, 0, 0, 0.35) if is_light else (1, 1, 1, 0.5)
    hatch = "////" if is_rejected and cell else None
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor=lines if hatch else "white", hatch=hatch, lw=0))
    axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="white", lw=1.5))
    if is_own:
        for margin, line, width in ((0.03, "black", 2.2), (0.065, "white", 0.0 if is_light else 0.9)):
            inside = 1 - 2 * margin
            axes.add_patch(Rectangle((x + margin, y + margin), inside, inside, fill=False, ec=line, lw=width, zorder=3))
    text = points(cell.mean) if cell else "–"
    ink = ("black" if is_light else "white") if cell else "0.6"
    box = {"boxstyle": "round,pad=0.12", "facecolor": colour, "edgecolor": "none"} if hatch else None
    axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", color=ink, fontsize=9.5, bbox=box, zorder=4)


def _label(axes: Any, matrix: "Matrix") -> None:
    places = [_left(matrix, column) + 0.5 for column in range(len(matrix.columns))]
    names = [_name(task.name) or f"no. {number}" for number, task in enumerate(matrix.columns, 1)]
    is_wide = any(len(name) > 9 for name in names)
    axes.set_xticks(
        places, names, rotation=35 if is_wide else 0, ha="left" if is_wide else "center", rotation_mode="anchor"
    )
    versions = [
        f"{number}  {_name(version.name)}{' (rejected)' if verdict == 'rejected' else ''}"
        for number, (version, verdict) in enumerate(zip(matrix.rows, matrix.verdicts, strict=True))
    ]
    axes.set_yticks([row + 0.5 for row in range(len(versions))], versions)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(0, places[-1] + 0.5), ylim=(len(versions), 0))


def _measures(matrix: "Matrix") -> str:
    shown = [
        f"{name} {points(one.mean)} ({points(one.low)} to {points(one.high)})"
        for name, one in matrix.measures.items()
        if one
    ]
    per_line = max(2, len(matrix.columns) // 2)
    lines = ["   ".join(shown[start : start + per_line]) for start in range(0, len(shown), per_line)]
    return "\n".join([*lines, "outlined: the task to learn; hatched: rejected; in points, with 95% intervals"])


def _left(matrix: "Matrix", column: int) -> float:
    return column + (GAP if column >= len(matrix.tasks) else 0.0)


def _range(cells: Sequence["Scores"]) -> tuple[float, float]:
    """Tens around the scores, in %, at least 20 apart: few points of difference shall not look like day and night."""
    values = [100 * cell.mean for cell in cells] or [0.0]
    low, high = 10 * (min(values) // 10), 10 * -(-max(values) // 10)
    return (low, high) if high - low >= 20 else (max(0.0, min(low, 80.0)), min(100.0, max(0.0, min(low, 80.0)) + 20))


def _luminance(colour: tuple) -> float:
    """Relative luminance of an sRGB colour, 0 to 1."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _name(name: str) -> str:
    """Short enough for a label; "" when the machine's fonts lack one of its characters."""
    return fit(name, MAX_NAME_CELLS) if can_draw(name) else ""
