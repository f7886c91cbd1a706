"""Write the compositions of the first N crystals of a prepared data set: what a structure prediction is asked for.

    python benchmarks/compositions.py --data mp20 --split val --n 2000 --out compositions.csv

Columns ``formula`` and ``z``, one row a crystal in the order of the data set, so that row k is truth k of
``moldiff evaluate ... --truth mp20:val:2000``.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from pymatgen.core import Composition

from moldiff.data.location import find_data
from moldiff.data.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--split", default="val")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    store = Store(find_data(options.data), options.split)
    types, offsets = store.tensor("atom_types").tolist(), store.atom_offsets.tolist()
    with open(options.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["formula", "z"])
        for k in range(min(options.n, len(store))):
            numbers = types[offsets[k] : offsets[k + 1]]
            whole = Composition({z: numbers.count(z) for z in set(numbers)})
            formula, z = whole.get_reduced_composition_and_factor()
            writer.writerow([formula.formula.replace(" ", ""), round(z)])


if __name__ == "__main__":
    main()
