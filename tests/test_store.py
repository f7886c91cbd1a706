"""The store keeps what it is given, is never half written, and says what is wrong with a damaged file."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moldiff.data import store as store_module
from moldiff.data.store import Store, pack, read_meta, write_store
from moldiff.errors import BadRequest, DamagedFile

META = {"name": "two", "kind": "molecule", "properties": {"gap": "eV"}}


def systems() -> list[dict[str, Any]]:
    water = {
        "atom_types": [8, 1, 1],
        "positions": [[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]],
        "charges": [0, 0, 0],
        "bond_index": [[0, 1], [0, 2]],
        "bond_types": [1, 1],
        "id": 7,
        "property.gap": 6.5,
    }
    argon = {
        "atom_types": [18],
        "positions": [[0.0, 0.0, 0.0]],
        "charges": [0],
        "bond_index": np.zeros((0, 2)),
        "bond_types": [],
        "id": 2**40,
    }
    carbon_monoxide = {
        "atom_types": [6, 8],
        "positions": [[0.0, 0.0, 0.0], [0.0, 0.0, 1.13]],
        "charges": [-1, 1],
        "bond_index": [[0, 1]],
        "bond_types": [3],
        "id": 9,
        "property.gap": 8.0,
    }
    return [water, argon, carbon_monoxide]


def test_round_trip(tmp_path: Path) -> None:
    write_store(tmp_path / "two", {"train": pack(systems()), "val": pack(systems()[:1])}, META)
    store = Store(tmp_path / "two")
    assert len(store) == 3 and store.properties == ("gap",) and store.kind == "molecule"
    last = store.system(-1)
    assert last["atom_types"].tolist() == [6, 8] and last["charges"].tolist() == [-1, 1]
    assert last["bond_types"].tolist() == [[0, 3], [3, 0]] and int(last["id"]) == 9
    assert last["positions"].dtype == torch.float32 and last["atom_types"].dtype == torch.int64
    assert store.system(1)["bond_types"].shape == (1, 1) and int(store.system(1)["id"]) == 2**40
    assert store.bonds(0)[0].tolist() == [[0, 1], [0, 2]]
    gaps = store.column("gap")
    assert gaps[0] == 6.5 and gaps[1].isnan()
    meta = read_meta(tmp_path / "two")
    assert meta["elements"] == [1, 6, 8, 18] and meta["splits"]["train"]["n_bonds"] == 3
    assert meta["properties"] == {"gap": "eV"}
    assert len(Store(tmp_path / "two", "val")) == 1
    store.verify()
    with pytest.raises(IndexError):
        store.system(3)


def test_a_crystal_store_holds_lattices(tmp_path: Path) -> None:
    crystal = {"atom_types": [11, 17], "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]], "lattice": np.eye(3) * 3, "id": 1}
    write_store(tmp_path / "salt", {"train": pack([crystal, crystal])}, {"name": "salt", "kind": "crystal"})
    system = Store(tmp_path / "salt").system(1)
    assert system["lattice"].shape == (3, 3) and system["frac_coords"].shape == (2, 3) and "bond_types" not in system


def test_system_is_a_copy(tmp_path: Path) -> None:
    write_store(tmp_path / "two", {"train": pack(systems())}, META)
    store = Store(tmp_path / "two")
    store.system(0)["positions"].zero_()
    assert store.system(0)["positions"].abs().sum() > 0


def test_pickling_sends_no_tensors(tmp_path: Path) -> None:
    write_store(tmp_path / "two", {"train": pack(systems() * 500)}, META)
    store = Store(tmp_path / "two")
    store.system(3)
    data = pickle.dumps(store)
    assert len(data) < 5000
    assert pickle.loads(data).system(3)["atom_types"].tolist() == [8, 1, 1]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "two", {"train": pack(systems())}, META)
    before = (tmp_path / "two" / "train.safetensors").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(BadRequest, match="No space left"):
        write_store(tmp_path / "two", {"train": pack(systems()[:1])}, META)
    assert (tmp_path / "two" / "train.safetensors").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["meta.json", "train.safetensors"]


def test_damage_is_named(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "two", {"train": pack(systems())}, META)
    path = folder / "train.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-8])
    with pytest.raises(DamagedFile, match=r"train\.safetensors"):
        Store(folder)
    flipped = bytearray(good)
    flipped[-3] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(DamagedFile, match="SHA-256"):
        Store(folder).verify()
    path.unlink()
    with pytest.raises(DamagedFile, match="missing"):
        Store(folder)
    with pytest.raises(BadRequest, match="did you mean 'train'"):
        Store(folder, "trian")
    (folder / "meta.json").write_text(json.dumps([1]))
    with pytest.raises(DamagedFile, match=r"meta\.json"):
        Store(folder)
    with pytest.raises(BadRequest, match="not a moldiff data set"):
        Store(tmp_path)


def test_inconsistent_columns_are_refused(tmp_path: Path) -> None:
    good = pack(systems())
    with pytest.raises(ValueError, match="positions"):
        write_store(tmp_path / "x", {"train": good | {"positions": good["positions"][:-1]}}, META)
    with pytest.raises(ValueError, match="unknown column 'colour'"):
        write_store(tmp_path / "x", {"train": good | {"colour": good["charges"]}}, META)
    with pytest.raises(ValueError, match="no 'charges'"):
        pack([systems()[0], {k: v for k, v in systems()[1].items() if k != "charges"}])
    with pytest.raises(ValueError, match="no systems"):
        pack([])


def test_reading_needs_no_rdkit() -> None:
    code = "import sys, moldiff.data.store; assert not {'rdkit', 'lightning', 'ase', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
