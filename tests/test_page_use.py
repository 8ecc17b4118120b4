"""What a reader does with the report page: first screen, phone, long texts, links, words, files."""

from __future__ import annotations

import csv
import re
import time

import pytest
from pages import HOSTILE, LIVE, result, unfold, write_page
from records import synthetic216

from rankrl.report.build import build
from rankrl.report.ledger import Entry
from rankrl.report.page import columns, html
from rankrl.report.page.columns import Column, number
from rankrl.report.page.export import csv as csv_text
from rankrl.report.page.export import markdown
from rankrl.report.page.glossary import WORDS, explained
from rankrl.report.page.problems import grouped
from rankrl.report.page.sections import statistics
from rankrl.report.page.table import Table

BOX = (
    "const box = document.querySelector(arguments[0]).getBoundingClientRect(); return [box.top, box.bottom, box.width]"
)
WIDTHS = "const e = document.querySelector(arguments[0]); return [e.clientWidth, e.scrollWidth, e.clientHeight, e.scrollHeight]"
SEED = f"{LIVE}:not(.detail) td:nth-child(4)"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published sweep's page."""
    root = synthetic216(tmp_path_factory.mktemp("published"), steps=100)
    (report,) = build(root)
    return root / "report" / "index.html", report


def look(window, width=1400, height=900, mobile=False):
    window.size(width, height, mobile)
    window.dark(False)


@pytest.mark.slow
def test_the_first_screen_answers(window, published):
    look(window)
    path, report = published
    window.open(path)
    assert window.texts(".lede")[0].replace("\xa0", " ") == report["answer"][0]
    assert window.texts(".says > ul > li")[0].replace("\xa0", " ") == report["answer"][1]
    for part in (".lede", ".strip", ".answer figure#figure-rank_bands", ".says > ul"):
        top, bottom, _ = window.run(BOX, part)
        assert 0 <= top < bottom <= 900, part


@pytest.mark.slow
def test_the_first_screen_of_a_phone_answers(window, published):
    look(window, 390, 844, mobile=True)
    window.open(published[0])
    for part in (".lede", ".strip", "#figure-rank_bands .drawing"):
        top, bottom, width = window.run(BOX, part)
        assert 0 <= top < bottom <= 844 and width <= 390, part
    assert window.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    unfold(window)
    assert window.run("return document.documentElement.scrollWidth") == 390


@pytest.mark.slow
def test_the_published_sweep_fits_on_eight_screens(window, published):
    look(window)
    window.open(published[0])
    assert window.run("return document.documentElement.scrollHeight") < 8 * 900
    assert window.texts("#cells summary") == ["One row per cell (rank x batch size): 36 rows"]
    assert not window.run("return document.querySelector('#cells-table').checkVisibility()")
    window.click("#cells summary")
    assert window.run("return document.querySelector('#cells-table').checkVisibility()")


@pytest.mark.slow
def test_risk_is_seen_without_scrolling_a_table(window, published):
    look(window)
    window.open(published[0])
    unfold(window)
    for name in ("ranks", "cells", "pareto_points"):
        heads = window.texts(f"#{name}-table th")
        assert heads.index("risk") <= 3, heads
        right = f"return document.querySelector('#{name}-table ' + arguments[0]).getBoundingClientRect().right"
        key = "risk" if name == "pareto_points" else "design_risk_ci95"
        assert window.run(right, f"th[data-key={key}]") <= window.run(right, ".scroll")


def test_a_new_statistic_is_one_line(monkeypatch, tmp_path):
    path = write_page(tmp_path / "demo", [result(0), result(1)])
    monkeypatch.setitem(columns.STATISTICS, "ended_runs", Column("ended", number))
    assert "ended_runs" not in path.read_text()
    row = {"arm": "", "rank": 1, "mean_gain": 0.1, "ended_runs": 7}
    (shown,) = statistics({"ranks": [row, row | {"ended_runs": None}]}, "ranks", "Ranks", "").tables
    assert '<th scope="col" data-key="ended_runs" class="n">ended</th>' in shown.html()
    assert '<td class="n">7</td>' in shown.html() and shown.shown["ended_runs"].title in markdown(shown)


def test_problems_are_told_once_and_failures_first():
    notes = [{"run": f"r1-b16-s{i}", "problem": text} for i in range(216) for text in ("no data", "no grader")]
    notes.insert(0, {"run": "", "problem": "two versions"})
    notes += [{"run": "r8-b16-s1", "problem": "diverged, counted as negative: nan"}]
    notes += [{"run": f"r8-b16-s{i}", "problem": "failed, missing: no memory"} for i in (2, 3)]
    rows = grouped(notes)
    assert [(row["problem"].split(",")[0], row["n_runs"]) for row in rows] == [
        ("failed", 2),
        ("diverged", 1),
        ("no data", 216),
        ("no grader", 216),
        ("two versions", None),
    ]
    assert rows[0]["runs"] == "r8-b16-s2, r8-b16-s3" and rows[2]["runs"].startswith("r1-b16-s0, r1-b16-s1, ")
    assert rows[4]["runs"] == "(the whole sweep)" and grouped([]) == []


@pytest.mark.slow
def test_names_of_runs_with_a_problem_are_folded(window, tmp_path):
    look(window)
    problems = [{"run": f"r1-b16-s{i}", "problem": "no data"} for i in range(216)]
    problems += [{"run": "r1-b16-s7", "problem": "failed, missing: no memory"}]
    window.open(write_page(tmp_path / "demo", [result(0)], problems=problems))
    assert window.texts(".warning") == ["2 problems with the records of 216 runs."]
    assert window.texts("#problems tbody tr > :first-child") == ["failed, missing: no memory", "no data"]
    assert window.texts("#problems tbody .n") == ["1", "216"]
    fold = "return document.querySelector('#problems details').open"
    assert window.run(fold) is False
    window.click("#problems td summary")
    assert window.run(fold) is True


@pytest.mark.slow
def test_no_text_makes_the_runs_table_wider_than_the_view(window, tmp_path):
    look(window)
    error = "CUDA error: " + "x" * 3000 + " out of memory" * 300
    results = [result(i, gain=0.001 * i) for i in range(130)]
    results[3] |= {"status": "failed", "gain": None, "error": error}
    results[120] |= {"status": "diverged", "error": error, "run_id": "r1-b16-s120-" + "y" * 300}
    window.open(write_page(tmp_path / "demo", results))
    unfold(window)
    window.click("#runs-table .more button")
    view, width, *_ = window.run(WIDTHS, "#runs-table .scroll")
    assert len(window.texts(LIVE)) == 130 and width == view < 1400
    assert max(window.run(f"return [...document.querySelectorAll('{LIVE}')].map((row) => row.offsetHeight)")) < 80
    window.click("#runs-table .open")  # of the failed run: no other has curves or a long text
    window.wait_for(".detail .whole")
    assert window.texts(".detail p") == [f"error {error}"]
    view, width, *_ = window.run(WIDTHS, "#runs-table .scroll")
    assert width == view
    assert window.run("return document.querySelector('.detail .whole').offsetHeight") > 200
    assert window.console() == []


@pytest.mark.slow
def test_a_phone_enlarges_figures(window, published):
    look(window, 390, 844, mobile=True)
    window.open(published[0])
    width = window.run(BOX, "#figure-rank_bands .drawing")[2]
    window.click("#figure-rank_bands button")
    assert window.run(BOX, "dialog .pan svg")[2] > 2 * width
    view, wide, height, tall = window.run(WIDTHS, "dialog .pan")
    assert wide > 2 * view and tall > height
    pan = "const pan = document.querySelector('.pan'); pan.scrollTo(9999, 9999); return [pan.scrollLeft, pan.scrollTop]"
    assert window.run(pan) == [wide - view, tall - height]
    top, bottom, _ = window.run(BOX, "dialog button")
    assert 0 <= top < bottom <= 844
    window.click("dialog button")
    assert window.run(BOX, "#figure-rank_bands .drawing")[2] == width


@pytest.mark.slow
def test_the_address_keeps_filter_and_order(window, tmp_path):
    look(window)
    path = write_page(tmp_path / "demo", [result(i, gain=0.001 * (i - 5)) for i in range(40)])
    window.open(path)
    unfold(window)
    window.type("#runs-table input", "gain<0")
    window.click("#runs-table th[data-key=gain] button")
    window.click("#runs-table th[data-key=gain] button")
    found = window.texts(SEED)
    assert found == ["4", "3", "2", "1", "0"]
    for _ in range(50):
        link = window.run("return location.hash")
        if "sort=-" in link:
            break
        time.sleep(0.1)
    assert link == "#?filter=gain%3C0&sort=-gain"
    window.ask("POST", "/refresh")
    assert window.texts(SEED) == found
    window.run("location.hash = '#ranks'")
    window.wait_for("#runs-table")
    assert window.run("return location.hash") == "#ranks?filter=gain%3C0&sort=-gain"
    window.ask("POST", "/url", {"url": "about:blank"})
    window.ask("POST", "/url", {"url": path.resolve().as_uri() + "#runs?filter=seed%3E37&sort=seed"})
    assert window.texts(SEED) == ["38", "39"]
    assert window.run("return document.querySelector('#runs-table input').value") == "seed>37"
    assert window.run(BOX, "#runs")[0] < 900 and window.run("return document.querySelector('#runs details').open")


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        "#runs?filter=%3Cimg src=x onerror=hacked=1%3E&sort=__proto__",
        "#constructor?sort=-&filter=%",
        "#?filter=((((a%2B)%2B)%2B)&sort=plot&sort=gain&x[]=%00",
        "#runs?filter=" + "%3C%3E%3D" * 3000,
        "##??&&==",
    ],
)
def test_hostile_addresses_are_harmless(window, tmp_path, asked):
    look(window)
    path = write_page(tmp_path / "demo", [result(i) for i in range(40)])
    window.ask("POST", "/url", {"url": "about:blank"})
    window.ask("POST", "/url", {"url": path.resolve().as_uri() + asked})
    assert window.run("return window.hacked") is None and window.texts("main img") == []
    window.run("const box = document.querySelector('#runs-table input'); box.value = ''; box.oninput()")
    assert len(window.texts(LIVE)) == 40
    assert window.console() == []


def test_words_are_explained_where_they_are_first_used():
    text = "<p>No rank gains.</p><svg><text>margin</text></svg><td>risk</td>"
    text += "<p>Two ranks at risk, not gain; for all pairs at once</p>"
    linked = [
        (word, name) for name, word in re.findall(r'<a class="word" href="#word-(\w+)"[^>]*>(.*?)</a>', explained(text))
    ]
    assert linked == [
        ("rank", "rank"),
        ("gains", "gain"),
        ("risk", "risk"),
        ("for all pairs at once", "family_wise"),
    ]
    assert re.sub(r'<a class="word".*?>(.*?)</a>', r"\1", explained(text)) == text


@pytest.mark.slow
def test_words_are_read_by_keyboard_touch_and_without_scripts(window, published):
    look(window, 390, 844, mobile=True)
    window.open(published[0])
    told = {link.removeprefix("#word-") for link in window.run(
        "return [...document.querySelectorAll('a.word')].map((a) => a.getAttribute('href'))")}  # fmt: skip
    assert told >= {"rank", "gain", "risk", "cell", "margin", "family_wise", "upside", "pareto", "diverged", "seed"}
    window.run("document.querySelector('a.word[href=\"#word-gain\"]').focus({ preventScroll: true })")
    window.type("a.word[href='#word-gain']", "Enter")
    assert window.texts(".card:popover-open dd") == [WORDS["gain"][1]]
    box = window.run(
        "const b = document.querySelector('.card').getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]"
    )
    assert 0 <= box[0] < box[1] <= 390 and 0 <= box[2] < box[3] <= 844
    window.type("a.word[href='#word-gain']", "Escape")
    assert window.texts(".card:popover-open") == []
    window.devtools("Emulation.setTouchEmulationEnabled", enabled=True)
    window.click("a.word[href='#word-risk']")
    assert window.texts(".card:popover-open dd") == [WORDS["risk"][1]]
    window.devtools("Emulation.setTouchEmulationEnabled", enabled=False)
    window.scripts(False)
    window.ask("POST", "/refresh")
    window.type("a.word[href='#word-risk']", "Enter")
    window.scripts(True)
    assert window.run("return location.hash") == "#word-risk"
    assert window.run("return document.querySelector('#word-risk').checkVisibility()")


def test_every_table_is_a_file(published):
    path, report = published
    shown = set(re.findall(r'<div class="table" id="(\w+)-table">', path.read_text()))
    files = {file.name for file in (path.parent / "tables").iterdir()}
    assert {"ranks", "cells", "against", "pareto_points", "budget", "runs", "same", "knobs"} <= shown
    assert files == {f"{name}.{kind}" for name in shown for kind in ("csv", "md")}
    with (path.parent / "tables" / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_gain"]) for row in rows] == [row["mean_gain"] for row in report["cells"]]
    assert [float(row["gain_ci95_low"]) for row in rows] == [row["gain_ci95"][0] for row in report["cells"]]
    lines = (path.parent / "tables" / "ranks.md").read_text().splitlines()
    assert lines[2].startswith("| rank | mean gain | risk | 95 % interval |") and len(lines) == 4 + len(report["ranks"])


def test_tables_are_written_without_a_page(tmp_path):
    root = synthetic216(tmp_path, steps=3, seeds=2, items=0)
    old = root / "report" / "tables" / "sources.csv"
    old.parent.mkdir(parents=True)
    old.write_text("of a table that there is no more")
    build(root, tables_only=True)
    assert not (root / "report" / "index.html").exists() and not old.exists()
    assert (root / "report" / "tables" / "runs.csv").read_text() == (root / "report" / "runs.csv").read_text()


def test_hostile_text_stays_in_its_cell():
    rows = [{"run_id": "a|b\n| c | <img>", "error": 'x,"y"', "gain": None}]
    table = Table("t", rows, columns.RUNS, "a | b", link="run_id")
    *head, row = markdown(table).splitlines()
    assert head == ["a \\| b", "", "| run | error |", "| --- | --- |"]
    assert row.startswith("| a\\|b") and row.endswith('\\| c \\| &lt;img> | x,"y" |')
    _, (run, error, _) = csv.reader(csv_text(table).splitlines(keepends=True))
    assert run.startswith("a|b") and run.endswith("| c | <img>") and error == 'x,"y"'


@pytest.mark.slow
def test_links_save_what_is_shown(window, tmp_path):
    look(window)
    to = tmp_path / "saved"
    to.mkdir()
    results = [result(i, gain=-0.001 * i, error=f'{HOSTILE},"{i}"|') for i in range(40)]
    window.open(write_page(tmp_path / "demo", results))
    unfold(window)
    window.devtools("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(to))
    window.type("#runs-table input", "seed>37")
    for kind, name in (("1", "runs.csv"), ("2", "runs.md")):
        window.click(f"#runs-table caption a:nth-child({kind})")
        for _ in range(100):
            if (to / name).exists():
                break
            time.sleep(0.1)
    with (to / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], float(row["gain"]), row["error"]) for row in rows] == [
        (f"r1-b16-s{i}", -0.001 * i, f'{HOSTILE},"{i}"|') for i in (38, 39)
    ]
    lines = (to / "runs.md").read_text().splitlines()
    assert len(lines) == 4 and lines[1].startswith("| --- | ---: |") and "&lt;/script>" in lines[3]


@pytest.mark.slow
def test_a_sweep_that_is_going_on_renews_its_page(window, tmp_path, monkeypatch):
    look(window)
    monkeypatch.setattr(html, "RELOAD_S", 1)
    results = [result(i) for i in range(40)]
    live = [Entry("r1-b16-s0", "finished", 30, 30, 1, None, ""), Entry("r1-b16-s1", "running", 3, 30, 1, None, "")]
    path = write_page(tmp_path / "demo", results, live)
    window.ask("POST", "/url", {"url": path.resolve().as_uri() + "#runs?filter=seed%3E37"})
    assert window.texts(".live")[0].startswith(
        "1 of 2 runs are going on. Until they have ended this page reloads itself"
    )
    window.run("window.first = true; scrollTo(0, 111)")
    write_page(tmp_path / "demo", results, live, answer=["A second answer."])
    for _ in range(100):
        if window.texts(".lede") == ["A second answer."]:
            break
        time.sleep(0.1)
    assert window.texts(".lede") == ["A second answer."] and window.run("return window.first") is None
    assert window.run("return scrollY") == 111 and window.texts(SEED) == ["38", "39"]
    window.run("document.querySelector('figure button').click(); window.first = true")
    time.sleep(2.5)
    assert window.run("return window.first") is True  # a figure is being looked at
    window.run("document.querySelector('dialog').close()")
    write_page(tmp_path / "demo", results, live[:1], answer=["The last answer."])
    for _ in range(100):
        if window.texts(".lede") == ["The last answer."]:
            break
        time.sleep(0.1)
    window.run("window.first = true")
    time.sleep(2.5)
    assert window.run("return window.first") is True and window.texts(".live") == []  # it has ended
    assert window.console() == []
