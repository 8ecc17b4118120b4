"""What figures show, read back from their artists: extents, colours, marks, limits and values.

No torch.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import records
from canvases import outside, overlaps, place
from matplotlib.collections import PathCollection

from rankrl.report.figures import grid, overlays, series
from rankrl.report.figures.canvas import MOST_PANELS, MOST_RANKS, look, rank_colours
from rankrl.report.figures.draw import drawings, few_arms
from rankrl.report.figures.efficiency import efficiency
from rankrl.report.figures.families import gain_by_rank
from rankrl.report.figures.labels import tick_labels
from rankrl.report.figures.pareto import round_ticks
from rankrl.report.held_out import held_out, scores_by_step
from rankrl.report.read import read_sweep
from rankrl.report.statistics.intervals import t_interval
from rankrl.report.summary import sweep_summary


def drawn(directory):
    """Name -> (canvas, title, caption, alt) of a sweep on disk, laid out."""
    sweep = read_sweep(directory)
    with look():
        found = {name: rest for name, *rest in drawings(sweep, sweep_summary(sweep)) if rest[0] is not None}
        for canvas, *_ in found.values():
            place(canvas)
    return found


def series_of(axes, label):
    """The points (x, y) of the dots with this label."""
    found = [dots for dots in axes.collections if isinstance(dots, PathCollection) and dots.get_label() == label]
    return np.concatenate([np.asarray(dots.get_offsets()) for dots in found])


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """The demo's case: two seeds far apart, and token counts that differ by 0.05 %."""
    runs = records.grid("two_seeds", "low_rank", "ranks=[1,8,32]", "batch_sizes=[16]", "seeds=[0,1]", "steps=5")
    gains = {0: 0.30, 1: 0.02}
    grown = {run.run_id: records.Grown(gains[run.seed], 44_660 + 10 * i, 20.0) for i, run in enumerate(runs)}
    return drawn(records.write_all(tmp_path_factory.mktemp("runs") / "two_seeds", runs, grown, items=4))


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """Two diverged seeds of rank 256 and a failed one of rank 1, in each of two batch sizes."""
    grids = ("ranks=[1,8,32,256]", "batch_sizes=[16,128]", "seeds=[0,1,2,3]", "steps=20")
    runs = records.grid("lost", "low_rank", *grids)
    grown = records.drawn(runs, {"": 0.1}, 0.03)
    root = records.write_all(tmp_path_factory.mktemp("runs") / "lost", runs, grown, items=0)
    for run in runs:
        if (run.rank, run.seed) in ((256, 0), (256, 1), (1, 2)):
            content = records.result(run, grown[run.run_id], "diverged" if run.rank == 256 else "failed")
            none = dict.fromkeys(("gain", "final_score", "best_score"))
            (root / run.run_id / "result.json").write_text(json.dumps(content | none | {"error": "nan"}))
    return read_sweep(root), drawn(root)


@pytest.mark.slow
@pytest.mark.parametrize("write", [records.small, records.ablation, records.broken])
def test_no_text_overlaps_another_one_or_leaves_its_figure(write, tmp_path):
    for name, (canvas, *_) in drawn(write(tmp_path)).items():
        assert (name, overlaps(canvas), outside(canvas)) == (name, [], [])


@pytest.mark.slow
def test_no_text_overlaps_in_the_published_sweep(tmp_path):
    found = drawn(records.synthetic216(tmp_path, steps=20, items=4))
    for name, (canvas, *_) in found.items():
        assert (name, overlaps(canvas), outside(canvas)) == (name, [], [])
    named = [text.get_text() for axes in found["pareto"][0].axes for text in axes.texts if text.get_visible()]
    assert {"r16 b32", "r16 b64", "r32 b128"} <= set(named), "the best cells of the front keep their names"


def test_tokens_that_hardly_differ_do_not_stretch_the_axis(two_seeds, lost):
    for canvas, *_ in (*two_seeds.values(), *lost[1].values()):
        assert overlaps(canvas) == [] and outside(canvas) == []
    axes = two_seeds["pareto"][0].axes[0]
    low, high = axes.get_xlim()
    assert high / low >= 1.25 and low < 0.0446 < high
    assert [label.get_text() for label in tick_labels(axes.xaxis)] == ["0.042", "0.045", "0.048"]
    assert round_ticks(3, 300) == [5, 10, 20, 50, 100, 200] and round_ticks(0.5, 2000) == [1, 10, 100, 1000]


def test_an_axis_keeps_to_the_data_and_marks_intervals_that_go_on(two_seeds):
    """Mean 0.16; intervals end at -0.3, the least gain over a base of 0.3, and go on above."""
    canvas, _, caption, _ = two_seeds["gain_by_rank"]
    (axes,) = canvas.axes
    assert -0.4 < axes.get_ylim()[0] < -0.3 and 0.6 < axes.get_ylim()[1] < 0.7
    assert set(series_of(axes, series.CUT)[:, 1].round(9)) == {0.6}
    assert len(series_of(axes, series.CUT)) == 3 and "arrowhead" in caption
    caps = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if line.get_marker() in ("_", 1, 2, 3)]
    assert len(caps) == 2 and np.isnan(caps[1]).all(), "no cap where the interval goes on"
    assert caps[0].tolist() == pytest.approx([-0.3] * 3)


def test_the_window_of_an_axis():
    assert series.window([0.1, 0.3], [(0.05, 0.35)]) == (0.0, 0.35)
    assert series.window([0.1, 0.3], [(-9, 9)]) == pytest.approx((-0.3, 0.6))
    assert series.window([-0.6, 0.7], [(-9, 9)]) == (-1, 1), "a gain is between -1 and 1"
    assert series.window([], [None]) == (0, 0)


def test_a_run_without_a_score_is_marked_and_not_drawn_at_a_gain(lost):
    sweep, found = lost
    gains = {round(run["gain"], 9) for run in sweep.results if run["gain"] is not None}
    names = ["diverged, without a score (n = 4)", "failed, without a score (n = 2)"]
    (axes,) = found["gain_by_rank"][0].axes
    heights = series_of(axes, "runs (n = 26)")[:, 1]
    assert set(heights.round(9)) == gains and -records.BASE_SCORE not in gains
    for name, x in zip(names, (256, 1), strict=True):
        ((place, height),) = series_of(axes, name)
        assert place == pytest.approx(x * series.BESIDE) and 0 < height < 0.15, "at the lower edge"
    assert "4" in [text.get_text() for text in axes.texts], "how many runs stand at that place"
    for figure in (
        "gain_by_rank",
        "batch_families",
        "mean_and_best",
        "efficiency_by_rank",
        "distributions",
        "kl_and_gain",
    ):
        legend = [text.get_text() for text in found[figure][0].legends[0].get_texts()]
        assert set(names) <= set(legend), figure
    for figure in ("gain_by_rank", "distributions", "kl_and_gain", "efficiency_by_rank", "mean_and_best"):
        assert "runs without a score are marked at the lower edge" in found[figure][2]
    assert found["gain_by_rank"][3].endswith(" Without a score: 6 of 32 runs.")


def test_a_diverged_run_with_a_score_stands_at_it():
    run = {"arm": "", "rank": 4, "status": "diverged", "gain": 0.25, "seed": 0, "tokens_total": 10**6}
    failed = run | {"status": "failed", "gain": None}
    row = {"arm": "", "rank": 4, "n_seeds": 1, "n_blocks": 1, "mean_gain": 0.25, "pooled_ci95": None}
    with look():
        (axes,) = gain_by_rank([run, failed], [row]).axes
    assert series_of(axes, "diverged, with a score (n = 1)").tolist() == [[4 * series.BESIDE, 0.25]]
    with look():
        assert gain_by_rank([failed], [row | {"mean_gain": None}]) is None, "nothing has a score"


def test_heat_maps_are_centred_on_no_gain(lost):
    canvas = lost[1]["heat_maps"][0]
    gains, risks = (axes.collections[0] for axes in canvas.axes[:2])
    assert gains.norm.vmin == -gains.norm.vmax < 0
    assert gains.norm.vmax == pytest.approx(np.abs(gains.get_array().compressed()).max())
    assert (risks.norm.vmin, risks.norm.vmax) == (0, 1)
    assert min(gains.cmap(gains.norm(0))[:3]) > 0.95, "no gain is white"


def test_loss_and_gain_differ_in_every_colour_blindness():
    """Matrices of Machado et al. 2009 for protanopia, deuteranopia and tritanopia, linear RGB."""
    import matplotlib

    blind = [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
    colours = matplotlib.colormaps[grid.GAINS]
    for size in (0.25, 0.5, 1.0):
        ends = np.array([colours(0.5 - size / 2)[:3], colours(0.5 + size / 2)[:3]]) ** 2.2
        for matrix in blind:
            loss, gain = np.clip(ends @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
            assert np.linalg.norm(loss - gain) > 0.2, (size, matrix)


def with_evaluations(root, runs, steps):
    """Adds evaluations in between to evals.parquet; returns (run_id, step) -> score."""
    scores = {}
    for run in runs:
        file = root / run.run_id / "evals.parquet"
        table = pd.read_parquet(file)
        for step in steps:
            right = run.rank + run.seed + step // 10
            last = table[table.step == run.recipe.steps]
            table = pd.concat([table, last.assign(step=step, correct=np.arange(len(last)) < right)])
            scores[run.run_id, step] = right / len(last)
        table.to_parquet(file)
    return scores


def test_held_out_scores_by_step(tmp_path):
    grids = ("ranks=[1,4,16]", "batch_sizes=[16]", "seeds=[0,1,2]", "steps=40", "eval_every=10")
    runs = records.grid("held", "low_rank", *grids)
    root = records.write_all(tmp_path / "held", runs, records.drawn(runs, {"": 0.1}, 0.03), items=10)
    scores = with_evaluations(root, runs, (10, 20, 30))
    assert [point["step"] for point in held_out(root / runs[0].run_id)] == [0, 10, 20, 30, 40]
    results = read_sweep(root).results
    with look():
        canvas = overlays.held_out_by_step({run.run_id: held_out(root / run.run_id) for run in runs}, results)
    (axes,) = canvas.axes
    assert axes.get_title(loc="left") == "n = 3 runs per rank"
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["rank 1", "rank 4", "rank 16"] and len(axes.collections) == 3
    middle = [scores[f"r4-b16-s{seed}", 20] for seed in range(3)]
    assert lines["rank 4"].get_xdata().tolist() == [0, 10, 20, 30, 40]
    assert lines["rank 4"].get_ydata()[2] == pytest.approx(np.median(middle))
    band = axes.collections[1].get_paths()[0].vertices
    assert sorted(set(band[band[:, 0] == 20][:, 1])) == pytest.approx(np.quantile(middle, [0.25, 0.75]))


def test_without_evaluations_in_between_there_is_no_held_out_curve(lost, tmp_path):
    sweep, found = lost
    assert "held_out_by_step" not in found
    assert held_out(sweep.directory / "r8-b16-s0") == [] and scores_by_step(tmp_path / "none") == []
    (tmp_path / "evals.parquet").write_bytes(b"PAR1 no parquet")
    assert scores_by_step(tmp_path / "evals.parquet") == []


def test_ranks_lie_over_each_other_by_step(lost):
    canvas, title, caption, alt = lost[1]["policy_by_step"]
    assert title == "KL, entropy and clipping by PPO step" and "median" in caption and "rank 8: 0." in alt
    names = [axes.get_ylabel().partition("\n")[0] for axes in canvas.axes]
    assert names == ["KL to the base", "entropy", "clipped share"]
    colours = rank_colours([1, 8, 32, 256])
    for axes in canvas.axes:
        assert [line.get_color() for line in axes.lines] == list(colours.values())
        assert len(axes.collections) == 4, "a band for each rank"


def noisy(steps: range, **more: float) -> list[dict]:
    """A curve with instruments; there are none while only the critic learns (step 1)."""
    return [{"step": s, "uniform_group_frac": 0.2, "clip_frac": 0.01, **(more if s > 1 else {})} for s in steps]


def test_learning_or_noise_is_drawn_where_it_was_recorded():
    results = [
        {"arm": "", "rank": rank, "seed": seed, "run_id": f"{rank}-{seed}"} for rank in (1, 8) for seed in (0, 1)
    ]
    more = {"grad_cosine": 0.25, "ess_frac": 0.9, "advantage_sd": 0.5, "delta_norm": 2.0, "explained_variance": 0.1}
    curves = {run["run_id"]: noisy(range(1, 5), **more) for run in results}
    with look():
        assert overlays.noise_by_step({name: noisy(range(1, 5)) for name in curves}, results) is None
        canvas = overlays.noise_by_step(curves, results)
        place(canvas)
    assert overlaps(canvas) == [] and outside(canvas) == []
    found = {axes.get_ylabel().partition("\n")[0]: axes for axes in canvas.axes if axes.get_visible()}
    assert [*found] == ["gradient cosine", "effective sample", "advantage sd", "norm of delta W",
                        "explained variance", "clipped share", "share of"]  # fmt: skip
    rank_1, rank_8 = found["gradient cosine"].lines
    assert rank_1.get_xdata().tolist() == [2, 3, 4] and rank_8.get_ydata().tolist() == [0.25] * 3
    assert found["clipped share"].lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    labelled = [name for name, axes in found.items() if axes.get_xlabel() == "PPO step"]
    assert labelled == ["norm of delta W", "explained variance", "clipped share", "share of"]


def test_of_several_arms_the_first_panels_of_noise_are_drawn():
    results = [{"arm": arm, "rank": 4, "seed": 0, "run_id": arm} for arm in ("a", "b", "c", "d", "e")]
    more = dict.fromkeys(overlays.NOISE, 0.5)
    with look():
        canvas = overlays.noise_by_step({run["run_id"]: noisy(range(1, 4), **more) for run in results}, results)
        place(canvas)
    assert overlaps(canvas) == [] and outside(canvas) == []
    assert len(canvas.axes) == MOST_PANELS and all(axes.lines for axes in canvas.axes)
    assert [axes.get_title(loc="left")[0] for axes in canvas.axes[:4]] == ["a", "b", "c", "d"]
    assert [axes.get_ylabel() for axes in canvas.axes[::4]] == [*overlays.NOISE.values()][:3]


def test_colours_follow_the_logarithm_of_the_rank():
    light = {
        rank: sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for rank, colour in rank_colours([1, 2, 256]).items()
    }
    assert light[1] < light[2] < light[256]
    assert light[2] - light[1] < 0.4 * (light[256] - light[2]), "one octave of eight"


def test_long_sweeps_are_cut_and_the_caption_says_so(tmp_path):
    results = [
        {"arm": "", "rank": rank, "seed": seed, "run_id": f"{rank}-{seed}"}
        for rank in range(1, 31)
        for seed in range(2)
    ]
    curves = {run["run_id"]: [{"step": s, "kl_ref": 0.1 * s} for s in (1, 2, 3)] for run in results}
    with look():
        canvas = overlays.policy_by_step(curves, results)
    assert len(canvas.axes) == 1 and len(canvas.axes[0].lines) == MOST_RANKS
    assert overlays.overlaid(results)[0] == 1 and overlays.overlaid(results)[-1] == 30


@pytest.mark.slow
def test_a_sweep_of_many_arms_and_ranks_stays_legible(tmp_path):
    arms = {f"arm_{i:02d}_of_a_long_name": {} for i in range(13)}
    ranks = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64]
    grids = (f"arms={json.dumps(arms)}", f"ranks={ranks}", "batch_sizes=[16,64]", "seeds=[0,1]", "steps=4")
    runs = records.grid("long", "low_rank", *grids)
    grown = records.drawn(runs, dict.fromkeys(arms, 0.1), 0.03)
    found = drawn(records.write_all(tmp_path / "long", runs, grown, items=0))
    for name, (canvas, _, caption, _) in found.items():
        panels = [axes for axes in canvas.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]
        assert len(panels) <= MOST_PANELS, name
        assert canvas.get_figwidth() < 20 and canvas.get_figheight() < 20, name
        assert (" of 13 arms" in caption) == (name != "footprint"), name
        assert overlaps(canvas) == [] and outside(canvas) == [], name
    assert "Shown: 16 of 17 ranks" in found["heat_maps"][2] and "Shown: 4 of 13 arms" in found["heat_maps"][2]
    for name in ("policy_by_step", "rank_bands", "learning_curves"):
        assert "Shown: 6 of 17 ranks" in found[name][2], name
    assert len(found["rank_bands"][0].axes[0].containers) == 6, "rows of an arm"
    assert "Shown: 12 of 34 cells" in found["difference_by_arm"][2]


def test_sentences_about_arms_do_not_stop_the_choice_of_few(lost):
    sweep, _ = lost
    arms = [{"arm": f"a{i:02d}", "mean_gain": i / 100} for i in range(20)]
    summary = {"arms": arms, "comparisons": [], "answer": ["To rely on: arm a01."], "words": []}
    assert few_arms(sweep, summary)[1]["answer"] == ["To rely on: arm a01."]


def test_title_and_sweep_stand_in_each_figure(lost):
    for canvas, title, *_ in lost[1].values():
        assert canvas.get_suptitle() == f"{title}\nlost"


def test_names_are_no_formulas():
    with look():
        (axes,) = gain_by_rank(
            [],
            [{"arm": "$x_1$", "rank": 1, "n_seeds": 1, "n_blocks": 1, "mean_gain": 0.1, "pooled_ci95": None}],
        ).axes
        legend = axes.figure.legends[0].get_texts()
    assert legend[-1].get_text().startswith("$x_1$: mean") and not legend[-1].get_parse_math()


def test_efficiency_is_gain_over_tokens_with_the_seed_as_unit():
    def run(seed, gain, tokens):
        return {"arm": "", "rank": 1, "seed": seed, "gain": gain, "tokens_total": tokens, "status": "finished"}

    alike = [run(0, 0.1, 2_000_000), run(1, 0.3, 2_000_000), run(2, 0.2, 2_000_000)]
    ratio, ends, dots = efficiency(alike)
    assert ratio == pytest.approx(0.1) and dots == pytest.approx([0.05, 0.15, 0.1])
    assert ends == pytest.approx(t_interval(dots)), "with equal tokens it is the t interval of the dots"
    ratio, ends, _ = efficiency([run(0, 0.1, 1_000_000), run(1, 0.3, 3_000_000)])
    assert ratio == pytest.approx(0.1) and ends is None, "the same gain per token twice: nothing varies"
    # two batch sizes: a seed is one unit, its gains and tokens summed
    both = efficiency([*alike, run(0, 0.2, 8_000_000), run(1, 0.2, 8_000_000), run(2, 0.2, 8_000_000)])
    assert both[0] == pytest.approx(1.2 / 30) and both[2] == pytest.approx([0.03, 0.05, 0.04])
    assert efficiency(alike[:1])[1] is None


def test_efficiency_in_the_figure_is_that_of_the_table(lost):
    sweep, found = lost
    canvas = found["efficiency_by_rank"][0]
    cells = {(row["rank"], row["batch_size"]): row for row in sweep_summary(sweep)["cells"]}
    for axes, batch in zip(canvas.axes, (16, 128), strict=True):
        line = axes.containers[0].lines[0]
        values = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for rank in (8, 32):
            assert values[rank] == pytest.approx(cells[rank, batch]["token_efficiency"])
        runs = [run for run in sweep.results if run["batch_size"] == batch and run["gain"] is not None]
        shown = sorted(series_of(axes, "seed")[:, 1])
        assert shown == pytest.approx(sorted(run["gain"] / run["tokens_total"] * 1e6 for run in runs))


def test_mean_and_best_shows_the_best_run_and_its_luck(lost):
    sweep, found = lost
    canvas, _, caption, _ = found["mean_and_best"]
    rows = {row["rank"]: row for row in sweep_summary(sweep)["cells"] if row["batch_size"] == 16}
    axes = canvas.axes[0]
    gains = [run["gain"] for run in sweep.results if (run["rank"], run["batch_size"]) == (8, 16)]
    assert dict(series_of(axes, "best run"))[8] == max(gains)
    assert dict(series_of(axes, "mean"))[8] == pytest.approx(np.mean(gains))
    (bars,) = [lines for lines in axes.collections if lines.get_label() == "best by luck alone, 95 % range"]
    ((_, low), (_, high)) = next(path for path in bars.get_segments() if path[0][0] == 8)
    assert (low, high) == pytest.approx(
        tuple(np.mean(gains) + np.std(gains, ddof=1) * np.array(rows[8]["upside_null95"]))
    )
    assert "Cells have 3 to 4 runs: compare a best run with its own bar only." in caption
    assert "costs the tokens of all n" in caption


def test_a_rank_without_any_score_has_no_mean(lost):
    """All runs of rank 256 diverged without a score: no mean, no interval, but a risk."""
    sweep, _ = lost
    summary = sweep_summary(sweep)
    none = dict.fromkeys(("mean_gain", "sd_gain", "best_gain", "gain_ci95", "pooled_ci95", "token_efficiency"))
    for table in ("cells", "ranks", "pareto_points"):
        summary[table] = [row | (none | {"lower_gain": None} if row["rank"] == 256 else {}) for row in summary[table]]
    runs = [run | ({"gain": None, "status": "diverged"} if run["rank"] == 256 else {}) for run in sweep.results]
    with look():
        found = {name: rest for name, *rest in drawings(replace(sweep, results=runs), summary) if rest[0] is not None}
    (axes,) = found["gain_by_rank"][0].axes
    assert axes.containers[0].lines[0].get_xdata().tolist() == [1, 8, 32]
    assert "diverged, without a score (n = 8)" in axes.get_legend_handles_labels()[1]
    gains, risks = (axes.collections[0].get_array() for axes in found["heat_maps"][0].axes[:2])
    assert gains.mask[:, 3].all() and not np.ma.getmaskarray(risks).any()
    assert "rank 256" not in found["gain_by_rank"][3]
