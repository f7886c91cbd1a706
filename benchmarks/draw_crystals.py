"""Draw predicted beside true structures of the first validation compositions, in order and unselected, as one SVG.

    python benchmarks/draw_crystals.py --run runs/mp20_csp_1 --data mp20 --out docs/pictures/crystals.svg

``--run`` is the output folder of ``moldiff generate --compositions`` whose row k is crystal k of the data set's split.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

from draw_samples import inner

from moldiff import SampleSet
from moldiff.chem.crystals import Crystal
from moldiff.crystal_pictures import crystal_drawing
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.crystals.matching import CSP, Pair, compare
from moldiff.evaluation.crystals.reference import crystals_of

CELL, TEXT, COLUMNS = 160, 30, 3


def main() -> None:
    """Read, compare, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--split", default="val")
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    samples = SampleSet.load(args.run)
    truths = [e.crystal for e in crystals_of(Store(find_data(args.data), args.split), range(args.n))]
    predicted = {int(s.info["request"]): s for s in reversed(list(samples)) if int(s.info["request"]) < args.n}
    width, height = COLUMNS * 2 * CELL, -(-args.n // COLUMNS) * (CELL + TEXT)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for k, truth in enumerate(truths):
        x, y = (k % COLUMNS) * 2 * CELL, (k // COLUMNS) * (CELL + TEXT)
        assert truth is not None
        one = predicted.get(k)
        label = f"{truth.reduced_formula}: no prediction"
        if one is not None and not one.problem:
            guess = Crystal.of(one.numbers, one.fields["frac_coords"], one.fields["lattice"])
            found = compare(Pair(guess, truth, CSP))
            label = f"{truth.reduced_formula}: " + ("no match" if found.rms is None else f"match, RMS {found.rms:.3f}")
            parts.append(inner(crystal_drawing(guess, CELL), x, y))
        parts.append(inner(crystal_drawing(truth, CELL), x + CELL, y))
        style = 'font-family="sans-serif" text-anchor="middle"'
        parts.append(f'<text x="{x + CELL / 2}" y="{y + CELL + 4}" font-size="9" fill="#666" {style}>predicted</text>')
        parts.append(f'<text x="{x + 1.5 * CELL}" y="{y + CELL + 4}" font-size="9" fill="#666" {style}>true</text>')
        parts.append(f'<text x="{x + CELL}" y="{y + CELL + 18}" font-size="12" {style}>{escape(label)}</text>')
    parts.append("</svg>")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
