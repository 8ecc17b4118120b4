"""Whether the first step of the reference rank, which need not be one of the grid, can be taken."""

from __future__ import annotations

from rankrl.recipe.allocation import planned
from rankrl.recipe.optimizer_section import Optimizer
from rankrl.recipe.require import require
from rankrl.recipe.scale import Scale
from rankrl.recipe.schema import Recipe


def check_measurable(recipe: Recipe, scale: Scale, most: int) -> None:
    """Raises ValueError, one line, if it cannot: the rank is above `most`, the largest at this
    scale, or a table or the allocation's budget has nothing for it; or the run's optimizer takes
    another step than AdamW's."""
    own = recipe.optimizer
    usual = own.method == "adamw" and own.eps == Optimizer().eps and recipe.rules.eps is None
    other = f"another rule with optimizer {own}{', eps by rank' if recipe.rules.eps else ''}"
    require(usual, "rules.lr.rule", "measured", other, "AdamW's usual step is measured")
    rank, why = recipe.rules.lr.at_rank, "the first step of the reference rank is measured as well"
    require(rank <= most, "rules.lr.at_rank", rank, f"1 to {most} at scale {scale.name}", why)
    for name in ("alpha", "lr_ratio"):
        table = getattr(recipe.rules, name).table
        missing = table is not None and rank not in table
        require(
            not missing, f"rules.{name}.table", sorted(table or {}), f"an entry for rules.lr.at_rank={rank} too", why
        )
    planned(recipe, scale, rank, recipe.seeds[0])
