"""SampleSet: a sequence with ways out to RDKit, ASE, pandas and files, and back."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from rdkit import Chem

from moldiff.errors import BadRequest, MoldiffError
from moldiff.evaluation.molecules.basic import Verdict
from moldiff.generator import Generator
from moldiff.sample_files import COLUMNS, csv_row, csv_text, read_verdicts
from moldiff.samples import Sample, SampleSet


def molecule(index: int, smiles: str) -> Sample:
    """A real molecule with made-up but distinct coordinates."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    Chem.Kekulize(mol, clearAromaticFlags=True)
    n = mol.GetNumAtoms()
    bonds = np.zeros((n, n), dtype=np.int64)
    for b in mol.GetBonds():
        i, j, order = b.GetBeginAtomIdx(), b.GetEndAtomIdx(), round(b.GetBondTypeAsDouble())
        bonds[i, j] = bonds[j, i] = order
    data = {
        "atom_types": np.array([a.GetAtomicNum() for a in mol.GetAtoms()]),
        "positions": np.random.default_rng(index).normal(size=(n, 3)).astype(np.float32) * 2,
        "bond_types": bonds,
        "charges": np.array([a.GetFormalCharge() for a in mol.GetAtoms()]),
    }
    return Sample(index, data)


@pytest.fixture
def samples():
    pentavalent = molecule(3, "CC")
    pentavalent.fields["bond_types"][0, 1] = pentavalent.fields["bond_types"][1, 0] = 3
    nowhere = {"atom_types": np.array([6, 1]), "positions": np.full((2, 3), np.nan, np.float32)}
    failed = Sample(4, nowhere, "non-finite numbers")
    good = [molecule(0, "CCO"), molecule(1, "C[N+](C)(C)CC(=O)[O-]"), molecule(2, "c1ccccc1")]
    return SampleSet([*good, pentavalent, failed, molecule(5, "OCC")])


def test_it_is_a_sequence(samples):
    assert len(samples) == 6 and samples[-1].index == 5 and [s.index for s in samples[1:3]] == [1, 2]
    assert isinstance(samples[1:3], SampleSet) and samples[0] in samples
    assert [s.index for s in samples[:1] + samples[4:]] == [0, 4, 5]
    assert [s.index for s in samples.valid()] == [0, 1, 2, 5]


def test_verdicts_and_metrics(samples):
    assert [v.valid for v in samples.verdicts] == [True, True, True, False, False, True]
    assert [v.unique for v in samples.verdicts] == [True, True, True, False, False, False]  # OCC is CCO
    assert samples.verdicts[3].reason == "valence: C with 6 bonds" and samples.verdicts[4].reason == "non-finite numbers"
    metrics = samples.metrics()
    assert metrics["validity"] == pytest.approx(4 / 6) and metrics["uniqueness"] == pytest.approx(3 / 4)


def test_rdkit_gets_sanitised_molecules_and_none_for_the_rest(samples):
    mols = samples.to_rdkit()
    assert [m is None for m in mols] == [False, False, False, True, True, False]
    assert Chem.MolToSmiles(Chem.RemoveHs(mols[1])) == "C[N+](C)(C)CC(=O)[O-]"
    assert mols[2].GetAtomWithIdx(0).GetIsAromatic() and mols[0].GetProp("_Name") == "sample_0"
    assert np.allclose(mols[0].GetConformer().GetPositions(), samples[0].positions, atol=1e-6)
    assert samples[3].to_rdkit(sanitize=False).GetNumAtoms() == 8 and samples[4].to_rdkit(sanitize=False) is None


def test_ase_keeps_positions_charges_and_bonds(samples):
    atoms = samples.to_ase()[1]
    assert atoms.get_chemical_formula() == "C5H11NO2" and np.allclose(atoms.positions, samples[1].positions)
    assert atoms.arrays["formal_charge"].sum() == 0 and atoms.arrays["formal_charge"].min() == -1
    assert atoms.info["bonds"].endswith("5-6-2,5-7-1")


def test_pymatgen_is_for_crystals(samples):
    with pytest.raises(BadRequest, match="no cell"):
        samples.to_pymatgen()
    salt = {
        "atom_types": np.array([11, 17]),
        "frac_coords": np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
        "lattice": np.eye(3) * 3.5,
    }
    (structure,) = SampleSet([Sample(0, salt)]).to_pymatgen()
    assert structure.composition.reduced_formula == "NaCl" and structure.volume == pytest.approx(3.5**3)
    assert Sample(0, salt).to_ase().get_distance(0, 1, mic=True) == pytest.approx(3.5 * 3**0.5 / 2)


def test_the_table_has_one_row_a_sample_with_the_reasons(samples):
    table = samples.to_dataframe()
    assert list(table["id"]) == [f"sample_{k}" for k in range(6)]
    assert table["smiles"][0] == "CCO" and table["reason"][4] == "non-finite numbers"


@pytest.mark.parametrize("ending", [".sdf", ".extxyz"])
def test_files_go_round(samples, tmp_path, ending):
    path = samples.save(tmp_path / f"x{ending}")
    again = SampleSet.load(path)
    assert [s.index for s in again] == [s.index for s in samples]
    for a, b in zip(samples, again, strict=True):
        if a.problem:
            assert not SampleSet([b]).verdicts[0].valid
            continue
        assert np.array_equal(a.numbers, b.numbers)
        assert np.abs(a.positions - b.positions).max() < (6e-5 if ending == ".sdf" else 1e-7)
        if ending == ".sdf":
            assert np.array_equal(a.bond_types, b.bond_types) and np.array_equal(a.charges, b.charges)


def test_rdkit_reads_the_sdf(samples, tmp_path):
    read = list(Chem.SDMolSupplier(str(samples.save(tmp_path / "x.sdf")), removeHs=False, sanitize=False))
    assert len(read) == 6 and read[0].GetProp("smiles") == "CCO" and read[3].GetProp("reason") == "valence: C with 6 bonds"
    good = [m for m in Chem.SDMolSupplier(str(tmp_path / "x.sdf")) if m is not None and m.GetNumAtoms()]
    assert [Chem.MolToSmiles(m) for m in good] == ["CCO", "C[N+](C)(C)CC(=O)[O-]", "c1ccccc1", "CCO"]


def test_the_sdf_does_not_hold_the_time_of_day(samples, tmp_path):
    text = samples.save(tmp_path / "x.sdf").read_text()
    headers = {record.splitlines()[1].strip() for record in text.split("$$$$\n")[:-1]}
    assert headers == {"moldiff", "moldiff           3D"}


def test_verdicts_survive_the_csv_exactly(samples, tmp_path):
    assert set(COLUMNS[1:]) == {f.name for f in fields(Verdict)} - {"name"}, "samples.csv must hold the whole verdict"
    text = csv_text([csv_row(s, v) for s, v in zip(samples, samples.verdicts, strict=True)])
    assert read_verdicts(text) == samples.verdicts
    assert samples.save(tmp_path / "x.csv").read_text() == text


def test_places_and_endings_that_do_not_work(samples, tmp_path):
    with pytest.raises(BadRequest, match=r"\.sdf, \.extxyz, \.csv"):
        samples.save(tmp_path / "x.pdb")
    with pytest.raises(BadRequest, match="can't write"):
        samples.save(tmp_path / "nowhere" / "x.sdf")
    with pytest.raises(BadRequest, match="does not exist"):
        SampleSet.load(tmp_path / "x.sdf")


def test_jupyter_shows_a_table_and_pictures_of_both_kinds(samples):
    html = samples._repr_html_()
    assert html.count("<svg") == 10  # formula and balls for each of five, none for the failed one
    assert "valence: C with 6 bonds" in html and "non-finite numbers" in html and "CCO" in html
    assert "SampleSet(0 samples)" in SampleSet([])._repr_html_()


def test_the_3d_view(samples):
    assert "sample_0" in samples.view(0)._make_html()
    with pytest.raises(MoldiffError, match="nothing to show"):
        samples.view(4)


def test_generated_sets_know_their_model(tiny_model):
    drawn = Generator.from_pretrained(tiny_model, device="cpu").sample(3, seed=7)
    assert repr(drawn) == "SampleSet(3 samples from 'tiny', seed 7)"
    assert {v.novel for v in drawn.verdicts} <= {True, False}
