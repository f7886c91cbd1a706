"""Build the small data set of our own making that is in this folder: small C, N, O, H molecules, relaxed with GFN2-xTB.

    python data/build_quickstart.py --out data/quickstart

Every molecule of up to five heavy atoms that plain valences allow is enumerated as a graph, unreasonable ones are left out by
a few rules, nitro, azide and isocyanide groups are put on the smaller ones so that formal charges occur, conformers are
embedded and relaxed. A molecule stays when its relaxed geometry still has the bonds that it was made with. Takes about four
minutes on one core; the seed and the versions of RDKit and tblite fix the result. Needs the extra packages ase and tblite.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem, rdBase
from rich.progress import track

from moldiff.chem.conformers import embed_smiles
from moldiff.chem.molecules import canonical_smiles
from moldiff.data.entry import Entry, to_system
from moldiff.data.info import data_info
from moldiff.data.store import pack, write_store

VALENCE = {6: 4, 7: 3, 8: 2}
ORDERS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
#: What plain valences allow and chemistry hardly does.
UNREASONABLE = (
    "[#8]~[#8]",  # peroxides, oxygen
    "[#7,#8]~[#7,#8]~[#7,#8]",  # chains of three heteroatoms
    "[#7,#8]-[CX4](-[#7,#8])-[#7,#8]",  # orthoacids and their like
    "[r3,r4]#[*]~[r3,r4]",
    "[*r]#[*r]",  # triple bonds and cumulenes in rings
    "[*r]=[*r]=[*r]",
    "[*r3]=[*r3]",  # double bonds inside three-membered rings
    "[*R2]=[*]",  # double bonds at an atom of two small rings
    "[OH]-[CX4]-[OH]",
    "[OH]-[CX3]=[#6]",  # enols, which are ketones
    "[NH]=[CX3]-[OH]",
    "[OH]-[#7]-[OH]",
)
GROUPS = ("[N+](=O)[O-]", "N=[N+]=[N-]", "[N+]#[C-]")
UNITS = {"energy": "eV", "homo": "eV", "lumo": "eV", "gap": "eV", "dipole": "D"}
BOHR, HARTREE, DEBYE = 0.529177210903, 27.211386245988, 2.541746473


def enumerate_graphs(n_heavy: int) -> list[str]:
    """SMILES of all connected molecules of up to ``n_heavy`` C, N, O atoms with their plain valences."""
    level: dict[str, Chem.Mol] = {}
    for element in VALENCE:
        single = Chem.RWMol()
        single.AddAtom(Chem.Atom(element))
        mol = _completed(single)
        level[Chem.MolToSmiles(mol)] = mol
    found = list(level)
    for _ in range(n_heavy - 1):
        larger: dict[str, Chem.Mol] = {}
        for mol in level.values():
            # Marked by the new atom, graphs that differ in it only are kept apart while its rings are being closed.
            seen: set[str] = set()
            stack = list(_with_one_more(mol))
            while stack:
                grown = stack.pop()
                rooted = Chem.MolToSmiles(grown, rootedAtAtom=grown.GetNumAtoms() - 1)
                if rooted not in seen:
                    seen.add(rooted)
                    larger.setdefault(Chem.MolToSmiles(grown), grown)
                    stack.extend(_ring_closures(grown))
        level = larger
        found.extend(level)
    return found


def _with_one_more(mol: Chem.Mol) -> Iterator[Chem.Mol]:
    for element, valence in VALENCE.items():
        for i in range(mol.GetNumAtoms()):
            for order in range(1, min(_free(mol, i), valence, 3) + 1):
                grown = Chem.RWMol(mol)
                grown.AddBond(i, grown.AddAtom(Chem.Atom(element)), ORDERS[order])
                yield _completed(grown)


def _ring_closures(mol: Chem.Mol) -> Iterator[Chem.Mol]:
    new = mol.GetNumAtoms() - 1
    for i in range(new):
        if mol.GetBondBetweenAtoms(i, new) is None:
            for order in range(1, min(_free(mol, i), _free(mol, new), 3) + 1):
                grown = Chem.RWMol(mol)
                grown.AddBond(i, new, ORDERS[order])
                yield _completed(grown)


def _free(mol: Chem.Mol, index: int) -> int:
    return int(mol.GetAtomWithIdx(index).GetTotalNumHs())


def _completed(mol: Chem.RWMol) -> Chem.Mol:
    plain = mol.GetMol()
    plain.UpdatePropertyCache(strict=True)
    Chem.FastFindRings(plain)
    return plain


def choose(smiles: list[str]) -> list[str]:
    """Leave the unreasonable ones out, add charged groups to the small ones; canonical and sorted."""
    patterns = [Chem.MolFromSmarts(text) for text in UNREASONABLE]
    chosen: set[str] = set()
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        if mol is None or mol.GetRingInfo().NumRings() > 2 or any(mol.HasSubstructMatch(pattern) for pattern in patterns):
            continue
        chosen.add(canonical_smiles(mol))
        if 1 <= mol.GetNumHeavyAtoms() <= 3:
            for group in GROUPS:
                chosen.update(_substituted(mol, group))
    return sorted(chosen)


def _substituted(mol: Chem.Mol, group: str) -> Iterator[str]:
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 6 and atom.GetTotalNumHs():
            joined = Chem.RWMol(Chem.CombineMols(mol, Chem.MolFromSmiles(group, sanitize=False)))
            joined.AddBond(atom.GetIdx(), mol.GetNumAtoms(), Chem.BondType.SINGLE)
            product = Chem.MolFromSmiles(Chem.MolToSmiles(joined))
            if product is not None:
                yield canonical_smiles(product)


def relax(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
    """Relax with GFN2-xTB (Bannwarth et al., J. Chem. Theory Comput. 15, 1652, 2019); None when it does not converge."""
    from ase import Atoms
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    atoms: Any = Atoms(numbers=numbers, positions=positions, calculator=TBLite(method="GFN2-xTB", verbosity=0))
    optimiser: Any = BFGS(atoms, logfile=None)
    return atoms.get_positions() if optimiser.run(fmax=0.02, steps=200) else None


def labels(numbers: np.ndarray, positions: np.ndarray) -> dict[str, float]:
    """Single-point GFN2-xTB energy and orbital energies (eV) and dipole moment (D)."""
    from tblite.interface import Calculator

    calculator = Calculator("GFN2-xTB", numbers, positions / BOHR)
    calculator.set("verbosity", 0)
    result = calculator.singlepoint()
    energies = np.asarray(result.get("orbital-energies")) * HARTREE
    occupied = np.asarray(result.get("orbital-occupations")).reshape(-1, len(energies)).sum(0) > 1.0
    homo, lumo = energies[occupied].max(), energies[~occupied].min()
    return {
        "energy": float(result.get("energy")) * HARTREE,
        "homo": float(homo),
        "lumo": float(lumo),
        "gap": float(lumo - homo),
        "dipole": float(np.linalg.norm(result.get("dipole"))) * DEBYE,
    }


def build(smiles: list[str]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Embed, relax and label; return the stored systems and the number of molecules given up, by reason."""
    systems: list[dict[str, Any]] = []
    given_up: Counter[str] = Counter()
    for row, text in enumerate(track(smiles, "relaxing"), start=1):
        made = embed_smiles(text, seed=row)
        if made.numbers is None or made.positions is None:
            given_up[made.reason] += 1
            continue
        try:
            positions = relax(made.numbers, made.positions)
        except RuntimeError:
            # tblite's own error, for a density that does not converge.
            positions = None
        if positions is None:
            given_up["relaxation did not converge"] += 1
            continue
        values = labels(made.numbers, positions)
        if values["gap"] < 0.1:
            # A diradical (O2, ethylenedione): the closed shell that is computed here is not its ground state.
            given_up["no gap"] += 1
            continue
        entry = Entry(row, text, row, made.numbers, positions, smiles=text, total_charge=0, properties=values)
        outcome = to_system(entry)
        if outcome.system is None or outcome.bonds_from != "smiles":
            given_up["changed its bonds"] += 1
            continue
        systems.append(outcome.system)
    return systems, given_up


def main() -> None:
    """Build the data set and show its summary."""
    from rich import print as show

    parser = argparse.ArgumentParser(description="Build the quickstart data set.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "quickstart")
    parser.add_argument("--heavy", type=int, default=5, help="heavy atoms of the enumerated molecules (default 5)")
    parser.add_argument("--n", type=int, default=2400, help="largest number of molecules to relax (default 2400)")
    arguments = parser.parse_args()
    rdBase.DisableLog("rdApp.*")
    rng = np.random.default_rng(0)
    smiles = choose(enumerate_graphs(arguments.heavy))
    if len(smiles) > arguments.n:
        smiles = [smiles[k] for k in sorted(rng.permutation(len(smiles))[: arguments.n])]
    systems, given_up = build(smiles)
    n_val = max(1, len(systems) // 10)
    order = rng.permutation(len(systems))
    splits = {"train": sorted(order[n_val:]), "val": sorted(order[:n_val])}
    meta = {
        "name": arguments.out.name,
        "kind": "molecule",
        "source": "own: enumerated with RDKit, relaxed with GFN2-xTB (data/build_quickstart.py)",
        "properties": UNITS,
        "rejected": dict(given_up.most_common()),
        "bonds_from": {"smiles": len(systems)},
    }
    write_store(arguments.out, {name: pack([systems[k] for k in part]) for name, part in splits.items()}, meta)
    show(data_info(arguments.out))


if __name__ == "__main__":
    main()
