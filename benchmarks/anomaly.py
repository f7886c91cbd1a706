"""Does the score tell real molecules from spoilt copies? ROC AUC of validation molecules against their copies.

    python benchmarks/anomaly.py --n 500 --seed 1 --times 2 --leave-out 500 --out benchmarks/results/anomaly.json

Copies: 0.15 Å of normal noise (a coordinate) on one atom; elements swapped with valence kept (a C-H becomes N, an N-H becomes
O, the geometry stays and one hydrogen goes); for comparison two atoms' elements exchanged without regard to valence. Foreign:
the first NCI molecules that come with RDKit, of the model's elements, neutral, no larger than its largest, of 10 heavy atoms or
more (QM9 has 9), with RDKit's ETKDG + MMFF94 geometry; beside them validation molecules embedded the same way, for that
geometry alone is foreign to a model of DFT geometries. ``--leave-out`` K leaves out the first K molecules of seed 0, on which
the parts of the score were weighed. Scores compared: ``anomaly`` (of the worst atom, see ``moldiff.score.Score``) and the bound
per atom.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from moldiff import Generator
from moldiff.chem.conformers import embed_smiles
from moldiff.chem.molecules import build_molecule
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.score import Score, score
from moldiff.structures import Structure, structure_of

#: A heavy atom with a hydrogen becomes this without it.
NEXT = {6: 7, 7: 8}


def structure(store: Store, i: int) -> Structure:
    """One stored molecule."""
    s = store.system(i)
    numbers, x, bonds, charges = (s[k].numpy() for k in ("atom_types", "positions", "bond_types", "charges"))
    return Structure(str(int(s["id"])), numbers, x, bonds, charges)


def shaken(one: Structure, rng: np.random.Generator, size: float = 0.15) -> Structure:
    """One atom moved by normal noise."""
    x = one.positions.copy()
    x[rng.integers(len(one))] += rng.normal(0, size, 3).astype(np.float32)
    return Structure(one.name, one.numbers, x, one.bonds, one.charges)


def swapped(one: Structure, rng: np.random.Generator) -> Structure | None:
    """A heavy atom that has a hydrogen becomes the next element, without it."""
    assert one.bonds is not None
    pairs = [
        (i, h) for i, h in np.argwhere(one.bonds == 1).tolist()
        if one.numbers[i] in NEXT and one.numbers[h] == 1 and one.charges[i] == 0
    ]  # fmt: skip
    if not pairs:
        return None
    i, h = pairs[rng.integers(len(pairs))]
    numbers = one.numbers.copy()
    numbers[i] = NEXT[int(numbers[i])]
    left = np.delete(np.arange(len(one)), h)
    return Structure(one.name, numbers[left], one.positions[left], one.bonds[np.ix_(left, left)], one.charges[left])


def exchanged(one: Structure, rng: np.random.Generator) -> Structure | None:
    """Two heavy atoms of different elements exchange them; bonds and positions stay."""
    heavy = np.flatnonzero(one.numbers > 1)
    pairs = [(i, j) for i in heavy for j in heavy if i < j and one.numbers[i] != one.numbers[j]]
    if not pairs:
        return None
    i, j = pairs[rng.integers(len(pairs))]
    numbers = one.numbers.copy()
    numbers[[i, j]] = numbers[[j, i]]
    return Structure(one.name, numbers, one.positions, one.bonds, one.charges)


def embedded(smiles: str, name: str) -> Structure | None:
    """A molecule from its SMILES with RDKit's geometry; None where there is none."""
    found = embed_smiles(smiles)
    if found.numbers is None:
        return None
    return structure_of(found.numbers, found.positions, found.bonds, None, name)


def foreign(n: int, elements: set[int], most: int) -> list[Structure]:
    """Neutral molecules of RDKit's NCI file of 10 heavy atoms or more, of these elements, at most ``most`` atoms."""
    from rdkit import Chem, RDConfig, rdBase

    found: list[Structure] = []
    for line in (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines():
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(line.split()[0])
        if mol is None or mol.GetNumHeavyAtoms() < 10 or len(Chem.GetMolFrags(mol)) > 1:
            continue
        numbers = {a.GetAtomicNum() for a in Chem.AddHs(mol).GetAtoms()}
        charged = any(a.GetFormalCharge() or a.GetNumRadicalElectrons() for a in mol.GetAtoms())
        if numbers <= elements and not charged and Chem.AddHs(mol).GetNumAtoms() <= most:
            one = embedded(line.split()[0], line.split()[-1])
            found += [one] if one is not None else []
        if len(found) == n:
            break
    return found


def smiles_of(one: Structure) -> str:
    """The isomeric SMILES that a molecule's own geometry gives."""
    from rdkit import Chem

    mol = build_molecule(one.numbers, one.positions, one.bonds, one.charges).mol
    assert mol is not None
    Chem.AssignStereochemistryFrom3D(mol)
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def auc(real: list[float], other: list[float]) -> float:
    """The probability that a real one has the smaller number, ties halved."""
    a, b = np.array(real), np.array(other)
    return float((a[:, None] < b[None]).mean() + 0.5 * (a[:, None] == b[None]).mean())


def measures(scores: list[Score]) -> dict[str, list[float]]:
    """The numbers that are compared, greater for stranger molecules."""
    known = [s for s in scores if not s.problem]
    return {"anomaly": [s.anomaly for s in known], "per_atom": [-s.per_atom for s in known]}


def main() -> None:
    """Score, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--times", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave-out", type=int, default=0)
    parser.add_argument("--foreign", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    rng = np.random.default_rng(args.seed)
    used = set(np.random.default_rng(0).permutation(len(store))[: args.leave_out].tolist())
    real = [structure(store, i) for i in [i for i in rng.permutation(len(store)).tolist() if i not in used][: args.n]]
    most, elements = max(generator.info.sizes), set(generator.config.vocabulary["atom_types"])
    again = [embedded(smiles_of(s), s.name) for s in real[: args.foreign]]
    kinds = {
        "noise_one_atom": [shaken(s, rng) for s in real],
        "valence_kept_swap": [c for s in real if (c := swapped(s, rng)) is not None],
        "exchanged_elements": [c for s in real if (c := exchanged(s, rng)) is not None],
        "foreign_embedded": foreign(args.foreign, elements, most),
        "validation_embedded": [s for s in again if s is not None],
    }
    base = measures(score(generator, real, times=args.times, seed=args.seed))
    levels = {q: round(float(np.quantile(base["anomaly"], q / 100)), 4) for q in (50, 90, 95, 99)}
    values: dict[str, dict[str, float]] = {}
    for name, copies in kinds.items():
        found = measures(score(generator, copies, times=args.times, seed=args.seed + 1))
        seen = round(float(np.mean(np.array(found["anomaly"]) > levels[95])), 4)  # where one real molecule in 20 is suspected
        values[name] = {"n": len(copies), **{k: round(auc(base[k], found[k]), 4) for k in base}, "found_at_5_percent": seen}
        print(name, values[name], flush=True)
    kept = {"model": args.model, "n": args.n, "times": args.times, "seed": args.seed, "left_out": args.leave_out}
    text = json.dumps({**kept, "real_quantiles": levels, "auc": values}, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
