"""Advantages by each method: worked by hand, against OpenRLHF's own, and what no critic means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, rankrl, runs_of

from rankrl.recipe.estimate import estimates
from rankrl.recipe.history import completed
from rankrl.recipe.idle import idle_critics
from rankrl.recipe.memory import memory_bytes
from rankrl.recipe.plan import micro_batch, neediest

METHODS = ("gae", "group_mean", "rloo", "group_norm", "batch_mean", "shrinkage", "history")
REWARDS_PK = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
BY_HAND = {
    "gae": [[0.5**0.5, *[-(2**0.5)] * 3], [*[0.5**0.5] * 3, -(2**0.5)], [0.5**0.5] * 4],  # values .5, then whitened
    "group_mean": [[3 / 4, *[-1 / 4] * 3], [*[1 / 4] * 3, -3 / 4], [0] * 4],
    "rloo": [[1, *[-1 / 3] * 3], [*[1 / 3] * 3, -1], [0] * 4],
    "group_norm": [[3 / 2, *[-1 / 2] * 3], [*[1 / 2] * 3, -3 / 2], [0] * 4],
    "batch_mean": [[1 / 3, *[-2 / 3] * 3], [*[1 / 3] * 3, -2 / 3], [1 / 3] * 4],
    # beside a group's 3 others, one response at the mean of the other groups: 7/8, 5/8, 1/2
    "history": [[25 / 32, *[-15 / 32] * 3], [*[11 / 32] * 3, -29 / 32], [1 / 8] * 4],
    # lam is 1, 1/9 and 1/2, from the two other groups each
    "shrinkage": [[1 / 8, *[-7 / 8] * 3], [*[73 / 216] * 3, -23 / 24], [1 / 4] * 4],
}

SD_BY_HAND = {
    "gae": 2**0.5 / 3,  # not whitened
    "group_mean": 8**-0.5,
    "rloo": 2**0.5 / 3,
    "group_norm": 2**-0.5,
    "batch_mean": 2**0.5 / 3,
    "shrinkage": 0.5515,
    "history": 0.4571,
}


def maker(run, kl_coef: float):
    """The experience maker of a run, without services."""
    from rankrl.ppo.arguments import arguments
    from rankrl.ppo.experience import ExperienceMaker

    policy = SimpleNamespace(group=SimpleNamespace(workers=[None]))
    strategy, kl_ctl = SimpleNamespace(args=arguments(run, "model")), SimpleNamespace(value=kl_coef)
    return ExperienceMaker(run, policy, [], None, kl_ctl, strategy, None)


def rollout(rewards_N: torch.Tensor, tokens: int, seed: int) -> list:
    """Micro-batches of four samples in mixed order; responses of 1 to `tokens` tokens."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    generator = torch.Generator().manual_seed(seed)
    parts = torch.randperm(len(rewards_N), generator=generator).split(4)
    lengths = [torch.randint(1, tokens + 1, (4, 1), generator=generator) for _ in parts]
    return [
        Experience(
            sequences=torch.zeros(4, tokens + 1),
            action_mask=(torch.arange(tokens) < length).long(),
            rewards=rewards_N[part],
            values=torch.full((4, tokens), 0.5),
            kl=torch.randn(4, tokens, generator=generator) / 10,
            index=part.tolist(),
            info={},
        )
        for part, length in zip(parts, lengths, strict=True)
    ]


def advantages(experiences: list, samples: int) -> list[list[float]]:
    """Advantages [P, K] of the first response tokens, in the order of the rollout."""
    found = {i: row[0].item() for batch in experiences for i, row in zip(batch.index, batch.advantages, strict=True)}
    return torch.tensor([found[i] for i in range(len(found))]).view(-1, samples).tolist()


def small(method: str, *words: str):
    sizes = ("batch_sizes=[3]", "samples_per_prompt=4", "updates_per_rollout=1", "ranks=[1]", "seeds=[0]")
    return runs_of("demo", f"advantage.method={method}", *sizes, *words)[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_rollout_worked_by_hand(stack, method):
    rewards_N = torch.tensor(REWARDS_PK, dtype=torch.float32).flatten()
    ours = maker(small(method), kl_coef=0.0)
    ours.prompts = ["a", "b", "c"]
    made = ours.compute_advantages_and_returns(rollout(rewards_N, 1, seed=0))
    for found, wanted in zip(advantages(made, 4), BY_HAND[method], strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
    assert all(torch.equal(batch.rewards, rewards_N[batch.index]) for batch in made)
    assert ours.uniform_group_frac(made) == pytest.approx(1 / 3)
    assert ours.advantage_sd(made) == pytest.approx(SD_BY_HAND[method], abs=1e-3)


@pytest.mark.parametrize("reward", [1.05, 1.049, 0.95, -0.05])
def test_rewards_that_are_all_equal_teach_nothing_in_floating_point_either(stack, reward):
    """The mean of eight is one rounding off, their sd 0: upstream gives 1.05 the advantage -119."""
    run = small("group_norm", "samples_per_prompt=8")
    rewards_N = torch.tensor([reward] * 16 + [0.0] * 4 + [1.0] * 4)
    made = maker(run, kl_coef=0.0).compute_advantages_and_returns(rollout(rewards_N, 1, seed=0))
    assert [*advantages(made, 8)[0], *advantages(made, 8)[1]] == [0.0] * 16
    assert advantages(made, 8)[2] == pytest.approx([-0.935] * 4 + [0.935] * 4, abs=1e-3)  # sd .535
    assert all(torch.equal(batch.rewards, rewards_N[batch.index]) for batch in made)


UPSTREAM = {
    "gae": "gae",
    "group_mean": "dr_grpo",
    "rloo": "rloo",
    "group_norm": "group_norm",
    "batch_mean": "flash_reinforce",
}


@pytest.mark.parametrize("method", UPSTREAM)
def test_the_numbers_are_those_of_upstream_to_the_last_bit(stack, method):
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    rewards_N = torch.randn(12, generator=torch.Generator().manual_seed(3))
    ours = maker(small(method), kl_coef=0.05)
    assert ours.args.algo.advantage.estimator == UPSTREAM[method]
    theirs = RemoteExperienceMaker(None, None, None, None, ours.kl_ctl, SimpleNamespace(args=ours.args), None)
    made, wanted = (m.compute_advantages_and_returns(rollout(rewards_N, 5, seed=1)) for m in (ours, theirs))
    for found, given in zip(made, wanted, strict=True):
        assert torch.equal(found.advantages, given.advantages) and torch.equal(found.returns, given.returns)
    assert torch.cat([batch.advantages for batch in made]).std() > 0.1


def test_shrinkage_pays_the_kl_like_the_others(stack):
    """Without rewards its advantages are those of upstream's rloo: the KL alone."""
    made, wanted = (
        maker(small(method), kl_coef=0.05).compute_advantages_and_returns(rollout(torch.zeros(12), 5, seed=1))
        for method in ("shrinkage", "rloo")
    )
    assert all(torch.equal(ours.advantages, theirs.advantages) for ours, theirs in zip(made, wanted, strict=True))
    assert torch.cat([batch.advantages for batch in made]).abs().max() > 0.01


@pytest.mark.parametrize("samples", [4, 8])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6, 1.0, 3.0])
def test_shrinkage_is_unbiased_and_no_noisier_than_its_better_parent(stack, spread, samples):
    """Rewards of 16 prompts have means of standard deviation `spread`, and grow by 0.3 with an
    action drawn from N(0, 1), whose mean has the gradient E[(r - b) action] = 0.3."""
    from rankrl.ppo.advantages import shrinkage_baseline

    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4000):
        action_PK = torch.randn(16, samples, generator=generator)
        noise_PK = torch.randn(16, samples, generator=generator)
        rewards_PK = spread * torch.randn(16, 1, generator=generator) + 0.3 * action_PK + noise_PK
        own_PK = (rewards_PK.sum(1, keepdim=True) - rewards_PK) / (samples - 1)
        others_P = (rewards_PK.mean(1).sum() - rewards_PK.mean(1)) / 15
        baselines = torch.stack([shrinkage_baseline(rewards_PK), own_PK, others_P[:, None].expand_as(own_PK)])
        found.append(((rewards_PK - baselines) * action_PK).mean((1, 2)))
    shrunk, group, batch = torch.stack(found).var(0).tolist()
    assert torch.stack(found).mean(0)[0].item() == pytest.approx(0.3, abs=0.008)  # 4 standard errors
    assert shrunk <= 1.05 * min(group, batch)


def test_shrinkage_without_any_variance():
    from rankrl.ppo.advantages import shrinkage_baseline

    assert torch.equal(shrinkage_baseline(torch.ones(4, 2)), torch.ones(4, 2))


def test_uniform_groups_are_left_out_and_the_others_weigh_more(stack):
    rewards_N = torch.tensor(REWARDS_PK, dtype=torch.float32).flatten()
    ours = maker(small("group_mean", "advantage.drop_uniform_groups=true"), kl_coef=0.0)
    made = ours.compute_advantages_and_returns(rollout(rewards_N, 1, seed=0))
    wanted = [[1.5 * value for value in row] for row in BY_HAND["group_mean"]]
    assert [pytest.approx(row) for row in wanted] == advantages(made, 4)
    ours.kl_ctl.value = 0.5
    for rewards, share in ((rewards_N, 1 / 3), (torch.ones(12), 1.0)):
        made = ours.compute_advantages_and_returns(rollout(rewards, 5, seed=1))
        dropped = [[value == 0 for value in row] for row in advantages(made, 4)]
        assert dropped == [[share == 1] * 4] * 2 + [[True] * 4]
        assert ours.uniform_group_frac(made) == pytest.approx(share)


def test_the_constant_normaliser_divides_by_the_tokens_that_there_could_be(stack):
    from openrlhf.models import PolicyLoss

    from rankrl.ppo.policy import divide_by

    loss, zeros_BA = PolicyLoss(), torch.zeros(2, 4)
    mask_BA = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    given = {"action_mask": mask_BA, "dp_size": 1, "batch_num_tokens": torch.tensor(3.0)}
    assert loss(zeros_BA, zeros_BA, torch.ones(2, 4), **given)[0].item() == -1
    optimizer = SimpleNamespace(accumulate=1)
    divide_by(loss, 8, optimizer)
    assert loss(zeros_BA, zeros_BA, torch.ones(2, 4), **given)[0].item() == -3 / 8
    optimizer.accumulate = 2  # micro-batches of a step, each of which is divided by two again
    assert loss(zeros_BA, zeros_BA, torch.ones(2, 4), **given)[0].item() == -3 / 4


def test_without_a_critic_there_is_no_value_worker():
    run, critic = small("rloo"), small("gae")
    assert [place.gpus for place in (run.served.placement, critic.served.placement)] == [2, 3]
    assert set(memory_bytes(run, 1, 1)) == {"policy worker", "engine"}
    assert set(memory_bytes(critic, 1, 1)) == {"policy worker", "value worker", "engine"}
    assert estimates([run], 1)[0].value == "2 on 1 node"
    assert (run.critic_rank, critic.critic_rank) == (0, 32)


@pytest.mark.parametrize("place", ["critic_per_node=0", "critic_per_node=2"])
def test_without_a_critic_a_policy_worker_holds_no_value_adapter(place):
    words = (f"scale.placement.{place}", "scale.placement.policy_per_node=2", "batch_sizes=[8]")
    run, critic = (small(method, *words) for method in ("rloo", "gae"))
    adapters = [memory_bytes(each, 1, 1)["policy worker"]["adapters"] for each in (run, critic)]
    inside = place == "critic_per_node=0"
    assert adapters == [7_936 * 20, 7_936 * 20 * (33 if inside else 1)]


def test_a_mixed_sweep_has_value_workers_and_each_run_its_own_micro_batch():
    words = ("scale.placement.critic_per_node=2", "ranks=[1]", "seeds=[0]")
    runs = runs_of("ablate_advantage", *words)
    assert neediest(runs).arm == "off" and neediest(runs[1:]).arm == runs[1].arm
    assert neediest(runs).served.placement.value_workers == 2
    alone = runs_of("demo", "advantage.method=rloo", *words)[0]
    assert micro_batch(alone) == micro_batch(next(run for run in runs if run.arm == "rloo"))


def test_arguments_without_a_critic_have_none(stack):
    from rankrl.ppo.arguments import arguments

    assert arguments(small("rloo"), "model").critic.model_name_or_path is None
    assert arguments(small("gae"), "model").critic.model_name_or_path == "model"


def test_settings_of_a_critic_that_is_not_there_are_named():
    runs = runs_of("demo", "advantage.method=rloo", "critic.rank=8", "critic.warmup_steps=2", "gae_lambda=0.9")
    assert idle_critics(runs) == [
        "warning: critic.rank, critic.warmup_steps, gae_lambda without effect: advantage.method=rloo has no critic"
    ]
    assert runs[0].critic_warmup_steps == 0
    assert idle_critics(runs_of("ablate_advantage", "critic.rank=8")) == []  # they act in arm off
    own = runs_of("ablate_advantage", "arms.rloo.critic.rank=8")
    assert [line.split(":")[1] for line in idle_critics(own)] == [" arm rloo"]
    done = rankrl("plan", "recipes/demo.yaml", "advantage.method=rloo", "critic.rank=8")
    assert done.returncode == 0 and done.stderr.startswith("warning: critic.rank without effect")


@pytest.mark.slow
def test_doctor_checks_the_machine_for_a_method():
    done = rankrl("doctor", "advantage.method=shrinkage", timeout_s=300)
    assert "value worker" not in done.stdout and "processes of a task    2 on 1 node" in done.stdout
    done = rankrl("doctor", "advantage.methods=rloo")
    assert done.returncode == 2 and done.stderr.startswith("rankrl: methods") and len(done.stderr.splitlines()) == 1


def test_an_earlier_record_means_gae():
    record = yaml.safe_load((ROOT / "tests" / "recorded" / "run.yaml").read_text())["recipe"]
    assert "advantage" not in record
    gae = {"method": "gae", "drop_uniform_groups": False, "normaliser": "tokens", "discount": 0.9}
    gae["prior_strength"] = 1.0
    assert completed("recipe", record)["advantage"] == gae
