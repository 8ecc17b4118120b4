"""The first screen: the answer in words, the key numbers, and the figure of the ranks."""

from __future__ import annotations

from html import escape
from typing import Any

from rankrl.report.page.columns import interval, number, percents, signed
from rankrl.report.page.problems import grouped


def answer(summary: dict[str, Any], figure: str, going_on: str) -> str:
    """The first screen as HTML. `figure` and `going_on` (on a sweep that still runs) are HTML."""
    said = summary["answer"]
    lede, *sentences = map(_sentence, said)
    more = [_sentence(text) for text in summary["words"][len(said) :]]
    strip = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{about}</small></dd></div>"
        for name, value, about in key_numbers(summary)
    )
    folded = f"<details><summary>More findings ({len(more)})</summary>{_list(more)}</details>" if more else ""
    return (
        f'<section class="answer" aria-label="The answer"><p class="lede">{lede}</p><dl class="strip">{strip}</dl>{figure}'
        f'<div class="says">{_list(sentences)}{folded}{_warning(summary["problems"])}{going_on}</div></section>'
    )


def _sentence(text: str) -> str:
    return escape(text).replace(" %", "&nbsp;%")


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{line}' for line in lines)}</ul>" if lines else ""


def _warning(problems: list[dict[str, str]]) -> str:
    """A paragraph that leads to the problems; "" if there are none."""
    kinds, runs = len(grouped(problems)), len({row["run"] for row in problems if row["run"]})
    where = f" of {runs:,} run{'s' * (runs > 1)}" if runs else ""
    link = f'<a href="#problems">{kinds:,} problem{"s" * (kinds > 1)}</a>'
    return f'<p class="warning">{link} with the records{where}.</p>' if kinds else ""


def key_numbers(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, about) of the few numbers to see first, as HTML."""
    ranks, footprint = summary["ranks"], summary["footprint"]
    compared = {row["against"] for row in summary["comparisons"]}  # the reference arm, if there are arms
    low = min(ranks, key=lambda row: (row["rank"], row["arm"] not in compared))
    by_subject = {(row["arm"], row["rank"]): row for row in ranks}
    relied = [by_subject[one["arm"], one["rank"]] for one in summary["dependable"][:1]]
    planned = summary["n_planned"]
    shown = [("Runs counted", number(summary["n_runs"]), f"of {planned:,} planned" if planned else "no plan on record")]
    for row, what in ((low, "mean gain"), *((row, "to rely on") for row in relied)):
        mean = "none" if row["mean_gain"] is None else signed(row["mean_gain"])
        shown.append((f"{_place(row)}, {what}", mean, _ends(row)))
    ends = low["design_risk_ci95"]
    shown.append(
        (f"{_place(low)}, negative runs", f"{low['negative_runs']} of {low['n_seeds']}", f"risk {percents(ends)}")
    )
    if footprint:
        small = min(footprint, key=lambda row: row["rank"])
        about = f"{small['trainable_params']:,} parameters"
        shown.append((f"Rank {small['rank']}, of the base", f"{100 * small['fraction_of_base']:.3g} %", about))
    return shown


def _place(row: dict[str, Any]) -> str:
    return (f"{escape(row['arm'])}, rank" if row["arm"] else "Rank") + f" {row['rank']}"


def _ends(row: dict[str, Any]) -> str:
    ends = row["pooled_ci95"]
    return f"95 % {interval(ends)}" if ends else "no interval"
