"""matplotlib figures as SVG that lives in a page (text as text, the page's colors) and as PNG."""

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from trt_mtp.controller.report.plots import GRID, INK, MUTED, SERIES

# hex in the figure -> the page's variable, which differs between light and dark
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    color: f"--s{i}" for i, color in enumerate(SERIES) if i > 0
}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib; wider than what browsers take
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # task names are anybody's
}

Draw = Callable[[Any], None]


def svg(draw: Draw, name: str, words: str, size: tuple[float, float]) -> str:
    """An `<svg>` element of `size` inches for a page; `name` makes its ids its own.

    `words` is what a screen reader says. The same figure gives the same bytes.
    """
    from html import escape

    import matplotlib

    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = _figure(size)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    return _for_page(buffer.getvalue(), name, escape(words))


_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(size, layout="constrained")


def _for_page(text: str, name: str, words: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{name}-", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    head = f'<svg class="plot" role="img" aria-label="{words}" {box[0]} xmlns:xlink='
    head += '"http://www.w3.org/1999/xlink">'
    text = text.replace("font-family: 'DejaVu Sans'; ", "")
    return head + re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :]).strip()


def marker_svg(name: str, color: str, marker: str) -> str:
    """A plot's marker on its line, for a key in the page; says nothing by itself."""

    def draw(axes: Any) -> None:
        axes.axis("off")
        axes.plot([0, 2], [0, 0], color=color, lw=1.5)
        axes.plot([1], [0], marker, color=color, ms=5)

    drawn = svg(draw, name, "", (0.42, 0.16))
    return drawn.replace('class="plot" role="img" aria-label=""', 'class="key" aria-hidden="true"')


def png(
    panels: Mapping[str, list[Draw]], titles: list[str], key: Mapping[str, tuple[str, str]]
) -> bytes:
    """All panels as one picture: a row a task, a column a plot, with a title each.

    `key` names colors and markers.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure = _figure((4.0 * len(titles), 0.5 + 2.6 * len(panels)))
        grid = figure.subplots(len(panels), len(titles), squeeze=False)
        for (task, draws), line in zip(panels.items(), grid, strict=True):
            for i, (draw, axes) in enumerate(zip(draws, line, strict=True)):
                draw(axes)
                axes.set_title(f"{task}: {titles[i]}", color=INK)
        if key:
            figure.legend(handles=_handles(key), loc="outside upper left", ncols=len(key))
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _handles(key: Mapping[str, tuple[str, str]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=c, marker=m, label=name) for name, (c, m) in key.items()]
