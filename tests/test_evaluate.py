"""Files of every format, broken ones too, through ``evaluate`` to the table, the numbers and the report."""

from __future__ import annotations

import gzip
import json
import math
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from rdkit import Chem
from rdkit.Chem import AllChem

import moldiff.evaluation
from moldiff.data.store import Store, pack, write_store
from moldiff.errors import BadRequest, DamagedFile
from moldiff.evaluation.api import Evaluation, evaluate, evaluate_files
from moldiff.evaluation.cache import ResultCache, structure_key
from moldiff.evaluation.definitions import DEFINITIONS
from moldiff.evaluation.molecules.basic import judge
from moldiff.evaluation.molecules.data_row import make_data_row, read_data_row
from moldiff.evaluation.molecules.energy import XtbTask, compute, xtb
from moldiff.evaluation.molecules.posebusters import bust
from moldiff.evaluation.molecules.sets import Settings, examine
from moldiff.evaluation.molecules.strain import mmff_strain
from moldiff.evaluation.parallel import map_items
from moldiff.evaluation.readers import read_files, read_objects
from moldiff.evaluation.reference import Reference, hash_texts, load_reference

SMILES = ("CCO", "c1ccccc1", "CC(=O)N", "C#N", "C1CC1", "CC[N+](=O)[O-]")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLDIFF_CACHE", str(tmp_path / "cache"))


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=3) == 0
    AllChem.MMFFOptimizeMolecule(mol)
    mol.SetProp("_Name", smiles)
    return mol


@pytest.fixture(scope="module")
def mols() -> list[Chem.Mol]:
    return [embedded(s) for s in SMILES]


@pytest.fixture(scope="module")
def reference(mols: list[Chem.Mol]) -> Reference:
    from moldiff.evaluation.molecules.distributions import add_profile

    rows = read_objects(mols[:4]).rows
    counts: dict[str, np.ndarray] = {}
    for row in rows:
        add_profile(counts, examine(row).profile)
    made = Reference("toy", "molecule", 4, np.sort(hash_texts(["CCO", "c1ccccc1"])), counts)
    return made.with_data_row(make_data_row(rows, "toy molecules", made, Settings(n_resamples=20)))


def xyz(mol: Chem.Mol, comment: str = "") -> str:
    x = mol.GetConformer().GetPositions()
    lines = [f"{a.GetSymbol()} {p[0]:.5f} {p[1]:.5f} {p[2]:.5f}" for a, p in zip(mol.GetAtoms(), x, strict=True)]
    return "\n".join([str(len(lines)), comment, *lines]) + "\n"


def written(folder: Path, mols: list[Chem.Mol]) -> dict[str, Path]:
    """The same six molecules in every format."""
    paths = {name: folder / name for name in ("a.sdf", "a.xyz", "many", "a.zip", "a.extxyz", "a.csv", "a.sdf.gz")}
    text = "".join(Chem.MolToMolBlock(m) + "$$$$\n" for m in mols)
    paths["a.sdf"].write_text(text)
    paths["a.sdf.gz"].write_bytes(gzip.compress(text.encode()))
    paths["a.xyz"].write_text("".join(map(xyz, mols)))
    paths["a.extxyz"].write_text("".join(xyz(m, 'Properties=species:S:1:pos:R:3 charge=0 pbc="F F F"') for m in mols))
    paths["many"].mkdir()
    with zipfile.ZipFile(paths["a.zip"], "w") as archive:
        for i, mol in enumerate(mols):
            (paths["many"] / f"{i}.xyz").write_text(xyz(mol))
            archive.writestr(f"inside/{i}.xyz", xyz(mol))
    paths["a.csv"].write_text("id,smiles\n" + "".join(f"{i},{s}\n" for i, s in enumerate(SMILES)))
    return paths


@pytest.mark.parametrize("name", ["a.sdf", "a.xyz", "many", "a.zip", "a.extxyz", "a.csv", "a.sdf.gz"])
def test_every_format_gives_the_same_molecules(tmp_path: Path, mols: list[Chem.Mol], reference: Reference, name: str) -> None:
    result = evaluate(written(tmp_path, mols)[name], reference)
    (found,) = result.sets
    assert {v.smiles for v in found.verdicts} == {Chem.CanonSmiles(s) for s in SMILES}
    assert [found.metrics[m].value for m in ("validity", "valid_connected", "molecule_stability")] == [1, 1, 1]
    assert found.metrics["novelty"].value == pytest.approx(4 / 6)
    assert ("bond_length_wasserstein" in found.metrics) == (name != "a.csv")
    assert ("edm_molecule_stability" in found.metrics) == (name != "a.csv")
    assert any("perceived" in note for note in found.notes) == (name not in ("a.sdf", "a.csv", "a.sdf.gz"))


def test_objects_in_memory(mols: list[Chem.Mol], reference: Reference) -> None:
    atoms = [Atoms([a.GetSymbol() for a in m.GetAtoms()], m.GetConformer().GetPositions()) for m in mols]
    sets = {"rdkit": mols, "ase": atoms, "smiles": list(SMILES), "graphs": [Chem.MolFromSmiles(s) for s in SMILES]}
    result = evaluate(sets, reference)
    for found in result.sets:
        assert sorted(v.smiles for v in found.verdicts) == sorted(Chem.CanonSmiles(s) for s in SMILES), found.name
    assert list(result.table.columns) == [*sets, "data"]
    assert result.per_sample.groupby("set").size().to_dict() == dict.fromkeys(sets, 6)


def test_none_and_periodic_objects_are_failures_and_others_are_refused(mols: list[Chem.Mol]) -> None:
    found = evaluate([mols[0], None, Atoms("Cu", cell=[2, 2, 2], pbc=True)], None).sets[0]
    assert found.metrics["validity"].value == pytest.approx(1 / 3)
    assert dict(found.failures()) == {"no molecule": 1, "periodic, not a molecule": 1}
    with pytest.raises(BadRequest, match="sample 0 is a float"):
        evaluate([1.5], None)
    with pytest.raises(BadRequest, match="no samples"):
        evaluate([], None)
    with pytest.raises(BadRequest, match="samples are a int"):
        evaluate(3, None)


def test_missing_hydrogens_are_not_implied_where_others_have_places() -> None:
    mol = Chem.RWMol(embedded("CCO"))
    mol.RemoveAtom(mol.GetNumAtoms() - 1)
    for atom in mol.GetAtoms():
        atom.SetNumExplicitHs(0)
    verdict = judge(read_objects([mol.GetMol()]).rows[0].entry())
    assert verdict.radical and not verdict.molecule_stable
    bare = judge(read_objects([Chem.RemoveHs(embedded("CCO"))]).rows[0].entry())
    assert bare.molecule_stable and bare.edm_molecule_stable is None


def test_broken_samples_stay_in_the_denominator(tmp_path: Path, mols: list[Chem.Mol], reference: Reference) -> None:
    good = xyz(mols[0])
    nan = good.replace(good.split()[2], "nan", 1)
    twice = good.splitlines()
    twice[3] = "C " + " ".join(twice[2].split()[1:])
    unknown = good.replace("O ", "Xx ", 1)
    path = tmp_path / "broken.xyz"
    path.write_text(good + nan + "\n".join(twice) + "\n" + unknown + "0\n\n" + good[: len(good) // 2])
    found = evaluate(path, reference).sets[0]
    assert found.n == 6 and found.metrics["validity"].value == pytest.approx(1 / 6)
    reasons = " ".join(found.failures())
    assert "non-finite coordinates" in reasons and "overlapping atoms" in reasons and "Xx" in reasons and "no atoms" in reasons
    assert found.metrics["atom_stability"].n >= 3


def test_sdf_with_a_damaged_and_an_empty_record(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    block = Chem.MolToMolBlock(mols[0])
    empty = "empty\n  x\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n"
    path = tmp_path / "a.sdf"
    path.write_text(block + "$$$$\n" + block[:200] + "\n$$$$\n" + empty + "$$$$\n" + block)
    found = evaluate(path, None).sets[0]
    assert found.n == 4 and found.metrics["validity"].value == 0.5
    assert "novelty" not in found.metrics


def test_sdf_without_bonds_is_perceived(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    bare = Chem.RWMol(mols[0])
    for bond in list(bare.GetBonds()):
        bare.RemoveBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
    path = tmp_path / "a.sdf"
    path.write_text(Chem.MolToMolBlock(bare.GetMol()) + "$$$$\n")
    found = evaluate(path, None).sets[0]
    assert found.verdicts[0].bonds == "perceived" and found.verdicts[0].smiles == "CCO"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", "", "holds no"),
        ("a.sdf", "", "holds no"),
        ("a.csv", "", "holds no"),
        ("a.csv", "name,weight\nx,1\n", "no column named smiles"),
        ("a.xyz", "this is\nno xyz\n", "number of atoms expected"),
        ("a.pdb", "ATOM", "of no kind that can be read"),
        ("a.zip", "not a zip", "not a zip"),
    ],
)
def test_files_that_hold_nothing_are_one_sentence(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(BadRequest, match=message) as caught:
        evaluate(path, None)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_bad_requests(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    path = written(tmp_path, mols)["a.sdf"]
    with pytest.raises(BadRequest, match="does not exist"):
        evaluate(tmp_path / "missing.sdf", None)
    with pytest.raises(BadRequest, match="2 names for 1 set"):
        evaluate([path], None, ["a", "b"])
    with pytest.raises(BadRequest, match="two sets of samples are named 'a'"):
        evaluate([path, path], None, ["a", "a"])
    with pytest.raises(BadRequest, match="belongs to the column of real data"):
        evaluate([path], None, ["data"])
    with pytest.raises(BadRequest, match="unknown reference 'qm8'"):
        evaluate(path, "qm8")
    with pytest.raises(BadRequest, match="n_relax must be at least 1"):
        evaluate(path, None, n_relax=0)
    with pytest.raises(BadRequest, match="at least one file"):
        evaluate_files([])
    with pytest.raises(BadRequest, match="is a file"):
        evaluate_files([path], reference=None, out=path)
    with pytest.raises(BadRequest, match="prepared data set"):
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "meta.json").write_text("{}")
        read_files(tmp_path / "set")
    (tmp_path / "r.safetensors").write_text("nothing of the kind")
    with pytest.raises(DamagedFile, match="not a moldiff reference"):
        load_reference(tmp_path / "r.safetensors")
    with pytest.raises(BadRequest, match="does not exist"):
        load_reference(tmp_path / "missing" / "set")


def test_files_are_written_and_agree(
    tmp_path: Path, mols: list[Chem.Mol], reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = written(tmp_path, mols)
    saved = reference.save(tmp_path / "toy.safetensors")
    out = tmp_path / "eval"
    result = evaluate_files([paths["a.sdf"], paths["a.xyz"]], ["ours", "theirs"], saved, out)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("ours", "theirs", "data", "molecule stability"))
    numbers = json.loads((out / "metrics.json").read_text())
    assert set(numbers["sets"]) == {"ours", "theirs"} and numbers["data"]["n"] == 4
    for name, one in numbers["sets"]["ours"]["metrics"].items():
        assert {"value", "low", "high", "n", "method"} == set(one)
        assert name in DEFINITIONS and numbers["definitions"][name]["text"]
    assert numbers["sets"]["ours"]["metrics"]["validity"]["value"] == result.metrics["ours"]["validity"].value == 1.0
    rows = (out / "per_sample.csv").read_text().splitlines()
    assert len(rows) == 13 and rows[0].startswith("set,name,n_atoms,formula,smiles,valid,reason")
    assert isinstance(result, Evaluation) and result.to_json() == (out / "metrics.json").read_text()
    again = evaluate_files([paths["a.sdf"], paths["a.xyz"]], ["ours", "theirs"], saved, tmp_path / "again")
    assert again.to_json() == result.to_json()


def test_report_stands_alone(tmp_path: Path, mols: list[Chem.Mol], reference: Reference) -> None:
    broken = Chem.MolFromMolBlock(
        Chem.MolToMolBlock(mols[0]).replace("  1  2  1  0", "  1  2  3  0"), sanitize=False, removeHs=False
    )
    result = evaluate({"<b>mine</b>": [*mols, broken, None]}, reference)
    html = result.report(tmp_path / "report.html").read_text()
    assert "&lt;b&gt;mine&lt;/b&gt;" in html and "<b>mine</b>" not in html
    outside = [part[:60] for part in html.split("$3Dmol")[0].split("src=")[1:]]
    assert not outside and 'href="http' not in html and "@import" not in html
    assert "3dmol" in html and "BLOCKS = {" in html and "V2000" in html
    assert "valence: C with" in html and "no molecule" in html
    assert html.count("<svg") > 10


def test_data_row_is_that_of_as_many_real_molecules() -> None:
    def estimate(value: float) -> dict[str, object]:
        return {"value": value, "low": 0.0, "high": 1.0, "n": 10, "method": "bootstrap"}

    values = {
        "title": "real",
        "n": 10000,
        "notes": [],
        "metrics": {"size_tv": estimate(0.01), "validity": estimate(1.0)},
        "at": {"100": {"size_tv": estimate(0.1)}, "1000": {"size_tv": estimate(0.03)}},
    }
    assert [read_data_row(values, n).metrics["size_tv"].value for n in (50, 700, 9000)] == [0.1, 0.03, 0.01]  # type: ignore[union-attr]
    row = read_data_row(values, 700)
    assert row is not None and row.metrics["validity"].value == 1.0 and "1,000 of them" in row.notes[0]
    assert read_data_row({}, 5) is None


def test_reference_round_trip_and_prepared_data_set(tmp_path: Path, mols: list[Chem.Mol], reference: Reference) -> None:
    saved = load_reference(reference.save(tmp_path / "model"))
    assert saved.name == "toy" and np.array_equal(saved.hashes, reference.hashes)
    assert all(np.array_equal(saved.counts[name], counts) for name, counts in reference.counts.items())
    assert saved.data_row == json.loads(json.dumps(reference.data_row))
    assert load_reference(tmp_path / "model").contains(["CCO", "CCC"]).tolist() == [True, False]
    systems = []
    for k, row in enumerate(read_objects(mols).rows):
        entry = row.entry()
        assert entry.bonds is not None and entry.numbers is not None
        bonds = {"bond_index": entry.bonds.index, "bond_types": entry.bonds.types, "charges": entry.bonds.charges}
        systems.append({"atom_types": entry.numbers.astype(np.uint8), "positions": entry.positions, "id": k, **bonds})
    folder = write_store(
        tmp_path / "set", {"train": pack(systems[:4]), "val": pack(systems[4:])}, {"name": "six", "kind": "molecule"}
    )
    learned = load_reference(folder)
    assert learned.n_systems == len(Store(folder)) == 4
    assert learned.contains([Chem.CanonSmiles(s) for s in SMILES]).tolist() == [True] * 4 + [False] * 2
    assert learned.data_row["metrics"]["novelty"]["value"] == 1.0
    assert list((tmp_path / "cache" / "references").iterdir())
    assert np.array_equal(load_reference(folder).hashes, learned.hashes)


def test_shipped_reference_knows_qm9() -> None:
    path = Path(moldiff.evaluation.__file__).parent / "references" / "qm9.safetensors"
    assert path.stat().st_size < 3e6
    known = load_reference("qm9")
    assert known.n_systems == 105_891 and len(known.hashes) > 105_000
    assert known.contains(["CO", "COC", "CCCCCCCCCCCCCCCC"]).tolist() == [True, True, False]
    row = read_data_row(known.data_row, 10_000)
    assert row is not None and row.n == 10_000
    assert row.metrics["edm_molecule_stability"].value == pytest.approx(0.956, abs=0.006)
    assert row.metrics["edm_atom_stability"].value == pytest.approx(0.9935, abs=0.001)
    assert 0.5 < row.metrics["xtb_relaxation_energy"].value < 2.0


def test_xtb_relaxes_and_is_cached(mols: list[Chem.Mol]) -> None:
    entry = read_objects([mols[3]]).rows[0].entry()
    assert entry.numbers is not None and entry.positions is not None
    task = XtbTask(entry.numbers, entry.positions, 0, entry.bonds)
    direct = compute(task)
    assert direct.converged and 0 < direct.relaxation_energy < 20 and 0 < direct.rmsd < 0.2 and direct.reason == ""
    assert direct.gap == pytest.approx(direct.lumo - direct.homo) and 2 < direct.dipole < 4
    with ResultCache() as cache:
        first = xtb([task], cache=cache, n_processes=1)
        cache.flush()
        assert cache.get(task.key()) is not None
        cache.put(task.key(), {**first[0].to_dict(), "rmsd": 42.0})
        cache.flush()
        assert xtb([task], cache=cache)[0].rmsd == 42.0
    assert first[0].relaxation_energy == pytest.approx(direct.relaxation_energy, abs=1e-3)


def test_xtb_reasons() -> None:
    overlap = compute(XtbTask(np.array([1, 1]), np.zeros((2, 3))))
    assert overlap.reason == "overlapping atoms" and math.isnan(overlap.energy)
    # H2 at twice its bond length falls back by more than 20 kcal/mol.
    stretched = compute(XtbTask(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, 1.3]])))
    assert stretched.relaxation_energy > 20 and stretched.rmsd == pytest.approx(0.26, abs=0.05)


def test_strain_and_posebusters(mols: list[Chem.Mol]) -> None:
    ring = mols[4]
    assert mmff_strain(ring) == pytest.approx(0.0, abs=0.01)
    bent = Chem.Mol(ring)
    x = bent.GetConformer().GetPositions() * 1.1
    for i, point in enumerate(x):
        bent.GetConformer().SetAtomPosition(i, point)
    assert mmff_strain(bent) > 5
    pytest.importorskip("posebusters")
    assert all(bust(ring, energy=False).values())
    bad = bust(Chem.CombineMols(ring, ring), energy=False)
    assert not bad["all_atoms_connected"] and {type(value) for value in bad.values()} == {bool}


def test_posebusters_tests_that_could_not_be_run_have_failed(mols: list[Chem.Mol], monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    from moldiff.evaluation.molecules import posebusters

    class Busters:
        def bust(self, *_: object, **__: object) -> pandas.DataFrame:
            return pandas.DataFrame({"a": [np.True_], "b": [None], "c": [float("nan")], "d": [pandas.NA]}, dtype=object)

    monkeypatch.setattr(posebusters, "_busters", lambda energy: Busters())
    assert json.loads(json.dumps(bust(mols[0]))) == {"a": True, "b": False, "c": False, "d": False}


def test_xtb_in_a_set_counts_failures(tmp_path: Path, mols: list[Chem.Mol], monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate({"set": [mols[3], mols[4]]}, None, xtb=True, n_relax=1, n_processes=1)
    metrics = result.metrics["set"]
    assert metrics["xtb_relaxation_energy"].n == metrics["xtb_failed"].n == 1 and metrics["xtb_failed"].value == 0.0
    assert result.per_sample["xtb_rmsd"].notna().sum() == 1
    with sqlite3.connect(tmp_path / "cache" / "evaluation.sqlite") as database:
        assert database.execute("SELECT count(*) FROM results").fetchone() == (1,)
    assert "GFN2-xTB relaxed 1 random" in str(result)


def test_cache_keys_and_a_cache_that_cannot_be_opened(tmp_path: Path) -> None:
    x = np.array([[0.0, 0, 0], [0, 0, 0.74]])
    key = structure_key("a", [1, 1], x)
    assert key == structure_key("a", [1, 1], x + 2e-6)
    assert len({key, structure_key("b", [1, 1], x), structure_key("a", [1, 2], x), structure_key("a", [1, 1], x, 1)}) == 4
    assert key != structure_key("a", [1, 1], x + 1e-3)
    (tmp_path / "file").write_text("x")
    with ResultCache(tmp_path / "file" / "c.sqlite") as lost:
        lost.put("k", {"v": 1})
        lost.flush()
        assert lost.get("k") is None and "no cache" in lost.problem
    (tmp_path / "bad.sqlite").write_text("not a database, but long enough to be taken for the header of one" * 20)
    with ResultCache(tmp_path / "bad.sqlite") as damaged:
        assert damaged.get("k") is None and damaged.problem


def _divide(value: float) -> float:
    return 1 / value


def _no(value: float, reason: str) -> float:
    return -1.0


def test_map_reports_failures_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    values = [1.0, 0.0, 2.0]
    assert map_items(_divide, values, _no, progress=lambda *step: seen.append(step)) == [1.0, -1.0, 0.5]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert map_items(_divide, [], _no) == []


def test_documentation_defines_every_metric() -> None:
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    missing = [name for name in DEFINITIONS if f"`{name}`" not in text]
    assert not missing
