"""What the report makes of axes: values by column, pairs along an axis, the best point by rank."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import LIVE, result, unfold
from records import axes_sweep, drawn, grid, write_all

from rankrl.recipe.axes import arm_name
from rankrl.report.axis_values import listed_values, shown_value, spread_axes, with_axes
from rankrl.report.build import build
from rankrl.report.read import SweepRecords, read_sweep
from rankrl.report.statistics.along import best_points, by_value, held_out
from rankrl.report.statistics.blocks import blocks
from rankrl.report.statistics.cells import grouped
from rankrl.report.statistics.claims import claims, tables
from rankrl.report.statistics.references import references
from rankrl.report.summary import sweep_summary

RATES = {"rules.lr.value": [1e-3, 5e-4, 2e-3]}
BOTH = RATES | {"rules.alpha.exponent": [0.0, 0.5]}
MEANS = {
    f"lr_{rate}-alpha_exponent_{exponent}".replace(".", "p"): gain - 0.02 * (exponent == "0.5")
    for rate, gain in (("0.001", 0.2), ("0.0005", 0.15), ("0.002", 0.25))
    for exponent in ("0", "0.5")
}


def at(rate, seed, gain, rank=1, **more):
    """A run at a learning rate, and at an exponent of alpha if one is given."""
    point = {"rules.lr.value": rate} | more
    arm = arm_name("", point)
    run_id = f"{arm}-r{rank}-b16-s{seed}"
    return result(seed, rank, gain, run_id, arm=arm, axes=point)


def summary_of(results, values=RATES):
    return sweep_summary(SweepRecords("grid", Path("nowhere"), results, [], [], axes=values))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Six points, two ranks, six seeds, from run directories."""
    root = axes_sweep(tmp_path_factory.mktemp("axes"), MEANS, "seeds=[0,1,2,3,4,5]")
    (summary,) = build(root)
    return root, summary


def test_gain_and_risk_by_value_are_literal():
    gains = {1e-3: (0.1, 0.2), 5e-4: (-0.1, 0.1), 2e-3: (0.3, 0.3)}
    rows = by_value([at(rate, seed, gain) for rate, pair in gains.items() for seed, gain in enumerate(pair)], RATES)
    assert [(row["axis"], row["rank"], row["value"]) for row in rows] == [
        ("rules.lr.value", 1, 1e-3),
        ("rules.lr.value", 1, 5e-4),
        ("rules.lr.value", 1, 2e-3),
    ]
    assert [row["mean_gain"] for row in rows] == pytest.approx([0.15, 0.0, 0.3])
    assert [(row["negative_runs"], row["n_seeds"]) for row in rows] == [(0, 2), (1, 2), (0, 2)]
    assert rows[1]["negative_gain_risk"] == 0.5


def test_a_value_is_a_mean_over_all_else_and_every_cell_counts_alike():
    runs = [at(1e-3, seed, 0.1, **{"rules.alpha.exponent": 0.0}) for seed in range(3)]
    runs += [at(1e-3, 0, 0.5, **{"rules.alpha.exponent": 0.5})]
    (row,) = by_value(runs, {"rules.lr.value": [1e-3]})
    assert row["mean_gain"] == pytest.approx(0.3)  # not 0.2, the mean over runs
    assert row["n_seeds"] == 4 and row["n_blocks"] == 3


def test_points_are_compared_along_each_axis_with_its_first_value():
    runs = [at(rate, 0, 0.1, **{"rules.alpha.exponent": e}) for rate in BOTH["rules.lr.value"] for e in (0.0, 0.5)]
    found = references(runs, BOTH)
    assert found["lr_0p001-alpha_exponent_0"] == {}
    assert found["lr_0p002-alpha_exponent_0"] == {"rules.lr.value": "lr_0p001-alpha_exponent_0"}
    assert found["lr_0p0005-alpha_exponent_0p5"] == {
        "rules.alpha.exponent": "lr_0p0005-alpha_exponent_0",
        "rules.lr.value": "lr_0p001-alpha_exponent_0p5",
    }


def test_arms_at_a_point_are_compared_with_arm_off_there():
    runs = [
        result(0, 1, 0.1, arm=f"{arm}-lr_{rate}".replace(".", "p"), axes={"rules.lr.value": float(rate)})
        for arm in ("off", "on")
        for rate in ("0.001", "0.0005")
    ]
    assert references(runs, {"rules.lr.value": [1e-3, 5e-4]}) == {
        "off-lr_0p001": {},
        "off-lr_0p0005": {"rules.lr.value": "off-lr_0p001"},
        "on-lr_0p001": {"arm": "off-lr_0p001"},
        "on-lr_0p0005": {"arm": "off-lr_0p0005", "rules.lr.value": "on-lr_0p001"},
    }
    assert references([result(0, arm=arm) for arm in "ba"], {}) == {"b": {"arm": "a"}}  # without axes, as ever


def test_pairs_grow_with_the_points_and_not_with_their_square():
    def pairs(n, axes):
        rates = [i / 1000 for i in range(1, n + 1)]
        rng = np.random.default_rng(0)
        runs = [at(rate, seed, rng.normal(0.2, 0.02)) for rate in rates for seed in range(3)]
        against = references(runs, {"rules.lr.value": rates}) if axes else None
        return len(tables(runs, against).pairs)

    assert (pairs(20, True), pairs(20, False)) == (2 * 19, 2 * 190)  # points at rank 1, and over all ranks
    assert (pairs(40, True), pairs(40, False)) == (2 * 39, 2 * 780)


def test_held_out_gains_are_literal():
    gain_PS = np.array([[0.0, 0.0, 0.9], [0.2, 0.2, 0.2], [0.1, 0.1, 0.1]])
    found = held_out(gain_PS, 0)
    # without seed 0 or 1 the first point is best (.45), and has 0 there; without seed 2 the second
    assert found == {"heldout_gain": pytest.approx((0.0 + 0.0 + 0.2) / 3), "n_seeds_choosing": 3, "n_seeds_alike": 2}
    two = held_out(gain_PS[:, :2], 1)
    assert two == {"heldout_gain": None, "n_seeds_choosing": 2, "n_seeds_alike": None}


def best(results, values=RATES):
    made = tables(results, references(results, values))
    ranks = grouped(results, ("arm", "rank"))
    for row in ranks:
        row["design_risk_ci95"] = row["risk_ci95"]
    return best_points(results, ranks, made.ranks, claims(results, given=made), values)


def test_the_best_point_has_the_interval_of_the_claim_on_all_points():
    rng = np.random.default_rng(1)
    runs = [
        at(rate, s, m + rng.normal(0, 0.01)) for rate, m in ((1e-3, 0.2), (5e-4, 0.1), (2e-3, 0.3)) for s in range(5)
    ]
    (row,) = best(runs)
    made = claims(runs, given=tables(runs, references(runs, RATES)))
    (claim,) = [c for c in made if c["kind"] == "above" and c["subject"]["arm"] == "lr_0p002"]
    assert (row["best"], row["axes"], row["rank"]) == ("lr_0p002", {"rules.lr.value": 2e-3}, 1)
    assert (row["family_ci95"], row["family"]) == (claim["ci95"], 3)
    assert row["n_seeds_alike"] == row["n_seeds_choosing"] == 5
    assert row["heldout_gain"] == pytest.approx(row["mean_gain"])  # chosen on every seed alike


def test_a_point_with_a_diverged_run_is_not_chosen_for_its_survivors():
    runs = [at(rate, seed, 0.1 + 0.01 * seed) for rate in (1e-3, 5e-4) for seed in range(3)]
    runs += [at(2e-3, seed, 0.9) for seed in range(2)] + [at(2e-3, 2, None) | {"status": "diverged"}]
    (row,) = best(runs)
    assert row["best"] in ("lr_0p001", "lr_0p0005") and (row["n_points"], row["n_left_out"]) == (3, 1)
    lost = [at(rate, 0, None) | {"status": "diverged"} for rate in (1e-3, 5e-4)]
    (row,) = best(lost)
    assert row["best"] is None and row["family_ci95"] is None and row["n_left_out"] == 2


def test_choosing_makes_the_mean_too_high_and_not_the_held_out_gain():
    """Nine equal points of gain 0, six seeds, 400 sweeps."""
    rng, means, held, covered = np.random.default_rng(0), [], [], []
    for _ in range(400):
        gains = rng.normal(0, 0.1, (9, 6))
        chosen = int(gains.mean(1).argmax())
        means.append(gains[chosen].mean())
        held.append(held_out(gains, chosen)["heldout_gain"])
    assert np.mean(means) == pytest.approx(0.06, abs=0.005)
    assert np.mean(held) == pytest.approx(0.0, abs=0.006)
    for _ in range(60):
        runs = [at(i / 1000, s, 0.1 + rng.normal(0, 0.02)) for i in range(1, 6) for s in range(4)]
        (row,) = best(runs, {"rules.lr.value": [i / 1000 for i in range(1, 6)]})
        covered.append(row["family_ci95"][0] <= 0.1 <= row["family_ci95"][1])
    assert np.mean(covered) >= 0.95


def test_few_seeds_say_not_known():
    runs = [at(rate, seed, 0.1 + rate + 0.01 * seed) for rate in RATES["rules.lr.value"] for seed in range(2)]
    found = summary_of(runs)
    (said,) = [line for line in found["words"] if "has the highest mean gain" in line]
    assert said.startswith("Rank 1: of 3 points, lr 0.002 has the highest mean gain, +0.107 [")
    assert said.endswith("what a point that is so chosen gains on other seeds is not known.")
    one = summary_of([at(rate, 0, 0.1) for rate in RATES["rules.lr.value"]])["best_points"][0]
    assert one["family_ci95"] is None and one["heldout_gain"] is None


def test_the_report_has_values_as_columns(report):
    root, summary = report
    assert summary["axes"] == [{"key": key, "values": values} for key, values in BOTH.items()]  # the plan's order
    assert {row["arm"]: row["axes"] for row in summary["cells"]}["lr_0p002-alpha_exponent_0p5"] == {
        "rules.lr.value": 0.002,
        "rules.alpha.exponent": 0.5,
    }
    with (root / "report" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 72
    assert {(row["axes.rules.lr.value"], row["axes.rules.alpha.exponent"]) for row in rows} == {
        (rate, exponent) for rate in ("0.001", "0.0005", "0.002") for exponent in ("0.0", "0.5")
    }
    assert (root / "report" / "tables" / "runs.csv").read_text() == (root / "report" / "runs.csv").read_text()
    written = json.loads((root / "report" / "summary.json").read_text())
    assert len(written["axis_values"]) == 2 * (3 + 2)
    assert [row["best"] for row in written["best_points"]] == ["lr_0p002-alpha_exponent_0"] * 2
    assert {row["along"] for row in written["comparisons"]} == set(BOTH)
    figure = (root / "report" / "figures" / "axis_maps.svg").read_text()
    for text in ("mean gain (n = 12 runs per value)", "alpha.exponent", "0.0005", "0/18"):
        assert text in figure


def test_a_sweep_without_axes_says_nothing_of_them():
    found = summary_of([result(i) for i in range(3)], {})
    assert (found["axes"], found["axis_values"], found["best_points"]) == ([], [], [])
    assert "axes" not in found["cells"][0]
    assert spread_axes({"a": 1}) == {"a": 1}


def test_a_value_that_is_added_keeps_the_reference(tmp_path):
    runs = grid("more", "demo", "axes={rules.lr.value: [1e-3, 5e-4]}", "ranks=[1]", "seeds=[0,1]")
    root = write_all(tmp_path / "more", runs, drawn(runs, {"lr_0p001": 0.2, "lr_0p0005": 0.1}, 0.02), items=0)
    more = grid("more", "demo", "axes={rules.lr.value: [2e-3, 1e-3, 5e-4]}", "ranks=[1]", "seeds=[0,1]")
    assert {run.run_id for run in runs} < {run.run_id for run in more}
    grown = drawn(more, {"lr_0p001": 0.2, "lr_0p0005": 0.1, "lr_0p002": 0.3}, 0.02)
    write_all(root, more, grown, items=0)
    assert read_sweep(root).axes == {"rules.lr.value": [1e-3, 5e-4, 2e-3]}


HOSTILE = {"<b>x</b>": "</script>", "gain": -1, "a\nb": "\u202e", "=1+1": "=1+1", "n": None, "t": True}


def test_hostile_values_are_shown_as_text(tmp_path):
    runs = grid("hostile", "demo", "axes={rules.lr.value: [1e-3, 5e-4]}", "ranks=[1]", "seeds=[0,1]")
    root = write_all(tmp_path / "hostile", runs, drawn(runs, {"lr_0p001": 0.2, "lr_0p0005": 0.1}, 0.02), items=0)
    for run in runs:
        path = root / run.run_id / "run.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"axes": HOSTILE}, sort_keys=False))
    (summary,) = build(root)
    assert [axis["key"] for axis in summary["axes"]] == sorted(HOSTILE, key=[*HOSTILE].index)
    page = (root / "report" / "index.html").read_text()
    assert "<b>x" not in page and "\u202e" not in page and "a\\nb" in page
    with (root / "report" / "runs.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["axes.=1+1"] == "'=1+1" and row["axes.n"] == "null" and row["gain"] != "-1"


def test_damaged_values_are_no_axes():
    sections = {f"r{i}": {"axes": text} for i, text in enumerate(["", " 3", "\n  a: [1]", "\n  a: .nan", "\n  a: 0.5"])}
    rows = with_axes([{"run_id": name, "arm": name} for name in sections], sections)
    assert [row["axes"] for row in rows] == [{}, {}, {}, {}, {"a": 0.5}]
    rows = with_axes([{"run_id": "r4", "arm": "x"}, {"run_id": "lost", "arm": "x"}], sections)
    assert [row["axes"] for row in rows] == [{"a": 0.5}] * 2  # that of the arm
    assert listed_values(rows, []) == {"a": [0.5]}
    assert [shown_value(value) for value in (None, True, 1e-5, "a b")] == ["null", "true", "1e-5", "a b"]


@pytest.mark.slow
def test_the_page_filters_runs_by_value(report, window):
    window.open(report[0] / "report" / "index.html")
    unfold(window)
    heads = window.texts("#runs-table thead th")
    assert heads[:4] == ["run", "arm", "lr", "alpha.exponent"]
    for words, n in (("lr=0.0005", 24), ("lr=0.0005 alpha.exponent=0.5 rank=8", 6), ("lr>=0.001", 48), ("lr=5e-4", 24)):
        window.run("const box = document.querySelector('#runs-table input'); box.value = ''")
        window.type("#runs-table input", words)
        assert len(window.texts(LIVE)) == n, words
    assert window.texts("#best-table tbody tr td:nth-child(1)") == ["0.002", "0.002"]
    assert window.console() == []


def test_blocks_without_references_compare_all():
    runs = [at(rate, seed, 0.1 * seed + rate) for rate in RATES["rules.lr.value"] for seed in range(3)]
    assert blocks(runs).references is None
