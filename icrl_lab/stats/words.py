"""How an estimate and a p-value are quoted: the same in readings, figures and widgets."""

from __future__ import annotations

import math


def estimate(value: float, low: float, high: float, *, form: str = ".3g", ends: str | None = None) -> str:
    """An estimate with its interval, "0.5 [0.3, 0.7]"; what is not known is said. `ends`: their format, if another."""
    if value != value:
        return "not known"
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{value:{form}}, no interval"
    return f"{value:{form}} [{low:{ends or form}}, {high:{ends or form}}]"


def tested(p: float, name: str = "corrected p") -> str:
    """A p-value, "corrected p = 0.013"; never one of zero, and NaN was not tested: seeds or queries were too few, or it was not asked."""
    return "not tested" if p != p else f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3f}"
