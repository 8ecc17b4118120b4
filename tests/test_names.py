"""Names of arms, runs and sweeps that mean something to whatever shows them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from records import drawn, grid, write_all

from rankrl.cli import main
from rankrl.report.build import build, print_table
from rankrl.report.visible import csv_cell, markdown, visible

STEPS = 6
HIDDEN = "[\x00-\x09\x0b-\x1f\u200f\u202e]"
"""What no output may have besides ends of lines: control characters and marks of direction."""
ARMS = ["$x$ [bold]on", "_hidden", "50%\\_<b>on<", "=1+1", ":smile:", "\u202eno\x1b[31m\ntwo\u200f", "-|`*"]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A sweep whose arms have names that mean something to whatever shows them, and its summary."""
    plain = grid("names", "ablate_init", "ranks=[8]", "seeds=[0,1]", f"steps={STEPS}")
    runs = [run for run in plain if run.arm == plain[0].arm]
    root = tmp_path_factory.mktemp("named") / "[red]$n$ames\x1b[0m"
    write_all(root, runs, drawn(runs, {runs[0].arm: 0.2}, 0.02), items=10)
    planned = {}
    for arm in ARMS:
        for run in runs:
            to = root / f"{arm}-r8-b16-s{run.seed}"
            shutil.copytree(root / run.run_id, to)
            planned[to.name] = STEPS
            found = json.loads((to / "result.json").read_text()) | {"arm": arm, "run_id": to.name}
            (to / "result.json").write_text(json.dumps(found))
    for run in runs:
        shutil.rmtree(root / run.run_id)
    (root / "plan.json").write_text(json.dumps(planned))
    (summary,) = build(root)
    return root, summary


def test_names_print_as_they_are_in_the_terminal(named, capsys):
    _, summary = named
    print_table(summary)
    out = capsys.readouterr().out
    for arm in ARMS:
        assert any(line.lstrip().startswith(visible(arm)) for line in out.splitlines()), arm
    assert out.startswith(r"[red]$n$ames\x1b[0m: gain over the base by rank")
    assert not re.search(HIDDEN, out)


def test_names_stand_in_the_page_as_text(named):
    _, summary = named
    page = Path(summary["page"]).read_text()
    assert not re.search(HIDDEN, page) and "<b>on<" not in page

    class Cells(HTMLParser):
        def __init__(self):
            super().__init__()
            self.found, self.links = set(), set()

        def handle_data(self, data):
            self.found.add(data)

        def handle_starttag(self, tag, attrs):
            self.links.add(dict(attrs).get("href", ""))

    read = Cells()
    read.feed(page)
    folders = {unquote(link)[3:-1] for link in read.links if link and link.startswith("../")}
    for arm in ARMS:
        assert visible(arm) in read.found and f"{arm}-r8-b16-s0" in folders, arm


def test_names_stand_in_figures_as_they_are(named):
    root, _ = named
    figures = list((root / "report" / "figures").glob("*.svg"))
    texts = {part.text for path in figures for part in ElementTree.parse(path).iter() if part.text}
    assert any("$x$" in text for text in texts) and any("_hidden" in text for text in texts)
    assert any(visible(ARMS[5]) in text for text in texts)


def test_names_are_no_formulas_in_csv(named):
    root, _ = named
    with (root / "report" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {csv_cell(arm) for arm in ARMS} >= {"'=1+1", "'-|`*"}
    assert not [row for row in rows if row["run_id"].startswith(("=", "+", "-", "@"))]
    assert all(float(row["gain"]) > 0 for row in rows)


def test_names_stand_in_tensorboard_as_they_are(named):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, _ = named
    (file,) = (root / "_aggregate").iterdir()
    tags = EventAccumulator(str(file)).Reload().Tags()["scalars"]
    for arm in ARMS:
        assert f"accuracy/{visible(arm)}, rank 8, batch 16/mean" in tags


def test_names_are_no_markdown():
    assert markdown("|`*_") == r"\|\`\*\_" and markdown("a\n<b>") == r"a\\n\<b\>"
    assert markdown("plain 1.5-x") == "plain 1.5-x"


def test_status_and_its_names(named, capsys):
    root, _ = named
    assert main(["status", str(root)]) == 0
    out = capsys.readouterr().out
    assert f"{visible(ARMS[5])}-r8-b16-s0" in out and not re.search(HIDDEN, out)
