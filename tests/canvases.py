"""What tests read back from a drawn canvas: texts, and where they overlap or leave it."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from rankrl.report.figures.canvas import lay_out
from rankrl.report.figures.labels import tick_labels


def place(canvas):
    lay_out(canvas)
    FigureCanvasAgg(canvas).draw()  # a legend places its texts when it is drawn


def texts(canvas):
    """The texts of a figure that are drawn: those of hidden parts and ticks out of view are not."""
    every = [part for axes in canvas.axes for part in (axes, *axes.child_axes)]
    axles = [axis for axes in every for axis in (axes.xaxis, axes.yaxis)]
    ticks = {label for axis in axles for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)}
    shown = {label for axis in axles for label in tick_labels(axis)}
    found = [text for text in canvas.findobj(Text) if text.get_visible() and text.get_text().strip()]
    here = [text for text in found if text.axes is None or text.axes.get_visible()]
    return [text for text in here if text not in ticks or text in shown]


def overlaps(canvas):
    renderer = FigureCanvasAgg(canvas).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(canvas)]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def outside(canvas):
    renderer = FigureCanvasAgg(canvas).get_renderer()
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in texts(canvas)}
    return [name for name, b in boxes.items() if b.x0 < 0 or b.y0 < 0 or b.x1 > canvas.bbox.x1 or b.y1 > canvas.bbox.y1]
