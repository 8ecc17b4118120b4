"""OpenRLHF without flash-attn.

OpenRLHF imports it on any machine, but only `flash_attention_2` and ring attention need it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType

IMPORTER = "openrlhf.models.ring_attn_utils"
WANTED = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}


def make_optional() -> None:
    """Lets OpenRLHF be imported without flash-attn.

    `rankrl.ppo` calls this when it is imported, so it holds in every process before OpenRLHF is
    imported.
    """
    if find_spec("flash_attn") is None and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Context with empty modules in place of flash-attn's.

    They are removed at the end, or vLLM would find flash-attn installed.
    """
    for name, functions in WANTED.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(dict.fromkeys(functions))
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in WANTED:
            del sys.modules[name]


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _stand_ins():
            super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != IMPORTER:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec
