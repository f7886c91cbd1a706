"""Parts given of a crystal: the cell and kept sites come back bit by bit in the file's setting; wrong requests are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ase.build import bulk

from moldiff import cli
from moldiff.chem.cif import raw_cif, read_cif
from moldiff.chem.crystals import Crystal, from_ase, niggli_basis
from moldiff.composition import compositions_from
from moldiff.core.periodic import torus_log
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.keep_crystal import KeepCrystal, keep_crystal_from
from moldiff.sampling.kept_cell import nearest_points

SHEAR = np.array([[1, 0, 0], [1, 1, 0], [-1, 2, 1]])


def crystal(shear: bool = False) -> Crystal:
    """Four sodium and one iron in a cell without symmetry; ``shear``: in another cell of the same lattice."""
    rng = np.random.default_rng(2)
    lattice = np.diag([4.5, 5.0, 5.6]) + 0.4 * rng.normal(size=(3, 3))
    lattice = niggli_basis(lattice) @ lattice
    frac = np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.2], [0.1, 0.7, 0.8], [0.6, 0.2, 0.75], [0.35, 0.45, 0.5]])
    cell = SHEAR if shear else np.eye(3)
    return Crystal.of([11, 11, 26, 11, 11], frac @ np.linalg.inv(cell), cell @ lattice)


@pytest.fixture(scope="module")
def csp(tiny_csp):
    return Generator.from_pretrained(tiny_csp, device="cpu")


@pytest.fixture(scope="module")
def de_novo(tiny_crystal):
    return Generator.from_pretrained(tiny_crystal, device="cpu")


@pytest.fixture
def cif(tmp_path):
    path = tmp_path / "host.cif"
    path.write_text(raw_cif(crystal(shear=True)))
    return path


def test_the_niggli_basis_is_whole_and_undone_by_its_inverse():
    for k in range(20):
        lattice = 4 * np.eye(3) + np.random.default_rng(k).normal(size=(3, 3))
        basis = niggli_basis(SHEAR @ lattice)
        assert abs(round(np.linalg.det(basis))) == 1
        reduced = basis @ SHEAR @ lattice
        assert np.linalg.det(reduced) > 0
        np.testing.assert_allclose(np.sort(np.linalg.norm(reduced, axis=1)), np.linalg.norm(reduced, axis=1))
        assert np.linalg.norm(reduced, axis=1).sum() <= np.linalg.norm(SHEAR @ lattice, axis=1).sum() + 1e-9


def held(samples, host: Crystal, sites: list[int]) -> None:
    """Cell and sites are the file's, bit by bit, and the sites come first."""
    frac = host.frac_coords[sites]
    wanted = (frac - np.floor(frac)).astype(np.float32)
    for s in samples:
        assert s.fields["lattice"].tobytes() == host.lattice.astype(np.float32).tobytes()
        assert s.fields["frac_coords"][: len(sites)].tobytes() == wanted.tobytes()
        assert s.numbers[: len(sites)].tolist() == host.numbers[sites].tolist()
        assert ((s.fields["frac_coords"] >= 0) & (s.fields["frac_coords"] < 1)).all()


@pytest.mark.parametrize("shear", [False, True])
def test_cell_and_sites_come_back_bit_by_bit(csp, de_novo, shear):
    host = crystal(shear)
    held(csp.sample(3, formula="FeNa4Cl3", keep=host), host, [0, 1, 2, 3, 4])
    held(csp.sample(3, formula="FeNa4Cl3", keep=host, keep_elements="Fe"), host, [2])
    made = csp.sample(3, formula="Cl3FeNa4", keep=host, keep_atoms="4,0")
    held(made, host, [0, 4])
    assert all(sorted(s.numbers) == [11, 11, 11, 11, 17, 17, 17, 26] for s in made)
    held(csp.sample(3, formula="NaCl", z=2, keep_cell=host), host, [])
    held(de_novo.sample(3, size=8, keep=host, keep_elements=["Na"]), host, [0, 1, 3, 4])
    held(de_novo.sample(3, size=5, keep_cell=host), host, [])


def test_a_formula_and_element_limits_hold_beside_kept_sites(de_novo):
    host = crystal(shear=True)
    made = de_novo.sample(6, formula="Cl2FePbNa4", keep=host, keep_elements="Fe,Na", seed=3)
    held(made, host, [0, 1, 2, 3, 4])
    assert all(sorted(s.numbers) == [11, 11, 11, 11, 17, 17, 26, 82] for s in made)
    made = de_novo.sample(6, size=8, keep=host, keep_atoms=[2], require="Pb", exclude="O,H", seed=3)
    held(made, host, [2])
    assert all(82 in s.numbers and not {1, 8} & set(s.numbers.tolist()) for s in made)


def test_the_setting_of_the_file_changes_nothing_else(csp):
    """In another cell of the same lattice the same crystals come out, atom by atom."""
    for keep in ({"keep_elements": "Na"}, None):
        made = []
        for shear in (False, True):
            host = crystal(shear)
            verbs = {"keep_cell": host} if keep is None else {"keep": host, **keep}
            made.append(csp.sample(4, formula="FeNa4Cl3", seed=5, **verbs))
        for a, b in zip(*made, strict=True):
            x, y = (s.fields["frac_coords"] @ s.fields["lattice"] for s in (a, b))
            way = (y - x) @ np.linalg.inv(a.fields["lattice"])
            np.testing.assert_allclose(way, way.round(), atol=1e-4)


def test_candidates_are_compared_in_the_reduced_cell(csp):
    made = []
    for shear in (False, True):
        host = crystal(shear)
        made.append(csp.sample(3, formula="FeNa4Cl3", keep=host, keep_elements="Na", candidates=3, seed=1))
        held(made[-1], host, [0, 1, 3, 4])
    doubts = [[s.info["doubt"] for s in part] for part in made]
    assert len(set(doubts[0])) == 3
    np.testing.assert_allclose(*doubts, rtol=1e-3)


def test_the_model_sees_the_reduced_cell(csp, monkeypatch):
    """Planted: without the reduction the same lattice gives other crystals."""
    from moldiff import keep_crystal

    monkeypatch.setattr(keep_crystal, "niggli_basis", lambda lattice: np.eye(3, dtype=np.int64))
    with pytest.raises(AssertionError):
        test_the_setting_of_the_file_changes_nothing_else(csp)


def test_a_kept_crystal_does_not_depend_on_its_company(csp):
    host = crystal()
    whole = csp.sample(7, formula="FeNa4Cl3", keep=host, keep_elements="Fe")
    again = csp.sample(7, formula="FeNa4Cl3", keep=host, keep_elements="Fe", batch_size=2)
    for a, b in zip(whole, again, strict=True):
        assert a.fields["frac_coords"].tobytes() == b.fields["frac_coords"].tobytes()


def test_kept_sites_take_the_nearest_points_of_their_kind():
    g = torch.Generator().manual_seed(0)
    truth, noise = torch.rand(6, 3, 3, generator=g), torch.rand(6, 9, 3, generator=g)
    kinds = torch.tensor([0, 0, 1, 2, 1, 0, 0, 1, 2]).repeat(6, 1)
    for labels in (None, kinds):
        found = nearest_points(truth, noise, labels)
        for a, b, k in zip(found, noise, kinds, strict=True):
            order = [int((b - x).abs().sum(-1).argmin()) for x in a]
            assert sorted(order) == list(range(9))
            assert labels is None or k[order].tolist() == k.tolist()

        def far(x):  # up to a common shift, as the nearest order is
            way = torus_log(truth, x[:, :3])
            return float((way - way.mean(1, keepdim=True)).square().sum())

        assert far(found) < 0.75 * far(noise)


def test_sites_that_types_pass_by_are_an_error(de_novo):
    """A formula that acts after the sites would break itself silently, and is refused."""
    host = crystal()
    spec = keep_crystal_from(host, atoms=[0])
    formula = compositions_from("FeNa4Cl3")
    held(de_novo.sample(2, controls=[formula, spec]), host, [0])
    with pytest.raises(BadRequest, match="name the formula before what is kept"):
        de_novo.sample(2, seed=1, controls=[spec, compositions_from("PbFeNa4Cl2")])


def test_what_can_be_kept_from(cif, tmp_path, csp):
    host = crystal(shear=True)
    for source in (cif, str(cif), host, read_cif(cif.read_text())):
        spec = keep_crystal_from(source, elements="Fe")
        assert len(spec.sites) == 1 and spec.numbers == [26]  # a CIF's atoms are counted in pymatgen's order
        way = spec.crystal.frac_coords[spec.sites[0]] - host.frac_coords[2]
        np.testing.assert_allclose(way, np.round(way), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(spec.crystal.lattice, axis=1), host.lengths, atol=1e-4)
    salt = bulk("NaCl", "rocksalt", 5.64)
    from pymatgen.io.ase import AseAtomsAdaptor

    for source in (salt, AseAtomsAdaptor.get_structure(salt)):
        assert keep_crystal_from(source, elements=["Cl"]).numbers == [17]
    sample = csp.sample(1, formula="NaCl")[0]
    assert len(keep_crystal_from(sample).sites) == 2
    np.testing.assert_array_equal(keep_crystal_from(cell=host.lattice).crystal.lattice, host.lattice)
    cubic = from_ase(bulk("NaCl", "rocksalt", 5.64, cubic=True))
    assert "a centred cell" in KeepCrystal(cubic, label="salt.cif").cautions(csp.info)[0]
    assert not KeepCrystal(host).cautions(csp.info)


def test_wrong_requests_are_refused(csp, de_novo, tiny_model, cif, tmp_path):
    host = crystal()
    molecules = Generator.from_pretrained(tiny_model, device="cpu")
    foreign = Crystal.of([92, 8], [[0, 0, 0], [0.5, 0.5, 0.5]], 4 * np.eye(3))
    overlap = Crystal.of([11, 17], [[0, 0, 0], [0.01, 0, 0]], 4 * np.eye(3))
    two = tmp_path / "two.cif"
    two.write_text(raw_cif(host, "a") + raw_cif(host, "b"))
    for generator, asked, words in (
        (molecules, {"keep_cell": cif}, "tiny makes molecules, and --keep-cell is for crystals"),
        (molecules, {"keep": cif, "keep_elements": "Fe"}, "--keep-elements is for crystals"),
        (csp, {"keep": host}, "give a formula or compositions"),
        (csp, {"keep": host, "formula": "NaCl"}, "NaCl has 1 atoms of Na, and 4 of the crystal are kept"),
        (csp, {"keep": host, "keep_elements": "Fe", "formula": "NaCl"}, "NaCl has 0 atoms of Fe, and 1 of the crystal"),
        (csp, {"keep": host, "keep_elements": "Pb", "formula": "NaCl"}, r"the crystal has no Pb to keep \(it has Na, Fe\)"),
        (csp, {"keep": host, "keep_elements": "Xx", "formula": "NaCl"}, "--keep-elements: "),
        (csp, {"keep": host, "keep_atoms": "5", "formula": "NaCl"}, "has no atom 5: its 5 atoms are counted from 0"),
        (csp, {"keep": host, "keep_atoms": "a", "formula": "NaCl"}, "atoms to keep are numbers such as 0,1,2"),
        (csp, {"keep": host, "keep_atoms": "0", "keep_elements": "Fe"}, "not by both"),
        (csp, {"keep": host, "keep_smarts": "C"}, "--keep-smarts is for molecules"),
        (csp, {"keep": host, "grow": 3}, "--grow is for molecules"),
        (csp, {"keep_elements": "Fe"}, "name its file with --keep"),
        (csp, {"keep": host, "keep_cell": host}, "--keep keeps the cell of its crystal already"),
        (csp, {"keep": host, "formula": "FeNa4Cl3", "resamplings": 2}, "can't be noised anew.*--resamplings 1"),
        (csp, {"keep": foreign, "formula": "NaCl"}, "the crystal contains U, which tiny-csp does not know"),
        (csp, {"keep": overlap, "formula": "NaCl"}, "the crystal can't be kept: overlapping atoms"),
        (csp, {"keep": two, "formula": "NaCl"}, "two.cif holds 2 crystals, and one is to be kept"),
        (csp, {"keep": tmp_path / "none.cif", "formula": "NaCl"}, "none.cif"),
        (csp, {"keep_cell": np.zeros((3, 3)), "formula": "NaCl"}, "the cell can't be kept: zero cell"),
        (csp, {"keep_cell": np.eye(2), "formula": "NaCl"}, "a matrix of 3 x 3 numbers"),
        (csp, {"keep_cell": 3, "formula": "NaCl"}, "is a file, a structure or atoms, found int"),
        (de_novo, {"keep": host, "size": 4}, r"satisfies keep \(5 to 3\d atoms in 1\d\d Å\^3\)"),
        (de_novo, {"keep_cell": 2.1 * np.eye(3), "size": 8}, r"satisfies keep_cell \(1 to 2 atoms in 9 Å\^3\)"),
        (de_novo, {"keep": host, "exclude": "Fe"}, "what is kept holds Fe, which --elements or --exclude leave out"),
        (de_novo, {"controls": [KeepCrystal(host), KeepCrystal(host, (0,))]}, "both fix lattice"),
    ):
        with pytest.raises(BadRequest, match=words):
            generator.sample(2, **asked)


def shell(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0


def test_from_the_shell(tiny_crystal, cif, tmp_path):
    out = tmp_path / "run"
    words = ["generate", "--model", str(tiny_crystal), "-n", "3", "--n-atoms", "8", "--keep", str(cif), "--out", str(out)]
    shell([*words, "--keep-elements", "Na", "--device", "cpu"])
    host = read_cif(cif.read_text())
    for k in range(3):
        made = read_cif((out / "cif_raw" / f"sample_{k}.cif").read_text())
        np.testing.assert_allclose(made.lengths, host.lengths, atol=1e-4)
        np.testing.assert_allclose(made.angles, host.angles, atol=1e-3)
        assert made.numbers[:4].tolist() == [11] * 4
    assert (out / "run.yaml").read_text().count("keep:") == 1 and json.loads((out / "metrics.json").read_text())["n"] == 3
    out2 = tmp_path / "cell"
    words = ["generate", "--model", str(tiny_crystal), "-n", "2", "--n-atoms", "4", "--keep-cell", str(cif), "--out", str(out2)]
    shell([*words, "--device", "cpu"])
    made = read_cif((out2 / "cif_raw" / "sample_1.cif").read_text())
    np.testing.assert_allclose(made.lengths, host.lengths, atol=1e-4)


