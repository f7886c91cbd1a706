"""Draw the first samples of a seed, in order and unselected: structural formula beside the shape, as one SVG.

    python benchmarks/draw_samples.py --model qm9 --out docs/pictures/samples.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

from moldiff import Generator
from moldiff.pictures import drawing_2d, drawing_3d

CELL, TEXT, COLUMNS = 150, 16, 4


def inner(svg: str, x: int, y: int) -> str:
    """An SVG drawing placed at (x, y) of a larger one."""
    start = svg.find("<svg")
    return svg[start:].replace("<svg", f'<svg x="{x}" y="{y}"', 1) if start >= 0 else ""


def main() -> None:
    """Sample, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    samples = Generator.from_pretrained(args.model).sample(args.n, seed=args.seed)
    width, height = COLUMNS * 2 * CELL, -(-args.n // COLUMNS) * (CELL + TEXT)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for k, (sample, verdict) in enumerate(zip(samples, samples.verdicts, strict=True)):
        x, y = (k % COLUMNS) * 2 * CELL, (k // COLUMNS) * (CELL + TEXT)
        parts += [inner(drawing_2d(sample, CELL), x, y), inner(drawing_3d(sample, CELL), x + CELL, y)]
        good = verdict.valid and verdict.connected
        label = verdict.smiles if good else f"{verdict.reason or 'not connected'}"
        colour = "#222" if good else "#b00"
        parts.append(
            f'<text x="{x + CELL}" y="{y + CELL + 10}" font-size="11" font-family="sans-serif" '
            f'text-anchor="middle" fill="{colour}">{escape(label)}</text>'
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


if __name__ == "__main__":
    main()
