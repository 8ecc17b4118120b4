"""Recipes and scales: every shipped one can be planned, and wrong ones are refused in one line that
names the key, the value and what is allowed."""

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, rankrl, runs_of

from rankrl.cli import main
from rankrl.recipe.idle import evaluated_apart
from rankrl.recipe.load import load_experiment, load_scale
from rankrl.recipe.plan import adapter_params, plan

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
SCALES = sorted(path.stem for path in (ROOT / "rankrl" / "scales").glob("*.yaml"))


REFUSED = {  # (recipe, scale) that do not fit together -> the one line that says so
    ("baseline", "smollm2-135m"): r"ranks: got 256, allowed: 1 to 192 at scale smollm2-135m (k_proj is [576, 192])",
    ("published", "smollm2-135m"): r"ranks: got 256, allowed: 1 to 192 at scale smollm2-135m (k_proj is [576, 192])",
    ("ablate_allocation", "smollm2-135m"): "allocation.prompts: got 256, allowed: at most data.train_items=112",
    ("ablate_init", "smollm2-135m"): "init.prompts: got 256, allowed: at most data.train_items=112",
}


@pytest.mark.parametrize(
    "scale", [pytest.param(name, marks=pytest.mark.slow) if "b-a" in name else name for name in SCALES]
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_plans_at_every_scale(recipe, scale):
    if (recipe, scale) in REFUSED:
        with pytest.raises(ValueError) as error:
            runs_of(recipe, f"scale={scale}")
        assert str(error.value) == REFUSED[recipe, scale]
        return
    runs = runs_of(recipe, f"scale={scale}")
    assert len({run.run_id for run in runs}) == len(runs) > 0
    assert {run.scale.name for run in runs} == {scale}


def test_baseline_is_the_published_grid():
    runs = runs_of("baseline", "scale=qwen3-8b")
    assert len(runs) == 9 * 4 * 6
    assert {run.recipe.steps for run in runs} == {500}
    assert [run.trainable_params for run in runs if run.batch_size == 16 and run.seed == 0] == [
        2_727_936 * r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    ]


def test_run_ids_carry_arm_rank_batch_and_seed(tmp_path):
    recipe = tmp_path / "ablate.yaml"
    recipe.write_text(
        "ranks: [1]\nbatch_sizes: [16]\nseeds: [3]\nsteps: 2\n"
        "arms:\n  off: {rules: {lr: {rule: constant}}}\n  on: {rules: {lr: {rule: equal_kl, c: 4.0}}}\n"
    )
    runs = plan(load_experiment(recipe))
    assert [run.run_id for run in runs] == ["off-r1-b16-s3", "on-r1-b16-s3"]
    assert [run.knobs["lr"].rule for run in runs] == ["constant", "equal_kl"]
    assert runs[0].sweep == "ablate"


def test_nano_adapter_size_is_literal():
    assert adapter_params(runs_of("demo")[0].scale, 1) == 2 * (4 * 512 + 3 * 640)


def test_planning_imports_no_torch_and_prints_json():
    code = (
        "import sys, json, io, contextlib; from rankrl.cli import main; out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out): assert main(['plan', 'recipes/baseline.yaml', '--json']) == 0\n"
        "assert len(json.loads(out.getvalue())) == 216\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_ten_thousand_runs_resolve_each_rank_once(monkeypatch):
    from rankrl.recipe import plan as module

    derived = []
    monkeypatch.setattr(module, "derive", lambda *args: derived.append(args[2]) or {})
    runs = runs_of("baseline", f"seeds={list(range(278))}".replace(" ", ""))
    assert len(runs) == 9 * 4 * 278 == 10_008
    assert derived == [1, 2, 4, 8, 16, 32, 64, 128, 256]  # the cost is per rank, not per run


WRONG = {
    "unknown key": (["rnks=[1]"], "rnks", "ranks"),
    "unknown nested key": (["rules.lr.exponnt=1"], "exponnt", "exponent"),
    "wrong type": (["steps=many"], "steps", "many"),
    "fraction for an integer": (["steps=1.5"], "steps", "1.5"),
    "scalar for a list": (["ranks=4"], "ranks", "tuple[int, ...]"),
    "rank 0": (["ranks=[0]"], "ranks", "at least 1"),
    "rank above a module's dimension": (["ranks=[257]"], "257", "1 to 256"),
    "batch not divisible": (["batch_sizes=[3]", "samples_per_prompt=1"], "batch_sizes", "divisible"),
    "unknown scale": (["scale=qwen9"], "qwen9", "nano"),
    "negative rate": (["rules.lr=-1e-4"], "rules.lr", "above 0"),
    "empty grid": (["seeds=[]"], "seeds", "at least one"),
    "repeated seed": (["seeds=[1,1]"], "seeds", "distinct"),
    "contradictory knobs": (
        ["rules.alpha.rule=power", "rules.alpha.exponent=1", "rules.lr.rule=equal_kl", "rules.lr.c=1"],
        "rules.lr.rule",
        "constant",
    ),
    "equal_kl without its c": (["rules.lr.rule=equal_kl"], "rules.lr.c", "0.59 was measured"),
    "another knob than the rate, measured": (["rules.kl.rule=measured"], "rules.kl.rule", "'measured'"),
    "reference rank that is too large to measure": (
        ["rules.lr.rule=measured", "rules.lr.at_rank=512"],
        "rules.lr.at_rank",
        "1 to 256 at scale nano",
    ),
    "reference rank without an alpha": (
        [
            "rules.lr.rule=measured",
            "rules.alpha.rule=table",
            "rules.alpha.table={1: 16, 8: 16, 32: 16}",
            "rules.lr.at_rank=4",
        ],
        "rules.alpha.table",
        "an entry for rules.lr.at_rank=4 too",
    ),
    "no alpha to measure with": (["rules.lr.rule=measured", "rules.alpha=0"], "rules.alpha.value", "above 0"),
    "no such seeds of evaluations": (["eval_seeds=own"], "eval_seeds", "shared, per_seed"),
    "end of a rate that stays": (["lr_final=0.25"], "lr_final: got 0.25", "nothing", "lr_shape=cosine"),
    "end of a rate that falls to 0": (["lr_shape=linear", "lr_final=0.25"], "lr_final", "lr_shape=linear has no such"),
    "cosine that ends where it starts": (["lr_shape=cosine", "lr_final=1"], "lr_final", "from 0 to below 1"),
    "equal samples of one arm": (["equal_samples=true"], "equal_samples", "no arms to compare"),
    "arms with other samples": (
        ["equal_samples=true", "arms={off: {}, more: {samples_per_prompt: 16}, longer: {steps: 45}}"],
        "got 3,840 training samples in arm off and 7,680 in arm more at rank 1, batch size 16",
        "equal_samples=false",
    ),
    "no such start of a warm-up": (["warmup_offset=2"], "warmup_offset", "0 or 1"),
    "brake that holds always": (["brakes.max_norm_ratio=1"], "brakes.max_norm_ratio", "above 1 and finite, or null"),
    "brake that never holds": (["brakes.max_norm_ratio=.inf"], "brakes.max_norm_ratio", "above 1 and finite, or null"),
    "brake at no KL": (["brakes.max_kl=0"], "brakes.max_kl", "above 0 and finite, or null"),
    "brake at any KL": (["brakes.max_kl=.inf"], "brakes.max_kl", "above 0 and finite, or null"),
    "brake on a ratio of 1": (["brakes.max_kl=0.05", "updates_per_rollout=1"], "brakes.max_kl", "nothing"),
    "brake without a median": (["brakes.max_norm_ratio=3", "steps=4"], "brakes.max_norm_ratio", "null"),
    "trust region at no KL": (["trust_region.target=0"], "trust_region.target", "a KL above 0 and finite"),
    "trust region at any KL": (["trust_region.target=.inf"], "trust_region.target", "a KL above 0 and finite"),
    "trust region of another word": (["trust_region.target=published"], "trust_region.target", "reference, or null"),
    "bound of no trust region": (["trust_region.high=4"], "trust_region.high", "set trust_region.target"),
    "bound above the start": (["trust_region={target: 1e-3, low: 2}"], "trust_region.low", "at most 1"),
    "bound below the start": (["trust_region={target: 1e-3, high: .5}"], "trust_region.high", "at least 1"),
    "curve of a fixed target": (["trust_region={target: 1e-3, curve: [1e-3]}"], "trust_region.curve", "nothing unless"),
    "curve with no KL": (["trust_region={target: reference, curve: [0]}"], "trust_region.curve", "KLs above 0"),
    "curve that was not recorded": (
        ["trust_region.target=reference", "scale=qwen3-8b"],
        "trust_region.target",
        "rankrl curve DIR records one",
    ),
    "requests of an arm alone": (["arms.a.eval_seeds=per_seed"], "arms.a", "keys other than the grid"),
    "two horizons": (
        ["kl_schedule.shape=adaptive", "kl_schedule.target=0.1", "kl_schedule.horizon_steps=20"],
        "kl_schedule.horizon_steps",
        "kl_schedule.horizon_share=null",
    ),
    "horizon without effect": (["kl_schedule.horizon_share=0.5"], "kl_schedule.horizon_share", "no such option"),
    "option without effect": (["rules.lr.exponent=1"], "rules.lr.exponent", "no such option"),
    "clipping that cannot act": (["updates_per_rollout=1", "dual_clip=3"], "dual_clip", "cannot act"),
    "KL target with the KL off": (
        ["rules.kl=0", "kl_schedule.shape=adaptive", "kl_schedule.target=0.1"],
        "kl_schedule.shape",
        "nothing to schedule",
    ),
    "negative reference": (["scale.reference.kl=-1"], "reference.kl", "at least 0"),
    "schedule option without effect": (["kl_schedule.final=0.5"], "kl_schedule.final", "no such option"),
    "index into a list": (["ranks.0=4"], "ranks", "tuple[int, ...]"),
    "word for a rule": (["rules.lr=fast"], "rules.lr", "a number"),
    "not finite": (["rules.kl.value=.inf"], "rules.kl.value", "finite"),
    "name that leaves the directory": (["name=../../x"], "name", "letters"),
    "measured rate of another step": (
        ["rules.lr={rule: measured, value: 0.1}", "optimizer.method=spectral"],
        "rules.lr.rule",
        "AdamW's usual step is measured",
    ),
    "empty name": (["name="], "name", "letters"),
    "interpolation": (["rules.lr=${x}"], "rules.lr", "x"),
    "no such length term": (["reward.length=cubic"], "reward.length", "overlong"),
    "option of another length term": (
        ["reward.length=overlong", "reward.overlong_buffer_tokens=2", "reward.length_free=0.9"],
        "reward.length_free",
        "no such option",
    ),
    "length penalty without a length term": (
        ["reward.length=none", "reward.length_penalty=0.1"],
        "reward.length_penalty",
        "no such option",
    ),
    "overlong penalty without a buffer": (["reward.length=overlong"], "reward.overlong_buffer_tokens", "needs it"),
    "buffer longer than any response": (
        ["reward.length=overlong", "reward.overlong_buffer_tokens=9"],
        "reward.overlong_buffer_tokens",
        "response_tokens=8",
    ),
    "length that beats correctness": (["reward.length_penalty=0.95"], "reward.boxed_bonus", "below 1"),
    "bonus that beats correctness": (["reward.boxed_bonus=0.6"], "reward.boxed_bonus", "below 1"),
    "no such rule": (["rules.lr.rule=magic"], "magic", "equal_kl"),
    "missing table entry": (["rules.lr.rule=table", "rules.lr.table={1: 0.1}"], "rules.lr.table", "rank 8"),
    "missing DeepSpeed file": (["scale.deepspeed=none.json"], "none.json", "existing"),
    "shared GPUs without room": (["scale.placement.colocated=true"], "placement.engine_memory", "at most 0.7"),
    "more engines than shared GPUs": (
        ["scale.placement.colocated=true", "scale.placement.engines=2"],
        "placement.engines",
        "policy workers",
    ),
    "value workers on other GPUs than shared ones": (
        ["scale.placement.colocated=true", "scale.placement.policy_per_node=2", "scale.placement.engines=2"],
        "placement.critic_per_node",
        "policy_per_node",
    ),
    "no such advantage": (["advantage.method=grpo"], "advantage.method", "'grpo'", "group_norm"),
    "no such normaliser": (["advantage.normaliser=length"], "advantage.normaliser", "tokens or constant"),
    "a group of one": (["advantage.method=rloo", "samples_per_prompt=1"], "samples_per_prompt", "at least 2", "rloo"),
    "a batch of one": (
        ["advantage.method=batch_mean", "samples_per_prompt=1", "updates_per_rollout=1", "batch_sizes=[1]"],
        "batch_sizes",
        "at least 2",
    ),
    "shrinkage to one other prompt": (["advantage.method=shrinkage", "batch_sizes=[2]"], "batch_sizes", "at least 3"),
    "a discount of no history": (["advantage.discount=0.5"], "advantage.discount", "advantage.method=gae has no such"),
    "a past that grows": (["advantage.method=history", "advantage.discount=2"], "advantage.discount", "from 0 to 1"),
    "a prior below nothing": (
        ["advantage.method=history", "advantage.prior_strength=-1"],
        "prior_strength",
        "at least 0",
    ),
    "no such average": (["average.method=ema"], "average.method", "mean, trajectory, or null"),
    "snapshots of no average": (["average.snapshots=4"], "average.snapshots", "it is off", "average.method=mean"),
    "a share above 1": (["average={method: mean, share: 1.5}"], "average.share", "at most 1, or null"),
    "one snapshot": (["average={method: mean, snapshots: 1}"], "average.snapshots", "2 to 64"),
    "no such anchor": (["kl_anchor.reference=last"], "kl_anchor.reference", "base or ema"),
    "an anchor that stays has a rate": (["kl_anchor.rate=0.1"], "kl_anchor.rate", "'base' does not move"),
    "an anchor that never moves": (["kl_anchor={reference: ema, rate: 0}"], "kl_anchor.rate", "0 is the base"),
    "no such place of the KL": (["kl_anchor.place=both"], "kl_anchor.place", "reward or loss"),
    "an estimator in the reward": (["kl_anchor.estimator=k3"], "kl_anchor.estimator", "the reward has k1"),
    "an estimator without gradient": (["kl_anchor={place: loss, estimator: k1}"], "kl_anchor.estimator", "k2, k3"),
    "an anchor that holds nothing": (["kl_anchor.place=loss", "rules.kl=0"], "kl_anchor", "KL level at rank 1 is 0"),
    "samples that do not trade": (
        ["samples_per_prompt=12", "batch_samples_per_prompt=8"],
        "batch_samples_per_prompt: got 8",
        "a number that 12 divides at batch size [16]",
    ),
    "no samples to trade": (["batch_samples_per_prompt=0"], "batch_samples_per_prompt", "at least 1, or null"),
    "minibatches that do not fit": (["minibatch_prompts=5"], "minibatch_prompts", "divisor", "here [16]"),
    "no minibatch": (["minibatch_prompts=0"], "minibatch_prompts", "at least 1, or null"),
    "two rules of the batch size": (
        ["minibatch_prompts=4", "updates_per_rollout=3"],
        "updates_per_rollout: got 3",
        "minibatch_prompts gives the optimizer steps",
    ),
    "discount without a critic": (["advantage.method=group_mean", "gamma=0.9"], "gamma", "allowed: 1", "group_mean"),
    "dropped groups that teach": (["advantage.drop_uniform_groups=true"], "advantage.drop_uniform_groups", "gae"),
    "a critic's lambda above 1": (["critic.lambda=2"], "critic.lambda", "2.0", "at most 1, or null"),
    "a lambda by its field": (["critic.lambda_=1"], "critic.lambda_", "not in 'Critic'", "mean: 'lambda'"),
    "a lambda of the wrong type": (["critic.lambda=x"], "rankrl: critic.lambda: got", "'x'"),
    "two lambdas of the policy": (["gae_length_alpha=0.05", "gae_lambda=0.9"], "gae_lambda", "0.9", "drop one"),
    "no length": (["gae_length_alpha=0"], "gae_length_alpha", "above 0"),
    "three critics": (["critic.ensemble=3"], "critic.ensemble", "1 or 2"),
    "one critic that agrees": (["critic.mask_agreed=0.2"], "critic.mask_agreed", "critic.ensemble=2"),
    "nothing left to learn": (["critic.ensemble=2", "critic.mask_agreed=1"], "critic.mask_agreed", "below 1"),
    "prompts for two critics": (["critic.ensemble=2", "batch_sizes=[16,3]"], "batch_sizes", "[3]", "even numbers"),
    "samples for two critics": (
        ["critic.ensemble=2", "batch_sizes=[2]", "samples_per_prompt=1"],
        "batch_sizes",
        "critics * value workers = 4",
    ),
    "not an override": (["seeds"], "seeds", "key=value"),
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_a_wrong_recipe_gives_one_line_that_teaches(words, capsys):
    overrides, *told = words
    code = main(["plan", str(ROOT / "recipes" / "demo.yaml"), *overrides])
    said = capsys.readouterr()
    assert (code, said.out) == (2, ""), said.err
    lines = said.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("rankrl: ")
    for word in told:
        assert word in lines[0]


def test_a_missing_recipe_file_and_a_broken_one(tmp_path):
    assert "no.yaml" in rankrl("plan", "recipes/no.yaml").stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text("ranks: [1\n")
    done = rankrl("plan", str(broken))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_missing_model_directory_is_refused_before_anything_starts(tmp_path):
    words = [
        "recipes/demo.yaml",
        "ranks=[1]",
        "seeds=[0]",
        f"scale.model.path={tmp_path / 'nothing'}",
        "--runs",
        str(tmp_path),
    ]
    done = rankrl("sweep", *words, timeout_s=300)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("rankrl: model.path: got ")


def test_a_directory_of_another_run_is_refused(tmp_path):
    import yaml

    from rankrl.sweep.identity import check_identity

    run, other = runs_of("demo", "ranks=[1]", "seeds=[0]")[0], runs_of("demo", "ranks=[1]", "seeds=[0]", "steps=60")[0]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**run.resolved(), "versions": {"torch": "x"}}, sort_keys=False))
    check_identity(tmp_path, run)
    with pytest.raises(ValueError, match=r"holds a run with steps=30, and this one has 60"):
        check_identity(tmp_path, other)
    check_identity(tmp_path / "new", other)


def test_overrides_may_stand_after_options():
    done = rankrl("plan", "recipes/demo.yaml", "--json", "seeds=[7]")
    assert {row["seed"] for row in json.loads(done.stdout)} == {7}


def test_recipes_stay_short_and_say_what_to_expect():
    for recipe in RECIPES:
        lines = Path(ROOT / "recipes" / f"{recipe}.yaml").read_text().splitlines()
        assert len(lines) < 60
        assert lines[0].startswith("# ")


def test_micro_batches_divide_every_workers_share():
    from rankrl.recipe.plan import micro_batch

    run = runs_of("demo")[0]
    assert (run.rollout_samples, run.train_batch, run.optimizer_steps) == (128, 64, 60)
    assert micro_batch(run) == 64
    assert micro_batch(runs_of("demo", "scale.placement.micro_batch=48")[0]) == 32
    assert (
        micro_batch(runs_of("demo", "scale.placement.policy_per_node=2", "scale.placement.critic_per_node=4")[0]) == 16
    )


def test_engines_serve_twice_the_rank_of_an_adapter_that_starts_as_a_part_of_the_base():
    from rankrl.recipe.plan import largest_served_rank

    assert largest_served_rank(runs_of("demo", "ranks=[1,8]")) == 8
    assert largest_served_rank(runs_of("demo", "ranks=[1,8]", "init.method=olora_tail")) == 16
    assert largest_served_rank(runs_of("demo", "ranks=[1,8]", "init.method=olora_tail", "trained=b")) == 8


@pytest.mark.parametrize("name", ["nano", "nano-hard", "smollm2-135m", "qwen3-8b", "qwen3-30b-a3b", "qwen3-235b-a22b"])
def test_every_scale_evaluates_at_the_temperature_of_training(name):
    scale = load_scale(name)
    assert scale.sampling.eval_temperature == scale.sampling.temperature and evaluated_apart(scale) == []
    (said,) = evaluated_apart(load_scale(name, {"sampling": {"eval_temperature": 0.6, "temperature": 1.0}}))
    assert said.startswith("note: evaluations are at temperature 0.6, training is at 1: the gain is")
