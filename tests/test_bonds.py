"""Bond perception and molecules from arrays, on molecules whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.chem.bonds import Bonds, bonds_of, perceive_bonds
from moldiff.chem.molecules import (
    build_molecule,
    canonical_smiles,
    formula,
    n_fragments,
    n_radicals,
    raw_molecule,
)
from moldiff.chem.valence import stable_atoms


def embedded(smiles: str) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers and MMFF positions of a SMILES."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    AllChem.MMFFOptimizeMolecule(mol)
    return np.array([a.GetAtomicNum() for a in mol.GetAtoms()]), mol.GetConformer().GetPositions()


NEUTRAL = {
    "nitro": "C[N+](=O)[O-]",
    "zwitterion": "[NH3+]CC(=O)[O-]",
    "azide": "CN=[N+]=[N-]",
    "diazo": "C=[N+]=[N-]",
    "isocyanide": "[C-]#[N+]C",
    "amine oxide": "C[N+](C)(C)[O-]",
    "benzene": "c1ccccc1",
    "pyrrole": "c1cc[nH]c1",
    "cubane": "C12C3C4C1C5C2C3C45",
    "hydrogen": "[H][H]",
    "sulphone": "CS(C)(=O)=O",
    "phosphoric acid": "O=P(O)(O)O",
    "carbon monoxide": "[C-]#[O+]",
    "oxetane cage": "CC12CC(C1)O2",
}


@pytest.mark.parametrize("smiles", NEUTRAL.values(), ids=NEUTRAL.keys())
@pytest.mark.parametrize("given", [False, True], ids=["bare", "with SMILES"])
def test_neutral_molecules_are_perceived(smiles: str, given: bool) -> None:
    numbers, positions = embedded(smiles)
    found = perceive_bonds(numbers, positions, smiles=smiles if given else None)
    assert found.bonds is not None, found.reason
    assert found.bonds.matches_smiles is given
    assert (found.bonds.index[:, 0] < found.bonds.index[:, 1]).all()
    assert found.bonds.index.dtype == np.int16 and found.bonds.types.dtype == np.int8
    built = build_molecule(numbers, positions, found.bonds.matrix(), found.bonds.charges)
    assert built.valid and n_radicals(built.mol) == 0
    assert canonical_smiles(built.mol) == canonical_smiles(Chem.MolFromSmiles(smiles))
    assert stable_atoms(numbers, found.bonds.matrix(), found.bonds.charges).all()


@pytest.mark.parametrize(("smiles", "charge"), [("[NH4+]", 1), ("[O-]C=O", -1), ("C[NH3+]", 1)])
def test_ions_need_their_charge(smiles: str, charge: int) -> None:
    numbers, positions = embedded(smiles)
    assert perceive_bonds(numbers, positions, total_charge=0).bonds is None
    for total in (charge, None):
        bonds = perceive_bonds(numbers, positions, total_charge=total).bonds
        assert bonds is not None and bonds.charges.sum() == charge
        assert stable_atoms(numbers, bonds.matrix(), bonds.charges).all()


@pytest.mark.parametrize("smiles", ["[CH3]", "[CH2]", "C[CH]C", "O=[N]"])
def test_radicals_are_no_neutral_molecules(smiles: str) -> None:
    found = perceive_bonds(*embedded(smiles))
    assert found.bonds is None and found.reason in ("radical", "no valid bond orders")


def test_a_transannular_contact_is_no_bond() -> None:
    # The bridgeheads of 2-oxabicyclo[1.1.1]pentane are hardly farther apart than a long bond.
    numbers, positions = embedded("C1C2CC1O2")
    bonds = perceive_bonds(numbers, positions).bonds
    assert bonds is not None and len(bonds.types) == len(numbers) + 1  # two rings


def test_smiles_of_another_molecule_is_not_forced_on_the_geometry() -> None:
    numbers, positions = embedded("CCO")
    found = perceive_bonds(numbers, positions, smiles="COC")
    assert found.bonds is not None and not found.bonds.matches_smiles
    mol = build_molecule(numbers, positions, found.bonds.matrix(), found.bonds.charges).mol
    assert mol is not None and canonical_smiles(mol) == "CCO"


def test_smiles_wins_where_perception_would_choose_other_charges() -> None:
    smiles = "CC(=[NH2+])[N-]C"
    numbers, positions = embedded(smiles)
    bonds = perceive_bonds(numbers, positions, smiles=smiles).bonds
    assert bonds is not None and bonds.matches_smiles and sorted(bonds.charges.tolist())[0] == -1


@pytest.mark.parametrize(
    ("numbers", "positions", "reason"),
    [
        ([], np.zeros((0, 3)), "no atoms"),
        ([6, 1], [[0, 0, 0], [np.nan, 0, 1]], "non-finite coordinates"),
        ([6, 1], [[0, 0, 0], [0, 0, 0.2]], "overlapping atoms"),
        ([6, 0], [[0, 0, 0], [0, 0, 1]], "unknown element"),
        ([6, 119], [[0, 0, 0], [0, 0, 1]], "unknown element"),
    ],
)
def test_bad_geometry_has_a_reason(numbers: list[int], positions: np.ndarray, reason: str) -> None:
    found = perceive_bonds(numbers, positions)
    assert found.bonds is None and found.reason == reason


def test_two_fragments_and_formula() -> None:
    z1, x1 = embedded("C")
    z2, x2 = embedded("O")
    numbers, positions = np.r_[z1, z2], np.r_[x1, x2 + 6.0]
    built = build_molecule(numbers, positions)
    assert built.mol is not None and n_fragments(built.mol) == 2 and canonical_smiles(built.mol) == "C.O"
    assert formula(numbers) == "CH6O" and formula([1, 1, 8]) == "H2O" and formula([17, 1]) == "ClH"


def test_both_kekule_forms_are_one_molecule() -> None:
    names = set()
    for shift in (0, 1):
        orders = np.zeros((12, 12), dtype=int)
        for k in range(6):
            orders[k, (k + 1) % 6] = orders[(k + 1) % 6, k] = 1 + (k + shift) % 2
            orders[k, 6 + k] = orders[6 + k, k] = 1
        built = build_molecule([6] * 6 + [1] * 6, None, orders)
        assert built.mol is not None
        names.add(canonical_smiles(built.mol))
    assert names == {"c1ccccc1"}


def test_missing_hydrogens_are_radicals_not_implied() -> None:
    orders = np.zeros((3, 3), dtype=int)
    orders[0, 1] = orders[1, 0] = orders[0, 2] = orders[2, 0] = 1
    built = build_molecule([6, 1, 1], None, orders)
    assert built.mol is not None and n_radicals(built.mol) == 2 and canonical_smiles(built.mol) == "[CH2]"
    assert stable_atoms([6, 1, 1], orders).tolist() == [False, True, True]


def test_reasons_of_invalid_molecules() -> None:
    star = np.zeros((6, 6), dtype=int)
    star[0, 1:] = star[1:, 0] = 1
    assert build_molecule([6] + [1] * 5, None, star).reason == "valence: C with 5 bonds"
    assert build_molecule([7] + [1] * 5, None, star, [1, 0, 0, 0, 0, 0]).reason == "valence: N+1 with 5 bonds"
    assert build_molecule([], None, np.zeros((0, 0))).reason == "no atoms"
    assert build_molecule([6], [[np.inf, 0, 0]], np.zeros((1, 1))).reason == "non-finite coordinates"
    assert build_molecule([6, 1], None, [[0, 4], [4, 0]]).reason == "unknown bond order"
    with pytest.raises(ValueError, match="bond order 5"):
        raw_molecule([6, 6], None, [[0, 5], [5, 0]])


def test_bonds_of_reads_what_raw_molecule_wrote() -> None:
    numbers, positions = embedded("O=C1C=CC=CN1")
    bonds = perceive_bonds(numbers, positions).bonds
    assert bonds is not None
    again = bonds_of(raw_molecule(numbers, positions, bonds.matrix(), bonds.charges))
    assert isinstance(again, Bonds)
    np.testing.assert_array_equal(again.index, bonds.index)
    np.testing.assert_array_equal(again.types, bonds.types)
    aromatic = Chem.AddHs(Chem.MolFromSmiles("c1ccncc1"))
    assert sorted(bonds_of(aromatic).types.tolist()) == [1] * 8 + [2] * 3
