"""`python study/keep.py pack RUNS FILE` keeps a part of the study as one small Parquet file.

A row per run that finished or diverged: its run.yaml and result.json as they are, some curves of
its metrics.jsonl, the verdicts of its evaluations. No text of a sample, no weights. Runs that are
in FILE stay; a run that is there with another result is refused. `unpack FILE DIR` writes run
directories again, which `rankrl report DIR` reads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankrl.recipe.whole_file import whole_file

CURVES = (
    *("step", "tokens_total", "reward_mean", "accuracy", "kl_ref", "kl_step", "entropy", "lr", "clip_frac"),
    *("grad_norm", "grad_cosine", "delta_norm", "explained_variance", "uniform_group_frac", "trust_factor", "step_s"),
)
"""What is kept of a step's metrics, where the run has it."""
TYPES = {"step": pa.int32(), "item_id": pa.string(), "source": pa.string(), "sample": pa.int16(), "correct": pa.bool_()}
VERDICTS = pa.schema(TYPES.items())
TEXTS = ("sweep", "run_id", "run_yaml", "result_json", "metrics_jsonl")
SCHEMA = pa.schema([*((name, pa.string()) for name in TEXTS), ("evals", pa.list_(pa.struct(TYPES.items())))])


def thinned(line: str) -> str:
    """A line of metrics.jsonl with `CURVES` alone, to six digits."""
    metrics = json.loads(line)
    kept = {key: metrics[key] for key in CURVES if metrics.get(key) is not None}
    return json.dumps({key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in kept.items()})


def row(run: Path) -> dict[str, Any]:
    """The row of a finished run's directory."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {
        "sweep": run.parent.name,
        "run_id": run.name,
        "run_yaml": (run / "run.yaml").read_text(),
        "result_json": (run / "result.json").read_text(),
        "metrics_jsonl": "".join(f"{thinned(line)}\n" for line in lines),
        "evals": pq.read_table(run / "evals.parquet", columns=[*TYPES]).to_pylist(),
    }


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a part, or none if there is no such file."""
    return pq.read_table(file).to_pylist() if file.is_file() else []


def pack(runs: Path, file: Path) -> int:
    """Adds the runs below `runs` that have an outcome to `file`. Returns the number of its rows.

    A run that failed has none: it is to be run again.

    Raises ValueError for a run that `file` has with another result.
    """
    kept = {(old["sweep"], old["run_id"]): old for old in read(file)}
    for result in sorted(runs.glob("*/*/result.json")):
        if json.loads(result.read_text())["status"] == "failed":
            continue
        new = row(result.parent)
        key = (new["sweep"], new["run_id"])
        if kept.setdefault(key, new)["result_json"] != new["result_json"]:
            raise ValueError(f"{result.parent}: got a result that is not the one in {file}; allowed: each run once")
    table = pa.Table.from_pylist([kept[key] for key in sorted(kept)], schema=SCHEMA)
    with whole_file(file) as part:
        pq.write_table(table, part, compression="zstd", compression_level=19)
    return len(kept)


def unpack(file: Path, to: Path) -> int:
    """Writes run directories of `file` below `to`, none that is there. Returns their number.

    A sweep goes on from them: it takes them for its own finished runs.
    """
    rows = [row for row in read(file) if not (to / row["sweep"] / row["run_id"] / "result.json").exists()]
    for old in rows:
        run = to / old["sweep"] / old["run_id"]
        run.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(old["evals"], schema=VERDICTS), run / "evals.parquet")
        for name in ("run.yaml", "metrics.jsonl", "result.json"):  # the result last: with it a run is whole
            (run / name).write_text(old[name.replace(".", "_")])
    return len(rows)


def without_outcome(runs: Path) -> list[str]:
    """Planned runs below `runs` that have no outcome: they failed, or were not run."""
    found = []
    for plan in sorted(runs.glob("*/plan.json")):
        for run_id in json.loads(plan.read_text()):
            result = plan.parent / run_id / "result.json"
            if not result.is_file() or json.loads(result.read_text())["status"] == "failed":
                found.append(f"{plan.parent.name}/{run_id}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, (first, second) in {"pack": ("runs", "file"), "unpack": ("file", "to")}.items():
        command = commands.add_parser(name)
        command.add_argument(first, type=Path)
        command.add_argument(second, type=Path)
    args = parser.parse_args()
    n = pack(args.runs, args.file) if args.command == "pack" else unpack(args.file, args.to)
    print(f"{n} runs")
    if args.command == "pack" and (missing := without_outcome(args.runs)):
        raise SystemExit(f"{len(missing)} planned runs have no outcome, run the part again: {', '.join(missing[:5])}")


if __name__ == "__main__":
    main()
