"""Build the small set of crystals of our own making that is in this folder: prototypes over many elements, no data of anyone's.

    python data/build_quickstart_crystals.py --out data/quickstart-crystal

Each composition gets the structure that plain rules give it. Salts: oxidation states must balance, the ratio of the radii chooses
between zincblende or wurtzite, rock salt and caesium chloride (AB), rutile and fluorite (AB2), and the tolerance factor admits a
perovskite (ABX3); distances are sums of Shannon's radii. Metals: the structure of the element, and alloys AB and AB3 of metals
of like size. So the structure can be learnt from the composition, which is what structure prediction needs. Takes seconds.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, covalent_radii, reference_states
from ase.spacegroup import crystal
from pymatgen.core import Element

from moldiff.chem.crystals import from_ase
from moldiff.data.crystal_entry import COMPUTED, CrystalEntry, to_crystal_system
from moldiff.data.info import data_info
from moldiff.data.store import pack, write_store

CATIONS = {
    1: ("Li", "Na", "K", "Rb", "Cs", "Ag", "Cu", "Tl"),
    2: ("Be", "Mg", "Ca", "Sr", "Ba", "Mn", "Fe", "Co", "Ni", "Zn", "Cd", "Hg", "Pb", "Eu"),
    3: ("B", "Al", "Ga", "In", "Sc", "Y", "La", "Nd", "Gd", "Lu", "Bi", "Cr"),
    4: ("Si", "Ge", "Sn", "Ti", "Zr", "Hf", "Ce", "Th", "Pb", "Mn", "V", "Nb", "Ru"),
    5: ("Nb", "Ta"),
}
ANIONS = {-1: ("F", "Cl", "Br", "I"), -2: ("O", "S", "Se", "Te"), -3: ("N", "P", "As", "Sb")}
METALS = (
    "Li", "Na", "K", "Mg", "Ca", "Sr", "Sc", "Y", "Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "Mo", "W", "Fe", "Co", "Ni", "Cu",
    "Ag", "Au", "Zn", "Al", "Ru", "Rh", "Pd", "Re", "Os", "Ir", "Pt", "La", "Gd", "Er", "Yb", "Pb",
)  # fmt: skip
#: Radii ratios (cation over anion) from which six and eight neighbours fit.
SIX, EIGHT = 0.414, 0.732
TOLERANCE_FACTORS = (0.82, 1.04)


def radius(symbol: str, charge: int) -> float | None:
    """Shannon's radius of an ion (Å), where pymatgen has one."""
    radii = Element(symbol).ionic_radii
    return float(radii[charge]) if charge in radii else None


def salts() -> Iterator[tuple[str, Atoms]]:
    """AB, AB2 and A2B salts, named by their prototype."""
    for qa, qb in product(CATIONS, ANIONS):
        for a, b in product(CATIONS[qa], ANIONS[qb]):
            ra, rb = radius(a, qa), radius(b, qb)
            if ra is None or rb is None:
                continue
            d, ratio = ra + rb, ra / rb
            if qa == -qb and ratio < SIX:
                # Larger anions prefer the cubic stacking; a rule is needed, and this one is as good as any.
                if b in ("N", "O", "F"):
                    yield "wurtzite", bulk(a + b, "wurtzite", a=d * np.sqrt(8 / 3))
                else:
                    yield "zincblende", bulk(a + b, "zincblende", a=d * 4 / np.sqrt(3))
            elif qa == -qb and ratio < EIGHT:
                yield "rock salt", bulk(a + b, "rocksalt", a=2 * d)
            elif qa == -qb:
                yield "caesium chloride", bulk(a + b, "cesiumchloride", a=2 * d / np.sqrt(3))
            elif qa == -2 * qb and ratio < EIGHT:
                edge = d / 0.42
                cell = [edge, edge, 0.65 * edge, 90, 90, 90]
                yield "rutile", crystal([a, b], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=cell)
            elif qa == -2 * qb:
                yield "fluorite", bulk(a + b + "2", "fluorite", a=d * 4 / np.sqrt(3))
            elif 2 * qa == -qb:
                yield "antifluorite", bulk(b + a + "2", "fluorite", a=d * 4 / np.sqrt(3))


def perovskites() -> Iterator[tuple[str, Atoms]]:
    """Cubic ABX3 whose tolerance factor lies in the usual range."""
    for qx, anions in ANIONS.items():
        for qa, qb in product(CATIONS, repeat=2):
            if qa + qb != -3 * qx or qa > qb:
                continue
            for a, b, x in product(CATIONS[qa], CATIONS[qb], anions):
                ra, rb, rx = radius(a, qa), radius(b, qb), radius(x, qx)
                if a == b or ra is None or rb is None or rx is None:
                    continue
                factor = (ra + rx) / (np.sqrt(2) * (rb + rx))
                if TOLERANCE_FACTORS[0] < factor < TOLERANCE_FACTORS[1] and rb / rx > SIX:
                    places = [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)]
                    edge = 2 * (rb + rx)
                    yield "perovskite", crystal([a, b, x], places, spacegroup=221, cellpar=[edge] * 3 + [90] * 3)


def metals() -> Iterator[tuple[str, Atoms]]:
    """Elements in their own structure, and alloys AB (caesium chloride) and A3B (Cu3Au)."""
    for symbol in METALS:
        state = reference_states[atomic_numbers[symbol]]
        if state is not None and state["symmetry"] in ("fcc", "bcc", "hcp"):
            yield state["symmetry"], bulk(symbol)
    for a, b in combinations(METALS, 2):
        ra, rb = (float(covalent_radii[atomic_numbers[s]]) for s in (a, b))
        gap = abs(float(Element(a).X) - float(Element(b).X))
        if gap > 0.35 and max(ra, rb) / min(ra, rb) < 1.3:
            yield "caesium chloride", bulk(a + b, "cesiumchloride", a=2 * (ra + rb) / np.sqrt(3))
        if gap <= 0.35 and max(ra, rb) / min(ra, rb) < 1.12:
            big, small = (a, b) if ra >= rb else (b, a)
            edge = np.sqrt(2) * (ra + rb)
            places = [(0, 0, 0), (0.5, 0.5, 0)]
            yield "Cu3Au", crystal([big, small], places, spacegroup=221, cellpar=[edge] * 3 + [90] * 3)


def build(out: Path, seed: int) -> Counter[str]:
    """Write the data set; return how many crystals of each prototype it has."""
    kinds: Counter[str] = Counter()
    systems: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for row, (kind, atoms) in enumerate((*salts(), *perovskites(), *metals()), 1):
        found = from_ase(atoms)
        outcome = to_crystal_system(CrystalEntry(row, kind, row, found))
        key = (found.reduced_formula, kind)
        if outcome.system is None or key in seen:
            continue
        seen.add(key)
        kinds[kind] += 1
        systems.append(outcome.system)
    held_out = set(np.random.default_rng(seed).permutation(len(systems))[: len(systems) // 10].tolist())
    parts = {"train": [s for k, s in enumerate(systems) if k not in held_out], "val": [systems[k] for k in sorted(held_out)]}
    meta = {
        "name": out.name,
        "kind": "crystal",
        "source": "prototypes built by data/build_quickstart_crystals.py from radii and oxidation states (CC0)",
        "properties": COMPUTED,
        "notes": [", ".join(f"{kind} {n}" for kind, n in kinds.most_common())],
        "split_seed": seed,
    }
    write_store(out, {split: pack(part) for split, part in parts.items()}, meta)
    return kinds


def main() -> None:
    """Read the options and build the set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "quickstart-crystal")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build(options.out, options.seed)
    from rich import print as show

    show(data_info(options.out))


if __name__ == "__main__":
    main()
