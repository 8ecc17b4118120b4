"""For tests of later versions: a schema with every kind of key, an early record of it, and a copy
of the package that has more keys."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from conftest import ROOT


@dataclass(frozen=True)
class Part:
    size: int
    colour: str = "red"


@dataclass(frozen=True)
class Noise:
    kind: str = "none"
    share: float = 0.1
    parts: dict[str, Part] = field(default_factory=lambda: {"left": Part(1)})


@dataclass(frozen=True)
class Old:
    depth: int
    width: int = 3


@dataclass(frozen=True)
class Law:
    """A section like a rule of rank: a rule with options."""

    rule: str = "constant"
    c: Optional[float] = None
    extra: Optional[float] = None


@dataclass(frozen=True)
class Grown:
    samples: int
    rate: float = 0.5
    limit: Optional[int] = None
    marks: tuple[int, ...] = (1, 2)
    names: list[str] = field(default_factory=lambda: ["a"])
    weights: dict[str, float] = field(default_factory=lambda: {"x": 1.0})
    noise: Noise = field(default_factory=Noise)
    old: Old = field(default_factory=lambda: Old(1))
    maybe: Optional[Part] = None
    given: Optional[Part] = None
    by_name: dict[str, Part] = field(default_factory=dict)
    listed: list[Part] = field(default_factory=list)
    lr: Law = field(default_factory=lambda: Law("equal", c=4.0, extra=2.0))
    kl: Law = field(default_factory=lambda: Law("equal", c=4.0, extra=2.0))
    fresh: Law = field(default_factory=lambda: Law("equal", c=1.0))


EARLY = {
    "samples": 4,
    "old": {"depth": 7},
    "given": {"size": 5},
    "by_name": {"one": {"size": 2}},
    "listed": [{"size": 9}],
    "lr": {"rule": "constant", "c": None},
    "kl": {"rule": "equal", "c": 4.0},
}
"""A record from before most keys of `Grown` were added. `lr` has a rule that is not the default, so
it lacks the options of the default rule."""


NEW_SECTIONS = """
@dataclass(frozen=True)
class Curiosity:
    kind: str = "none"
    shares: tuple[float, ...] = (0.5, 0.25)


@dataclass(frozen=True)
class Curriculum:
    stages: int = 2


"""
NEW_KEYS = {
    r"    gae_lambda: float = .*\n": """\
    noise_floor: float = 0.25
    cap_tokens: Optional[int] = None
    marks: tuple[int, ...] = (1, 2)
    weights: dict[str, float] = field(default_factory=lambda: {"short": 1, "long": 0.5})
""",
    r"    reward: Reward = .*\n": "    curiosity: Curiosity = field(default_factory=Curiosity)\n",
    r"    warmup: Rule = .*\n": '    noise: Rule = field(default_factory=lambda: Rule("constant", value=0.125))\n',
    r"    table: Optional\[dict\[int, float\]\] = None\n": "    slack: Optional[float] = None\n",
    r"    gradient_checkpointing: bool = .*\n": "    experts: Optional[int] = None\n    rope: str = 'plain'\n",
    r"    mixture: Optional\[Mixture\] = None\n": "    curriculum: Optional[Curriculum] = None\n",
    r"    leak: float = .*\n": "    folds: int = 3\n",
    r"    rows: Optional\[int\] = None\n": "    shard: int = 0\n",
    r"    eval_temperature: float = .*\n": "    top_p: float = 1.0\n",
}
"""Line of a schema (as a pattern) -> keys that a later version has after this line. They are keys
of the recipe, of one rule, of all rules and of the scale; some are nested, and some are in a
section that is null by default.
"""
ASK = """
import json, sys
from pathlib import Path
import yaml
from rankrl.recipe.load import load_experiment
from rankrl.recipe.plan import plan
from rankrl.report.read import read_sweep
from rankrl.sweep.identity import check_identity

root, recorded, *words = sys.argv[1:]


def said(act):
    try:
        return act()
    except ValueError as error:
        return str(error)


def compare():
    for run in runs:
        check_identity(Path(root) / run.run_id, run)


def report():
    return {row["run"]: row["problem"] for row in read_sweep(Path(root)).problems}


runs = plan(load_experiment(words[0], words[1:]))
for run in runs:
    if run.run_id in recorded.split(","):
        path = Path(root) / run.run_id / "run.yaml"
        was = yaml.safe_load(path.read_text())
        measured = {key: was[key] for key in ("versions", "data_revision")}
        path.write_text(yaml.safe_dump({**run.resolved(), **measured}, sort_keys=False))
print(json.dumps([said(compare) or "", said(report)]))
"""


def grown_package(to: Path, added: dict[str, object] | None = None) -> Path:
    """Writes a later version of the package below `to`, with NEW_KEYS and `added` in its history.

    Returns the path of a script for `ask`.
    """
    shutil.copytree(ROOT / "rankrl", to / "rankrl", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    recipe = to / "rankrl" / "recipe"
    schemas = {path: path.read_text() for path in sorted(recipe.glob("*.py"))}
    before = r"(?=@dataclass\(frozen=True\)\nclass (?:Recipe|Data):)"
    for anchor, lines in {**NEW_KEYS, before: NEW_SECTIONS}.items():
        found = [path for path, text in schemas.items() if re.search(f"(?m)^{anchor}", text)]
        assert found, anchor
        for path in found:
            schemas[path] = re.sub(
                f"(?m)^({anchor})", lambda match, lines=lines: match[0] + lines, schemas[path], count=1
            )
    for path, text in schemas.items():
        path.write_text(text)
    with (recipe / "history.py").open("a") as file:
        file.write(f"\nADDED.update({added or {}!r})\n")
    script = to / "ask.py"  # the directory of a script is first on Python's path
    script.write_text(ASK)
    return script


def ask(script: Path, root: Path, *words: str, recorded: tuple[str, ...] = ()) -> list:
    """[error of check_identity, problems of the report] of a later version, for the sweep `root`.

    The later version first writes run.yaml anew for the runs in `recorded`.
    """
    command = [sys.executable, str(script), str(root), ",".join(recorded), *words]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
