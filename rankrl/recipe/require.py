"""How a wrong value is refused: in one line that teaches."""

from __future__ import annotations

from typing import Any


def require(ok: bool, key: str, value: Any, allowed: str, fix: str = "") -> None:
    """Raises ValueError in one line: the key, the value, what is allowed, the likely fix."""
    if not ok:
        raise ValueError(f"{key}: got {value!r}, allowed: {allowed}" + (f" ({fix})" if fix else ""))
