"""The actor of the policy workers: OpenRLHF's, on a frozen base that DeepSpeed wraps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from openrlhf.models import Actor
from torch import nn

from rankrl.ppo.head import Question, ends_with, token_head
from rankrl.ppo.strategy import AdapterStrategy


class AdapterActor(Actor):
    """OpenRLHF's actor on a frozen base.

    DeepSpeed wraps the base; adapters are added to it afterwards.
    """

    model: Any

    def __init__(self, path: str, args: SimpleNamespace, strategy: AdapterStrategy):
        super().__init__(
            path,
            attn_implementation=args.ds.attn_implementation,
            param_dtype=args.ds.param_dtype,
            ds_config=strategy.get_ds_eval_config(),
            temperature=args.rollout.temperature,
        )
        if getattr(self.model.config, "output_router_logits", False):
            self.model.config.output_router_logits = False  # upstream asks for them; no loss here reads them
        if args.actor.gradient_checkpointing_enable:
            self.model.enable_input_require_grads()
            self.gradient_checkpointing_enable({"use_reentrant": args.actor.gradient_checkpointing_reentrant})
        self.model.requires_grad_(False).to(getattr(torch, strategy.model.dtype))
        head = token_head(self.model)  # before ZeRO puts its hooks on modules
        self.engine = (strategy.prepare(self.model),)  # keeps ZeRO's hooks on the base alive; a tuple, so no submodule
        usable = head and ends_with(self.model, head, torch.cuda.current_device())
        self.heads = (head,) if head and usable else ()  # a tuple, so no submodule
        self.rows = strategy.rows(self.model.base_model)

    def forward(
        self,
        sequences: torch.Tensor,
        action_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_output: bool = False,
        return_entropy: bool = False,
        **rest: Any,
    ) -> Any:
        """Upstream's log-probabilities [B, A] and entropies, without logits of a whole batch.

        Both are 0 where `action_mask` is. Where the head cannot be asked for tokens, and for
        other uses, it is upstream's own pass.
        """
        if not self.heads or action_mask is None or attention_mask is None:
            return super().forward(
                sequences, action_mask, attention_mask, return_output, return_entropy=return_entropy, **rest
            )
        actions_BA = action_mask.bool()
        asked_BT = torch.zeros_like(sequences, dtype=torch.bool)
        asked_BT[:, -1 - actions_BA.shape[1] : -1] = actions_BA  # a position predicts the token after it
        question = Question(sequences.roll(-1, dims=1), asked_BT, self.temperature, [] if return_entropy else None)
        position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        with self.heads[0].answering(question):
            output = self.model(sequences, attention_mask=attention_mask, position_ids=position_ids)
        zeros_BA = torch.zeros(actions_BA.shape, device=sequences.device)
        logprobs_BA = zeros_BA.masked_scatter(actions_BA, output["logits"])
        if question.entropies is not None:
            output.entropy = zeros_BA.masked_scatter(actions_BA, torch.cat([*question.entropies, zeros_BA[0, :0]]))
        return (logprobs_BA, output) if return_output else logprobs_BA

    @contextmanager
    def alone(self, base: nn.Module) -> Iterator[None]:
        """Context in which the actor's model is `base`, without PEFT's wrapper.

        No sample's tokens are computed together with another's.
        """
        model, self.model = self.model, base
        if self.rows:
            self.rows.on = False
        try:
            yield
        finally:
            self.model = model
            if self.rows:
                self.rows.on = True
