"""What rankrl ships to start from: recipes, DeepSpeed files, the Slurm script, the CPU lock.

In a clone it stands beside the package, in a wheel inside it (pyproject.toml, force-include).
"""

from __future__ import annotations

from os.path import expanduser
from pathlib import Path
from shutil import copyfile

from rankrl.recipe.require import require

PACKAGE = Path(__file__).resolve().parents[1]
TO_START_FROM = ("recipes", "slurm", "ds_configs", "requirements-cpu.lock", "requirements-gpu.lock")
"""What `rankrl init` copies."""


def shipped(package: Path = PACKAGE) -> Path:
    """The directory that has recipes/, slurm/ and ds_configs/: the clone, or one of the wheel."""
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


def in_clone(package: Path = PACKAGE) -> bool:
    """Whether this is a clone, or an editable install of one, and not an installed wheel."""
    return shipped(package) == package.parent


def find_shipped(path: str) -> Path | None:
    """A file: of the directory that the command runs in, or else the shipped one of that path."""
    return next((p for p in (Path(path), shipped() / path) if p.is_file()), None)


def find_recipe(name: str | Path) -> Path:
    """The YAML file of a recipe, which is given by path or by the name of a shipped one.

    A file that exists wins. Raises ValueError for an unknown recipe.
    """
    path = Path(expanduser(name))
    if path.is_file():
        return path
    recipes = {recipe.stem: recipe for recipe in sorted((shipped() / "recipes").glob("*.yaml"))}
    allowed = f"{', '.join(recipes)}, or the path of an existing YAML file"
    require(str(name) in recipes, "recipe", str(name), allowed, "rankrl init DIR copies the named ones to start from")
    return recipes[str(name)]


def copy_shipped(to: Path) -> None:
    """Copies what is shipped into a directory, which may have other files.

    Raises ValueError, before anything is written, if that is no directory, or one of the names is
    taken there.
    """
    there = next(path for path in (to, *to.parents) if path.exists() or path.is_symlink())
    require(there.is_dir(), "DIR", str(to), "a directory, new or not", f"{there} is something else")
    taken = [name for name in TO_START_FROM if (to / name).exists() or (to / name).is_symlink()]
    require(not taken, "DIR", str(to), f"a directory without {', '.join(taken)}", "nothing was copied; take a new one")
    for name in TO_START_FROM:
        source = shipped() / name
        for file in sorted(source.iterdir()) if source.is_dir() else [source]:
            copy = to / file.relative_to(shipped())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copyfile(file, copy)  # not its mode: it may be read-only where it is installed


def install_words() -> str:
    """The commands that install the training stack, for CPUs and for GPUs."""
    if in_clone():
        return "make setup (CPU) or make setup-gpu"
    return f"pip install --no-deps -r {shipped() / 'requirements-cpu.lock'} (CPU) or requirements-gpu.lock there"
