"""Policy and value on one base: a worker with the adapters of both, so that two copies of the base remain, trainer and engine."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.models.model import _get_critic_model
from torch import nn
from transformers import AutoModel

from rankrl.ppo.critic import ValueWorker
from rankrl.ppo.policy import PolicyWorker
from rankrl.ppo.strategy import AdapterStrategy


def critic_on(model: nn.Module, value_head_prefix: str) -> nn.Module:
    """Upstream's critic with the decoder of a causal language model in place of one of its own."""
    config = model.config
    config.normalize_reward = False
    base = AutoModel._model_mapping[type(config)]
    with torch.device("meta"):
        critic = _get_critic_model(base.__base__, base, value_head_prefix)(config)
    setattr(critic, critic.base_model_prefix, model.base_model)
    return critic


class TrainerWorker(PolicyWorker):
    """A policy worker with a value worker inside that shares its base, its adapters' host and its process group."""

    def init_model_from_pretrained(
        self, strategy: AdapterStrategy, path: str, modules: dict[str, list[int]], layers: int
    ) -> None:
        super().init_model_from_pretrained(strategy, path, modules, layers)
        self.value = ValueWorker.__new__(ValueWorker)  # its own __init__ would join a process group
        self.value.strategy = strategy
        self.value.hold(critic_on(self.host.base, strategy.args.ds.value_head_prefix), self.host)

    def as_value(self, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A call to the value worker."""
        return getattr(self.value, method)(*args, **kwargs)
