"""The internals of OpenRLHF, PEFT and vLLM that rankrl depends on, so that an upgrade fails loudly.

No Ray cluster.
"""

import ast
import importlib.util
import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import runs_of

from rankrl.ppo import imports, upstream
from rankrl.ppo.arguments import LR_SCHEDULERS, arguments, command_line

pytestmark = pytest.mark.usefixtures("stack")


def test_versions_are_the_pinned_ones(monkeypatch):
    upstream.check_version()
    monkeypatch.setattr(upstream, "version", lambda name: "0.12.0")
    with pytest.raises(RuntimeError, match=r"openrlhf 0\.12\.0 is installed"):
        upstream.check_version()


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_upstream_is_imported_without_flash_attn():
    """After the import flash-attn still counts as missing, and is missed where it is used."""
    from openrlhf.models import ring_attn_utils
    from transformers.utils import is_flash_attn_2_available

    for name in ("pad_input", "all_gather"):
        with pytest.raises(ModuleNotFoundError, match="flash_attn"):
            getattr(ring_attn_utils, name)(None)
    assert importlib.util.find_spec("flash_attn") is None and not is_flash_attn_2_available()


def imported_by(file: Path) -> set[str]:
    """Modules, and names taken from modules, that the top of a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            package = file.parents[node.level - 1] if node.level else None
            root = file.parents[len(file.parts) - file.parts.index("site-packages") - 2] if package else None
            here = ".".join(package.relative_to(root).parts) + "." if package else ""
            found |= {here + (node.module or "")} | {f"{here}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("importer", imports.LATER)
def test_what_waits_is_still_imported_there(importer):
    """An upgrade that moves an import statement makes every start dearer, and says nothing."""
    spec = importlib.util.find_spec(importer)
    assert spec is not None, f"{importer} is gone: adapt rankrl/ppo/imports.py"
    gone = {*imports.LATER[importer]} - imported_by(Path(spec.origin))
    assert not gone, f"{importer} no longer imports {gone}: adapt rankrl/ppo/imports.py"


PROCESSES = {
    "controller": ("import rankrl.sweep.bench", {"deepspeed", "vllm"}),
    "trainer": ("from rankrl.ppo import critic, policy; cpu.use_deepspeed()", {"deepspeed.compile.backend", "vllm"}),
    "engine": ("from rankrl.ppo import engine; import vllm; vllm.LLMEngine", {"deepspeed", "scipy.signal"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("code", "unused"), PROCESSES.values(), ids=PROCESSES)
def test_a_process_imports_what_it_uses(code, unused):
    code = f"from rankrl.ppo import cpu; cpu.install(); {code}; import sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    everyone = {"datasets", "flash_attn", "scipy.optimize", "transformers.trainer", "torch._inductor.compile_fx"}
    assert not loaded & (unused | everyone)
    assert "torch" in loaded and "openrlhf" in loaded


def test_what_waits_is_the_real_thing_when_it_is_used():
    """As an attribute, a call, a base class, in isinstance, and through Ray's pickle."""
    from fractions import Fraction

    from ray import cloudpickle

    found = imports.later("fractions", ("Fraction",)).Fraction
    assert found(1, 2) == Fraction(1, 2) and isinstance(Fraction(1), found)

    class Half(found):
        """A subclass of what waits."""

    assert issubclass(Half, Fraction)
    assert found.from_float(0.5) == cloudpickle.loads(cloudpickle.dumps(found)).from_float(0.5)
    assert imports.later("os.path", ()).path.sep == "/"
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        imports.later("no_such_module", ("name",)).name()


def test_upstream_parser_ends_with_train(monkeypatch):
    read = upstream._main_body.__wrapped__  # past its cache
    read()
    monkeypatch.setattr(upstream, "LAST", "launch(args)")
    with pytest.raises(RuntimeError, match="OpenRLHF changed"):
        read()


def test_arguments_carry_the_recipe():
    run = runs_of("low_rank", "ranks=[1]", "seeds=[4]", "dual_clip=3.0", "rules.max_norm.rule=gradient_scale",
                  "rules.warmup.rule=by_rank")[0]  # fmt: skip
    args = arguments(run, "/model")
    assert args.actor.adam.lr == pytest.approx(run["lr"])
    assert args.actor.max_norm == pytest.approx(32**0.5)
    assert tuple(args.actor.eps_clip_low_high) == (0.2, 0.28)
    assert (args.actor.dual_clip, args.train.seed, args.actor.lr_warmup_ratio) == (3.0, 4, 0.1)
    assert (args.rollout.batch_size, args.rollout.n_samples_per_prompt, args.train.batch_size) == (16, 8, 64)
    assert args.ds.lora.rank == 0  # upstream's LoRA stays out of the way


def test_upstream_checks_and_rewrites_are_refused():
    words = command_line(runs_of("demo")[0], "/model")
    with pytest.raises(ValueError, match=r"--no\.such"):
        upstream.parse_arguments([*words, "--no.such", "1"])
    with pytest.raises(
        ValueError, match=r"ds.attn_implementation: OpenRLHF would silently turn 'sdpa' into 'flash_attention_2'"
    ):
        upstream.parse_arguments([*words, "--train.dynamic_batch_enable", "--rollout.max_tokens_per_gpu", "64"])
    with pytest.raises(ValueError, match="OpenRLHF refuses"):
        upstream.parse_arguments([*words, "--train.partial_rollout_enable"])


def test_arguments_of_runs_that_start_at_once_are_parsed_one_after_another():
    words = [command_line(run, "/model") for run in runs_of("demo")] * 5
    with ThreadPoolExecutor(8) as pool:
        parsed = list(pool.map(upstream.parse_arguments, words))
    assert [args.train.seed for args in parsed] == [0, 1, 0, 1, 0, 1] * 5


def test_raw_classes_have_the_methods_that_are_overridden():
    from openrlhf.trainer.ray.launcher import BaseModelActor, RayActorGroup
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer, PolicyModelActor
    from openrlhf.trainer.ray.ppo_critic import CriticModelActor
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor

    policy, critic, engine = map(upstream.raw, (PolicyModelActor, CriticModelActor, RolloutRayActor))
    for kind in (policy, critic):
        assert issubclass(kind, BaseModelActor)
        for method in ("init_model_from_pretrained", "forward", "append", "fit"):
            assert callable(getattr(kind, method))
    assert list(inspect.signature(policy.fit).parameters)[:2] == ["self", "kl_ctl"]
    assert hasattr(ActorPPOTrainer, "_init_vllm_sync_group")
    assert hasattr(RayActorGroup, "async_run_method_batch")
    for method in ("_configure_device_env", "_configure_vllm_env"):
        assert callable(getattr(engine, method))
    assert 'os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"' in inspect.getsource(engine._configure_vllm_env)


def test_upstreams_step_has_the_verbs_of_ours_in_our_order():
    """RunTrainer.step repeats the steps of BasePPOTrainer.train_step, and ExperienceMaker.make
    those of make_experience_batch."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    def in_order(method, *words):
        source = inspect.getsource(method)
        places = [source.index(word) for word in words]
        return places == sorted(places)

    verbs = ("make_experience_batch", '"append"', "self.ppo_train", "self.broadcast_to_vllm", "kl_ctl.update")
    assert in_order(BasePPOTrainer.train_step, *verbs)
    assert "run_actor = global_steps > self.args.critic.freezing_steps" in inspect.getsource(BasePPOTrainer.ppo_train)
    batch = ("self.split_rollout_samples", "self.make_experience(", "self.compute_advantages_and_returns")
    assert in_order(RemoteExperienceMaker.make_experience_batch, *batch)
    maker = inspect.getsource(RemoteExperienceMaker.make_experience)
    assert "samples.kl = kl" in maker and "samples.action_log_probs = action_log_probs" in maker
    assert "self.kl_ctl.value" in inspect.getsource(RemoteExperienceMaker.compute_advantages_and_returns)


def test_upstreams_values_are_where_ours_are():
    """ExperienceMaker gives policy and critic their own lambda, and each critic its own values."""
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ray.ppo_critic import CriticPPOTrainer

    gae = inspect.signature(RemoteExperienceMaker.get_advantages_and_returns).parameters
    assert list(gae) == ["self", "values", "rewards", "action_mask", "gamma", "lambd"]
    assert (
        list(inspect.signature(RemoteExperienceMaker.get_cumulative_returns).parameters)
        == list(gae)[:1] + list(gae)[2:5]
    )
    source = inspect.getsource(RemoteExperienceMaker.compute_advantages_and_returns)
    assert source.count("self.get_advantages_and_returns(") == 1 and "experience.values," in source
    after = source.index("self.get_advantages_and_returns(") < source.index("exp.advantages = (exp.advantages - mean)")
    assert after and "samples.values = value" in inspect.getsource(RemoteExperienceMaker.make_experience)
    step = inspect.getsource(CriticPPOTrainer.training_step)
    for word in ("old_values = experience.values", "returns = experience.returns", '"critic_lr"', '"critic_grad_norm"'):
        assert word in step
    assert "self.strategy.accumulated_gradient" in inspect.getsource(CriticPPOTrainer.ppo_train)


def test_vllm_still_has_what_the_receiver_calls():
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.model_manager import LRUCacheLoRAModelManager
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for method in ("add_adapter", "activate_adapter", "remove_adapter", "remove_oldest_adapter", "capacity"):
        assert hasattr(LRUCacheLoRAModelManager, method)
    parameters = inspect.signature(LoRAModel.from_lora_tensors).parameters
    assert {"lora_model_id", "tensors", "peft_helper", "device", "dtype", "weights_mapper"} <= set(parameters)
    assert "load_inplace" in inspect.getsource(LRUCacheWorkerLoRAManager.add_adapter)
    assert "self.kv_caches: list[torch.Tensor]" in inspect.getsource(GPUModelRunner)


def test_serving_ranks_are_vllms():
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    from rankrl.recipe.rank_table import SERVING_RANKS, serving_rank

    assert get_args(MaxLoRARanks) == SERVING_RANKS
    assert [serving_rank(r) for r in (1, 2, 8, 9, 256)] == [1, 8, 8, 16, 256]
    with pytest.raises(ValueError, match="at most 512"):
        serving_rank(513)


def test_every_lr_shape_is_a_scheduler_of_transformers():
    from transformers.trainer_utils import SchedulerType

    assert set(LR_SCHEDULERS.values()) <= {kind.value for kind in SchedulerType}


def test_gradient_window_equals_one_large_batch():
    """The adapter optimizer's accumulation and clipping, against AdamW on the mean gradient."""
    import torch.distributed as dist

    from rankrl.ppo.strategy import AdapterOptimizer

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    from types import SimpleNamespace

    adam = SimpleNamespace(lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    windowed, whole = (torch.nn.Parameter(torch.tensor([0.5, -0.5])) for _ in range(2))
    optimizer = AdapterOptimizer([{"params": [windowed], "lr": 0.1}], adam, max_norm=0.5, accumulate=2)
    for row, steps in zip(data, (False, True), strict=True):
        (((row * windowed).sum() ** 2) / 2).backward()
        assert optimizer.micro_step() is steps
    reference = torch.optim.AdamW([whole], lr=0.1, betas=(0.9, 0.95), weight_decay=0.0)
    loss = ((data @ whole) ** 2).mean()
    loss.backward()
    assert optimizer.grad_norm == pytest.approx(whole.grad.norm().item())
    torch.nn.utils.clip_grad_norm_([whole], 0.5)
    reference.step()
    assert torch.allclose(windowed, whole)


def test_micro_batches_equal_upstreams():
    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    from rankrl.data.items import Item
    from rankrl.ppo.rollout import Sample, experience
    from rankrl.reward.grade import Verdict

    item = Item("sum2-0", "sum2", "2 + 2 =", "4")
    samples = [
        Sample(item, 0, [5, 6], [7, 8, 9], [-0.1, -0.2, -0.3], False, Verdict("correct", True)),
        Sample(item, 1, [5, 6, 4], [3], [-0.5], True, Verdict("wrong", False)),
    ]
    generator = SamplesGenerator.__new__(SamplesGenerator)
    rows = [
        generator._process_response_into_experience(
            {
                "prompt": "",
                "label": "",
                "observation_tokens": s.prompt_ids + s.response_ids,
                "action_ranges": [(len(s.prompt_ids), s.tokens)],
                "rollout_log_probs": [0.0] * len(s.prompt_ids) + s.logprobs,
                "truncated": s.truncated,
                "reward": reward,
                "scores": float(s.verdict.correct),
            },
            max_len=32,
        )
        for s, reward in zip(samples, (1.05, -0.05), strict=True)
    ]
    for i, row in enumerate(rows):
        row.index = [i]
    theirs = Experience.concat_experiences(rows, 0)
    ours = experience(samples, [0, 1], [1.05, -0.05], 0, 32)
    for name in ("sequences", "attention_mask", "action_mask", "rollout_log_probs", "rewards", "scores"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("response_length", "truncated", "total_length"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist(), name
    assert ours.index == theirs.index
    assert {key: value.tolist() for key, value in ours.info.items()} == {
        key: value.tolist() for key, value in theirs.info.items()
    }


def test_deepspeed_on_a_cpu_starts_without_a_compiler(stack):
    """The op that it would compile is used nowhere but in DeepSpeed's own initialisation."""
    from rankrl.ppo import cpu

    cpu.use_deepspeed()
    comm = sys.modules["deepspeed.comm.torch"]

    source = Path(comm.__file__).read_text()
    assert source.count("shm_comm_op") == 3 and source.count("self.shm_comm_op = build_shm_op()") == 1
    assert comm.build_shm_op() is None
