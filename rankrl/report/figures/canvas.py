"""Parts shared by all figures: style, axes of rank and batch size, n in words, saving.

Colours are those of Okabe and Ito, and each has its own marker as well; ranks are coloured by
viridis. In an SVG all ink (text, axes, edges) is `currentColor`, dark or light as the reader's
device asks, on a transparent background; a PNG is dark on white.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from rankrl.report.figures.labels import fit_title, place_names, thin_ticks

INK = "#23282d"
COLOURS = ["#1F86C9", "#D55E00", "#009E73", "#CC79A7", "#B37A00", "#56B4E9", INK]
"""Contrast of at least 3 on white and on #111 (sky blue: 2.3 on white).

The first blue is lighter than Okabe and Ito's, the orange darker."""
MARKERS = "osD^vP*"
LINES = ["-", "--", "-.", ":"]
FEW_ARMS = 3
"""Most arms that fit in one panel with a dot for every run."""
MOST_PANELS = 12
"""Most panels of a figure; the caption says what was left out."""
MOST_RANKS = 6
"""Most ranks over each other in a panel, or in a row of an arm."""
HEADING = 0.4
"""Inches that title and name of the sweep take."""
LINE = 0.35
"""Inches of a legend of one line."""
LONGEST_NAME = 60
MAX_DOTS = 1500
"""Most dots in a panel, which limits the size of the SVG; a larger sweep is thinned evenly."""
LOOK = {
    "text.parse_math": False,  # a $ in an arm's name is a $
    "svg.fonttype": "none",
    "svg.hashsalt": "rankrl",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # fixed above the axes: an automatic place would lay out all labels once more
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.wspace": 0.03,
}
CSS = (
    ".rankrl-figure{color:#23282d}.rankrl-figure *{stroke-linejoin:round;stroke-linecap:butt}"
    "@media screen and (prefers-color-scheme:dark){.rankrl-figure{color:#d8dee4}}"
)


def look() -> Any:
    """Context manager with the style LOOK, in which figures must be made and saved."""
    return matplotlib.rc_context(LOOK)


def panels(n: int, width: float, height: float, columns: int = 3, **shared: Any) -> tuple[Canvas, np.ndarray]:
    """A figure of `n` panels in rows of at most `columns`, and its grid of axes.

    `width` and `height` are those of a panel, in inches. Unused places of the grid are hidden.
    """
    columns = min(n, columns)
    lines = -(-n // columns)
    canvas = Canvas(figsize=(width * columns, height * lines + HEADING + 0.5))
    grid = canvas.subplots(lines, columns, squeeze=False, **shared)
    for axes in grid.flat[n:]:
        axes.set_visible(False)
    return canvas, grid


def outer(grid: np.ndarray, n: int, x: str = "", y: str = "") -> None:
    """Labels only the outer axes of the `n` panels: y at the left, x on the lowest of each column.

    The last row of the grid need not be full.
    """
    columns = grid.shape[1]
    for i, axes in enumerate(grid.flat[:n]):
        lowest, left = i + columns >= n, i % columns == 0
        axes.tick_params(labelbottom=lowest, labelleft=left)
        axes.set_xlabel(x if lowest else "")
        axes.set_ylabel(y if left else "")


def log2_axis(axes: Any, values: Iterable[int], label: str = "LoRA rank") -> None:
    """Makes the x axis logarithmic (base 2), with ticks at `values`."""
    ticks = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(ticks[0] / 1.5, ticks[-1] * 1.5)
    axes.set_xlabel(label)


def zero_line(axes: Any) -> None:
    axes.axhline(0, color=INK, lw=0.8, ls="--", alpha=0.5, zorder=0)


def shifts(n: int) -> list[float]:
    """Factors on x that place `n` series side by side on a logarithmic axis."""
    return [1 + min(0.08, 0.4 / n) * (i - (n - 1) / 2) for i in range(n)]


def n_text(counts: Iterable[int], what: str = "") -> str:
    """Sample size in words, with unit `what`: `n = 6 runs`, or `n = 4 to 6 runs`."""
    low, high = min(counts := list(counts)), max(counts)
    return (f"n = {low}" if low == high else f"n = {low} to {high}") + (f" {what}" if what else "")


def thinned(rows: list[Any], most: int = MAX_DOTS) -> list[Any]:
    """At most `most` of the rows, evenly spaced, with the first and the last."""
    if len(rows) <= most:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def rank_colours(ranks: Iterable[int]) -> dict[int, str]:
    """A colour (hex) for each rank, from dark to light in viridis, evenly in log2 of the rank.

    The ends of viridis are left out: they cannot be seen on a dark or white background.
    """
    ordered = sorted(set(ranks))
    octaves = np.log2(ordered) - np.log2(ordered[0])
    places = 0.12 + 0.8 * octaves / octaves[-1] if len(ordered) > 1 else [0.4]
    viridis = matplotlib.colormaps["viridis"]
    return {rank: matplotlib.colors.to_hex(viridis(place)) for rank, place in zip(ordered, places, strict=True)}


def legend_below(canvas: Canvas, *axes: Any, columns: int = 3, title: str = "") -> None:
    """Puts one legend below all panels, with each label of the `axes` once.

    It has at most `columns`, and fewer where these would be wider than the figure, which grows by
    what the legend is higher than a line.
    """
    handles: dict[str, Any] = {}
    for part in axes:
        for handle, label in zip(*part.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    look = {"loc": "outside lower center", "title": title, "title_fontsize": 8.5}
    renderer = FigureCanvasAgg(canvas).get_renderer()
    for n in range(min(columns, len(handles)), 0, -1):
        legend = canvas.legend([*handles.values()], [*handles], ncols=n, **look)
        box = legend.get_window_extent(renderer)
        if box.width < 0.98 * canvas.bbox.width or n == 1:
            canvas.set_figheight(canvas.get_figheight() + max(box.height / canvas.dpi - LINE, 0.0))
            break
        legend.remove()


def legend_right(canvas: Canvas, handles: list[Any], title: str = "") -> None:
    """Puts a legend right of all panels, in as many columns as it needs to stay within them."""
    columns = max(1, round(len(handles) * 0.19 / (canvas.get_figheight() - HEADING) + 0.5))
    canvas.legend(handles=handles, loc="outside right upper", ncols=columns, title=title, title_fontsize=8.5)


def heading(canvas: Canvas, title: str, sweep: str) -> None:
    """Writes title and sweep above all panels, since a file may be read on its own."""
    name = sweep if len(sweep) <= LONGEST_NAME else sweep[: LONGEST_NAME - 1] + "…"
    canvas.suptitle(f"{title}\n{name}", x=0.015, ha="left", fontsize=10.5)


def lay_out(canvas: Canvas) -> None:
    """Lays out a figure once and for all, then thins and places labels by their true extents."""
    renderer = FigureCanvasAgg(canvas).get_renderer()
    layout = canvas.get_layout_engine()
    if layout is not None:
        layout.execute(canvas)
    canvas.set_layout_engine("none")  # once, not once per file
    for axes in canvas.axes:
        fit_title(axes, renderer)
        thin_ticks(axes, renderer)
        place_names(axes, renderer)


def save(canvas: Canvas, to: Path, name: str) -> Path:
    """Writes NAME.png and NAME.svg into `to`, the same bytes each time; returns the SVG's path."""
    to.mkdir(parents=True, exist_ok=True)
    lay_out(canvas)
    canvas.savefig(to / f"{name}.png", dpi=150, facecolor="white", metadata={"Software": None})
    path = to / f"{name}.svg"
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.savefig(path, facecolor="none", edgecolor="none", metadata=nothing)
    path.write_text(themed(path.read_text(), name))
    return path


def themed(svg: str, name: str) -> str:
    """The SVG with ink in the reader's text colour, and with style and ids of its own.

    Several such figures may therefore stand in one page.
    """
    svg = svg.replace(INK, "currentColor").replace(
        "<svg ", f'<svg id="figure" class="rankrl-figure" data-figure="{name}" ', 1
    )
    svg = re.sub(r"<style[^>]*>.*?</style>", f'<style type="text/css">{CSS}</style>', svg, count=1, flags=re.DOTALL)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
