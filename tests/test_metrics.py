"""Hand-made molecules for each verdict, and rates with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.chem.bonds import Bonds, bonds_of
from moldiff.data.entry import Entry
from moldiff.evaluation.molecules.basic import entry_of, evaluate_basic, failures, judge
from moldiff.evaluation.reference import Reference, hash_texts


def graph(numbers: list[int], bonds: list[tuple[int, int, int]], charges: dict[int, int] | None = None) -> Entry:
    """A molecule by its bonds alone."""
    q = np.zeros(len(numbers), dtype=np.int8)
    for atom, charge in (charges or {}).items():
        q[atom] = charge
    table = np.array(bonds, dtype=np.int16).reshape(-1, 3)
    return Entry(0, "hand-made", 0, np.array(numbers), None, bonds=Bonds(table[:, :2], table[:, 2].astype(np.int8), q))


def made(smiles: str) -> Entry:
    """A molecule with coordinates from RDKit's distance geometry."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=7) == 0
    AllChem.MMFFOptimizeMolecule(mol)
    z = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
    return Entry(0, smiles, 0, z, mol.GetConformer().GetPositions(), bonds=bonds_of(mol))


METHANE = graph([6, 1, 1, 1, 1], [(0, i, 1) for i in range(1, 5)])


def test_methane_passes_everything() -> None:
    verdict = judge(made("C"))
    assert verdict.valid and verdict.connected and verdict.molecule_stable and verdict.edm_molecule_stable and verdict.finite
    assert (verdict.smiles, verdict.formula, verdict.n_atoms, verdict.atom_stability) == ("C", "CH4", 5, 1.0)
    assert not verdict.radical and verdict.bonds == "given" and verdict.reason == ""


def test_carbene_is_valid_for_rdkit_but_unstable_and_a_radical() -> None:
    verdict = judge(graph([6, 1, 1], [(0, 1, 1), (0, 2, 1)]))
    assert verdict.valid and verdict.radical and not verdict.molecule_stable
    assert verdict.stable_atoms == 2


def test_carbon_with_three_neutral_bonds_is_unstable() -> None:
    # The tables of some published evaluators accept it.
    verdict = judge(graph([6, 1, 1, 1], [(0, i, 1) for i in (1, 2, 3)]))
    assert not verdict.molecule_stable and verdict.radical and verdict.stable_atoms == 3


def test_nitro_group() -> None:
    separated = [(0, 1, 1), (1, 2, 2), (1, 3, 1), (0, 4, 1), (0, 5, 1), (0, 6, 1)]
    charged = judge(graph([6, 7, 8, 8, 1, 1, 1], separated, {1: 1, 3: -1}))
    assert charged.valid and charged.molecule_stable and charged.charge == 0
    assert charged.smiles == "C[N+](=O)[O-]"
    pentavalent = [(0, 1, 1), (1, 2, 2), (1, 3, 2), (0, 4, 1), (0, 5, 1), (0, 6, 1)]
    neutral = judge(graph([6, 7, 8, 8, 1, 1, 1], pentavalent))
    # RDKit's clean-up turns the old-fashioned form into the charged one, so it is valid; its valence as given is wrong.
    assert neutral.valid and neutral.stable_atoms == 6 and not neutral.molecule_stable
    five = judge(graph([7, 1, 1, 1, 1, 1], [(0, i, 1) for i in range(1, 6)]))
    assert not five.valid and five.reason == "valence: N with 5 bonds" and five.stable_atoms == 5


def test_zwitterion_needs_its_charges() -> None:
    glycine = made("[NH3+]CC(=O)[O-]")
    verdict = judge(glycine)
    assert verdict.valid and verdict.molecule_stable and verdict.charge == 0
    assert glycine.bonds is not None
    bare = judge(replace(glycine, bonds=replace(glycine.bonds, charges=np.zeros_like(glycine.bonds.charges))))
    assert not bare.valid and not bare.molecule_stable and bare.stable_atoms == 8


def test_ammonium_with_and_without_its_charge() -> None:
    bonds = [(0, i, 1) for i in range(1, 5)]
    assert judge(graph([7, 1, 1, 1, 1], bonds, {0: 1})).molecule_stable
    neutral = judge(graph([7, 1, 1, 1, 1], bonds))
    assert not neutral.valid and neutral.stable_atoms == 4


def test_ammonium_without_bonds_counts_only_when_its_charge_is_known() -> None:
    bare = replace(made("[NH4+]"), bonds=None)
    assert not judge(bare).valid
    known = judge(replace(bare, total_charge=1))
    assert known.valid and known.molecule_stable and known.charge == 1 and known.bonds == "perceived"


def test_two_fragments_are_valid_but_not_connected() -> None:
    verdict = judge(graph([8, 1, 1, 1, 1], [(0, 1, 1), (0, 2, 1), (3, 4, 1)]))
    assert verdict.valid and not verdict.connected and verdict.n_fragments == 2 and verdict.molecule_stable


def test_radical() -> None:
    hydroxyl = judge(graph([8, 1], [(0, 1, 1)]))
    assert hydroxyl.valid and hydroxyl.radical and not hydroxyl.molecule_stable
    perceived = judge(replace(made("CO"), bonds=None))
    assert perceived.valid and not perceived.radical
    mol = made("CO")
    assert mol.numbers is not None and mol.positions is not None
    without_h = judge(entry_of(0, mol.numbers[:-1], mol.positions[:-1]))
    assert not without_h.valid and without_h.reason != ""


def test_hydrogen_molecule() -> None:
    verdict = judge(entry_of(0, [1, 1], [[0, 0, 0], [0, 0, 0.74]]))
    assert verdict.valid and verdict.connected and verdict.molecule_stable and verdict.edm_molecule_stable
    assert verdict.smiles == "[H][H]"


def test_both_kekule_forms_of_benzene_are_one_molecule() -> None:
    ring = [(i, (i + 1) % 6) for i in range(6)]
    hydrogens = [(i, i + 6, 1) for i in range(6)]
    first = graph([6] * 6 + [1] * 6, [(*p, 1 + i % 2) for i, p in enumerate(ring)] + hydrogens)
    second = graph([6] * 6 + [1] * 6, [(*p, 2 - i % 2) for i, p in enumerate(ring)] + hydrogens)
    result = evaluate_basic([first, second])
    assert [v.smiles for v in result.verdicts] == ["c1ccccc1"] * 2
    assert all(v.valid and v.molecule_stable for v in result.verdicts)
    assert result.metrics["uniqueness"] == 0.5


def test_strained_cage_is_valid() -> None:
    cubane = made("C12C3C4C1C5C2C3C45")
    for entry in (cubane, replace(cubane, bonds=None)):
        verdict = judge(entry)
        assert verdict.valid and verdict.connected and verdict.molecule_stable
        assert verdict.smiles == "C12C3C4C1C1C2C3C41"


def test_azide() -> None:
    numbers, rest = [6, 7, 7, 7, 1, 1, 1], [(0, 4, 1), (0, 5, 1), (0, 6, 1), (0, 1, 1)]
    verdict = judge(graph(numbers, [*rest, (1, 2, 2), (2, 3, 2)], {2: 1, 3: -1}))
    assert verdict.valid and verdict.molecule_stable and verdict.smiles == "CN=[N+]=[N-]"
    other = judge(graph(numbers, [*rest, (1, 2, 1), (2, 3, 3)], {1: -1, 2: 1}))
    assert other.valid and other.molecule_stable
    uncharged = judge(graph(numbers, [*rest, (1, 2, 2), (2, 3, 2)]))
    assert not uncharged.valid and uncharged.stable_atoms == 5


def test_edm_look_up_is_blind_to_given_bonds_and_charges() -> None:
    nitro = judge(made("C[N+](=O)[O-]"))
    assert nitro.molecule_stable and nitro.edm_molecule_stable is False
    assert judge(METHANE).edm_molecule_stable is None


@pytest.mark.parametrize(
    ("numbers", "positions", "reason"),
    [
        ([], np.zeros((0, 3)), "no atoms"),
        ([0, 1], [[0, 0, 0], [0, 0, 1.0]], "unknown element"),
        ([1, 1], [[0, 0, 0], [0, 0, float("nan")]], "non-finite coordinates"),
        ([1, 1], [[0, 0, 0], [0, 0, float("inf")]], "non-finite coordinates"),
        ([6, 6], [[0, 0, 0], [0, 0, 0]], "overlapping atoms"),
    ],
)
def test_broken_samples_are_failures_with_a_reason(numbers: list[int], positions: object, reason: str) -> None:
    verdict = judge(entry_of(0, numbers, positions))
    assert not verdict.valid and not verdict.molecule_stable and verdict.reason == reason
    assert verdict.stable_atoms == 0


def test_failures_stay_in_the_denominators() -> None:
    nan = entry_of(1, [6, 1, 1, 1, 1], np.full((5, 3), np.nan))
    unread = entry_of(2, [], None, problem="record 3 can't be read")
    ethane_and_water = graph([8, 1, 1, 8, 1, 1], [(0, 1, 1), (0, 2, 1), (3, 4, 1), (3, 5, 1)])
    entries = [made("C"), METHANE, nan, unread, ethane_and_water]
    reference = Reference("toy", "molecule", 1, np.sort(hash_texts(["C"])))
    result = evaluate_basic(entries, reference)
    metrics = result.metrics
    assert metrics["validity"] == pytest.approx(3 / 5)
    assert metrics["valid_connected"] == pytest.approx(2 / 5)
    assert metrics["molecule_stability"] == pytest.approx(3 / 5)
    assert metrics["atom_stability"] == pytest.approx(16 / 21)
    assert metrics["uniqueness"] == pytest.approx(2 / 3)
    assert metrics["novelty"] == pytest.approx(1 / 2)
    assert metrics["vun"] == pytest.approx(1 / 5)
    assert metrics["vun"] == pytest.approx(metrics["validity"] * metrics["uniqueness"] * metrics["novelty"])
    assert failures(result.verdicts) == {"non-finite coordinates": 1, "record 3 can't be read": 1}


def test_processes_and_serial_agree() -> None:
    entries = [replace(METHANE, name=str(i)) for i in range(299)] + [entry_of(299, [6, 6], np.zeros((2, 3)))]
    serial = evaluate_basic(entries, n_processes=1)
    parallel = evaluate_basic(entries, n_processes=2)
    assert serial == parallel and serial.metrics["validity"] == pytest.approx(299 / 300)
