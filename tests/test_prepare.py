"""From people's files to a data set: every format, every kind of bad row, and what is refused as a whole."""

from __future__ import annotations

import csv
import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

from moldiff.data.info import data_info
from moldiff.data.location import data_root, find_data
from moldiff.data.prepare import prepare
from moldiff.data.sources import read_rows
from moldiff.data.store import Store
from moldiff.errors import BadRequest, DamagedFile

SMILES = ["C", "CC", "CCO", "C=O", "c1ccccc1", "C[N+](=O)[O-]", "N#CC", "C1CC1", "OCC=O", "CNC"]


def embedded(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    AllChem.MMFFOptimizeMolecule(mol)
    return mol


def sdf_record(mol: Chem.Mol, name: str, **fields: object) -> str:
    mol = Chem.Mol(mol)
    mol.SetProp("_Name", name)
    data = "".join(f">  <{key}>\n{value}\n\n" for key, value in fields.items())
    return Chem.MolToMolBlock(mol) + data + "$$$$\n"


def xyz_frame(mol: Chem.Mol, comment: str) -> str:
    atoms = zip(mol.GetAtoms(), mol.GetConformer().GetPositions().tolist(), strict=True)
    lines = [f"{atom.GetSymbol()} {x:.6f} {y:.6f} {z:.6f}" for atom, (x, y, z) in atoms]
    return "\n".join([str(len(lines)), comment, *lines]) + "\n"


def rejected(folder: Path) -> dict[int, tuple[str, str]]:
    with open(folder / "rejected.csv", newline="") as file:
        return {int(row["row"]): (row["name"], row["reason"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def mols() -> list[Chem.Mol]:
    return [embedded(s) for s in SMILES]


def test_sdf_with_every_kind_of_bad_record(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    records = [sdf_record(m, f"mol {k}", gap=1.5 * k, note=f"text {k}", idx=100 + k) for k, m in enumerate(mols)]
    broken = Chem.Mol(mols[2])
    broken.GetConformer().SetAtomPosition(0, broken.GetConformer().GetAtomPosition(1))
    records.insert(2, sdf_record(broken, "clash"))
    records.insert(4, records[0].replace(records[0].splitlines()[4][:10], "       nan", 1).replace("mol 0", "nan"))
    heavy = Chem.MolFromSmiles("CCO")
    AllChem.EmbedMolecule(heavy, randomSeed=1)
    records.append(sdf_record(heavy, "no hydrogens"))
    drawing = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    AllChem.Compute2DCoords(drawing)
    records.append(sdf_record(drawing, "drawing"))
    records.append("nothing\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n")
    records.append("\n".join(records[0].splitlines()[:6]))
    (tmp_path / "mine.sdf").write_text("".join(records))
    info = prepare(tmp_path / "mine.sdf", "mine", tmp_path / "data", n_workers=0, progress=False)
    bad = rejected(tmp_path / "data" / "mine")
    assert bad[3] == ("clash", "overlapping atoms")
    assert bad[5][0] == "nan" and bad[5][1] in ("non-finite coordinates", "not a readable SDF record")
    assert [bad[k] for k in (13, 14, 15)] == [
        ("no hydrogens", "missing hydrogens or radicals"),
        ("drawing", "2D coordinates"),
        ("nothing", "no atoms"),
    ]
    assert bad[16][1] == "truncated record" and len(bad) == 6
    assert info.splits == {"train": 9, "val": 1} and info.bonds_from == {"source": 10}
    assert info.properties["gap"].known == 10 and set(info.properties) == {"gap"}
    assert "note" in info.notes[0]
    stores = [Store(tmp_path / "data" / "mine", split) for split in ("train", "val")]
    found = {int(i): float(g) for s in stores for i, g in zip(s.tensor("id"), s.column("gap"), strict=True)}
    assert found == {100 + k: 1.5 * k for k in range(10)}
    for store in stores:
        for k in range(len(store)):
            assert store.system(k)["positions"].mean(0).abs().max() < 1e-5


def test_workers_and_this_process_write_the_same_bytes(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    with gzip.open(tmp_path / "many.sdf.gz", "wt") as file:
        file.write("".join(sdf_record(m, f"m{k}") for k, m in enumerate(mols * 12)))
    one = prepare(tmp_path / "many.sdf.gz", "one", tmp_path / "data", n_workers=0, progress=False)
    two = prepare(tmp_path / "many.sdf.gz", "two", tmp_path / "data", n_workers=2, progress=False)
    assert one.n_systems == 120 and one.splits == {"train": 108, "val": 12}
    for split in ("train", "val"):
        assert (one.folder / f"{split}.safetensors").read_bytes() == (two.folder / f"{split}.safetensors").read_bytes()
    other = prepare(tmp_path / "many.sdf.gz", "three", tmp_path / "data", n_workers=0, progress=False, seed=1)
    assert (other.folder / "val.safetensors").read_bytes() != (one.folder / "val.safetensors").read_bytes()


def test_xyz_frames_good_and_bad(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    frames = [xyz_frame(m, f"frame {k}") for k, m in enumerate(mols)]
    ion = embedded("C[NH3+]")
    extended = [
        xyz_frame(ion, 'Properties=species:S:1:pos:R:3 charge=1 gap=2.5 name=ion pbc="F F F"'),
        xyz_frame(mols[0], 'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3 pbc="T T T"'),
        xyz_frame(mols[1], "alien").replace("\nC ", "\nXx ", 1),
        xyz_frame(mols[1], "words").replace("\nC ", "\nC word ", 1),
        "\n".join(xyz_frame(mols[2], "cut").splitlines()[:6]) + "\n",
        xyz_frame(mols[3], "after the cut"),
        "0\nempty\n",
        "garbage here\nand here\n",
        xyz_frame(mols[3], "nan").replace("O ", "O nan ", 1),
        xyz_frame(embedded("[CH3]"), 'charge=0 name="radical"'),
        xyz_frame(mols[4], "last")[:-60],
    ]
    (tmp_path / "mine.xyz").write_text("".join(frames + extended))
    info = prepare(tmp_path / "mine.xyz", "mine", tmp_path / "data", n_workers=0, progress=False)
    bad = dict(rejected(info.folder).values())
    assert bad["alien"] == "unknown element 'Xx'"
    assert bad["words"] == "unreadable line of atom 1"
    assert bad["cut"] == "truncated: 4 of 9 atoms"
    assert bad["empty"] == "no atoms"
    assert bad["nan"] == "non-finite coordinates"
    assert bad["radical"] == "no valid bond orders"
    assert bad["last"].startswith(("truncated", "unreadable line"))
    assert sorted(bad.values())[1:3] == ["no valid bond orders", "non-finite coordinates"]
    assert any(reason.startswith("number of atoms expected, found 'garbage here'") for reason in bad.values())
    assert "periodic, not a molecule" in bad.values() and len(bad) == 9
    assert info.n_systems == 12 and info.charged_molecules == 1 and info.properties["gap"].known == 1
    assert info.bonds_from == {"perceived": 12}


def test_folder_zip_and_named_splits(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for k, mol in enumerate(mols[:4]):
        (folder / f"{k}.xyz").write_text(xyz_frame(mol, f"molecule {k}"))
    (folder / "empty.xyz").write_text("")
    (folder / "notes.pdf").write_text("not read")
    info = prepare(folder, "folder", tmp_path / "data", n_workers=0, progress=False)
    assert info.n_systems == 4 and list(rejected(info.folder).values()) == [("empty.xyz", "empty file")]
    with zipfile.ZipFile(tmp_path / "files.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"sub/{file.name}")
    zipped = prepare(tmp_path / "files.zip", "zipped", tmp_path / "data", n_workers=0, progress=False)
    assert zipped.sizes == info.sizes and zipped.elements == info.elements
    split = tmp_path / "split"
    split.mkdir()
    (split / "train.xyz").write_text("".join(xyz_frame(m, "a") for m in mols[:3]))
    (split / "val.xyz").write_text(xyz_frame(mols[4], "b") + xyz_frame(mols[4], "c") + "0\nbad\n")
    named = prepare(split, "named", tmp_path / "data", n_workers=0, progress=False)
    assert named.splits == {"train": 3, "val": 2}
    assert rejected(named.folder) == {6: ("bad", "no atoms")}  # rows count through the splits


def test_csv_of_smiles(tmp_path: Path) -> None:
    lines = ["name,SMILES,logp,comment,mixed", "water,O,-1.4,wet,1", "benzene,c1ccccc1,2.1,ring,2", "ethanol,CCO,,x,"]
    lines += ["glycine,[NH3+]CC(=O)[O-],-3.2,x,4", "bad,C1CC,0,x,five", "none,,0,x,6", "star,C*,0,x,7", "salt,[Na+].[Cl-],0,x,8"]
    lines += ["five,C(C)(C)(C)(C)C,0,x,9", "acid,CC(=O)O,-0.2,x,n/a", "text,CO,0.5,x,ten"]
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    info = prepare(tmp_path / "mine.csv", "mine", tmp_path / "data", n_workers=0, progress=False)
    bad = dict(rejected(info.folder).values())
    assert bad == {
        "bad": "SMILES does not parse",
        "none": "no SMILES",
        "star": "unknown element",
        "salt": "more than one molecule in the SMILES",
        "five": "SMILES does not parse",
    }
    assert info.n_systems == 6 and info.bonds_from == {"smiles": 6}
    assert set(info.properties) == {"logp"} and info.properties["logp"].known == 5
    assert "comment, mixed" in info.notes[0]
    (tmp_path / "mine.smi").write_text("CCO ethanol\nCC\n")
    entries = [row.entry() for row in read_rows(tmp_path / "mine.smi")]
    assert [(e.name, e.smiles) for e in entries] == [("ethanol", "CCO"), ("mine.smi#2", "CC")]


def test_raw_qm9_through_pyg(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    records, table = [], ["mol_id," + ",".join("ABC") + ",mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,a,b,c,d"]
    for k, mol in enumerate(mols[:6]):
        records.append(sdf_record(mol, f"gdb_{k + 1}"))
        values = [1.0, 1.0, 1.0, 0.1 * k, 10.0 + k, -0.25, 0.05, 0.3, *[0.0] * 6, 6.4, *[0.0] * 4]
        table.append(f"gdb_{k + 1}," + ",".join(str(v) for v in values))
    (raw / "gdb9.sdf").write_text("".join(records))
    (raw / "gdb9.sdf.csv").write_text("\n".join(table) + "\n")
    with pytest.raises(BadRequest, match=r"lacks uncharacterized\.txt"):
        prepare(tmp_path, "raw", tmp_path / "data", n_workers=0, progress=False)
    (raw / "uncharacterized.txt").write_text("head\n" * 9 + "2 CC\n" + "tail\n")
    info = prepare(tmp_path, "raw", tmp_path / "data", n_workers=0, progress=False)
    stores = [Store(info.folder, split) for split in ("train", "val")]
    ids = sorted(int(i) for s in stores for i in s.tensor("id"))
    assert ids == [1, 3, 4, 5, 6] and info.bonds_from == {"smiles": 5}
    alpha = {int(i): float(a) for s in stores for i, a in zip(s.tensor("id"), s.column("dft_alpha"), strict=True)}
    assert alpha == {i: 9.0 + i for i in ids}
    assert info.properties["dft_homo"].mean == pytest.approx(-0.25) and info.properties["dft_homo"].unit == "Ha"
    assert not list(tmp_path.glob("raw/processed"))  # PyG's own cache stays out of people's folders


def test_qm9_npz(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    source = tmp_path / "qm9"
    source.mkdir()
    for split, part in (("train", mols[:4]), ("val", mols[4:6])):
        np.savez_compressed(
            source / f"{split}.npz",
            gdb_id=np.arange(len(part)) + 10,
            n_atoms=np.array([m.GetNumAtoms() for m in part]),
            atomic_numbers=np.concatenate([[a.GetAtomicNum() for a in m.GetAtoms()] for m in part]).astype(np.uint8),
            positions=np.concatenate([m.GetConformer().GetPositions() for m in part]).astype(np.float32),
            smiles=np.array([Chem.MolToSmiles(Chem.RemoveHs(m)) for m in part]).astype("S28"),
            gfn2_gap_eV=np.array([5.0, np.nan, 7.0, 9.0][: len(part)], dtype=np.float32),
        )
    info = prepare(source, "qm9", tmp_path / "data", n_workers=0, progress=False)
    assert info.splits == {"train": 4, "val": 2} and info.bonds_from == {"smiles": 6}
    assert info.properties["gap"].unit == "eV" and info.properties["gap"].known == 4
    good = (source / "val.npz").read_bytes()
    (source / "val.npz").write_bytes(good[: len(good) // 2])
    with pytest.raises(DamagedFile, match=r"val\.npz"):
        prepare(source, "again", tmp_path / "data", n_workers=0, progress=False)
    assert not (tmp_path / "data" / "again").exists()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("x.sdf", b"", "no molecule of .*x.sdf can be used: empty file"),
        ("x.xyz", b"", "no molecule of .*x.xyz can be used: empty file"),
        ("x.csv", b"", "no molecule of .*x.csv can be used: empty file"),
        ("x.sdf", os.urandom(500), "no molecule of .*x.sdf can be used: not an SDF record|truncated record"),
        ("x.xyz", b"\x00\xff" * 300, "no molecule of .*x.xyz can be used: number of atoms expected"),
        ("x.csv", b"a,b\n1,2\n", "x.csv has no column named smiles"),
        ("x.sdf.gz", b"\x1f\x8b\x08\x00 not really gzip", "x.sdf.gz is damaged"),
        ("x.zip", b"", "x.zip is empty or not a zip archive"),
        ("x.pdb", b"ATOM", r"x.pdb is of no kind that can be read \(allowed: .sdf"),
        ("x.xyz", b"3\nlonely\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n", "gives one molecule"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadRequest, match=match) as caught:
        prepare(tmp_path / name, "mine", tmp_path / "data", n_workers=0, progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "mine").exists()


def test_truncated_gz_keeps_what_was_whole(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    rng = np.random.default_rng(0)
    noise = [f"{k} " + rng.bytes(300).hex() for k in range(400)]
    whole = gzip.compress("".join(xyz_frame(mols[k % 10], text) for k, text in enumerate(noise)).encode())
    (tmp_path / "cut.xyz.gz").write_bytes(whole[: len(whole) // 2])
    info = prepare(tmp_path / "cut.xyz.gz", "cut", tmp_path / "data", n_workers=0, progress=False)
    assert 100 < info.n_systems < 300
    assert any("damaged" in reason for _, reason in rejected(info.folder).values())


def test_requests_that_can_not_be_met(tmp_path: Path, mols: list[Chem.Mol], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.xyz").write_text("".join(xyz_frame(m, "m") for m in mols[:3]))
    monkeypatch.setenv("MOLDIFF_DATA", str(tmp_path / "data"))
    assert data_root() == tmp_path / "data"
    prepare(tmp_path / "m.xyz", "mine", n_workers=0, progress=False)
    with pytest.raises(BadRequest, match="already exists"):
        prepare(tmp_path / "m.xyz", "mine", n_workers=0, progress=False)
    prepare(tmp_path / "m.xyz", "mine", n_workers=0, progress=False, overwrite=True)
    with pytest.raises(BadRequest, match="does not exist"):
        prepare(tmp_path / "nothing.sdf", "other", n_workers=0, progress=False)
    with pytest.raises(BadRequest, match="name may hold"):
        prepare(tmp_path / "m.xyz", "../other", n_workers=0, progress=False)
    with pytest.raises(BadRequest, match="n_workers"):
        prepare(tmp_path / "m.xyz", "other", n_workers=-1, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="can't write"):
        prepare(tmp_path / "m.xyz", "other", tmp_path / "file" / "root", n_workers=0, progress=False)
    assert data_info("mine").n_systems == data_info(tmp_path / "data" / "mine").n_systems == 3
    with pytest.raises(BadRequest, match="did you mean 'mine'"):
        find_data("mien")
    with pytest.raises(BadRequest, match="known: mine"):
        data_info(tmp_path)


def test_the_summary_can_be_printed(tmp_path: Path, mols: list[Chem.Mol]) -> None:
    from rich.console import Console

    (tmp_path / "m.sdf").write_text("".join(sdf_record(m, "m", gap=2.0) for m in mols))
    info = prepare(tmp_path / "m.sdf", "mine", tmp_path / "data", n_workers=0, progress=True)
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(info)
    text = console.export_text()
    for words in ("data set mine", "train 9, val 1", "single", "triple 1", "-1 1, +1 1", "source 10", "gap"):
        assert words in text
    assert info.to_dict()["splits"] == {"train": 9, "val": 1}
