"""Report pages of results that are made up, for the tests of the page."""

from __future__ import annotations

import json
from collections import namedtuple

from rankrl.report.page.html import page
from rankrl.report.page.sections import sections
from rankrl.report.read import SweepRecords
from rankrl.report.summary import sweep_summary

Figure = namedtuple("Figure", "name path title caption alt")
HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">'
LIVE = "#runs-table tbody tr:not(.detail)"


def result(i, rank=1, gain=0.1, run_id="", **more):
    final = None if gain is None else 0.2 + gain
    sizes = {"tokens_total": 2_000_000 + i, "steps": 30, "wall_s": 10.0, "trainable_params": 100, "base_params": 10_000}
    grid = {"run_id": run_id or f"r{rank}-b16-s{i}", "arm": "", "rank": rank, "batch_size": 16, "seed": i}
    scores = {"status": "finished", "base_score": 0.2, "final_score": final, "best_score": final, "gain": gain}
    return grid | scores | sizes | {"error": ""} | more


def write_curves(run):
    run.mkdir(parents=True)
    lines = [{"step": step, "accuracy": 0.2 + step / 100, "kl_ref": step / 1e5, "lr": None} for step in range(1, 31)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_page(directory, results, entries=(), **more):
    """Writes a report of these results beside the run directories. Returns the path of the page."""
    to = directory / "report"
    (to / "figures").mkdir(parents=True, exist_ok=True)
    svg = to / "figures" / "gain.svg"
    svg.write_text(
        '<?xml version="1.0"?><svg viewBox="0 0 9 9" xmlns="http://www.w3.org/2000/svg"><path d="M0 0H9V9"/></svg>'
    )
    figures = [Figure("gain", svg, "Gain by rank.", f"Seeds are dots. {HOSTILE}", "Gain rises with rank")]
    sweep = SweepRecords(directory.name, directory, results, [], [])
    path = to / "index.html"
    summary = sweep_summary(sweep) | more
    path.write_text(page(sweep, summary, figures, list(entries), sections(sweep, summary, list(entries))))
    return path


def unfold(window):
    window.run("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
