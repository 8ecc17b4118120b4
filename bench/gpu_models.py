"""What bench/gpu_parts.py measures on: models of random weights, a worker and an engine of them."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def seconds(work: Callable[[], Any], times: int) -> float:
    """Median seconds of `work`, which may leave kernels running on the GPU."""
    import torch

    took = []
    for _ in range(times):
        torch.cuda.synchronize()
        start_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - start_s)
    return sorted(took)[len(took) // 2]


SHAPES: dict[str, dict[str, int | bool]] = {
    "Qwen3-1.7B": {"hidden_size": 2048, "num_hidden_layers": 28, "intermediate_size": 6144, "num_attention_heads": 16,
                   "max_window_layers": 28, "tie_word_embeddings": True},
    "Qwen3-8B": {},
}  # fmt: skip
"""Shape -> what its config.json has other than Qwen3-8B's."""
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "max_window_layers": 2}  # fmt: skip


@contextmanager
def shaped(name: str) -> Iterator[tuple[Path, Any]]:
    """(directory with random weights, scale) of a shape, or of a tiny one without a GPU."""
    gpu = on_gpu()
    home = next(d for d in ("/dev/shm", tempfile.gettempdir()) if not gpu or shutil.disk_usage(d).free > 20e9)
    with tempfile.TemporaryDirectory(dir=home) as directory:
        yield random_model(Path(directory), SHAPES[name] if gpu else TINY, gpu)


def random_model(directory: Path, changes: dict[str, Any], gpu: bool) -> tuple[Path, Any]:
    """(directory of a model with random weights of a shape, the scale of qwen3-8b on it)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from rankrl.recipe.load import load_scale

    scale = load_scale("qwen3-8b")
    file = ROOT / "rankrl" / "scales" / "models" / "Qwen" / "Qwen3-8B.json"
    config = AutoConfig.for_model(**{**json.loads(file.read_text()), **changes})
    device = "cuda" if gpu else "cpu"
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1) if "norm" in name else p.normal_(0, 0.02)
    to = directory / "model"
    shutil.rmtree(to, ignore_errors=True)
    model.save_pretrained(to)
    linears = {n.rpartition(".")[2]: [m.in_features, m.out_features] for n, m in model.model.named_modules()
               if isinstance(m, torch.nn.Linear)}  # fmt: skip
    size = sum(p.numel() for p in model.parameters())
    dtype = "bfloat16" if gpu else "float32"
    own = replace(scale.model, path=str(to), layers=config.num_hidden_layers, modules=linears, base_params=size,
                  dtype=dtype, attention="sdpa", revision=None)  # fmt: skip
    one = replace(
        scale.placement, policy_per_node=1, critic_per_node=0, policy_without_critic=None, engines=1, engine_memory=0.6
    )
    return to, replace(scale, model=own, placement=one)


def policy_worker(run: Any, path: Path, place: tuple = (1, 0, "127.0.0.1", None)) -> Any:
    """OpenRLHF's policy worker in this process, without Ray, vLLM or a value worker.

    `place`: number of workers, this one's, and address and port of the first.
    """
    from rankrl.ppo.arguments import arguments
    from rankrl.ppo.policy import PolicyWorker
    from rankrl.ppo.strategy import AdapterStrategy
    from rankrl.recipe.deepspeed import deepspeed_config

    strategy = AdapterStrategy(arguments(run, str(path)), deepspeed_config(run.scale), run.scale)
    worker = PolicyWorker(*place)
    worker.init_model_from_pretrained(strategy, str(path), run.scale.model.modules, run.scale.model.layers)
    return worker


def attach(worker: Any, run: Any, rank: int) -> str:
    """Adds an adapter that takes an optimizer step at every micro-batch. Returns its name."""
    from rankrl.ppo.workers import AdapterSpec
    from rankrl.recipe.rank_table import uniform

    name = f"r{rank}"
    table = uniform(worker.host.shapes, rank, lambda _: run["alpha"])
    worker.attach(AdapterSpec(name, worker.strategy.args, table, 0, 1.0, 1000, 1))
    return name


def experience(samples: int, prompt: int, answer: int, vocabulary: int) -> Any:
    """A batch of random tokens and advantages, in the form that the update takes."""
    import torch
    from openrlhf.trainer.ppo_utils.experience import Experience

    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, vocabulary, (samples, prompt + answer), generator=draw)
    logprobs = torch.full((samples, answer), -1.0)
    made = Experience(
        sequences=tokens,
        attention_mask=torch.ones_like(tokens),
        action_mask=torch.ones(samples, answer, dtype=torch.bool),
        action_log_probs=logprobs,
        base_action_log_probs=logprobs,
        rollout_log_probs=logprobs,
        advantages=torch.randn(samples, answer, generator=draw),
    )
    made.to_device("cuda" if on_gpu() else "cpu")
    return made


def train(worker: Any, name: str, batch: Any, times: int) -> tuple[float, float]:
    """(median seconds of an optimizer step on the batch, last gradient norm)."""
    with worker.activate(name) as run:
        run.trainer.strategy.accumulated_gradient = 1
        run.optimizer.new_rollout(1)
        old = worker.actor(batch.sequences, batch.action_mask, batch.attention_mask).detach()
        batch.action_log_probs = batch.rollout_log_probs = old
        took_s = seconds(lambda: run.trainer.training_step(batch, 0.0, 0), times)
        return took_s, run.optimizer.grad_norm


def engine_of(scale: Any, path: Path) -> Any:
    """A rollout engine without trainers, with a slot for an adapter of up to rank 256."""
    from rankrl.sweep.local import prepare_process

    prepare_process(1)
    from rankrl.ppo.services import engines_alone

    (engine,) = engines_alone(scale, str(path), 256 if on_gpu() else 32)
    return engine


def random_adapter(scale: Any, rank: int) -> Any:
    """An adapter of random weights, as a worker sends it."""
    import torch

    from rankrl.ppo.serving import pack

    draw = torch.Generator().manual_seed(rank)
    factors, scales = {}, {}
    for layer in range(scale.model.layers):
        for name, (d_in, d_out) in scale.model.modules.items():
            block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            module = f"model.layers.{layer}.{block}.{name}"
            factors[module] = (0.01 * torch.randn(rank, d_in, generator=draw), torch.zeros(d_out, rank))
            scales[module] = 1.0
    return pack(factors, scales, scale.model.dtype)


def model_vocabulary(path: Path) -> int:
    return int(json.loads((path / "config.json").read_text())["vocab_size"])
