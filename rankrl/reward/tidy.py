# ruff: noqa: RUF001 - signs that look alike are what this file is about
"""One spelling for what typesets alike: LaTeX spacing, wrappers, fonts, Unicode signs.

Text in, text out; nothing is evaluated.
"""

from __future__ import annotations

import re

SIGNS = {
    **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∕": "/", "∞": r"\infty "},
    **{"π": r"\pi ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "°": r"^\circ ", "∪": r"\cup ", "∈": r"\in "},
    **{"±": r"\pm ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}"},
    **{"¾": r"\frac{3}{4}", "⟨": "(", "⟩": ")", "∅": r"\emptyset ", "θ": r"\theta ", "\u00a0": " ", "\u202f": " "},
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
}
TYPOGRAPHY = str.maketrans(SIGNS)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
WRAPPERS = (("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
END = r"(?![A-Za-z])"
SPELLINGS = [
    (re.compile(pattern, re.ASCII), new)
    for pattern, new in [
        (r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))", ""),  # 1{,}000 and 1\,000
        (r"\\!", ""),
        (rf"\\(?:left|right|[bB]igg?[lrm]?){END}\.?", ""),
        (rf"\\(?:displaystyle|textstyle|limits|nolimits){END}", ""),
        (r"(?<!\\)\\[,;: \n]|~|\\q?quad" + END, " "),
        (rf"\\[dtc]frac{END}", r"\\frac"),
        (rf"\\[dt]binom{END}", r"\\binom"),
        (r"\\(?:text(?:rm|bf|it|sf|normal)?|math(?:rm|bf|it|sf|bb|cal)|mbox|operatorname\*?)\s*\{", r"\\text{"),
        (rf"\\varnothing{END}", r"\\emptyset "),
        (rf"\\lbrace{END}", r"\\{"),
        (rf"\\rbrace{END}", r"\\}"),
        (r"\\\{\s*\\\}", r"\\emptyset "),
        (rf"\\(?:langle|lparen){END}", "("),
        (rf"\\(?:rangle|rparen){END}", ")"),
        (rf"\\(?:lvert|rvert|vert|mid){END}", "|"),
        (rf"\\(?:leqslant|leq|le){END}|<=", r"\\leq "),
        (rf"\\(?:geqslant|geq|ge){END}|>=", r"\\geq "),
        (rf"\\lt{END}", "<"),
        (rf"\\gt{END}", ">"),
        (rf"\\ne{END}|!=", r"\\neq "),
        (rf"\\degree{END}|\^\{{\s*\\circ\s*\}}", r"^\\circ"),
        (r"\\%", "%"),
        (rf"(?<![A-Za-z\\])(?:infinity|Infinity|inf){END}", r"\\infty"),
        (r"\*\*", "^"),
        (r"√\s*(\d+)", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]*\})\s*(\d)(?!\d)", r"\1{\2}"),
        (r"\\frac\s+\{", r"\\frac{"),
        (r"(\\frac\{[^{}]*\})\s+\{", r"\1{"),
        (r"(\\(?:frac|sqrt|text|begin|end))\s+(?=\{)", r"\1"),
        (rf"(?<![A-Za-z\\])(sqrt|sin|cos|tan|ln|log|pi){END}", r"\\\1"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([0-9](?![0-9])|[A-Za-z](?![A-Za-z])|\\pi(?![A-Za-z]))", r"\\sqrt{\1}"),
        (r"([\^_])\{\s*([0-9A-Za-z])\s*\}(?!\s*[0-9])", r"\1\2"),
        (r"\s+", " "),
    ]
]


def matching(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`; -1 if none does."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    return -1


def peel(text: str) -> str:
    """The text without wrappers around the whole answer.

    Wrappers are dollars, \\( \\), \\[ \\], \\boxed, bold marks, and punctuation at the end.
    """
    while True:
        before, text = text, text.strip()
        for opening, closing in WRAPPERS:
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
                text = text[len(opening) : -len(closing)].strip()
        if text.startswith(r"\boxed{") and matching(text, 6) == len(text) - 1:
            text = text[7:-1]
        if text.endswith((".", ",", ";")) and not text.endswith("..."):
            text = text[:-1]
        if text == before:
            return text


def undollared(text: str) -> str:
    """The text without dollars that come in pairs, since those delimit mathematics.

    An odd number of dollars means money: they become `\\$`.
    """
    alone = re.findall(r"(?<!\\)\$", text)
    return re.sub(r"(?<!\\)\$", r"\\$" if len(alone) % 2 else "", text)


def tidy(text: str) -> str:
    """The answer in one spelling. Spaces are single, and kept where they may matter.

    Applied to its own result, it changes nothing.
    """
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^{" + m[0].translate(RAISED) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(LOWERED) + "}", text).translate(TYPOGRAPHY)
    text = undollared(peel(text))
    for pattern, new in SPELLINGS:
        text = pattern.sub(new, text)
    return peel(text)


def squeezed(text: str) -> str:
    """The text without spaces that mean nothing.

    A space stays between two digits, between two letters, and between a comma and a digit.
    """
    return re.sub(r"(?<![0-9,]) (?=[0-9])|(?<![A-Za-z]) (?=[A-Za-z])| (?![0-9A-Za-z])", "", text.strip())


def unwrapped(text: str) -> str:
    """The text with each `\\text{...}` replaced by its content."""
    return re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)).strip()


def words(text: str) -> str:
    """The text for a comparison of words: without wrappers, quotes and case.

    A single letter keeps its case: it may be a variable or a choice.
    """
    text = unwrapped(text).strip(" \"'`.!?:")
    return text if len(text) < 2 else text.casefold()
