"""Further columns of a data set: RDKit descriptors, functions and calculators of one's own, failures, time limits, going on."""

from __future__ import annotations

import csv
import importlib
import shutil
from functools import partial

import numpy as np
import pytest

from moldiff.cli import main
from moldiff.data.label import Labeller, label_store
from moldiff.data.store import Store, read_meta
from moldiff.errors import BadRequest
from moldiff.label import label, make_labeller


@pytest.fixture
def data(tiny_data, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(tiny_data, folder)
    return folder


def heavy_atoms(log, system):
    """How many atoms are no hydrogen; notes which systems it was asked for."""
    with open(log, "a") as file:
        print(int(system["id"]), file=file)
    if int(system["id"]) % 10 == 3:
        raise ValueError("a three")
    return {"heavy": float((system["atom_types"] > 1).sum())}


def counting(log):
    return Labeller("heavy", {"heavy": "atoms"}, partial(heavy_atoms, str(log)), "counted")


def test_rdkit_descriptors_become_columns_with_their_names(data):
    report = label(data, "rdkit:HeavyAtomCount, MolWt", n_workers=0)
    assert report.computed == 60 and not report.failed and report.columns == ("HeavyAtomCount", "MolWt")
    for split in ("train", "val"):
        store = Store(data, split)
        store.verify()
        heavy = [int((store.system(i)["atom_types"] > 1).sum()) for i in range(len(store))]
        assert store.column("HeavyAtomCount").tolist() == heavy
        assert float(store.column("MolWt")[0]) == pytest.approx(16.043 if heavy[0] == 1 else 30.07, abs=0.01)
    assert read_meta(data)["labels"]["MolWt"].startswith("RDKit ")


def test_counts_of_the_graph_become_columns(data):
    report = label(data, "counts", n_workers=0)
    assert report.computed == 60 and not report.failed
    store = Store(data, "train")
    hydrogens = [int((store.system(i)["atom_types"] == 1).sum()) for i in range(len(store))]
    assert store.column("atoms_H").tolist() == hydrogens and not store.column("double_CO").any()
    with pytest.raises(BadRequest, match="graphs of molecules"):
        make_labeller("counts", "crystal")


def test_failures_are_nan_with_a_reason_and_a_stopped_run_goes_on(data, tmp_path, monkeypatch):
    log = tmp_path / "log"

    def stop(done, total):
        assert total == 60
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_store(data, counting(log), n_workers=0, progress=stop)
    assert "heavy" not in Store(data).properties
    table = data / "labels" / "heavy.train.csv"
    text = table.read_text()
    table.write_text(text[: len(text) - 4])  # the last line half written
    report = label_store(data, counting(log), n_workers=0)
    asked = [int(line) for line in log.read_text().split()]
    assert len(asked) == 61 and sorted(set(asked)) == list(range(60))  # one was lost with its half line
    assert report.kept + report.computed == 54 and report.failed == {"ValueError: a three": 6}
    values = Store(data).column("heavy").numpy()
    assert np.isnan(values[3]) and values[0] == 1 and values[1] == 2
    with open(report.failures) as file:
        rows = list(csv.DictReader(file))
    assert [(r["split"], r["id"]) for r in rows][:2] == [("train", "3"), ("train", "13")] and len(rows) == 6
    assert "unknown for 6: ValueError: a three (6)" in str(report)

    before = log.read_text()
    label_store(data, counting(log), n_workers=0, overwrite=True)
    assert log.read_text() == before  # all there, failures too
    label_store(data, counting(log), n_workers=0, overwrite=True, retry=True)
    assert len(log.read_text().split()) == len(before.split()) + 6


def test_a_system_that_takes_too_long_is_given_up(data, tmp_path, monkeypatch):
    lines = ("import time", "def size(system):", "    time.sleep(60 * (int(system['id']) == 58))", "    return {'size': 1}")
    (tmp_path / "slow_labels.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    slow = importlib.import_module("slow_labels").size
    report = label_store(data, Labeller("slow", {"size": ""}, slow, "here"), n_workers=1, time_limit=0.5)
    assert report.failed == {"longer than 0.5 s": 1} and report.computed == 59
    assert int(Store(data, "val").column("size").isnan().sum()) == 1


def test_functions_and_calculators_of_ones_own(data, tmp_path, monkeypatch):
    (tmp_path / "my_labels.py").write_text(
        "def spread(atoms):\n    return float(atoms.positions.std())\n"
        "def several(atoms):\n    return {'n': len(atoms), 'charge': atoms.get_initial_charges().sum()}\n"
    )
    monkeypatch.chdir(tmp_path)
    label(data, "my_labels:spread", columns=["spread"], n_workers=0)
    label(data, "my_labels:several", columns=["n", "charge"], prefix="my_", n_workers=0)
    store = Store(data)
    first = store.system(0)
    assert float(store.column("spread")[0]) == pytest.approx(float(first["positions"].numpy().std()), rel=1e-5)
    assert float(store.column("my_n")[0]) == len(first["atom_types"]) and float(store.column("my_charge")[0]) == 0
    label(data, "ase.calculators.emt:EMT", n_workers=0)
    store = Store(data)
    assert {"emt_energy", "emt_fmax"} <= set(store.properties) and read_meta(data)["properties"]["emt_energy"] == "eV"
    assert not bool(store.column("emt_energy").isnan().any())


def test_bad_requests_are_one_sentence(data, capsys):
    for with_, more, words in (
        ("rdkit:MolLogp", {}, "near it: MolLogP"),
        ("rdkit:", {}, "takes names of descriptors"),
        ("gfn2-xtb", {"columns": ["gapp"]}, "did you mean 'gap'"),
        ("nothing.here:f", {}, "needs the package nothing"),
        ("math:nonsense", {}, "no 'nonsense'"),
        ("math:floor", {}, "--columns"),
        ("math:floor", {"columns": ["a b"]}, "can't be the name of a column"),
    ):
        with pytest.raises(Exception, match=words):
            label(data, with_, n_workers=0, **more)
    with pytest.raises(BadRequest, match="labels molecules"):
        make_labeller("gfn2-xtb", "crystal")
    with pytest.raises(BadRequest, match="gives nothing for any system"):
        label(data, "math:floor", columns=["floor"], n_workers=0)
    assert "floor" not in Store(data).properties
    for arguments, words in (
        (["data", "label", str(data), "--with", "rdkit:MolWt", "--time-limit", "0"], "time limit must be positive"),
        (["data", "label", "no/where", "--with", "rdkit:MolWt"], "neither a folder"),
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2 and words in capsys.readouterr().err
    label(data, "rdkit:MolWt", n_workers=0)
    with pytest.raises(BadRequest, match="has a column 'MolWt' already"):
        label(data, "rdkit:MolWt", n_workers=0)
