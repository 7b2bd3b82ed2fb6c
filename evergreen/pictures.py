"""What pictures have in common: no window, and fonts that know Chinese where this machine has one.

Promises: a name that no font here can draw is known beforehand (`can_draw`), so that a caller writes something else in
its place and never a row of boxes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "SimHei")


@contextmanager
def drawing(**style: Any) -> Iterator[Any]:
    """`matplotlib.pyplot` without a display, in the fonts of this machine; `style` is matplotlib's own, `_` for `.`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    given = {name.replace("_", "."): value for name, value in style.items()}
    with pyplot.rc_context({"font.family": fonts(), **given}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield pyplot


def fonts() -> list[str]:
    """The default font, then the Chinese ones that this machine has."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FONTS if name in installed)]


def can_draw(text: str) -> bool:
    """Whether the machine's fonts have all of its characters among them."""
    return set(map(ord, text)) <= _drawable(tuple(fonts()))


@lru_cache
def _drawable(families: tuple[str, ...]) -> frozenset[int]:
    from matplotlib import font_manager

    files = [font_manager.findfont(family) for family in families]
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))
