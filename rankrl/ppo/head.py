"""The head of a policy: log-probabilities of the tokens that are asked for, a few at a time.

The logits of one long sequence outweigh everything else on a GPU: 151,936 numbers a token at
Qwen3-8B, several times over. Here they exist for a bounded number of tokens at a time, and for
response tokens alone; the backward pass makes them again. Each token's log-probability equals
that of the whole row of logits up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from openrlhf.models.utils import compute_entropy, log_probs_from_logits
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from rankrl.recipe.memory import LOGITS_AT_ONCE


@dataclass
class Question:
    """The tokens whose log-probabilities a forward pass is to give."""

    targets_BT: torch.Tensor
    """The token that follows each position."""
    asked_BT: torch.Tensor
    """At which positions it is asked for, N in all (bool)."""
    temperature: float
    entropies: list[torch.Tensor] | None = None
    """Filled with the entropies (nats) of the distributions at these positions, if it is a list."""
    done: bool = field(default=False, init=False)


class TokenHead(nn.Module):
    """A linear head with the weights of `head`.

    Inside `answering` it gives log-probabilities [N], fp32, in place of logits.
    """

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.question: Question | None = None

    @contextmanager
    def answering(self, question: Question) -> Iterator[None]:
        self.question = question
        try:
            yield
        finally:
            self.question, question.done = None, True

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [.., V] of hidden states [.., H], or the answer to the question [N]."""
        asked = self.question
        if asked is None:
            return linear(hidden, self.weight, self.bias)
        return self.answer(hidden[asked.asked_BT], asked.targets_BT[asked.asked_BT], asked)

    def answer(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, asked: Question) -> torch.Tensor:
        """Log-probabilities [N] of the targets, part by part."""
        tokens = max(1, LOGITS_AT_ONCE // len(self.weight))
        if len(targets_N) <= tokens:
            return self._logprobs(hidden_NH, targets_N, asked)
        parts = zip(hidden_NH.split(tokens), targets_N.split(tokens), strict=True)
        if not (torch.is_grad_enabled() and hidden_NH.requires_grad):
            return torch.cat([self._logprobs(*part, asked) for part in parts])
        # reentrant: a part is made without a graph, and again with one when its gradient is due
        return torch.cat([checkpoint(self._logprobs, *part, asked, use_reentrant=True) for part in parts])

    def _logprobs(self, hidden_NH: torch.Tensor, targets_N: torch.Tensor, asked: Question) -> torch.Tensor:
        logits_NV = linear(hidden_NH, self.weight, self.bias).float()
        if asked.temperature != 1.0:
            logits_NV = logits_NV / asked.temperature
        if asked.entropies is not None and not asked.done:
            with torch.no_grad():
                asked.entropies.append(compute_entropy(logits_NV))
        return log_probs_from_logits(logits_NV, targets_N)


def token_head(model: Any) -> TokenHead | None:
    """Replaces the model's head by a `TokenHead`, if it is a linear layer, and returns that."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None
    found = TokenHead(head)
    model.set_output_embeddings(found)
    return found


@torch.no_grad()
def ends_with(model: nn.Module, head: TokenHead, device: Any) -> bool:
    """Whether the model's logits are what its head gives, as it gives them.

    Some models scale or cap them afterwards (Granite, Cohere, Gemma).
    """
    seen: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        logits = model(torch.arange(4, device=device)[None]).logits
    finally:
        handle.remove()
    return len(seen) == 1 and torch.equal(logits.to(seen[0].dtype), seen[0])
