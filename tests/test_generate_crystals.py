"""Crystals from request to files: what a run leaves, that a kill changes nothing, clusters, ranking, relaxing, ways out."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from moldiff import cli
from moldiff import generate as runs
from moldiff.crystal_output import rank
from moldiff.crystal_pictures import crystal_drawing, scene
from moldiff.crystal_verdicts import Clusters, Judge
from moldiff.data.sources import read_rows
from moldiff.errors import BadRequest, MoldiffError
from moldiff.evaluation.crystals.novelty import cluster
from moldiff.generator import Generator
from moldiff.journal import JournaledFiles
from moldiff.samples import Sample, SampleSet

TOP = ["cif", "cif_raw", "metrics.json", "ranked.csv", "run.yaml", "samples.csv", "samples.extxyz", "timing.json"]
N = 5
ROWS = [("NaCl", 1), ("Li2O", 1)]


def sample_of(atoms, index: int = 0, **info) -> Sample:
    fields = {
        "atom_types": atoms.numbers.astype(np.int64),
        "frac_coords": atoms.get_scaled_positions().astype(np.float32),
        "lattice": atoms.cell[:].astype(np.float32),
    }
    return Sample(index, fields, "", info)


@pytest.fixture(scope="module")
def known() -> SampleSet:
    """Rock salt three times (once as a supercell, once shaken), caesium chloride of it, silicon, an overlap and a failed one."""
    salt = bulk("NaCl", "rocksalt", 5.64)
    shaken = salt.copy()
    shaken.rattle(0.02, seed=1)
    clash = salt.copy()
    clash.set_scaled_positions([[0, 0, 0], [0.02, 0, 0]])
    found = [salt, bulk("NaCl", "rocksalt", 5.64, cubic=True), bulk("NaCl", "cesiumchloride", 3.4), shaken, bulk("Si"), clash]
    samples = [sample_of(atoms, i) for i, atoms in enumerate(found)]
    empty = {**samples[0].fields, "lattice": np.full((3, 3), np.nan, np.float32)}
    return SampleSet([*samples, Sample(6, empty, "non-finite numbers")])


@pytest.fixture(scope="module")
def generator(tiny_csp):
    return Generator.from_pretrained(tiny_csp, device="cpu")


def go(generator: Generator, out: Path, resume: bool = False, batch: int = 3, extras: runs.Extras | None = None):
    request = generator.request(N, seed=1, compositions=ROWS)
    return runs.run(generator, request, runs.open_run(out, request, "cpu", resume, extras=extras), batch, extras=extras)


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "timing.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    go(generator, out)
    return out


def test_what_a_run_leaves(whole):
    assert sorted(p.name for p in whole.iterdir()) == TOP
    with open(whole / "samples.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"sample_{i}" for i in range(2 * N)]
    assert [row["request"] for row in rows] == ["0", "1"] * N
    entries = [row.entry() for row in read_rows(whole / "samples.extxyz", "crystal")]
    assert [entry.properties["request"] for entry in entries] == [0, 1] * N
    assert {e.crystal.reduced_formula for e in entries} == {"NaCl", "Li2O"}
    for folder in ("cif", "cif_raw"):
        assert len(list((whole / folder).iterdir())) == 2 * N
    values = json.loads((whole / "metrics.json").read_text())
    assert values["n"] == 2 * N and 0 <= values["metrics"]["structure_validity"] <= 1
    assert not any("novel" in name for name in values["metrics"]), "a known structure is no fault where it was asked for"


def test_the_raw_cif_is_the_sample(whole):
    from moldiff.chem.cif import read_cif

    entries = [row.entry() for row in read_rows(whole / "samples.extxyz", "crystal")]
    for i in (0, 1, 7):
        written = read_cif((whole / "cif_raw" / f"sample_{i}.cif").read_text())
        assert abs(written.volume / entries[i].crystal.volume - 1) < 1e-6
        assert sorted(written.numbers) == sorted(entries[i].crystal.numbers)
        assert abs(written.min_distance - entries[i].crystal.min_distance) < 1e-4


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@pytest.mark.parametrize("point", range(12))
def test_a_kill_at_any_write_and_a_resume_give_the_same_bytes(generator, whole, tmp_path, monkeypatch, point):
    left, write = [point], JournaledFiles._write

    def killed(file, data):
        if not left[0]:
            file.write(data[: len(data) // 2])
            file.flush()
            raise Killed
        left[0] -= 1
        write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(JournaledFiles, "_write", staticmethod(killed))
        with pytest.raises(Killed):
            go(generator, tmp_path / "run")
    go(generator, tmp_path / "run", resume=True, batch=4)
    assert contents(tmp_path / "run") == contents(whole)


def test_a_kill_while_cifs_are_written_changes_nothing(generator, whole, tmp_path, monkeypatch):
    from moldiff import crystal_output

    def killed(crystal, name, sound):
        if name == "sample_4":
            raise Killed
        return texts(crystal, name, sound)

    texts = crystal_output.cif_texts
    with monkeypatch.context() as patch:
        patch.setattr(crystal_output, "cif_texts", killed)
        with pytest.raises(Killed):
            go(generator, tmp_path / "run")
    go(generator, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(whole)


def test_clusters_do_not_depend_on_how_samples_come(known):
    crystals = [s.to_crystal() for s in known][:5]
    assert cluster(crystals) == [0, 0, 1, 0, 2]
    for size in (1, 2, 3, 5):
        clusters = Clusters()
        found = [n for k in range(0, 5, size) for n in clusters.add(crystals[k : k + size])]
        assert found == [0, 0, 1, 0, 2]
    again = Clusters()
    again.restore(crystals[:3], [0, 0, 1])
    assert again.add(crystals[3:]) == [0, 2]


def test_verdicts_of_known_structures(known):
    verdicts = known.verdicts
    assert [v.structure_valid for v in verdicts] == [True] * 5 + [False] * 2
    assert [v.space_group for v in verdicts[:3]] == [225, 225, 221] and verdicts[4].space_group == 227
    assert verdicts[5].reason == "atoms closer than 0.5 Å" and verdicts[6].reason == "non-finite numbers"
    assert [v.unique for v in verdicts] == [True, False, True, False, True, False, False]
    assert abs(verdicts[0].density - 2.1636) < 1e-3 and abs(verdicts[0].min_distance - 2.82) < 1e-3
    rates = known.metrics()
    assert rates["structure_validity"] == pytest.approx(5 / 7) and rates["crystal_uniqueness"] == pytest.approx(3 / 5)


def test_novelty_by_composition_and_prototype(known):
    from moldiff.data.crystal_entry import CrystalEntry
    from moldiff.evaluation.crystals.reference import reference_of_crystals

    reference = reference_of_crystals("x", [CrystalEntry(1, "a", 1, known[1].to_crystal())], n_processes=1)
    verdicts = Judge(reference)([s.to_crystal() for s in known][:5], [s.id for s in known][:5], [""] * 5)
    assert [v.known_label for v in verdicts] == [True, True, False, True, False]


def test_clusters_rank_by_frequency_and_by_energy(known):
    verdicts = known.verdicts
    rows = rank(verdicts, [""] * 7)
    assert [(r["rank"], r["cluster"], r["count"]) for r in rows] == [(1, 0, 3), (2, 1, 1), (3, 2, 1)]
    assert rows[0]["share"] == pytest.approx(3 / 7, abs=1e-4)
    energies = {
        "sample_0": {"relaxed_energy": "-3.0"}, "sample_2": {"relaxed_energy": "-3.5"}, "sample_4": {"relaxed_energy": ""},
    }  # fmt: skip
    rows = rank(verdicts, [""] * 7, energies)
    assert [r["cluster"] for r in rows] == [1, 0, 2] and rows[1]["above_best"] == pytest.approx(0.5)
    rows = rank(verdicts, ["0", "1"] * 3 + ["0"])
    assert [(r["request"], r["rank"], r["count"]) for r in rows] == [("0", 1, 1), ("0", 2, 1), ("0", 3, 1), ("1", 1, 2)]


@pytest.mark.parametrize("ending", ["x.extxyz", "x.cif", "x.zip", "x"])
def test_what_is_saved_is_read_again(known, tmp_path, ending):
    path = known.save(tmp_path / ending)
    again = SampleSet.load(path / "cif_raw" if ending == "x" else path)
    if ending == "x.zip":
        assert len(zipfile.ZipFile(path).namelist()) == 12
        return
    good = [s for s in again if not s.problem][:5]
    assert again.kind == "crystal" and [v.structure_valid for v in again.verdicts][:5] == [True] * 5
    assert [v.formula for v in SampleSet(good).verdicts] == ["NaCl"] * 4 + ["Si"]


def test_ways_out(known, tmp_path):
    structures = known.to_pymatgen()
    assert structures[6] is None and structures[0].composition.reduced_formula == "NaCl"
    atoms = known.to_ase()
    assert all(atoms[0].pbc) and atoms[0].get_distance(0, 1, mic=True) == pytest.approx(2.82, abs=1e-4)
    frame = known.to_dataframe()
    assert list(frame.columns[:3]) == ["id", "request", "formula"] and len(frame) == 7
    known.save(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[0].startswith("id,request,formula")
    with pytest.raises(BadRequest, match=r"crystals can be saved as \.extxyz"):
        known.save(tmp_path / "x.sdf")
    assert len(known.valid()) == 5


def test_bonds_across_the_cell_and_the_cell_are_drawn(known):
    drawn = scene(known[1].to_crystal())
    assert drawn.inside.sum() == 27 and len(drawn.edges) == 12
    first = next(i for i in range(len(drawn.numbers)) if np.allclose(drawn.positions[i], 0, atol=1e-3))
    assert (drawn.bonds == first).any(1).sum() == 6, "the sodium in the corner has its six neighbours, three of them images"
    assert not drawn.inside.all()
    svg = crystal_drawing(known[1].to_crystal())
    assert svg.count("<circle") == 2 * len(drawn.numbers) and svg.count("#9aa1ab") == 12
    html = known._repr_html_()
    assert "Fm-3m (225)" in html and "non-finite" in html
    view = known.view(0)._make_html()
    assert "addCylinder" in view and "addSphere" in view
    with pytest.raises(MoldiffError, match="nothing to show"):
        known.view(6)


def test_relaxing_is_written_as_it_comes_and_resumed(known, tmp_path, monkeypatch):
    from moldiff.crystal_output import CrystalOutput

    metals = SampleSet([sample_of(bulk(e, cubic=e == "Al"), i) for i, e in enumerate(("Cu", "Al", "Cu", "W", "Ag"))])

    def run(out: Path) -> CrystalOutput:
        output = CrystalOutput(None, "emt", 60.0)
        out.mkdir(exist_ok=True)
        output.texts(out, metals.samples)
        xyz = metals.save(out / "samples.extxyz")
        assert xyz.is_file()
        output.finish(out)
        return output

    whole = run(tmp_path / "whole")
    text = (tmp_path / "whole" / "relaxed" / "samples.csv").read_text(encoding="utf-8")
    rows = {row["id"]: row for row in csv.DictReader(text.splitlines())}
    assert sorted(rows) == ["sample_0", "sample_1", "sample_3", "sample_4"], "the second copper is the first one"
    first = rows["sample_0"]
    assert first["converged"] == "true" and float(first["relaxed_energy"]) <= float(first["energy"])
    assert "failed" in rows["sample_3"]["reason"], "EMT knows no tungsten: recorded, and the others go on"
    assert [r["id"] for r in whole.ranked][-1] == "sample_3"
    assert (tmp_path / "whole" / "relaxed" / "cif" / "sample_4.cif").is_file()

    left, append = [2], JournaledFiles.append

    def killed(self, texts, n):
        if not left[0]:
            raise Killed
        left[0] -= 1
        append(self, texts, n)

    with monkeypatch.context() as patch:
        patch.setattr(JournaledFiles, "append", killed)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    run(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_calculator_that_hangs_is_stopped_and_recorded(tmp_path, monkeypatch):
    from moldiff.crystal_output import CrystalOutput

    (tmp_path / "hanging.py").write_text(
        "import time\nfrom ase.calculators.emt import EMT\n"
        "class Slow(EMT):\n"
        "    def calculate(self, *a, **k):\n"
        "        super().calculate(*a, **k)\n"
        "        time.sleep(1000 if len(self.atoms) == 4 else 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    metals = SampleSet([sample_of(bulk(e, cubic=e == "Al"), i) for i, e in enumerate(("Al", "Cu"))])
    output, out = CrystalOutput(None, "hanging:Slow", 8.0), tmp_path / "run"
    out.mkdir()
    output.texts(out, metals.samples)
    metals.save(out / "samples.extxyz")
    output.finish(out)
    found = {row["id"]: row for row in output.ranked}
    assert found["sample_0"]["problem"] == "longer than 8 s" and found["sample_1"]["relaxed_energy"]


def test_the_command_line_says_what_is_wrong(tiny_csp, tiny_model, tmp_path, capsys):
    def fails(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main(["generate", "--out", str(tmp_path / "x"), "--device", "cpu", *arguments])
        assert stop.value.code in (1, 2) and not (tmp_path / "x").exists()
        return capsys.readouterr().err

    csp = ["--model", str(tiny_csp)]
    assert "give a formula" in fails(*csp)
    assert "does not know K" in fails(*csp, "--formula", "KCl")
    assert "unknown calculator" in fails(*csp, "--formula", "NaCl", "--relax", "nonsense")
    assert "pip install nowhere" in fails(*csp, "--formula", "NaCl", "--relax", "nowhere.at:All")
    assert "no such file" in fails(*csp, "--compositions", str(tmp_path / "none.csv"))
    assert "for crystals" in fails("--model", str(tiny_model), "--relax", "emt")


def test_the_command_line_makes_crystals(tiny_csp, tmp_path, capsys):
    out = tmp_path / "x"
    arguments = ["generate", "--model", str(tiny_csp), "--formula", "NaCl", "--z", "2", "-n", "3", "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0 and "structurally valid" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == TOP
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--resume"])
    assert "nothing was left" in capsys.readouterr().out
