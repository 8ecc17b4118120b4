"""The OpenRLHF command line and argument namespace of a run.

What a recipe or scale decides is passed explicitly; everything else keeps OpenRLHF's default.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rankrl.ppo.upstream import parse_arguments
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.plan import Run, micro_batch

CORRECTIONS = {"token_clip": ("token", "clip"), "token_mask": ("token", "mask"), "sequence_mask": ("seq", "mask")}
"""Method of correction -> OpenRLHF's level and mode. Its gate reads the ratio by default."""
ESTIMATORS = {
    "gae": "gae",
    "group_mean": "dr_grpo",
    "rloo": "rloo",
    "group_norm": "group_norm",
    "batch_mean": "flash_reinforce",
    "shrinkage": "rloo",  # with a baseline of our own, like history: ppo/experience.py
    "history": "reinforce",  # not rloo: that one refuses single responses
}
"""advantage.method -> OpenRLHF's advantage estimator."""
LR_SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine_with_min_lr"}


def command_line(run: Run, model: str) -> list[str]:
    """OpenRLHF's command-line arguments to train `run` on the model in directory `model`."""
    recipe, scale, place = run.recipe, run.scale, run.scale.placement
    micro = micro_batch(run)
    stage = deepspeed_config(scale)["zero_optimization"]["stage"]
    options = {
        "actor.model_name_or_path": model,
        "actor.num_nodes": place.nodes,
        "actor.num_gpus_per_node": place.policy_per_node,
        "ref.num_nodes": place.nodes,
        "ref.num_gpus_per_node": place.policy_per_node,
        "vllm.num_engines": place.engines,
        "vllm.tensor_parallel_size": place.tensor_parallel,
        "vllm.gpu_memory_utilization": place.engine_memory,
        "ds.zero_stage": stage,
        "ds.attn_implementation": scale.model.attention,
        "ds.param_dtype": "fp16" if scale.model.dtype == "float16" else "bf16",  # in which weights are read
        "train.seed": run.seed,
        "train.batch_size": run.train_batch,
        "train.micro_batch_size": micro,
        "rollout.batch_size": run.prompts,
        "rollout.vllm_generate_batch_size": run.prompts,
        "rollout.micro_batch_size": micro,
        "rollout.n_samples_per_prompt": recipe.samples_per_prompt,
        "rollout.max_new_tokens": scale.lengths.response_tokens,
        "rollout.temperature": scale.sampling.temperature,
        "data.max_len": scale.lengths.prompt_tokens + scale.lengths.response_tokens,
        "algo.advantage.estimator": ESTIMATORS[recipe.advantage.method],
        "algo.advantage.gamma": recipe.gamma,
        "algo.advantage.lambd": recipe.gae_lambda,
        "algo.kl.init_coef": run["kl"],  # the first coefficient; the loop's KLController has the last word each step
        "actor.adam.lr": run["lr"],
        "actor.lr_scheduler": LR_SCHEDULERS[recipe.lr_shape],
        "actor.lr_warmup_ratio": run["warmup"],
        "actor.max_norm": run["max_norm"],
        "actor.entropy_coef": 0.0,  # 0 logs the entropy without rewarding it
        **(_critic_options(run, model) if run.critic else {}),
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    # the range of the first step; the loop's set_clip has the last word each step
    words += ["--actor.eps_clip_low_high", str(run["clip_low"]), str(run["clip_high"])]
    optimizer = recipe.optimizer
    words += ["--actor.adam.betas", *map(str, optimizer.betas), "--actor.adam.eps", str(optimizer.eps)]
    words += ["--actor.adam.weight_decay", str(optimizer.weight_decay)]
    if recipe.dual_clip is not None:
        words += ["--actor.dual_clip", str(recipe.dual_clip)]
    if recipe.kl_anchor.in_loss:
        words += ["--algo.kl.use_loss", "--algo.kl.estimator", recipe.kl_anchor.used_estimator]
    correction = recipe.correction
    if correction.method in CORRECTIONS:
        level, mode = CORRECTIONS[correction.method]
        words += ["--algo.advantage.is_correction_level", level, "--algo.advantage.is_correction_mode", mode]
        words += ["--algo.advantage.is_correction_threshold", str(correction.low), str(correction.high)]
    if scale.model.gradient_checkpointing:  # reentrant: the only kind that TRL trusts with PEFT under ZeRO-3
        words += ["--actor.gradient_checkpointing_enable", "--actor.gradient_checkpointing_reentrant"]
    return words


def _critic_options(run: Run, model: str) -> dict[str, Any]:
    """OpenRLHF's options of the critic."""
    critic, scale, place = run.recipe.critic, run.scale, run.scale.placement
    return {
        "critic.model_name_or_path": model,
        "critic.num_nodes": place.nodes,
        "critic.num_gpus_per_node": place.critic_per_node or place.policy_per_node,
        "critic.adam.lr": critic.lr or scale.reference.critic_lr,
        "critic.lr_scheduler": "constant_with_warmup",
        "critic.max_norm": critic.max_norm,
        "critic.value_clip": critic.value_clip,
    }


def arguments(run: Run, model: str) -> SimpleNamespace:
    """OpenRLHF's checked argument namespace for `run` on the model in directory `model`.

    Raises ValueError as `parse_arguments` does.
    """
    return parse_arguments(command_line(run, model))
