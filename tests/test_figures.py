"""Every figure, drawn from generated records, and the margin charts for TensorBoard, read back.

No torch.
"""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import records
from conftest import ROOT

from rankrl.report.curves import aligned, band, points
from rankrl.report.figures import bands, families
from rankrl.report.figures.canvas import MAX_DOTS, heading, look, n_text, rank_colours, save, thinned
from rankrl.report.figures.draw import draw, few_arms, knobs_of
from rankrl.report.read import SweepRecords, read_sweep
from rankrl.report.summary import sweep_summary
from rankrl.report.tensorboard import aggregate

LABELS = {
    "rank_bands": [
        "n = 6 runs of 3 seeds per rank",
        "signal: mean gain",
        "reliability: share",
        "LoRA rank",
        "low ranks",
    ],
    "gain_by_rank": [
        "runs (n = 18)",
        "n = 6 runs of 3 seeds per rank",
        "gain over the base",
        "(fraction correct)",
        "LoRA rank",
    ],
    "batch_families": [
        "n = 9 runs of 3 seeds per batch",
        "batch size (prompts per PPO step)",
        "training tokens per run (million)",
    ],
    "mean_and_best": ["batch 16, n = 3 runs per rank", "best by luck alone, 95 % range", "best run"],
    "efficiency_by_rank": ["batch 16, n = 3 seeds per rank", "all seeds, 95 % interval", "gain per million tokens"],
    "pareto": ["n = 3 runs per cell", "training tokens per run (million)", "rank 32", "batch 16", "front"],
    "distributions": ["n = 3 per rank", "batch 32", "gain over the base", "median", "middle half"],
    "heat_maps": ["mean gain (n = 3 runs per cell)", "runs with gain &lt; 0 (n = 3 runs per cell)", "0/3", "LoRA rank"],
    "budget": ["measured (n = 3 ranks)", "seed-runs within the budget", "mean gain: 95 % half-width"],
    "footprint": ["n = 3 ranks", "trainable parameters", "share of the base (%)", "size (MB)"],
    "learning_curves": ["rank 8, n = 6 runs", "PPO step", "training accuracy"],
    "kl_and_gain": ["rank 1 (n = 6)", "KL to the base at the end (nats per token; n = 18 runs)"],
    "policy_by_step": ["n = 6 runs per rank", "clipped share", "entropy", "(nats per token)", "PPO step"],
    "knobs_by_rank": ["all runs (n = 3 ranks)", "learning rate", "max gradient norm", "warm-up (share of steps)"],
}


BY_RANK = "rules.warmup.rule=by_rank"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three ranks, two batch sizes, three seeds."""
    runs = records.grid(
        "plain", "low_rank", "ranks=[1,8,32]", "batch_sizes=[16,32]", "seeds=[0,1,2]", "steps=20", BY_RANK
    )
    grown = records.drawn(runs, {"": 0.2}, 0.02)
    return read_sweep(records.write_all(tmp_path_factory.mktemp("runs") / "plain", runs, grown, items=0))


@pytest.fixture(scope="module")
def summary(sweep):
    return sweep_summary(sweep)


@pytest.fixture(scope="module")
def drawn(sweep, summary, tmp_path_factory):
    return draw(sweep, summary, tmp_path_factory.mktemp("figures"))


@pytest.mark.slow
def test_every_figure_is_drawn_and_labelled(drawn):
    assert [figure.name for figure in drawn] == list(LABELS)
    for figure in drawn:
        svg = figure.path.read_text()
        for label in LABELS[figure.name]:
            assert label in svg, (figure.name, label)
        ElementTree.fromstring(svg)
        assert figure.path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
        assert figure.title and figure.caption.endswith(".") and figure.alt.endswith(".")


@pytest.mark.slow
def test_figures_can_stand_in_one_page(drawn):
    """Ids are unique over all figures, every reference to one has its target, and no style rule
    applies outside of its figure."""
    svgs = [figure.path.read_text() for figure in drawn]
    ids = [found for svg in svgs for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids)) > 100
    used = {found for svg in svgs for found in re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)}
    assert used and used <= set(ids)
    rules = {rule for svg in svgs for rule in re.findall(r"<style[^>]*>(.*?)</style>", svg)}
    assert len(rules) == 1 and all(
        part.startswith(".rankrl-figure") for part in re.findall(r"[^{}@]+(?=\{color|\{stroke)", rules.pop())
    )


@pytest.mark.slow
def test_ink_follows_light_and_dark(drawn):
    for figure in drawn:
        svg = figure.path.read_text()
        assert "#23282d" not in svg.replace(".rankrl-figure{color:#23282d}", "") and "fill: currentColor" in svg
        assert 'style="fill: #ffffff' not in svg.split("<text", 1)[0], "no background"
        assert "<metadata>" not in svg and "prefers-color-scheme:dark" in svg


@pytest.mark.slow
def test_bytes_are_the_same_each_time(drawn, sweep, summary, tmp_path):
    again = {}
    with look():
        for name, title, canvas in (
            ("gain_by_rank", "Gain by rank", families.gain_by_rank(sweep.results, summary["ranks"])),
            (
                "batch_families",
                "Gain and tokens by batch size",
                families.batch_families(sweep.results, summary["batches"]),
            ),
        ):
            heading(canvas, title, sweep.name)
            again[name] = save(canvas, tmp_path, name)
    for figure in drawn:
        if figure.name in again:
            for ending in (".svg", ".png"):
                assert (
                    figure.path.with_suffix(ending).read_bytes() == again[figure.name].with_suffix(ending).read_bytes()
                )


@pytest.mark.slow
def test_alternative_text_has_the_numbers(drawn, summary):
    alt = {figure.name: figure.alt for figure in drawn}
    low, middle, high = (row["mean_gain"] for row in summary["ranks"])
    assert alt["gain_by_rank"] == f"Mean gain by rank. rank 1: {low:.4g}; rank 8: {middle:.4g}; rank 32: {high:.4g}."


@pytest.mark.slow
def test_what_has_no_data_is_left_out(tmp_path):
    runs = records.grid("one", "low_rank", "ranks=[4]", "batch_sizes=[16]", "seeds=[0,1]", "steps=5")
    root = records.write_all(tmp_path / "one", runs, records.drawn(runs, {"": 0.2}, 0.02), items=0)
    for run in runs:
        (root / run.run_id / "metrics.jsonl").write_bytes(b'{"step": 1, "accuracy": "many"}\n')
        (root / run.run_id / "run.yaml").unlink()
    alone = read_sweep(root)
    names = [figure.name for figure in draw(alone, sweep_summary(alone), tmp_path / "figures")]
    assert names == ["gain_by_rank", "mean_and_best", "efficiency_by_rank", "distributions"]
    assert aggregate(alone) is None


def test_many_arms_are_lines_of_their_own(tmp_path):
    def row(arm, rank):
        gain = {
            "mean_gain": 0.1,
            "pooled_ci95": [0.05, 0.15],
            "negative_gain_risk": 0.0,
            "blocked_risk_ci95": [0.0, 0.46],
        }
        return {"arm": arm, "rank": rank, "n_seeds": 6, **gain}

    names = ["off", "on", "on_eva", "control"]
    difference = {"against": "off", "rank": 1, "batch_size": 16, "n_pairs": 3, "differences": [0.0, 0.1, 0.2]}
    ends = {"mean_difference": 0.1, "difference_ci95": [-0.15, 0.35], "family_ci95": [-0.3, 0.5]}
    with look():
        best = bands.rank_bands([row(arm, rank) for arm in names for rank in (1, 4)], {("on", 4)})
        svg = save(best, tmp_path, "rank_bands").read_text()
        rows = [{"arm": arm, **difference, **ends} for arm in names[1:]]
        against = save(families.difference_by_arm(rows), tmp_path, "difference_by_arm").read_text()
    for label in [*names, "rank 4: mean, 95 % interval (n = 6 runs per arm)", "not shown to be below another one"]:
        assert f">{label}</text>" in svg
    for label in [
        *names[1:],
        "n = 3 pairs of one seed",
        "interval for all at once",
        "difference in gain",
        "rank 1, batch 16",
    ]:
        assert f">{label}</text>" in against


def test_of_very_many_arms_the_ends_are_drawn(tmp_path):
    names = [f"a{i:02d}" for i in range(20)]
    rows = [{"arm": name, "rank": 1, "mean_gain": i / 100} for i, name in enumerate(names)]
    summary = {"arms": rows, "ranks": rows, "footprint": [{"rank": 1}], "words": ["one"], "comparisons": []}
    summary["comparisons"] = [{"arm": name, "against": "a10"} for name in names if name != "a10"]
    sweep = SweepRecords("many", tmp_path, [{"arm": name} for name in names], [], [])
    few, shown, note = few_arms(sweep, summary)
    kept = [*(f"a{i:02d}" for i in range(5)), "a10", *(f"a{i:02d}" for i in range(14, 20))]
    assert [result["arm"] for result in few.results] == [row["arm"] for row in shown["ranks"]] == kept
    assert (len(shown["comparisons"]), shown["footprint"], shown["words"]) == (11, [{"rank": 1}], ["one"])
    assert note == " Shown: 12 of 20 arms, the highest and lowest mean gains; the tables have all."
    assert few_arms(sweep, {"arms": rows[:12], "comparisons": []})[2] == ""


def test_a_large_sweep_is_thinned_and_counted(tmp_path):
    results = [
        {"arm": "", "rank": 2 ** (i % 9), "status": "finished", "gain": 0.1, "tokens_total": 1e6, "base_score": 0.2}
        for i in range(10_000)
    ]
    rows = [
        {
            "arm": "",
            "rank": 2**i,
            "n_seeds": 1111,
            "n_blocks": 1111,
            "mean_gain": 0.1,
            "pooled_ci95": None,
            "mean_tokens": 1e6,
        }
        for i in range(9)
    ]
    with look():
        svg = save(families.gain_by_rank(results, rows), tmp_path, "gain_by_rank").read_text()
    assert "runs (n = 10000)" in svg
    assert MAX_DOTS <= svg.count("<use ") < MAX_DOTS + 100
    assert thinned(list(range(10)), 4) == [0, 3, 6, 9]
    assert n_text([6, 6], "runs") == "n = 6 runs" and n_text([3, 6]) == "n = 3 to 6"
    assert len(set(rank_colours([1, 2, 4, 8, 16, 32, 64, 128, 256]).values())) == 9


def test_knobs_are_read_from_run_yaml(sweep, tmp_path):
    knobs = knobs_of(sweep)
    assert sorted(knobs) == [("", 1), ("", 8), ("", 32)]
    assert knobs["", 1]["warmup"] == 0.1 and knobs["", 8]["warmup"] == pytest.approx(0.03)
    assert knobs["", 1]["clip_high"] == 0.28


def test_curves_of_several_lengths_share_their_steps():
    long = [{"step": step, "accuracy": 0.1 * step} for step in (1, 2, 3, 4)]
    short = [{"step": 1, "accuracy": 0.3}, {"step": 3, "accuracy": 0.5}, {"step": 4, "accuracy": "?"}, {"step": 5}]
    steps, values = aligned([long, short, [{"step": 1, "accuracy": float("nan")}]], "accuracy")
    assert steps.tolist() == [1, 2, 3, 4]
    assert values[0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert values[1][:3].tolist() == pytest.approx([0.3, 0.4, 0.5]) and np.isnan(values[1][3])
    ends, shown = band(values)
    assert shown.tolist() == [True, True, True, False]
    # two values 0.2 apart: sd 0.1414, error 0.1, t(0.975, 1) = 12.7062
    assert ends[:, 0].tolist() == pytest.approx([0.2, 0.2 - 1.27062, 0.2 + 1.27062], abs=1e-5)
    assert points([{"step": 2, "x": 1}, {"step": 1, "x": True}, {"step": 1, "x": 1e400}], "x") == [(2, 1)]


def test_margin_charts_are_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    runs = records.grid("charts", "low_rank", "ranks=[1]", "batch_sizes=[16]", "seeds=[0,1,2]", "steps=2")
    root = records.write_all(tmp_path / "charts", runs, records.drawn(runs, {"": 0.2}, 0.02), items=0)
    for run in runs:
        line = '{{"step": {}, "accuracy": {}, "entropy": 1.5, "kl_ref": null}}\n'
        accuracies = (0.25 + 0.25 * run.seed, 0.5)
        (root / run.run_id / "metrics.jsonl").write_text("".join(map(line.format, (1, 2), accuracies)))
    for _ in range(2):  # anew each time
        assert aggregate(read_sweep(root)) == root / "_aggregate"
    (file,) = (root / "_aggregate").iterdir()
    events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0}).Reload()

    cell = "rank 1, batch 16"
    ends = ("mean", "lower", "upper")
    assert sorted(events.Tags()["scalars"]) == sorted(
        f"{name}/{cell}/{end}" for name in ("accuracy", "entropy") for end in ends
    )
    read = {end: [(e.step, e.value) for e in events.Scalars(f"accuracy/{cell}/{end}")] for end in ends}
    half = 4.302653 * 0.25 / 3**0.5  # t(0.975, 2), sd of 0.25, 0.5, 0.75
    assert read["mean"] == [(1, 0.5), (2, 0.5)]
    assert read["lower"] == [(1, pytest.approx(0.5 - half, abs=1e-6)), (2, 0.5)]
    assert read["upper"] == [(1, pytest.approx(0.5 + half, abs=1e-6)), (2, 0.5)]
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["training accuracy", "entropy (nats)"]
    (chart,) = layout.category[0].chart
    (series,) = chart.margin.series
    assert chart.title == cell
    assert (series.value, series.lower, series.upper) == tuple(f"accuracy/{cell}/{end}" for end in ends)


def test_without_tensorboard_one_line_says_so(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert aggregate(sweep) is None
    assert capsys.readouterr().out == "report: no margin charts for TensorBoard, which is not installed here\n"


@pytest.mark.slow
def test_no_torch_is_imported(sweep):
    code = (
        "import sys, pathlib\n"
        "from rankrl.report import build\n"
        "from rankrl.report.read import SweepRecords, read_sweep\n"
        "build.aggregate(read_sweep(pathlib.Path(sys.argv[1])))\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(sweep.directory)], cwd=ROOT, check=True, timeout=120)
