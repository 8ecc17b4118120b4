"""The words of the report, and links to them from where each is first used."""

from __future__ import annotations

import re

WORDS = {
    "rank": (r"[Rr]anks?", "LoRA rank: the adapter's size, the one dial of a sweep."),
    "base": (r"the base", "The model without an adapter, measured once; its weights are never trained."),
    "gain": (r"gains?", "Final score less the base's score, on the same held-out items: 0.0154 is 1.54 points of 100."),
    "seed": (r"seeds?", "What a run's random draws start from. Runs of one cell differ by their seed alone."),
    "risk": (
        r"risk",
        "Share of runs that end below the base; a diverged run is one of them. Its interval says what so few runs "
        "leave possible: none of six runs still allows a risk of 46 %.",
    ),
    "diverged": (
        r"diverged|divergences?",
        "Training broke down by itself: an outcome, counted as a negative run. A failed run (no memory, a lost "
        "node) says nothing of its rank and is missing.",
    ),
    "cell": (r"cells?", "One arm, rank and batch size."),
    "arm": (r"arms?", "One named variant of an ablation."),
    "margin": (r"margin", "The loss of gain that counts as none (--margin)."),
    "not_inferior": (r"not inferior|non-inferior", "Shown to lose less than the margin."),
    "family_wise": (
        r"for all (?:\w+ )?at once|family(?:-wise| intervals?)?",
        "Intervals so wide that all of their kind hold at once in 95 % of sweeps. Of 20 single 95 % intervals, one "
        "misses on average.",
    ),
    "upside": (r"upside(?: index)?", "How far the best run lies above the mean, in standard deviations of the runs."),
    "iqm": (r"IQM", "Interquartile mean: the mean of the middle half of the runs."),
    "gradient_cosine": (
        r"[Gg]radient cosine",
        "Of the policy's gradients on two halves of the samples (docs/noise.md): 1 where both say the same, about 0 "
        "where the gradient is noise.",
    ),
    "effective_sample": (
        r"[Ee]ffective sample",
        "As many tokens of the policy at hand would say as much as those that an older one sampled; a share of them.",
    ),
    "pareto": (r"Pareto(?: front)?", "The cells that no other one beats at the same or a lower cost in tokens."),
}
"""Name -> (how it is written, as a regular expression; what it means)."""
WRITTEN = re.compile(rf"\b(?:{'|'.join(f'(?P<{name}>{written})' for name, (written, _) in WORDS.items())})\b")
SKIPPED = {"svg", "script", "style", "a", "h2", "th", "td", "code", "button", "summary", "noscript", "dd", "caption"}
"""Elements in which no word is linked."""


def glossary() -> str:
    """Section with all words, which explained() links to."""
    rows = "".join(
        f'<div id="word-{name}"><dt>{name.replace("_", "-")}</dt><dd>{meaning}</dd></div>'
        for name, (_, meaning) in WORDS.items()
    )
    return (
        '<section id="words" aria-labelledby="words-title"><h2 id="words-title">Words</h2>'
        f'<details><summary>What {len(WORDS)} words mean</summary><dl class="words">{rows}</dl></details></section>'
    )


def explained(html: str) -> str:
    """`html` with the first use of each word linked to its meaning.

    `html` has < in tags alone: everything else is escaped.
    """
    used: set[str] = set()

    def link(word: re.Match[str]) -> str:
        name = word.lastgroup or ""
        if name in used:
            return word[0]
        used.add(name)
        return f'<a class="word" href="#word-{name}" aria-describedby="word-{name}">{word[0]}</a>'

    inside: list[str] = []
    parts = []
    for part in re.split(r"(<[^>]*>)", html):
        tag = re.match(r"</?(\w+)", part)
        if tag and tag[1] in SKIPPED:
            inside = inside[:-1] if part.startswith("</") else [*inside, tag[1]]
        parts.append(part if tag or inside else WRITTEN.sub(link, part))
    return "".join(parts)
