"""The reward trained on: correctness, a small bonus for the box, and a length term. The score is the verdict alone."""

from __future__ import annotations

from rankrl.recipe.schema import Reward
from rankrl.reward.grade import Verdict


def shaped(verdict: Verdict, response_tokens: int, longest_tokens: int, weights: Reward) -> float:
    """1[correct] +- boxed_bonus - length_penalty * (share of the way from where it begins to the longest response).

    With 2 boxed_bonus + length_penalty < 1 (checked when the recipe is loaded), right always beats wrong.
    """
    return (
        float(verdict.correct)
        + weights.boxed_bonus * (1 if verdict.boxed else -1)
        - weights.length_penalty * beyond(response_tokens, longest_tokens, weights)
    )


def beyond(response_tokens: int, longest_tokens: int, weights: Reward) -> float:
    """0 up to the length that costs nothing, then linearly up to 1 at the longest response (DAPO, arXiv 2503.14476, eq. 13)."""
    if weights.length == "none":
        return 0.0
    buffer_tokens = weights.overlong_buffer_tokens or (1 - weights.length_free) * longest_tokens
    return min(max(1 - (longest_tokens - response_tokens) / buffer_tokens, 0.0), 1.0)
