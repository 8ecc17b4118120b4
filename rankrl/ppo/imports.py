"""Cheap starts: imports of upstream that a process never uses wait until it does.

A training process imports some 7,000 modules, half of them for other processes or other features.
`LATER` names such import statements, importer by importer. The importer gets a `Later`, which
imports the real thing when it is called, subclassed, asked for an attribute or for an instance.
Nothing stands in for it: a package that is missing, as flash-attn on most machines, is missed where
it is first used, with Python's own error. Other importers of the same module are not touched.

The garbage collector waits while modules are imported: they make objects by the million, which
stay, and looking through these again and again takes a quarter of the time.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any

DETECTION_LOSSES = ("deformable_detr", "for_object_detection", "grounding_dino", "lw_detr", "rf_detr", "rt_detr")
LATER = {
    # PyTorch's inductor: DeepSpeed's compiler, which registers itself where there are GPUs
    "deepspeed.compile.util": ("deepspeed.compile.custom_ops",),
    "deepspeed.runtime.engine": (
        "deepspeed.compile.backend",
        "deepspeed.compile.init_sp",
        "deepspeed.compile.init_tp",
        "deepspeed.compile.init_z1_and_2",
        "deepspeed.compile.init_z3",
        "deepspeed.compile.passes",
        "deepspeed.compile.passes.contract",
        "deepspeed.compile.z3_eager_fallback",
    ),
    # DeepSpeed: workers use it, the driver knows their classes only
    "openrlhf.models.model": ("deepspeed",),
    "openrlhf.models.utils": ("deepspeed",),
    "openrlhf.trainer.ray.ppo_actor": ("deepspeed",),
    "openrlhf.utils.deepspeed.deepspeed": ("deepspeed", "transformers.trainer"),
    "openrlhf.utils.deepspeed.deepspeed_utils": ("deepspeed", "deepspeed.runtime.zero.partition_parameters"),
    # vLLM: engines use it
    "openrlhf.trainer.ppo_utils.samples_generator": ("vllm",),
    "openrlhf.trainer.ray.vllm_engine": ("vllm", "vllm.inputs", "vllm.utils"),
    "rankrl.ppo.engine": ("vllm", "vllm.inputs", "vllm.lora.request"),
    # nobody here: data sets, agents behind HTTP, sound, detection of objects
    "openrlhf.datasets.utils": ("datasets",),
    "openrlhf.utils.agent": ("aiohttp",),
    "vllm.multimodal.audio": ("scipy.signal",),
    **{f"transformers.loss.loss_{name}": ("scipy.optimize",) for name in DETECTION_LOSSES},
    # not on every machine; only flash_attention_2 and ring attention use it
    "openrlhf.models.ring_attn_utils": ("flash_attn.bert_padding", "flash_attn.utils.distributed"),
}
"""Importer -> modules that wait."""


def install() -> None:
    """Called by the package, so in every process that trains, before it imports upstream."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        atexit.register(gc.unfreeze)


@contextmanager
def uncollected() -> Iterator[None]:
    """Context manager: no garbage collection. What it leaves behind is not looked at afterwards."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.freeze()
            gc.enable()


class Later:
    """A module, or something in it, that is imported when it is first used."""

    def __init__(self, module: str, name: str = ""):
        self._module, self._name = module, name

    def _real(self) -> Any:
        module = import_module(self._module)
        if self._name and not hasattr(module, self._name):
            return import_module(f"{self._module}.{self._name}")
        return getattr(module, self._name) if self._name else module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._real())

    def __mro_entries__(self, bases: tuple) -> tuple:
        return (self._real(),)

    def __reduce__(self) -> tuple:
        return Later, (self._module, self._name)  # Ray pickles functions with the globals that they name


def later(module: str, names: Sequence[str]) -> Any:
    """What `from module import names`, or `import module` without names, takes the names from."""
    if names:
        return SimpleNamespace(**{name: Later(module, name) for name in names})
    top, _, rest = module.partition(".")
    found = Later(top)
    if rest:
        setattr(found, rest, Later(module))  # for import a.b as c
    return found


class _Importer(SourceFileLoader):
    """Executes a file whose own import statements, at its top, may find a `Later`."""

    def exec_module(self, module: ModuleType) -> None:
        waiting, loading = LATER[module.__name__], True

        def find(name: str, scope: Any = None, local: Any = None, names: Sequence[str] = (), level: int = 0) -> Any:
            full = resolve_name("." * level + name, scope["__package__"]) if level else name
            if loading and full in waiting:
                return later(full, names)
            return builtins.__import__(name, scope, local, names, level)

        vars(module)["__builtins__"] = {**vars(builtins), "__import__": find}
        with uncollected():
            super().exec_module(module)
        loading = False


class _Uncollected(SourceFileLoader):
    """Executes a file, and all that it imports, without garbage collection."""

    def exec_module(self, module: ModuleType) -> None:
        with uncollected():
            super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in LATER and not fullname.startswith("rankrl."):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        kind = _Importer if fullname in LATER else _Uncollected
        spec.loader = kind(fullname, spec.loader.path)
        return spec
