"""The critic: lambdas, explained variance, two critics and their mask, worked by hand."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from conftest import rankrl, runs_of
from test_advantage import maker, rollout, small

from rankrl.recipe.cost import cost
from rankrl.recipe.critic_section import Critic
from rankrl.recipe.history import completed, unknown
from rankrl.recipe.idle import idle_critics
from rankrl.recipe.key import as_fields, as_keys, other_name
from rankrl.recipe.memory import memory_bytes
from rankrl.recipe.plan import micro_batch, neediest
from rankrl.recipe.schema import Recipe

VALUES_BA = torch.tensor([[9.0, 0.5, 0.25, 0.75], [9.0, 9.0, 0.5, 9.0]])
REWARDS_BA = torch.tensor([[9.0, 0.0, -0.5, 1.0], [9.0, 9.0, 1.0, 9.0]])
MASK_BA = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0]])
"""A response of three tokens with a penalty on its second one, and a response of one token."""


def gae(*words: str, gae_lambda: float = 1.0) -> tuple[list[float], list[float]]:
    """(advantages, returns) of the three tokens and of the one."""
    found = maker(small("gae", *words), 0.0).get_advantages_and_returns(VALUES_BA, REWARDS_BA, MASK_BA, 1.0, gae_lambda)
    return tuple(part[MASK_BA.bool()].tolist() for part in found)


# deltas: .25 - .5 = -.25; -.5 + .75 - .25 = 0; 1 - .75 = .25; and 1 - .5 = .5
HALF = [-0.25 + 0.25 * 0.25, 0.5 * 0.25, 0.25, 0.5]  # advantages with lambda 1/2
ONE = [0.0, 0.25, 0.25, 0.5]  # with lambda 1: the return minus the value
RETURNS = [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("words", "gae_lambda", "advantages", "returns"),
    [
        ((), 1.0, ONE, RETURNS),
        ((), 0.5, HALF, [0.3125, 0.375, 1.0, 1.0]),  # advantages + values
        (("critic.lambda=1",), 0.5, HALF, RETURNS),
        (("critic.lambda=0.5",), 1.0, ONE, [0.3125, 0.375, 1.0, 1.0]),
        # 1 - 1/(2/3 x 3) = 1/2 for three tokens; 1 - 3/2 for one, which is 0
        ((f"gae_length_alpha={2 / 3}",), 1.0, HALF, RETURNS),
        ((f"gae_length_alpha={2 / 3}", "critic.lambda=0.5"), 1.0, HALF, [0.3125, 0.375, 1.0, 1.0]),
    ],
)
def test_policy_and_critic_have_their_own_lambda(stack, words, gae_lambda, advantages, returns):
    found = gae(*words, gae_lambda=gae_lambda)
    assert found == (pytest.approx(advantages, abs=1e-6), pytest.approx(returns, abs=1e-6))


def test_lambda_by_length_stays_between_0_and_1(stack):
    from rankrl.ppo.values import length_lambda

    mask_BA = (torch.arange(40) < torch.tensor([[0], [1], [20], [40]])).long()
    assert length_lambda(mask_BA, 0.05).tolist() == [0, 0, 0, 0.5]
    assert length_lambda(mask_BA, 1.0).tolist() == pytest.approx([0, 0, 0.95, 0.975])


def test_explained_variance_by_hand(stack):
    from rankrl.ppo.values import explained_variance

    returns_N = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert explained_variance(returns_N, returns_N + 3) == 1  # a constant shift explains as much
    assert explained_variance(returns_N, torch.full((4,), 0.7)) == pytest.approx(0)
    assert explained_variance(returns_N, torch.tensor([0.0, 0.5, 0.5, 1.0])) == pytest.approx(0.5)
    assert explained_variance(returns_N, 1 - returns_N) == -3
    assert explained_variance(torch.ones(4), returns_N) is None
    assert explained_variance(1 + 1e-6 * returns_N, returns_N) is None  # else -1e12


def made_by(*words: str, gap: float):
    """(maker, micro-batches) of a rollout of 12 samples with one or two critics.

    The second critic's values are `gap` times the place of a sample below the first one's 0.5.
    """
    from rankrl.ppo.values import set_mean_values

    ours = maker(small("gae", "batch_sizes=[12]", "samples_per_prompt=1", *words), 0.05)
    batches = rollout(torch.arange(12) / 12, 3, seed=0)
    ours.values = [[batch.values for batch in batches]]
    if ours.run.critics == 2:
        seconds = [0.5 - gap * torch.tensor(b.index)[:, None].expand(4, 3) for b in batches]
        ours.values = set_mean_values(batches, seconds)
    return ours, ours.compute_advantages_and_returns(batches)


def test_explained_variance_means_the_same_whatever_the_lambdas(stack):
    found = []
    for words in ((), ("gae_lambda=0.5",), ("critic.lambda=0.5",), ("gae_length_alpha=0.5",)):
        ours, made = made_by(*words, gap=0.0)
        found.append(ours.value_metrics(made))
        returns_N = torch.cat([G[b.action_mask.bool()] for G, b in zip(ours.returns, made, strict=True)])
        rewards_N = torch.cat([b.rewards[:, None].expand(4, 3)[b.action_mask.bool()] for b in made])
        assert 0 < (returns_N - rewards_N).abs().max() < 0.05  # the KL penalty of the tokens that follow
    assert found == [found[0]] * 4 and found[0] == {"explained_variance": pytest.approx(0), "value_mean": 0.5}
    assert maker(small("rloo"), 0.0).value_metrics([]) == {}


def test_two_critics_are_averaged_and_what_they_agree_on_is_masked(stack):
    ours, made = made_by("critic.ensemble=2", "critic.mask_agreed=0.25", gap=0.01)
    places = torch.cat([torch.tensor(b.index)[:, None].expand(4, 3)[b.action_mask.bool()] for b in made])
    advantages_N = torch.cat([b.advantages[b.action_mask.bool()] for b in made])
    masked = round(0.25 * len(places))
    assert (advantages_N == 0).sum() == masked > 3
    assert places[advantages_N == 0].max() <= places[advantages_N != 0].min()  # the smallest gaps
    values_N = torch.cat([b.values[b.action_mask.bool()] for b in made])
    assert torch.allclose(values_N, 0.5 - 0.005 * places)
    metrics = ours.value_metrics(made)
    assert list(metrics) == ["explained_variance", "value_mean", "value_gap"]
    assert metrics["value_gap"] == pytest.approx(0.01 * places.float().mean().item(), rel=1e-5)
    free, plain = (made_by(*words, gap=0.0)[1] for words in (("critic.ensemble=2", "critic.mask_agreed=0"), ()))
    assert all(torch.equal(a.advantages, b.advantages) for a, b in zip(free, plain, strict=True))


def test_each_critic_learns_from_its_own_half_with_its_own_old_values(stack):
    ours, made = made_by("critic.ensemble=2", gap=0.01)
    first, second = ours.shares_of_critics(made)
    assert [[batch.index for batch in share] for share in (first, second)] == [
        [made[0].index, made[2].index],
        [made[1].index],
    ]
    assert torch.equal(first[0].values, torch.full((4, 3), 0.5))
    assert torch.equal(second[0].values, ours.values[1][1]) and not torch.equal(second[0].values, made[1].values)
    assert torch.equal(second[0].returns, made[1].returns)


def test_prompts_are_dealt_whole(stack):
    from rankrl.ppo.values import dealt

    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    shares = dealt(order, 4, 2)
    prompts = [{i // 4 for i in share} for share in shares]
    assert prompts == [{0, 2, 4}, {1, 3, 5}] and [len(share) for share in shares] == [12, 12]
    assert [i for i in order if i in shares[0]] == shares[0]


def test_two_critics_share_the_samples_of_every_worker():
    words = ("critic.ensemble=2", "ranks=[1]", "seeds=[0]", "scale.placement.critic_per_node=2")
    run = runs_of("demo", *words)[0]
    assert micro_batch(run) == 128 // 2 // 2 // 2  # 2 updates, 2 critics, 2 workers
    assert (run.critics, run.critic_rank, run.critic_ranks) == (2, 32, 64)
    one = runs_of("demo", *words[1:])[0]
    adapters = [memory_bytes(each, 1, 1)["value worker"]["adapters"] for each in (one, run)]
    assert adapters == [32 * 7_936 * 20, 64 * 7_936 * 20]
    assert cost(run, 1).update_s == cost(one, 1).update_s and cost(run, 1).experience_s >= cost(one, 1).experience_s
    assert neediest(runs_of("ablate_critic", "seeds=[0]")).arm == "ensemble"
    assert "two critics" in rankrl("explain", "recipes/demo.yaml", "critic.ensemble=2").stdout


def test_a_run_without_a_critic_names_settings_that_do_nothing():
    words = ("advantage.method=rloo", "critic.lambda=0.5", "critic.ensemble=2", "gae_length_alpha=0.1")
    why = "advantage.method=rloo has no critic"
    runs = runs_of("demo", *words, "batch_sizes=[3]")
    assert idle_critics(runs) == [f"warning: critic.lambda, critic.ensemble, gae_length_alpha without effect: {why}"]
    assert (runs[0].critics, runs[0].critic_ranks) == (0, 0)


def test_the_key_lambda_is_the_same_everywhere(tmp_path):
    """In a recipe, its arms, overrides and run.yaml; the field has another name."""
    recipe = tmp_path / "own.yaml"
    grid = {"ranks": [1], "batch_sizes": [16], "seeds": [0], "steps": 2, "critic": {"lambda": 0.5}}
    recipe.write_text(yaml.safe_dump({**grid, "arms": {"off": {}, "on": {"critic": {"lambda": 0.75}}}}))
    done = rankrl("plan", str(recipe), "--json", "critic.rank=8")
    assert [row["arm"] for row in json.loads(done.stdout)] == ["off", "on"]
    runs = runs_of("ablate_critic", "seeds=[0]", "ranks=[1]")
    assert [run.recipe.critic.lambda_ for run in runs] == [None, None, 1.0, 1.0, None]
    record = runs[2].resolved()["recipe"]
    assert record["critic"]["lambda"] == 1.0 and "lambda_" not in record["critic"]
    assert unknown("recipe", record) == [] and completed("recipe", record) == record
    older = {**record, "critic": {key: record["critic"][key] for key in ("rank", "alpha", "lr")}}
    assert completed("recipe", older)["critic"] == {**as_keys(Critic()), "rank": 32}
    assert unknown("recipe", {"critic": {"lambda_": 1}}) == [("recipe.critic.lambda_", 1)]


def test_keys_and_fields_name_each_other():
    assert [other_name(name) for name in ("lambda", "lambda_", "rank", "rank_")] == [
        "lambda_",
        "lambda",
        "rank",
        "rank_",
    ]
    given = {"critic": {"lambda": 1}, "arms": {"with": {"critic": {"lambda": 2}}}, "steps": 3}
    assert as_fields(Recipe, given) == {**given, "critic": {"lambda_": 1}}  # arms are read when they are built
    assert as_keys(Critic(lambda_=0.5))["lambda"] == 0.5
