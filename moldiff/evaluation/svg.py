"""Plots as plain SVG text: curves and bars, small enough to stand by dozens in one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Colours of the sets, told apart by the colour-blind too (Okabe and Ito); the data is grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DATA = "#b4b8bf"
WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 22, 36


@dataclass(frozen=True)
class Series:
    """One set in a plot: its ``values`` [K], one a bin or category, and its ``colour``; ``filled`` for the data."""

    label: str
    values: NDArray[Any]
    colour: str
    filled: bool = False


def curves(title: str, x: NDArray[Any], series: Sequence[Series], x_label: str) -> str:
    """Draw densities over bins with centres ``x`` [K]."""
    top = max((float(s.values.max(initial=0)) for s in series), default=0.0) or 1.0
    low, high = float(x[0]), float(x[-1])
    span = high - low or 1.0

    def point(a: float, b: float) -> str:
        return f"{_LEFT + (a - low) / span * (WIDTH - _LEFT - _RIGHT):.1f},{_ground() - b / top * (_ground() - _TOP):.1f}"

    parts = []
    for s in sorted(series, key=lambda s: not s.filled):
        line = " ".join(point(float(a), float(b)) for a, b in zip(x, s.values, strict=True))
        if s.filled:
            parts.append(f'<polygon points="{point(low, 0)} {line} {point(high, 0)}" fill="{s.colour}" opacity="0.65"/>')
        else:
            parts.append(f'<polyline points="{line}" fill="none" stroke="{s.colour}" stroke-width="1.5"/>')
    ticks = [(_LEFT + (v - low) / span * (WIDTH - _LEFT - _RIGHT), f"{v:g}") for v in _round_values(low, high)]
    return _frame(title, parts, ticks, x_label, None)


def bars(title: str, categories: Sequence[str], series: Sequence[Series], x_label: str = "", *, slanted: bool = False) -> str:
    """Draw shares (in percent) of categories side by side, one bar a set."""
    top = max((float(s.values.max(initial=0)) for s in series), default=0.0) or 1.0
    wide = WIDTH * 2 if slanted else WIDTH
    step = (wide - _LEFT - _RIGHT) / max(len(categories), 1)
    width = 0.86 * step / max(len(series), 1)
    parts = []
    for k, s in enumerate(series):
        for i, value in enumerate(s.values.tolist()):
            height = value / top * (_ground() - _TOP)
            x = _LEFT + i * step + 0.07 * step + k * width
            about = escape(f"{s.label}, {categories[i]}: {100 * value:.2f} %")
            parts.append(
                f'<rect x="{x:.1f}" y="{_ground() - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{s.colour}">'
                f"<title>{about}</title></rect>"
            )
    every = max(1, math.ceil(len(categories) * (14 if slanted else 22) / (wide - _LEFT - _RIGHT)))
    ticks = [(_LEFT + (i + 0.5) * step, c) for i, c in enumerate(categories) if i % every == 0]
    return _frame(title, parts, ticks, x_label, top, slanted=slanted)


def legend(series: Sequence[Series]) -> str:
    """Name the colours, as HTML."""
    marks = (
        f'<span class="mark"><span class="swatch" style="background:{s.colour}"></span>{escape(s.label)}</span>' for s in series
    )
    return f'<p class="legend">{"".join(marks)}</p>'


def _ground() -> float:
    return HEIGHT - _BOTTOM


def _frame(
    title: str, parts: list[str], ticks: list[tuple[float, str]], x_label: str, top: float | None, *, slanted: bool = False
) -> str:
    ground = _ground()
    wide, height = (WIDTH * 2, HEIGHT + 56) if slanted else (WIDTH, HEIGHT)
    out = [
        f'<svg class="plot" viewBox="0 0 {wide} {height}" width="{wide}" height="{height}" role="img"'
        f' aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="14" class="title">{escape(title)}</text>',
        *parts,
        f'<line x1="{_LEFT}" y1="{ground}" x2="{wide - _RIGHT}" y2="{ground}" class="axis"/>',
    ]
    for x, text in ticks:
        if slanted:
            turn = f'transform="rotate(-50 {x:.1f} {ground + 10})" text-anchor="end"'
            out.append(f'<text x="{x:.1f}" y="{ground + 10}" {turn} class="tick">{escape(text)}</text>')
        else:
            out.append(f'<text x="{x:.1f}" y="{ground + 13}" text-anchor="middle" class="tick">{escape(text)}</text>')
    if top is not None:
        for share in (0.5, 1.0):
            y = ground - share * (ground - _TOP)
            out.append(f'<text x="{_LEFT - 4}" y="{y + 4:.1f}" text-anchor="end" class="tick">{100 * top * share:.3g}%</text>')
    if x_label:
        out.append(f'<text x="{(wide + _LEFT) / 2}" y="{height - 6}" text-anchor="middle" class="tick">{escape(x_label)}</text>')
    return "".join([*out, "</svg>"])


def _round_values(low: float, high: float, n: int = 5) -> list[float]:
    """Choose about n round numbers within a range."""
    rough = (high - low) / n or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough)
    return [float(np.round(v, 10)) for v in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step]
