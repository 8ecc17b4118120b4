"""Maps of mixed ranks: the LoRA rank of each module, as a grid of layers by module types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rankrl.recipe.spending import layer_and_type
from rankrl.report.figures.canvas import Canvas, look, panels, save
from rankrl.report.figures.grid import readable


def rank_map(content: dict[str, Any], to: Path) -> Path:
    """Draws `content` of an allocation.json as allocation.svg and .png; returns the SVG's path."""
    title = f"LoRA rank by module: {content['method']}\n{content['spent']:,} of {content['budget']:,} parameters"
    with look():
        return save(rank_maps({title: {row["module"]: row["rank"] for row in content["modules"]}}), to, "allocation")


def rank_maps(maps: dict[str, dict[str, float]]) -> Canvas:
    """Figure: layers x module types with the LoRA rank of a module in its cell.

    `maps`: title -> module -> rank. One panel per title, at most three in a row.
    """
    places = [{layer_and_type(module): rank for module, rank in ranks.items()} for ranks in maps.values()]
    layers = sorted({layer for ranks in places for layer, _ in ranks})
    kinds = list(dict.fromkeys(kind for ranks in places for _, kind in ranks))
    canvas, grid = panels(len(maps), 0.6 * len(kinds) + 0.6, 0.2 * len(layers) + 1.2)
    for axes, title, ranks in zip(grid.flat, maps, places, strict=False):
        _rank_grid(axes, np.array([[ranks.get((layer, kind), 0) for kind in kinds] for layer in layers]))
        axes.set_xticks(np.arange(len(kinds)) + 0.5, kinds, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers], fontsize=8)
        axes.set_title(title, fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("layer")
    return canvas


def _rank_grid(axes: Any, ranks: np.ndarray) -> None:
    mesh = axes.pcolormesh(ranks, cmap="cividis", vmin=0, vmax=max(ranks.max(), 1))
    for (y, x), rank in np.ndenumerate(ranks):
        ink = readable(mesh.cmap(mesh.norm(rank)))
        axes.text(x + 0.5, y + 0.5, f"{rank:.3g}", ha="center", va="center", fontsize=7, color=ink)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
