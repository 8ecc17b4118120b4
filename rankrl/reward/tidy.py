# ruff: noqa: RUF001 - signs that look alike are what this file is about
"""One spelling for what typesets alike: LaTeX spacing, wrappers, fonts, Unicode signs.

Text in, text out; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable

SPELLED = (
    "alpha beta gamma delta epsilon eta theta lambda mu nu xi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Sigma Phi Psi Omega"
)
SIGNS = {
    **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "∕": "/", "∞": r"\infty "},
    **{"π": r"\pi ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "°": r"^\circ ", "∪": r"\cup ", "∈": r"\in "},
    **{"∩": r"\cap ", "∖": r"\setminus ", "∉": r"\notin ", "≈": r"\approx ", "≡": r"\equiv ", "∠": r"\angle "},
    **{"△": r"\triangle ", "∶": ":", "′": "'", "’": "'", "ℝ": r"\reals ", "Ω": r"\Omega "},
    **{letter: rf"\{name} " for letter, name in zip("αβγδεηθλμνξρστφχψωΓΔΘΛΣΦΨΩ", SPELLED.split(), strict=True)},
    **{"±": r"\pm ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}"},
    **{"¾": r"\frac{3}{4}", "⟨": "(", "⟩": ")", "∅": r"\emptyset ", "\u00a0": " ", "\u202f": " "},
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width ASCII
}
TYPOGRAPHY = str.maketrans(SIGNS)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
WRAPPERS = (("$$", "$$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
END = r"(?![A-Za-z])"
FONTS = "bf|rm|it|sf|tt|sl|em|bm|boldsymbol|pmb|cal|math(?:bf|it|cal|scr|frak|normal)|tiny|scriptsize|footnotesize"
FONTS += "|small|normalsize|large|Large|LARGE|huge|Huge|displaystyle|textstyle|scriptstyle|limits|nolimits"
NAMED = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|lg|exp|gcd|lcm|det|sqrt|pi"
FOREIGN = {"tg": "tan", "ctg": "cot", "cotg": "cot", "arctg": "arctan", "cosec": "csc"}
ABROAD = "|".join(FOREIGN)
Spelling = tuple[str, str | Callable[[re.Match[str]], str]]
PLAIN: list[Spelling] = [
    (r"(?<=\d)\{,\}\s*(?=\d{3}(?!\d))", ""),  # 1{,}000
    (r"~", " "),
    (r"==", "="),
    (r"<=", r"\\leq "),
    (r">=", r"\\geq "),
    (r"(?<= )!=", r"\\neq "),  # 5!=120 is a factorial
    (rf"(?<![A-Za-z\\])(?:infinity|Infinity|inf){END}", r"\\infty"),
    (r"\*\*", "^"),
    (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
    (r"√\s*(?=[({])", r"\\sqrt"),
    (rf"(?<![A-Za-z\\])({NAMED}){END}(?!')", r"\\\1"),
    (r"\{:\}", ":"),
    (r"\s*([\^_])\s*", r"\1"),
    (r"(?<!\\)\{\s+", "{"),
    (r"\s+\}", "}"),
    (r"\^\{('+)\}", r"\1"),
]
LATEX: list[Spelling] = [
    (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),  # 1\,000
    (r"\\!\s*", ""),
    (rf"\\(?:left|right|[bB]igg?[lrm]?){END}\.?", ""),
    (rf"\\(?:{FONTS}){END}\s*", ""),
    (r"\\(?:underline|uline|fbox|framebox|ensuremath)\s*(?=\{)", ""),
    (r"\\(?:[hv]space\*?|phantom|tag\*?|label)\s*\{[^{}]*\}", " "),
    (r"\\math(?:rm|sf|tt)\s+(?=[A-Za-z0-9])", ""),
    (rf"\\(?:[lc]?dots|dots[cbmio]){END}", r"\\ldots "),
    (rf"\\(?:long)?rightarrow{END}", r"\\to "),
    (rf"\\(?:pounds|textsterling){END}", "£"),
    (rf"\\(?:text)?euro{END}", "€"),
    (rf"\\(?:text)?yen{END}", "¥"),
    (rf"\\(?:text|math)dollar{END}", r"\\$"),
    (r"\\boxed\s+\{", r"\\boxed{"),
    (r"\\(?:pmod|bmod|mod|pod)\s*(?:\{([^{}]*)\}|(\w+))", r"\\mod{\1\2}"),
    (r"\(\s*(?:\\text\{\s*mod\s*\}|\\?mod)\s*\{?(\w+)\}?\s*\)", r"\\mod{\1}"),
    (r"\\(?:text)?color\s*(?:\[\w+\])?\{[^{}]*\}\s*", ""),
    (r"\\\\\s*\[-?[\d.]+\s*[a-z]{2}\]", r"\\\\"),  # \\[4pt]
    (r"(?<!\\)\\[,;: \n]|\\q?quad(?:(?![A-Za-z])|(?=[A-Za-z][_=]))", " "),
    (rf"\\(?:[dtcsx]|nice)frac{END}", r"\\frac"),
    (rf"\\[dt]binom{END}", r"\\binom"),
    (r"\\mathbb\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))|\\R(?:eals)?(?![A-Za-z])", r"\\reals "),
    (r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|math(?:rm|sf|tt|bb)|mbox|operatorname\*?)\s*\{", r"\\text{"),
    (r"\\text\{\s*(€|£|¥|\\\$|\$)\s*\}", r"\1"),
    (rf"\\text\{{\s*\\?({NAMED})\s*\}}", r"\\\1 "),
    (r"\\text\{\s*(max|min|sec)\s*\}(?=\s*(?:\(|\\\{))", r"\\\1 "),
    (rf"\\text\{{\s*({ABROAD})\s*\}}|\\({ABROAD}){END}", lambda m: rf"\{FOREIGN[m[1] or m[2]]} "),
    (rf"\\lg{END}", r"\\log_{10}"),
    (rf"\\log_(?:\{{e\}}|e{END})", r"\\ln "),
    (rf"\\varnothing{END}", r"\\emptyset "),
    (rf"\\lbrace{END}", r"\\{"),
    (rf"\\rbrace{END}", r"\\}"),
    (r"\\\{\s*\\\}", r"\\emptyset "),
    (rf"\\(?:langle|lparen){END}", "("),
    (rf"\\(?:rangle|rparen){END}", ")"),
    (rf"\\(?:lvert|rvert|vert|mid){END}", "|"),
    (rf"\\(?:leqslant|leq|le){END}", r"\\leq "),
    (rf"\\(?:geqslant|geq|ge){END}", r"\\geq "),
    (rf"\\lt{END}", "<"),
    (rf"\\gt{END}", ">"),
    (rf"\\neq?{END}", r"\\neq "),
    (rf"\\big(cup|cap){END}", r"\\\1"),
    (rf"\\backslash{END}", r"\\setminus "),
    (rf"\\colon{END}", ":"),
    (rf"\\approxeq{END}|\\thickapprox{END}", r"\\approx "),
    (rf"\\degree{END}|\^\{{\s*\\circ\s*\}}", r"^\\circ"),
    (r"\\%", "%"),
    (r"\^(?:\{\s*((?:\\prime\s*)+)\}|(\\prime)\s*)", lambda m: "'" * m[0].count("prime")),
    (r"\\dot\s*(\d)", r"\\dot{\1}"),
    (r"(\d*\.\d*)\\dot\{(\d)\}(?:(\d*)\\dot\{(\d)\})?(?!\d)", r"\1\\overline{\2\3\4}"),
    (r"\\frac\s*([0-9])\s*([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
    (r"(\\frac\{[^{}]*\})\s*([0-9])(?![0-9])", r"\1{\2}"),
    (r"\\frac\s+\{", r"\\frac{"),
    (r"(\\frac\{[^{}]*\})\s+\{", r"\1{"),
    (r"(\\(?:frac|sqrt|text|begin|end))\s+(?=\{)", r"\1"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\[[^\[\]]*\])?\s*([0-9](?![0-9])|[A-Za-z](?![A-Za-z])|\\pi(?![A-Za-z]))", r"\\sqrt\1{\2}"),
    (r"\\sqrt\[([3579])\]\{-(\d+|\\frac\{\d+\}\{\d+\})\}(?!\^)", r"{-\\sqrt[\1]{\2}}"),  # the real root
    (r"_(?:\{\\text\{([^{}]*)\}\}|\\text\{([^{}]*)\}|\{\\(max|min|exp)\s*\}|\\(max|min)\s*)", r"_{\1\2\3\4}"),
]
LAST: list[Spelling] = [
    (r"([\^_])\{\s*([0-9A-Za-z])\s*\}(?!\s*[0-9])", r"\1\2"),
    (r"\s+", " "),
]
PLAIN_SPELLINGS, LATEX_SPELLINGS, LAST_SPELLINGS = (
    [(re.compile(pattern, re.ASCII), new) for pattern, new in listed] for listed in (PLAIN, LATEX, LAST)
)
WORDY = re.compile(r"[A-Za-z]+(?:(?:[ ,.]+|-(?=[a-z]{3}))[A-Za-z]+)*", re.ASCII)
RUN_OF_TWO = re.compile(r"[A-Za-z]{2}")
NO_SPACE = re.compile(r"(?<![0-9,]) (?=[0-9])|(?<![A-Za-z]) (?=[A-Za-z])| (?![0-9A-Za-z])")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # `\{` and `\}` are no braces
INFIX = re.compile(r"\\(over|choose)(?![A-Za-z])")


def matching(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`; -1 if none does."""
    depth = 0
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return -1


def peel(text: str) -> str:
    """The text without wrappers around the whole answer.

    Wrappers are dollars, \\( \\), \\[ \\], \\boxed, braces, bold marks, and punctuation at the end.
    Braces around several values stay, since they may be those of a set.
    """
    while True:
        before, text = text, text.strip()
        for opening, closing in WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
                text = inner.strip()
        if text.startswith(r"\boxed{") and matching(text, 6) == len(text) - 1:
            text = text[7:-1]
        if text.startswith("{") and "," not in text and matching(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text.endswith((".", ",", ";")) and not text.endswith(("...", r"\,", r"\;")):
            text = text[:-1]
        if text.endswith("\\") and not text.endswith("\\\\"):
            text = text[:-1]
        if text == before:
            return text


def undollared(text: str) -> str:
    """The text without dollars that come in pairs, since those delimit mathematics.

    An odd number of dollars means money: they become `\\$`. A comma between two formulas makes a
    list, never a thousands separator: it gets a space.
    """
    if r"\(" in text or r"\[" in text:
        text = re.sub(r"\\[)\]],\s*\\[(\[]", ", ", text)
        text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text) if r"\\[" not in text else text
    if "$" not in text:
        return text
    alone = re.findall(r"(?<!\\)\$", text)
    text = text if len(alone) % 2 else re.sub(r"(?<!\\)\$(\s*,)\s*\$", r"\1 ", text)
    return re.sub(r"(?<!\\)\$", r"\\$" if len(alone) % 2 else "", text)


def infixed(text: str) -> str:
    """The text with `{a \\over b}` as `\\frac{a}{b}` and `{a \\choose b}` as `\\binom{a}{b}`."""
    for _ in range(10):
        found = INFIX.search(text)
        if not found:
            return text
        start, end = _group_around(text, found.start())
        top, bottom = text[start : found.start()].strip(), text[found.end() : end].strip()
        command = r"\frac" if found[1] == "over" else r"\binom"
        text = f"{text[:start]}{command}{{{top}}}{{{bottom}}}{text[end:]}"
    return text


def _group_around(text: str, at: int) -> tuple[int, int]:
    """Where the braces around `at` begin and end, or the whole text."""
    start, end, depth = at, at, 0
    while start > 0 and (depth or text[start - 1] != "{"):
        start -= 1
        depth += (text[start] == "}") - (text[start] == "{")
    depth = 0
    while end < len(text) and (depth or text[end] != "}"):
        depth += (text[end] == "{") - (text[end] == "}")
        end += 1
    return start, end


def tidy(text: str) -> str:
    """The answer in one spelling. Spaces are single, and kept where they may matter.

    Applied to its own result, it changes nothing.
    """
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^{" + m[0].translate(RAISED) + "}", text)
        text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(LOWERED) + "}", text).translate(TYPOGRAPHY)
    text = undollared(peel(text))
    for pattern, new in PLAIN_SPELLINGS:
        text = pattern.sub(new, text)
    if "\\" in text:
        text = infixed(text)
        for pattern, new in LATEX_SPELLINGS:
            text = pattern.sub(new, text)
    for pattern, new in LAST_SPELLINGS:
        text = pattern.sub(new, text)
    return peel(text)


def squeezed(text: str) -> str:
    """The text without spaces that mean nothing.

    A space stays between two digits, between two letters, and between a comma and a digit.
    """
    text = text.strip()
    return NO_SPACE.sub("", text) if " " in text else text


def unwrapped(text: str) -> str:
    """The text with each `\\text{...}` replaced by its content."""
    return re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)).strip()


def wordy(text: str) -> bool:
    """Whether a text is made of words: of letters, with two beside each other somewhere."""
    return WORDY.fullmatch(text) is not None and RUN_OF_TWO.search(text) is not None


def words(text: str) -> str:
    """The text for a comparison of words: without wrappers, quotes and punctuation around it.

    The first letter of a word of four, or of three with a vowel, loses its case; so do YES, NO,
    TRUE and FALSE. Other letters keep theirs: they may be variables or choices.
    """
    text = unwrapped(text).strip(' "`.?:,') if "!" in text or "'" in text else unwrapped(text).strip(" \"'`.!?:,")
    if not WORDY.fullmatch(text):
        return squeezed(text)
    return re.sub(r"[A-Za-z]+", lambda m: _plain_word(m[0]), text)


def _plain_word(word: str) -> str:
    lower = word[0].lower() + word[1:]
    if word.lower() in ("yes", "no", "true", "false", "none"):
        return word.lower()
    return lower if lower.islower() and (len(word) > 3 or (len(word) == 3 and set(lower[1:]) & set("aeiou"))) else word
