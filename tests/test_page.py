"""The report page, as text and in headless Chromium."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib

import pytest
from pages import HOSTILE, LIVE, result, unfold, write_curves, write_page

from rankrl.report.ledger import Entry
from rankrl.report.page.answer import key_numbers
from rankrl.report.page.columns import RUNS
from rankrl.report.page.data import packed, quantise
from rankrl.report.page.settings import derived, flat, resolved, split
from rankrl.report.page.table import Table, data

CONTRASTS = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const over = (colour, below) => {  // a CSS colour on an opaque one, as [r, g, b]
  canvas.fillStyle = `rgb(${below})`; canvas.fillRect(0, 0, 1, 1);
  canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const paper = (e) => e ? over(getComputedStyle(e).backgroundColor, paper(e.parentElement)) : [255, 255, 255];
const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const seen = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("script,style") &&
  [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
const ratios = seen.map((e) => {
  const below = paper(e), style = getComputedStyle(e);
  const [a, b] = [light(over(e.tagName === "text" ? style.fill : style.color, below)), light(below)].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), e.tagName, e.textContent.slice(0, 40)];
});
return ratios.sort((x, y) => x[0] - y[0]);
"""


@pytest.fixture
def opened(window, tmp_path):
    """A page of 130 runs at two ranks. The first three runs of the lower rank have curves; one run
    has hostile text and one has failed."""
    results = [result(i, 1, 0.001 * (i - 5)) for i in range(65)] + [result(i, 8, 0.1 + 0.001 * i) for i in range(63)]
    results += [result(63, 8, None, status="failed", error="no space"), result(64, 8, -0.2, HOSTILE, error=HOSTILE)]
    for i in range(3):
        write_curves(tmp_path / "demo" / f"r1-b16-s{i}")
    said = {"answer": ["Rank 8 gains."], "words": ["Rank 8 gains.", HOSTILE]}
    path = write_page(tmp_path / "demo", results, problems=[{"run": HOSTILE, "problem": "torn"}], **said)
    window.size(1280, 900)
    window.dark(False)
    window.open(path)
    unfold(window)
    yield window
    assert window.console() == []
    assert window.run("return window.hacked") is None


def test_a_table_reads_the_same_in_html_and_json():
    rows = [result(i, 1, -0.0185) for i in range(102)]
    text = Table("runs", rows, RUNS, "a & b", link="run_id").html()
    assert text.count("<tr>") == 101
    assert '<td><a href="../r1-b16-s0/">r1-b16-s0</a></td><td class="n">1</td>' in text
    (rest,) = re.findall(r'<script type="application/json" id="runs-table-rows">(.*?)</script>', text)
    minus = "\N{MINUS SIGN}0.0185"
    assert json.loads(rest)[1] == [
        "r1-b16-s101",
        "1",
        "16",
        "101",
        "finished",
        "0.2000",
        "0.1815",
        minus,
        "2.000",
        "30",
        "10",
    ]
    assert '<caption><span class="said">a &amp; b</span>' in text and "<summary>a &amp; b: 102 rows</summary>" in text
    assert "error" not in text  # no run has an error


def test_hostile_text_ends_no_element():
    assert "<" not in data("x", [HOSTILE]).removeprefix('<script type="application/json" id="x">').removesuffix(
        "</script>"
    )
    row = Table("t", [result(0, run_id=HOSTILE)], RUNS, HOSTILE, link="run_id").html()
    assert "<script" not in row and "<img" not in row and html.escape(HOSTILE) in row


def test_curves_are_thinned_and_quantised(tmp_path):
    assert quantise([0.0, None, float("nan"), 1.0, 0.5]) == [0.0, 1.0, [0, None, None, 255, 128]]
    assert quantise([None]) == []
    assert quantise([3.0, 3.0]) == [3.0, 3.0, [0, 0]]
    write_curves(tmp_path / "run")
    assert packed(tmp_path / "run", 4) == {
        "step": [1, 11, 20, 30],
        "accuracy": [0.21, 0.5, [0, 88, 167, 255]],
        "kl_ref": [1e-05, 0.0003, [0, 88, 167, 255]],
    }
    assert packed(tmp_path / "none", 4) == {}


def test_curves_lie_deflated_in_the_page(tmp_path):
    write_curves(tmp_path / "demo" / "r1-b16-s1")
    text = write_page(tmp_path / "demo", [result(0), result(1)]).read_text()
    (packed_text,) = re.findall(r'<script type="text/plain" id="curves-0">(.*?)</script>', text)
    first, second = json.loads(zlib.decompress(base64.b64decode(packed_text)))
    assert first == {} and second["accuracy"][:2] == [0.21, 0.5]


def test_settings_are_told_apart_by_arm():
    knobs = {"lr": {"value": 1e-4}, "bad": 3}
    found = {
        ("off", 1): {
            "arm": "off",
            "rank": 1,
            "derived": knobs,
            "recipe": {"init": {"method": "kaiming"}, "gamma": 1.0},
        },
        ("on", 1): {"arm": "on", "rank": 1, "derived": 7, "recipe": {"init": {"method": "etf"}, "gamma": 1.0}},
    }
    assert derived(found) == [{"arm": "off", "rank": 1, "lr": 1e-4}, {"arm": "on", "rank": 1}]
    differ, same = split(found)
    assert differ == [{"setting": "recipe.init.method", "off": "kaiming", "on": "etf"}]
    assert same == [{"setting": "recipe.gamma", "value": "1.0"}]
    assert flat({"a": {"b": [1, 2], "c": {}}}) == {"a.b": "[1, 2]", "a.c": "{}"}


@pytest.mark.slow
def test_a_hostile_run_yaml_stays_small(tmp_path):
    path = tmp_path / "run.yaml"
    aliases = "r: &r\n" + "".join(f"  k{i}: *r\n" for i in range(9))
    bombs = [aliases, "k: " + "[" * 5000, "n: 0x" + "f" * 9000, "- 1"]
    for text, leaves in zip(bombs, (2000, 0, 1, 0), strict=True):
        path.write_text(text)
        assert len(flat(resolved(tmp_path))) == leaves


def test_the_page_says_what_is_open_and_needs_no_network(tmp_path):
    entries = [
        Entry("r1-b16-s0", "finished", 30, 30, 1, None, ""),
        Entry("r1-b16-s9", "stopped", 3, 30, 2, None, "node <died>"),
    ]
    text = write_page(tmp_path / "demo", [result(0)], entries, problems=[{"run": "x", "problem": "torn"}]).read_text()
    assert "2 runs planned: 1 finished, 1 stopped." in text and "node &lt;died&gt;" in text
    assert "1 problem<" in text and 'href="#problems"' in text
    assert set(re.findall(r"https?://[\w.:]+", text)) == {"http://www.w3.org", "http://localhost:6006"}
    assert not re.search(r"<(link|iframe|img)\b|@import|url\((?!#)", text)


def test_key_numbers_are_those_of_the_reference_arm():
    row = {"rank": 1, "pooled_ci95": None, "design_risk_ci95": [0.0, 0.975], "negative_runs": 0, "n_seeds": 1}
    rows = [row | {"arm": arm, "mean_gain": gain} for arm, gain in (("control", 0.1), ("off", 0.2), ("on", 0.3))]
    summary = {"ranks": rows, "footprint": [], "n_runs": 3, "n_planned": 4, "comparisons": [{"against": "off"}]}
    summary["dependable"] = [{"arm": "on", "rank": 1}, {"arm": "off", "rank": 1}]
    shown = [(name, value) for name, value, _ in key_numbers(summary)]
    assert shown == [
        ("Runs counted", "3"),
        ("off, rank 1, mean gain", "+0.2000"),
        ("on, rank 1, to rely on", "+0.3000"),
        ("off, rank 1, negative runs", "0 of 1"),
    ]
    shown = [name for name, _, _ in key_numbers(summary | {"comparisons": []})]
    assert shown[1] == "control, rank 1, mean gain"
    shown = [name for name, _, _ in key_numbers(summary | {"dependable": []})]
    assert not any("rely" in name for name in shown)  # nothing is named for a high mean alone


@pytest.mark.slow
def test_tables_sort_and_filter(opened):
    assert len(opened.texts(LIVE)) == 100
    assert opened.texts("#runs-table [role=status]") == ["130 of 130 rows, the first 100 shown"]
    opened.click("#runs-table .more button")
    assert len(opened.texts(LIVE)) == 130
    opened.click("#runs-table th[data-key=gain] button")
    gains = opened.texts(f"{LIVE} td:nth-child(8)")
    assert gains[:2] == ["\N{MINUS SIGN}0.2000", "\N{MINUS SIGN}0.0050"] and gains[-2:] == ["+0.1620", "–"]  # noqa: RUF001
    opened.type("#runs-table th[data-key=gain] button", "Enter")
    assert opened.texts("#runs-table th[aria-sort]") == ["gain"]
    assert opened.run("return document.querySelector('#runs-table th[data-key=gain]').ariaSort") == "descending"
    assert opened.texts(f"{LIVE} td:nth-child(8)")[0] == "+0.1620"
    opened.type("#runs-table input", "rank=1 gain<0")
    assert opened.texts("#runs-table [role=status]") == ["5 of 130 rows"]
    opened.run("const box = document.querySelector('#runs-table input'); box.value = ''; box.oninput()")
    opened.type("#runs-table input", "NO SPACE")
    assert len(opened.texts(LIVE)) == 1


@pytest.mark.slow
def test_a_run_shows_its_curves_among_its_cell(opened):
    opened.click("#runs-table tbody .open")
    opened.wait_for(".curves svg")
    assert opened.texts(".curves h3") == ["training accuracy", "KL to the base, nats"]
    label = opened.run("return document.querySelector('.curves svg').getAttribute('aria-label')")
    assert label == "training accuracy: from 0.21 at step 1 to 0.5 at step 30"
    assert (
        opened.run("return document.querySelectorAll('.curves svg:first-of-type .seed').length") == 4
    )  # two in each chart
    opened.type("#runs-table tbody .open", "Enter")
    assert opened.texts(".curves") == []


@pytest.mark.slow
def test_a_figure_opens_large_and_goes_back(opened):
    opened.click("figure button")
    assert opened.run("return document.querySelectorAll('dialog[open] .drawing svg').length") == 1
    opened.type("dialog button", "Escape")
    assert opened.run("return document.querySelectorAll('figure > .drawing svg').length") == 1
    assert opened.run("return document.activeElement.textContent") == "Enlarge"


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_contrast(opened, dark):
    opened.dark(dark)
    opened.click("#runs-table tbody .open")
    opened.wait_for(".curves svg")
    ratios = opened.run(CONTRASTS)
    assert len(ratios) > 500
    assert ratios[0][0] >= 4.5, ratios[:5]
    assert opened.run("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(18, 20, 23)" if dark else "rgb(253, 252, 250)"
    )


@pytest.mark.slow
def test_a_phone_scrolls_tables_and_not_the_page(opened):
    opened.size(360, 740, mobile=True)
    opened.click("#runs-table tbody .open")
    opened.wait_for(".curves svg")
    assert opened.run("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    wide = "return document.querySelector('#runs-table .scroll').scrollWidth > 360"
    assert opened.run(wide)


@pytest.mark.slow
def test_it_prints_without_controls(opened):
    assert opened.printed().startswith(b"%PDF-")
    opened.devtools("Emulation.setEmulatedMedia", media="print")
    hidden = "return ['nav', '.tools', '.open', '.more button'].map((s) => document.querySelector(s).checkVisibility())"
    assert opened.run(hidden) == [False] * 4
    assert opened.run("return document.querySelector('figure svg').checkVisibility()")
    opened.devtools("Emulation.setEmulatedMedia", media="")


@pytest.mark.slow
def test_hostile_names_stay_text(opened):
    opened.type("#runs-table input", "hacked")
    assert opened.texts(f"{LIVE} td:first-child a") == [HOSTILE]
    assert opened.texts("#problems-table tbody td:last-child > details") == [f"names{HOSTILE}"]
    opened.click("#runs-table tbody .open")
    opened.wait_for(".curves p")
    assert opened.texts(".curves p") == [f"run {HOSTILE}", f"error {HOSTILE}", "This run has left no curves."]
    assert opened.run("return document.querySelectorAll('img, main script:not([type])').length") == 0


@pytest.mark.slow
def test_it_has_landmarks_names_and_a_way_past_them(opened):
    missing = """const all = (selector) => [...document.querySelectorAll(selector)];
      return all("table").filter((t) => !t.caption).length
        + all("svg").filter((s) => !s.closest("[aria-label], [aria-hidden]")).length
        + all("input").filter((i) => !i.labels.length).length
        + all("[aria-labelledby]").filter((e) => !document.getElementById(e.getAttribute("aria-labelledby"))).length
        + all("nav a").filter((a) => !document.querySelector(a.getAttribute("href"))).length"""
    assert opened.run(missing) == 0
    assert opened.run("return ['header', 'nav', 'main', 'footer'].map((t) => document.querySelectorAll(t).length)") == [
        1,
        1,
        1,
        1,
    ]
    opened.type("body", "Tab")
    assert opened.run("return document.activeElement.textContent") == "Skip to the answer"
    assert opened.run("return document.activeElement.getBoundingClientRect().left") >= 0


@pytest.mark.slow
def test_without_scripts_it_still_reads(opened):
    opened.scripts(False)
    opened.ask("POST", "/refresh")
    opened.scripts(True)
    assert len(opened.texts(LIVE)) == 100
    assert opened.texts(".rest") == ["The first 100 of 130 rows."]
    assert "JavaScript" in opened.texts("noscript")[0] and opened.texts("th button") == []


@pytest.mark.slow
def test_ten_thousand_runs_are_usable(window, tmp_path):
    results = [result(i, rank, 0.0001 * i) for rank in (1, 2, 4, 8) for i in range(2500)]
    write_curves(tmp_path / "many" / "r8-b16-s2499")
    window.open(write_page(tmp_path / "many", results))
    unfold(window)
    assert len(window.texts(LIVE)) == 100
    window.click("#runs-table .more button")
    assert len(window.texts(LIVE)) == 200
    window.click("#runs-table th[data-key=seed] button")
    window.click("#runs-table th[data-key=seed] button")
    assert window.texts(f"{LIVE}:first-child td:first-child a") == ["r1-b16-s2499"]
    window.type("#runs-table input", "rank=8 seed>2498")
    assert len(window.texts(LIVE)) == 1
    window.click("#runs-table tbody .open")
    window.wait_for(".curves svg")
    assert window.console() == []
