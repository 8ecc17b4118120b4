"""The sections `placement` and `engine` of a scale: which processes run on what, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from rankrl.recipe.require import require

DEVICE_NAMES = ("h100", "cpu")
MOST_COLOCATED = 0.7
"""Largest share of a GPU that an engine may take if trainers are on it as well."""


@dataclass(frozen=True)
class Placement:
    """Which process groups run, and on what.

    On a machine without GPUs the counts are processes.
    """

    nodes: int = 1
    """Number of nodes of the policy workers, and of the value workers."""
    policy_per_node: int = 1
    """Policy workers (GPUs) per node."""
    critic_per_node: int = 1
    """Value workers (GPUs) per node. 0: value adapters are on the base of the policy workers, which
    saves a copy of the base. Without a critic (`advantage.method`) there are none in any case."""
    policy_without_critic: Optional[int] = None
    """Policy workers (GPUs) per node of a sweep without critics, which has no value workers; null:
    `policy_per_node`, and their GPUs stay free. Colocated workers are `policy_per_node` anyway."""
    engines: int = 1
    """Number of vLLM engines."""
    tensor_parallel: int = 1
    """GPUs per engine."""
    engine_memory: float = 0.9
    """Share of a GPU's memory that vLLM takes on an engine's GPUs."""
    colocated: bool = False
    """Policy, value and engines share the same GPUs, as many as there are policy workers, instead
    of each process having a GPU of its own. This takes fewer GPUs per run, but an engine and the
    workers on its GPU wait for each other."""
    device: str = "h100"
    """What a process computes on, for the estimates of `rankrl plan`: h100 or cpu."""
    micro_batch: int = 1
    """Most samples per worker and forward pass. The largest number up to this that divides a
    worker's share is used."""
    micro_batch_tokens: Optional[int] = None
    """Most tokens per worker and forward pass, in place of a number of samples. The samples are
    packed into one row, without padding. For long responses: fewer passes, so that ZeRO-3 gathers
    the base less often."""

    @property
    def policy_workers(self) -> int:
        """Number of policy workers on all nodes."""
        return self.nodes * self.policy_per_node

    @property
    def value_workers(self) -> int:
        """Number of value workers on all nodes, those inside policy workers included."""
        return self.nodes * (self.critic_per_node or self.policy_per_node)

    @property
    def processes(self) -> int:
        """Number of worker and engine processes."""
        return self.nodes * (self.policy_per_node + self.critic_per_node) + self.engines * self.tensor_parallel

    @property
    def gpus(self) -> int:
        """Number of GPUs of a run. Without GPUs, Ray counts as many pretended ones."""
        return self.policy_workers if self.colocated else self.processes

    @property
    def engines_only(self) -> Placement:
        """The same engines without trainers, on GPUs of their own: for evaluation."""
        return replace(self, policy_per_node=0, critic_per_node=0, colocated=False)

    def check(self) -> None:
        """Raises ValueError for a count or share that is impossible."""
        for name in ("nodes", "policy_per_node", "engines", "tensor_parallel", "micro_batch"):
            value = getattr(self, name)
            require(value >= 1, f"placement.{name}", value, "an integer of at least 1")
        critics, policy = self.critic_per_node, self.policy_without_critic
        require(critics >= 0, "placement.critic_per_node", critics, "an integer of at least 0")
        fine = policy is None or policy >= 1
        require(fine, "placement.policy_without_critic", policy, "an integer of at least 1, or null")
        require(self.device in DEVICE_NAMES, "placement.device", self.device, " or ".join(DEVICE_NAMES))
        require(0 < self.engine_memory < 1, "placement.engine_memory", self.engine_memory, "above 0 and below 1")
        self._check_colocated()

    def _check_colocated(self) -> None:
        if not self.colocated:
            return
        engines = self.engines * self.tensor_parallel
        wanted = f"placement.colocated: policy, value and engines on the same {self.policy_workers} GPUs"
        require(
            engines == self.policy_workers,
            "placement.engines",
            self.engines,
            "engines * tensor_parallel = policy workers",
            wanted,
        )
        critics = self.critic_per_node
        require(
            critics in (0, self.policy_per_node), "placement.critic_per_node", critics, "0, or policy_per_node", wanted
        )
        memory = self.engine_memory
        require(memory <= MOST_COLOCATED, "placement.engine_memory", memory, f"at most {MOST_COLOCATED}", wanted)


@dataclass(frozen=True)
class Engine:
    """Switches of the rollout engines."""

    batch_invariant: bool = False
    """Samples do not depend on what else an engine decodes, so that packed runs equal lone ones on
    GPUs too (VLLM_BATCH_INVARIANT); decoding is slower. Engines on CPUs are so anyway."""
    sleep: bool = False
    """A colocated engine gives its memory to the workers while they train. For one run at a time,
    since the engine answers no other meanwhile."""
    one_step_off: bool = False
    """Engines sample a rollout while the workers learn from the one before, so that neither waits
    for the other in a single run. Samples are one step old: with a `correction`. Packed runs fill
    the gap without that."""

    def check(self, place: Placement) -> None:
        """Raises ValueError for a switch that could have no effect."""
        gpu = "without a GPU, set scale.placement.device where there is one"
        for name in ("batch_invariant", "sleep"):
            require(not getattr(self, name) or place.device != "cpu", f"engine.{name}", True, "false", gpu)
        why = "on shared GPUs one of the two waits anyway"
        fine = not (self.one_step_off and place.colocated)
        require(fine, "engine.one_step_off", True, "false with placement.colocated", why)
        why = "an engine with GPUs of its own has nobody to give its memory to"
        require(not self.sleep or place.colocated, "engine.sleep", True, "false unless placement.colocated", why)
