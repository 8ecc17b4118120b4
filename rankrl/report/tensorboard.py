"""Margin charts for TensorBoard: mean and interval over seeds by PPO step.

They are written as a run `_aggregate` beside the runs of a sweep.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankrl.report.curves import aligned, band
from rankrl.report.read import SweepRecords, curve
from rankrl.report.statistics.cells import by_key

DIRECTORY = "_aggregate"
CURVES = {
    "accuracy": "training accuracy",
    "reward_mean": "reward",
    "kl_ref": "KL to the base (nats per token)",
    "entropy": "entropy (nats)",
}
ENDS = ("mean", "lower", "upper")
Band = dict[int, list[float]]
"""PPO step -> [mean, lower end, upper end] of the 95 % t interval over runs."""


def aggregate(sweep: SweepRecords) -> Path | None:
    """Writes `_aggregate` anew: one chart per curve and cell, for cells with at least two runs.

    A chart has the steps that two runs reached. Returns the directory; None if there is no such
    cell, or if TensorBoard is not installed (as on a login node), which is then printed.
    """
    bands = dict(_bands(sweep))
    if not bands:
        return None
    try:
        return _write(bands, sweep.directory / DIRECTORY)
    except ModuleNotFoundError:
        print("report: no margin charts for TensorBoard, which is not installed here")
        return None


def _bands(sweep: SweepRecords) -> Iterator[tuple[tuple[str, str], Band]]:
    """((cell, curve), band) for each cell with at least two runs."""
    for (arm, rank, batch_size), runs in by_key(sweep.counted, ("arm", "rank", "batch_size")).items():
        curves = [curve(sweep.directory / run["run_id"], steps=run["steps"]) for run in runs] if len(runs) > 1 else []
        for name in CURVES:
            steps, values = aligned(curves, name)
            ends, shown = band(values)
            if shown.any():
                cell = f"{arm}{', ' if arm else ''}rank {rank}, batch {batch_size}"
                yield (cell, name), dict(zip(steps[shown].astype(int).tolist(), ends.T.tolist(), strict=True))


def tag(cell: str, name: str, end: str) -> str:
    return f"{name}/{cell}/{end}"


def _write(bands: dict[tuple[str, str], Band], to: Path) -> Path:
    """Writes one event file: the layout, then one event per step with the values of all bands."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    shutil.rmtree(to, ignore_errors=True)
    writer = EventFileWriter(str(to))
    writer.add_event(Event(wall_time=time.time(), summary=Summary(value=[_layout(list(bands))])))
    for step in sorted({step for found in bands.values() for step in found}):
        values = [
            Summary.Value(tag=tag(cell, name, end), simple_value=value)
            for (cell, name), found in bands.items()
            if step in found
            for end, value in zip(ENDS, found[step], strict=True)
        ]
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    writer.close()
    return to


def _layout(charts: list[tuple[str, str]]) -> Any:
    """Layout of custom scalars: one category per curve, in it one margin chart per cell.

    Does what torch's `add_custom_scalars` does, without torch.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.custom_scalar import layout_pb2 as proto

    def chart(cell: str, name: str) -> Any:
        ends = dict(zip(("value", "lower", "upper"), (tag(cell, name, end) for end in ENDS), strict=True))
        return proto.Chart(
            title=cell, margin=proto.MarginChartContent(series=[proto.MarginChartContent.Series(**ends)])
        )

    layout = proto.Layout(
        category=[
            proto.Category(title=title, chart=[chart(cell, at) for cell, at in charts if at == name])
            for name, title in CURVES.items()
            if any(at == name for _, at in charts)
        ]
    )
    return Summary.Value(
        tag="custom_scalars__config__",
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars")),
        tensor=TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto()),
    )
