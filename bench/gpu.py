"""An hour on a GPU: what the estimates of `rankrl plan` and the settings for GPUs are worth there.

    python bench/gpu.py --seconds 3600 [--only PART ...] [--json FILE]

The parts are ordered by worth. Each runs in a process of its own with a limit of its own, so that a
failure or a slow part loses nothing else. What a part finds is appended to FILE (one JSON object a
line) as soon as it is known, and printed as a Markdown table beside the estimate. Nothing is loaded
from a hub. Without a GPU the parts are tiny: that tests this file and says nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PARTS = {
    "nano": (0.15, "the whole loop at nano in bfloat16: level of the canary, packed runs against lone ones"),
    "smollm2": (0.30, "SmolLM2-135M, ranks 1 and 32: gains, and runs an hour with 1, 4 and 8 at once"),
    "update": (0.25, "updates of Qwen3's shapes: seconds a token and peak memory against the plan"),
    "rollout": (0.20, "engines of Qwen3's shapes: tokens a second by LoRA rank and sequences"),
    "starts": (0.10, "starts that are measured on the base, GPU against CPU; ZeRO stages and precisions"),
}
"""Part -> (share of the seconds, what it measures)."""
GRACE_S = 30.0
"""Seconds that a part may take beyond its limit, to end by itself."""


def limits(seconds: float, parts: list[str]) -> dict[str, float]:
    """Seconds of each part: its share, of the parts that are wanted."""
    whole = sum(PARTS[part][0] for part in parts)
    return {part: seconds * PARTS[part][0] / whole for part in parts}


def found(path: Path) -> list[dict[str, Any]]:
    """The rows that have been found so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| part | what | measured | estimate |", "| --- | --- | --- | --- |"]
    for row in rows:
        lines.append(f"| {row['part']} | {row['what']} | {shown(row['value'])} | {shown(row.get('estimate', ''))} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(part: str, limit_s: float, path: Path) -> str:
    """Runs a part. Returns how it ended."""
    command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), part, str(path), str(limit_s)]
    try:
        code = subprocess.run(command, timeout=limit_s + GRACE_S).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    return "done" if code == 0 else f"exit code {code}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all parts together (default 3600)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, default=Path("gpu.jsonl"), help="file to append to (default gpu.jsonl)")
    args = parser.parse_args()
    end_s, before = time.monotonic() + args.seconds, len(found(args.json))
    ended = {}
    for i, part in enumerate(args.only):  # what a part leaves of its time is for the parts after it
        share = limits(end_s - time.monotonic(), args.only[i:])[part]
        print(f"{part}: {PARTS[part][1]} ({share:.0f} s)", flush=True)
        ended[part] = run(part, share, args.json)
        print(f"{part}: {ended[part]}", flush=True)
    print(table(found(args.json)[before:]))
    return int(any(how.startswith("exit") for how in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
