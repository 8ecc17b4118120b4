"""A few training samples of a PPO step, as lines of rollouts.jsonl."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience

from rankrl.ppo.rollout import Sample
from rankrl.report.model_text import shortened, storable

MOST_A_STEP, MOST_STEPS = 4, 500
LONGEST = {"item_id": 200, "source": 200, "prompt": 2000, "gold": 500, "response": 4000}
"""Characters that are kept of a text: start and end of what is longer. With the numbers above they
bound the file, whatever a model writes."""


def keeps_examples(step: int, steps: int) -> bool:
    """Whether samples of PPO step `step` (from 1) are kept.

    They are of every step, of every second one in runs of more than MOST_STEPS, and so on.
    """
    return (step - 1) % -(-steps // MOST_STEPS) == 0


def examples(step: int, samples: list[Sample], experiences: list[Experience]) -> list[dict[str, Any]]:
    """The lines of PPO step `step` (from 1): the first sample of each of its first few prompts.

    Prompts are in the order of the seed, so the choice is one by lot that favours no verdict.
    `experiences` are those of the rollout `samples`, with advantages.
    """
    chosen = [i for i, sample in enumerate(samples) if sample.index == 0][:MOST_A_STEP]
    outcomes = _outcomes(experiences)
    return [_line(step, samples[i]) | outcomes[i] for i in chosen]


def _line(step: int, sample: Sample) -> dict[str, Any]:
    item = sample.item
    texts = {
        "item_id": item.item_id,
        "source": item.source,
        "prompt": item.prompt,
        "gold": item.answer,
        "response": sample.response or "",
    }
    kept = {key: storable(shortened(text, LONGEST[key])) for key, text in texts.items()}
    return {"step": step, "sample": sample.index, **kept, "verdict": sample.verdict.outcome}


def _outcomes(experiences: list[Experience]) -> dict[int, dict[str, float]]:
    """Place of a sample in the rollout -> its shaped reward, and its advantage.

    The advantage is the mean over the response tokens, as the policy's loss sees it: normalised
    over the rollout.
    """
    found: dict[int, dict[str, float]] = {}
    for batch in experiences:
        mask_BA = batch.action_mask.float()
        advantages_B = (batch.advantages * mask_BA).sum(1) / mask_BA.sum(1).clamp(min=1)
        rows = zip(batch.index, batch.rewards.tolist(), advantages_B.tolist(), strict=True)
        found |= {i: {"reward": reward, "advantage": advantage} for i, reward, advantage in rows}
    return found
