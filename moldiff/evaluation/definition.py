"""What the definition of a metric says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Definition:
    """One metric: its ``title`` in tables, its ``unit`` (``%`` for rates, which are kept as fractions), which way is ``better``
    (empty: neither, compare with the data), a sentence and its ``source``."""

    name: str
    title: str
    unit: str
    better: Better
    text: str
    source: str = "this library"

    def show(self, value: float) -> str:
        """Write a value in the metric's unit with a sensible number of digits."""
        if math.isnan(value):
            return "–"
        if self.unit == "%":
            return f"{100 * value:.1f}" if value < 0.9995 or value == 1 else f"{100 * value:.2f}"
        if math.isinf(value):
            return "∞"
        return f"{value:.4f}" if self.unit == "Å" else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"
