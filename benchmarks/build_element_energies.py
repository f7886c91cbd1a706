"""Fit the energies of the elements of a judge to crystals of known formation energy, and say how well it then does.

    python benchmarks/build_element_energies.py --data mp20 --calculator chgnet \\
        --out moldiff/evaluation/references/chgnet_elements.json

``--data`` is a prepared data set with the property ``formation_energy``; up to ``--per-element`` small crystals of its training
split are taken for each element, and ``--check`` random ones of its validation split are judged afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.progress import track

from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.crystals.energies import fit_element_energies
from moldiff.evaluation.crystals.novelty import Training
from moldiff.evaluation.crystals.relax import RelaxTask, calculator_version, compute


def choose(store: Store, per_element: int, max_atoms: int, seed: int) -> list[int]:
    """Indices of crystals such that each element has about as many, small ones of known formation energy only."""
    z, offsets = store.tensor("atom_types").numpy(), store.atom_offsets.tolist()
    known = np.isfinite(store.column("formation_energy").numpy())
    order = np.random.default_rng(seed).permutation(len(store)).tolist()
    count = np.zeros(119, dtype=int)
    chosen = []
    for i in order:
        elements = np.unique(z[offsets[i] : offsets[i + 1]])
        if known[i] and offsets[i + 1] - offsets[i] <= max_atoms and count[elements].min() < per_element:
            chosen.append(i)
            count[elements] += 1
    return sorted(chosen)


def energies(store: Store, indices: list[int], calculator: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Numbers, the judge's energies and the known formation energies of some crystals."""
    data = Training(store)
    crystals = [data.crystal(i) for i in indices]
    found = []
    with ResultCache() as cache:
        for crystal in track(crystals, store.split):
            task = RelaxTask(crystal, calculator, relax=False)
            stored = cache.get(task.key())
            value = compute(task).energy if stored is None else stored["energy"]
            if stored is None:
                cache.put(task.key(), {"energy": value})
            found.append(value)
    formed = store.column("formation_energy").numpy()[indices].astype(np.float64)
    return [c.numbers for c in crystals], np.array(found, dtype=np.float64), formed


def main() -> None:
    """Fit, write and check."""
    parser = argparse.ArgumentParser(description="Fit the energies of the elements of a judge.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--calculator", default="chgnet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-element", type=int, default=12)
    parser.add_argument("--max-atoms", type=int, default=8)
    parser.add_argument("--check", type=int, default=200)
    options = parser.parse_args()
    folder = find_data(options.data)
    train, val = Store(folder, "train"), Store(folder, "val")
    numbers, found, formed = energies(train, choose(train, options.per_element, options.max_atoms, 0), options.calculator)
    judge = f"{options.calculator} {calculator_version(options.calculator)}".strip()
    fitted = fit_element_energies(judge, numbers, found, formed)
    fitted.save(options.out)
    print(f"{judge}: {fitted.n} crystals, {len(fitted.energies)} elements, mean error {1000 * fitted.mae:.0f} meV/atom")
    chosen = np.sort(np.random.default_rng(1).permutation(len(val))[: options.check]).tolist()
    numbers, found, formed = energies(val, chosen, options.calculator)
    error = np.array([fitted.formation_energy(z, e) for z, e in zip(numbers, found, strict=True)]) - formed
    error = error[np.isfinite(error)]
    print(
        f"held out: {len(error)} crystals, mean error {1000 * np.abs(error).mean():.0f} meV/atom, bias {1000 * error.mean():+.0f}"
    )


if __name__ == "__main__":
    main()
