"""Crystals: cells, symmetry, CIF text, and every format that people bring, with every kind of bad row."""

from __future__ import annotations

import csv
import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.db import connect
from ase.io import write
from pymatgen.core import Lattice, Structure

from moldiff.chem.cif import cif_blocks, raw_cif, read_cif, symmetrised_cif
from moldiff.chem.crystals import (
    Crystal,
    check_crystal,
    from_ase,
    from_structure,
    min_distance,
    niggli,
    primitive,
    to_ase,
    to_structure,
    wrap,
)
from moldiff.chem.symmetry import prototype_label, space_group, symmetrise
from moldiff.data.info import data_info
from moldiff.data.prepare import prepare
from moldiff.data.sources import open_source, read_rows
from moldiff.data.store import Store
from moldiff.errors import BadRequest

ROCK_SALT = from_ase(bulk("NaCl", "rocksalt", a=5.64))
CUBIC = from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
WURTZITE = from_ase(bulk("ZnO", "wurtzite", a=3.25, c=5.2))
#: A triclinic cell of a noisy alpha-quartz, left- and right-handed, for everything that must not mirror.
QUARTZ = Structure.from_spacegroup(
    "P3_121", Lattice.hexagonal(4.916, 5.405), ["Si", "O"], [[0.4697, 0, 1 / 3], [0.4135, 0.2669, 0.4523]]
)


def distances(crystal: Crystal) -> np.ndarray:
    """All interatomic distances up to 6 Å, sorted: what no change of cell may alter (per atom)."""
    found = to_structure(crystal).get_all_neighbors(6.0)
    return np.sort(np.concatenate([[n.nn_distance for n in site] for site in found])) if found else np.zeros(0)


def skewed(crystal: Crystal, seed: int) -> Crystal:
    """The same crystal in another cell, rotated and shifted."""
    rng = np.random.default_rng(seed)
    m = np.eye(3)
    while np.array_equal(m, np.eye(3)):
        m = np.triu(rng.integers(-2, 3, (3, 3)), 1) + np.eye(3)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.linalg.det(q))
    frac = (crystal.frac_coords + rng.random(3)) @ np.linalg.inv(m)
    return Crystal(crystal.numbers, wrap(frac), m @ crystal.lattice @ q)


def handedness(crystal: Crystal) -> float:
    """The sign of the screw of quartz: mean triple product of Si-O-Si neighbours; changes sign under reflection only."""
    structure = to_structure(crystal)
    total = 0.0
    for site in structure:
        near = sorted(structure.get_neighbors(site, 3.2), key=lambda n: n.nn_distance)
        x = [n.coords - site.coords for n in near]
        for i in range(len(x)):
            for j in range(len(x)):
                for k in range(len(x)):
                    weight = np.linalg.norm(x[i]) * np.linalg.norm(x[j]) ** 2 * np.linalg.norm(x[k]) ** 3
                    total += float(np.linalg.det([x[i], x[j], x[k]])) / weight
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("crystal", [ROCK_SALT, WURTZITE, from_structure(QUARTZ)], ids=["NaCl", "ZnO", "SiO2"])
def test_niggli_cell_is_the_same_crystal_whatever_cell_it_comes_from(crystal: Crystal, seed: int) -> None:
    other = skewed(crystal, seed)
    a, b = niggli(crystal), niggli(other)
    np.testing.assert_allclose(a.lengths, b.lengths, atol=1e-6)
    np.testing.assert_allclose(a.angles, b.angles, atol=1e-4)
    np.testing.assert_allclose(distances(other), distances(b), atol=1e-6)
    assert np.linalg.det(b.lattice) > 0 and b.lattice[0, 1] == b.lattice[0, 2] == b.lattice[1, 2] == 0
    assert (b.frac_coords >= 0).all() and (b.frac_coords < 1).all()
    assert min_distance(other.frac_coords, other.lattice) == pytest.approx(distances(crystal)[0], abs=1e-6)
    assert prototype_label(other) == prototype_label(crystal)


def test_niggli_does_not_mirror() -> None:
    quartz = from_structure(QUARTZ)
    left = Crystal(quartz.numbers, quartz.frac_coords, quartz.lattice * [1, 1, -1])
    assert abs(handedness(quartz)) > 1e-3
    for crystal, sign in ((quartz, 1), (left, -1)):
        assert np.linalg.det(crystal.lattice) * sign > 0
        assert handedness(niggli(crystal)) == pytest.approx(handedness(crystal), rel=1e-6)
    assert handedness(left) == pytest.approx(-handedness(quartz), rel=1e-6)
    # Space groups of a mirrored pair differ, prototypes do not: StructureMatcher does not tell them apart either.
    assert {space_group(quartz).number, space_group(left).number} == {152, 154}
    assert prototype_label(quartz) == prototype_label(left)


def test_primitive_cell_conventional_cell_and_supercell() -> None:
    assert len(CUBIC) == 8 and len(primitive(CUBIC)) == 2
    small = niggli(primitive(CUBIC))
    np.testing.assert_allclose(small.lengths, [5.64 / np.sqrt(2)] * 3, atol=1e-6)
    assert len(primitive(WURTZITE)) == 4
    supercell = to_structure(ROCK_SALT)
    supercell.make_supercell([[2, 0, 0], [1, 1, 0], [0, 0, 3]])
    assert len(primitive(from_structure(supercell))) == 2
    assert prototype_label(from_structure(supercell)) == prototype_label(ROCK_SALT) == "225|Cl:1|Na:1"
    assert prototype_label(WURTZITE) == "186|O:2|Zn:2"
    assert space_group(ROCK_SALT).symbol == "Fm-3m" and space_group(ROCK_SALT).system == "cubic"


def test_noise_within_the_tolerance_is_symmetrised_away() -> None:
    rng = np.random.default_rng(0)
    noisy = Crystal(CUBIC.numbers, CUBIC.frac_coords + rng.normal(size=(8, 3)) * 0.002, CUBIC.lattice * 1.001)
    assert space_group(noisy, 0.001).number == 1 and space_group(noisy, 0.1).number == 225
    found = symmetrise(noisy)
    assert found is not None and found.group.number == 225 and len(found.crystal) == 8
    assert len(found.asymmetric) == 2 and len(found.rotations) == 192
    np.testing.assert_allclose(found.crystal.angles, 90, atol=1e-9)
    strange = Crystal.of([1, 2, 3], rng.random((3, 3)), rng.normal(size=(3, 3)) + 6 * np.eye(3))
    assert symmetrise(strange, 0.01) is None


@pytest.mark.parametrize("crystal", [ROCK_SALT, CUBIC, WURTZITE, from_structure(QUARTZ)], ids=["NaCl", "cubic", "ZnO", "SiO2"])
def test_cif_round_trips(crystal: Crystal) -> None:
    raw = read_cif(raw_cif(crystal, "a b"))
    np.testing.assert_allclose(distances(raw), distances(crystal), atol=1e-5)
    assert sorted(raw.numbers.tolist()) == sorted(crystal.numbers.tolist())
    text = symmetrised_cif(crystal)
    assert f"_symmetry_Int_Tables_number        {space_group(crystal).number}\n" in text
    read = read_cif(text)
    assert read.reduced_formula == crystal.reduced_formula and space_group(read, 1e-3).number == space_group(crystal).number
    per_atom = [np.sort(np.round(distances(c), 3))[:: len(c)] for c in (read, crystal)]
    np.testing.assert_allclose(per_atom[0], per_atom[1], atol=2e-3)


def test_ase_and_pymatgen_round_trips() -> None:
    for there in (from_ase(to_ase(WURTZITE)), from_structure(to_structure(WURTZITE))):
        np.testing.assert_allclose(there.positions, WURTZITE.positions, atol=1e-9)
        assert there.numbers.tolist() == WURTZITE.numbers.tolist()
    assert WURTZITE.density == pytest.approx(float(to_structure(WURTZITE).density), rel=1e-3)
    assert Crystal.of([8, 3, 26, 15, 8, 8, 8], np.zeros((7, 3)), np.eye(3)).reduced_formula == "LiFePO4"
    with pytest.raises(ValueError, match="three directions"):
        from_ase(Atoms("Cu", cell=[3, 3, 3], pbc=(True, True, False)))


def test_checks_name_the_fault() -> None:
    z, f, cell = WURTZITE.numbers, WURTZITE.frac_coords, WURTZITE.lattice
    assert check_crystal(z, f, cell) == ""
    assert check_crystal([], np.zeros((0, 3)), cell) == "no atoms"
    assert check_crystal(z, f, cell, max_atoms=3) == "more than 3 atoms"
    assert check_crystal(z, np.where(np.arange(4)[:, None] == 1, np.nan, f), cell) == "non-finite numbers"
    assert check_crystal([119, *z[1:]], f, cell) == "unknown element"
    assert check_crystal([0, *z[1:]], f, cell) == "unknown element"
    assert check_crystal(z, f, cell * [[1], [1], [0]]) == "zero cell"
    assert check_crystal(z, f, [cell[0], cell[1], cell[0] + cell[1]]) == "zero cell"
    assert check_crystal(z, [f[0], f[0] + [0.03, 0, 1], f[2], f[3]], cell) == "overlapping atoms"
    # One atom too near to its own image.
    assert check_crystal([29], [[0, 0, 0]], np.diag([0.3, 9, 9])) == "overlapping atoms"


def disordered() -> str:
    return raw_cif(ROCK_SALT).replace("Na0  0.00000000  0.00000000  0.00000000  1.0", "Na0  0.0  0.0  0.0  0.5")


BROKEN = {
    "occupancy": (disordered(), "partial occupancy"),
    "empty": ("   \n", "empty CIF"),
    "garbage": ("this is no CIF at all", ""),
    "element": (raw_cif(ROCK_SALT).replace("Na", "Qq"), "unknown element"),
    "shell": (raw_cif(ROCK_SALT).replace("'x,y,z'", '\'__import__("os").system("touch pwned"),y,z\''), "no symmetry operation"),
    "nan": (raw_cif(ROCK_SALT).replace("Cl1  0.50000000", "Cl1  nan"), "non-finite numbers"),
    "cut": (raw_cif(ROCK_SALT)[:300], ""),
    "magnetic": (raw_cif(ROCK_SALT) + "_space_group_magn.transform_BNS_Pp_abc 'a,b,[open(1)]'\n", "magnetic CIF"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_cifs_are_refused_with_a_reason(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, reason = BROKEN[kind]
    try:
        crystal = read_cif(text)
    except ValueError as error:
        assert reason in str(error) and len(str(error)) < 200 and "\n" not in str(error)
    else:
        # What can be parsed must fail the checks instead.
        assert check_crystal(crystal.numbers, crystal.frac_coords, crystal.lattice)
    assert not (tmp_path / "pwned").exists()


def test_blocks_of_a_cif() -> None:
    text = "data_global\n_journal_year 1999\n_text\n;\ndata_not a block\n;\n" + raw_cif(ROCK_SALT, "a") + raw_cif(WURTZITE, "b")
    blocks = list(cif_blocks(text))
    assert [read_cif(block).reduced_formula for block in blocks] == ["NaCl", "ZnO"]


def rejected(folder: Path) -> dict[str, str]:
    with open(folder / "rejected.csv", newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def many() -> list[Crystal]:
    pairs = ("LiF", "NaF", "KF", "LiI", "NaI", "KI")
    return [from_ase(bulk(pair, "rocksalt", a=4.2 + 0.1 * k)) for k, pair in enumerate(pairs)]


def test_folder_of_cifs_and_poscars_is_prepared_with_reasons(tmp_path: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    for k, crystal in enumerate(many()):
        (source / f"c{k}.cif").write_text(raw_cif(crystal, f"c{k}"))
    (source / "cubic.cif").write_text(raw_cif(CUBIC))
    for kind, (text, _) in BROKEN.items():
        (source / f"bad_{kind}.cif").write_text(text)
    (source / "POSCAR_zno").write_text(to_structure(WURTZITE).to(fmt="poscar"))
    (source / "old.vasp").write_text("NaCl\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 1\ndirect\n0 0 0\n.5 .5 .5\n")
    (source / "clash.cif").write_text(raw_cif(Crystal.of([11, 17], [[0, 0, 0], [0.05, 0, 0]], np.eye(3) * 4)))
    info = prepare(source, "mine", tmp_path, n_workers=0, progress=False)
    assert info.kind == "crystal" and info.n_systems == 8 and info.splits == {"train": 7, "val": 1}
    bad = rejected(tmp_path / "mine")
    assert bad["clash"] == "overlapping atoms" and bad["bad_occupancy"] == "partial occupancy"
    assert "VASP 4" in bad["old"] and "no symmetry operation" in bad["bad_shell"]
    assert set(bad) == {"clash", "old", *(f"bad_{kind}" if kind != "empty" else "bad_empty.cif" for kind in BROKEN)}
    assert info.sizes == {2: 7, 4: 1}  # the cubic cell of 8 atoms became primitive
    store = Store(tmp_path / "mine")
    assert {"density", "space_group"} <= set(store.properties) and store.column("space_group").max() == 225
    assert "positions" not in store.names and store.system(0)["lattice"].shape == (3, 3)
    shown = data_info(tmp_path / "mine")
    assert shown.volume_per_atom is not None and 5 < shown.volume_per_atom.minimum < shown.volume_per_atom.maximum < 40
    assert shown.n_elements == {2: 8} and "volume_per_atom" in shown.to_dict()


def test_other_formats_give_the_same_crystals(tmp_path: Path) -> None:
    crystals = many()
    atoms = [to_ase(c) for c in crystals]
    for k, one in enumerate(atoms):
        one.info["gap"] = 0.5 * k
    write(tmp_path / "all.extxyz", atoms)
    with connect(tmp_path / "all.db") as database:
        for k, one in enumerate(atoms):
            database.write(one, gap=0.5 * k)
    with open(tmp_path / "all.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", "material_id", "gap", "pretty_formula", "cif"])
        for k, crystal in enumerate(crystals):
            table.writerow([k, f"mp-{100 + k}", 0.5 * k, crystal.reduced_formula, raw_cif(crystal)])
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for k, crystal in enumerate(crystals):
            archive.writestr(f"inner/{k}.cif", raw_cif(crystal))
    for name in ("all.extxyz", "all.db", "all.csv", "all.zip"):
        source = open_source(tmp_path / name)
        assert source.kind == "crystal" and source.n_rows("all") == len(crystals)
        entries = [row.entry() for row in read_rows(tmp_path / name, "crystal")]
        assert not [e.problem for e in entries if e.problem]
        for entry, crystal in zip(entries, crystals, strict=True):
            assert entry.crystal is not None
            np.testing.assert_allclose(distances(entry.crystal), distances(crystal), atol=1e-5)
        if name != "all.zip":
            assert [entry.properties["gap"] for entry in entries] == [0.5 * k for k in range(6)]
        if name == "all.csv":
            assert [(e.name, e.id, e.keep_size) for e in entries[:2]] == [("mp-100", 100, True), ("mp-101", 101, True)]
            assert entries[0].texts == ("pretty_formula",)
        with pytest.raises(BadRequest, match="holds crystals"):
            list(read_rows(tmp_path / name))
    info = prepare(tmp_path / "all.csv", "csv", tmp_path, n_workers=0, progress=False, max_atoms=2)
    assert info.properties["gap"].known == 6 and info.notes == ("columns left out because they hold text: pretty_formula",)
    with pytest.raises(BadRequest, match="more than 1 atoms"):
        prepare(tmp_path / "all.csv", "none", tmp_path, n_workers=0, progress=False, max_atoms=1)


def test_molecules_and_crystals_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text(raw_cif(ROCK_SALT))
    (tmp_path / "b.smi").write_text("CCO ethanol\n")
    with pytest.raises(BadRequest, match=r"molecules \(b.smi\) and crystals \(a.cif\)"):
        open_source(tmp_path)
    (tmp_path / "c.db").write_bytes(b"no database")
    rows = [row.entry() for row in read_rows(tmp_path / "c.db", "crystal")]
    assert len(rows) == 1 and "ASE database" in rows[0].problem


def test_quickstart_set_ships_and_is_sound() -> None:
    folder = Path(__file__).parents[1] / "data" / "quickstart-crystal"
    info = data_info(folder)
    assert info.kind == "crystal" and info.n_systems > 500 and len(info.elements) > 50 and max(info.sizes) <= 20
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    for split in info.splits:
        store = Store(folder, split)
        store.verify()
        for i in range(0, len(store), 7):
            system = {name: value.numpy() for name, value in store.system(i).items()}
            assert check_crystal(system["atom_types"], system["frac_coords"], system["lattice"]) == ""
            assert min_distance(system["frac_coords"], system["lattice"]) > 1.4


def test_mp20_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mp20"
    folder.mkdir()
    for split, part in (("train", [CUBIC, WURTZITE]), ("val", [ROCK_SALT])):
        np.savez(
            folder / f"{split}.npz",
            material_id=np.array([f"mp-{k}" for k in range(len(part))]),
            num_atoms=np.array([len(c) for c in part]),
            lattice=np.stack([c.lattice for c in part]),
            atomic_numbers=np.concatenate([c.numbers for c in part]),
            frac_coords=np.concatenate([c.frac_coords for c in part]),
        )
    with gzip.open(folder / "train_meta.csv.gz", "wt") as file:
        file.write("material_id,formation_energy_per_atom,band_gap,e_above_hull,e_above_hull_derived\n")
        file.write("mp-1,-1.5,3.2,,0.02\nmp-0,-2.0,5.0,0.0,0.5\n")
    info = prepare(folder, "set", tmp_path / "root", n_workers=0, progress=False)
    assert info.splits == {"train": 2, "val": 1} and info.sizes == {2: 1, 4: 1, 8: 1}  # sizes are kept: benchmarks count in them
    store = Store(tmp_path / "root" / "set")
    assert store.column("formation_energy").tolist() == [-2.0, -1.5]
    np.testing.assert_allclose(store.column("e_above_hull").numpy(), [0.0, 0.02], atol=1e-7)
    assert info.properties["formation_energy"].unit == "eV/atom" and info.properties["density"].unit == "g/cm^3"
    assert store.tensor("id").tolist() == [0, 1]
