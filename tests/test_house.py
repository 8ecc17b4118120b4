"""The rooms of the house and the directions of its imports, lazy ones included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rankrl"
BELOW = {
    "recipe": set(),
    "report": {"recipe"},
    "adapter": {"recipe"},
    "reward": {"recipe"},
    "data": {"recipe", "reward"},
    "ppo": {"recipe", "report", "adapter", "reward", "data"},
    "sweep": {"recipe", "report", "adapter", "reward", "data", "ppo"},
    "doctor": {"recipe", "adapter", "data", "ppo"},
    "parser": set(),
    "console": {"recipe", "report"},
    "cli": {"parser", "console", "recipe", "report", "adapter", "data", "sweep", "doctor"},
    "__main__": {"cli"},
}


def imports(source: str) -> Iterator[str]:
    """Dotted names under rankrl that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rankrl"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("rankrl."))


def upward(room: str, source: str) -> list[str]:
    """The imports of a file of `room` that are not allowed."""
    rooms = {name: name.split(".")[1] for name in imports(source)}
    return [name for name, other in rooms.items() if other != room and other in BELOW and other not in BELOW[room]]


def sources() -> dict[str, str]:
    """Dotted name of each file of the package -> its text."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file.read_text() for file in files}


def test_arrows_point_downward():
    rooms = {name: name.split(".")[1] for name in sources() if name != "rankrl.__init__"}
    assert {*rooms.values()} == {*BELOW}
    found = {name: upward(room, sources()[name]) for name, room in rooms.items()}
    assert not {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("recipe", "from rankrl.adapter.host import AdapterHost"),
        ("adapter", "def f():\n    from rankrl.report.read import read_sweep"),
        ("ppo", "import rankrl.sweep.local"),
    ],
)
def test_an_upward_import_is_seen(room, line):
    assert len(upward(room, line)) == 1


def test_no_two_files_import_each_other():
    files = sources()
    arrows = {
        name: {t for i in imports(text) for t in (i, i.rpartition(".")[0]) if t in files and t != name}
        for name, text in files.items()
    }
    assert len([*TopologicalSorter(arrows).static_order()]) == len(files)  # raises CycleError on a circle
