"""Prompts in the forms that are compared: normalised tokens, 64-bit hashes, shingles.

For a million prompts, the chance that any two different ones share a hash is 3e-8.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
from xxhash import xxh3_64_intdigest

SHINGLE = 3  # tokens
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
NOISE = re.compile(r"\\(?:(?:left|right|displaystyle|q?quad)(?![a-z])|[,!;:()\[\]$]|\s)|[$,;?\"“”]")
ALIKE = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\leqslant": "\\le",
    "\\geqslant": "\\ge",
    "\\leq": "\\le",
    "\\geq": "\\ge",
    "\u2019": "'",
    "\u2212": "-",
    "\\%": "%",
}
ALIKE_ANY = re.compile("|".join(map(re.escape, ALIKE)))
SINGLE = re.compile(r"\{\s*([a-z0-9.]+)\s*\}")
TOKEN = re.compile(r"[0-9]*\.?[0-9]+|[a-z]+|[^\s.]")
DIGITS = frozenset("0123456789")
INSTRUCTIONS = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem.",
    'Remember to put your answer on its own line after "Answer:".',
    "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.",
    "Return your final response within \\boxed{}.",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Let's think step by step and output the final answer within \\boxed{}.",
)


def bare(prompt: str) -> str:
    """The question without the instructions of its source; the scale has its own."""
    for text in INSTRUCTIONS:
        prompt = prompt.strip().removeprefix(text).removesuffix(text)
    return prompt.strip()


def tokens(text: str) -> list[str]:
    """Words, numbers and operators in lower case, without punctuation and spacing.

    LaTeX's different spellings of one thing become the same.
    """
    plain = ALIKE_ANY.sub(lambda found: ALIKE[found[0]], unicodedata.normalize("NFKC", text))
    plain = NOISE.sub(" ", THOUSANDS.sub("", plain)).lower()
    return TOKEN.findall(SINGLE.sub(r" \1 ", plain))


def hashed(text: str) -> int:
    return xxh3_64_intdigest(text.encode())


def key(words: list[str]) -> int:
    """The hash of a text's tokens: equal where only case, punctuation and spacing differ."""
    return hashed(" ".join(words))


def numbers(words: list[str]) -> int:
    """The hash of the numbers among the tokens, in any order."""
    return key(sorted(word for word in words if word[-1] in DIGITS))


def mixed(values: np.ndarray) -> np.ndarray:
    """Each 64-bit integer replaced by another, one to one and seemingly at random.

    The finaliser of SplitMix64 (Steele et al. 2014).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the distinct shingles of each text, flat and sorted; how many each text has).

    A shingle is a run of SHINGLE tokens; a text of fewer tokens is one shingle.
    """
    padded = [words + ["\0"] * (SHINGLE - len(words)) for words in texts]
    lengths = np.array([len(words) for words in padded])
    # Encoding all tokens at once takes a third of the time of one by one.
    encoded = "\n".join("\n".join(words) for words in padded).encode().split(b"\n")
    hashes = np.array([xxh3_64_intdigest(word) for word in encoded], dtype=np.uint64)
    rolled = mixed(hashes)
    for ahead in range(1, SHINGLE):
        rolled[:-ahead] = mixed(rolled[:-ahead] * np.uint64(31) + hashes[ahead:])
    owner = np.repeat(np.arange(len(texts)), lengths)
    place = np.arange(len(hashes)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    whole = place <= lengths[owner] - SHINGLE
    owner, rolled = owner[whole], rolled[whole]
    order = np.lexsort((rolled, owner))
    owner, rolled = owner[order], rolled[order]
    first = np.ones(len(rolled), dtype=bool)
    first[1:] = (owner[1:] != owner[:-1]) | (rolled[1:] != rolled[:-1])
    return rolled[first], np.bincount(owner[first], minlength=len(texts))
