"""Labels that do not overlap: ticks are thinned, names are placed, by their extents as drawn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

NAME = "name"
"""Label of the annotations that `place_names` places."""
PLACES = ((-3, 6, "right", "bottom"), (3, 6, "left", "bottom"), (5, -6, "left", "top"), (-5, -6, "right", "top"))
"""Places beside a point, the best one first: (x and y offset in points, alignments)."""
SMALLEST = 4.0
"""Smallest size of a title, in points."""
GAP, DOT = 2.0, 5.0
"""Free pixels between two labels, and half the width that a dot takes."""


def thin_ticks(axes: Any, renderer: Any) -> None:
    """Hides every second tick label of an axis, or more, until none overlaps another one."""
    for axis in (axes.xaxis, axes.yaxis):
        labels = [label for label in tick_labels(axis) if label.get_visible() and label.get_text()]
        boxes = [label.get_window_extent(renderer) for label in labels]
        step = next((n for n in range(1, len(labels)) if not _clash(boxes[::n])), 1)
        for i, label in enumerate(labels):
            label.set_visible(i % step == 0)


def fit_title(axes: Any, renderer: Any) -> None:
    """Makes the title of a panel small enough for its width: names of arms may be long."""
    title = next((text for text in axes.findobj(Text) if text.get_text() == axes.get_title(loc="left") != ""), None)
    if title is not None and (wide := title.get_window_extent(renderer).width) > axes.bbox.width:
        title.set_fontsize(max(title.get_fontsize() * axes.bbox.width / wide, SMALLEST))


def tick_labels(axis: Any) -> list[Any]:
    """The labels of the ticks that lie within the axis."""
    axis.get_ticklabels()  # brings the ticks up to date
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def _clash(boxes: list[Bbox]) -> bool:
    """Whether a box overlaps the next one."""
    return any(box.padded(GAP).overlaps(other) for box, other in pairwise(boxes))


def name_point(axes: Any, name: str, at: tuple[float, float]) -> None:
    """Names a point; `place_names` finds the place. Important points are to be named first."""
    text = axes.annotate(name, at, xytext=(0, 0), textcoords="offset points", fontsize=7.5, zorder=4, label=NAME)
    text.set_in_layout(False)


def place_names(axes: Any, renderer: Any) -> None:
    """Moves each name beside its point, clear of dots and names; hides it where nothing is free."""
    names = [text for text in axes.texts if isinstance(text, Annotation) and text.get_label() == NAME]
    if not names:
        return
    taken = [
        Bbox.from_extents(x - DOT, y - DOT, x + DOT, y + DOT)
        for dots in axes.collections
        for x, y in dots.get_offset_transform().transform(dots.get_offsets())
    ]
    for text in names:
        box = next(
            (box for place in PLACES if (box := _moved(text, place, renderer)) and _free(box, axes, taken)), None
        )
        text.set_visible(box is not None)
        taken += [box.padded(GAP)] if box else []


def _moved(text: Annotation, place: tuple[float, float, str, str], renderer: Any) -> Bbox:
    x, y, text_ha, text_va = place
    text.set_position((x, y))
    text.set(ha=text_ha, va=text_va)
    return text.get_window_extent(renderer)


def _free(box: Bbox, axes: Any, taken: list[Bbox]) -> bool:
    area = axes.bbox
    inside = area.x0 <= box.x0 and box.x1 <= area.x1 and area.y0 <= box.y0 and box.y1 <= area.y1
    return inside and not any(box.overlaps(other) for other in taken)
