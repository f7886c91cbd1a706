"""Crystals of every format, broken ones too, through ``evaluate`` to the table, the numbers and the report; predictions."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io.extxyz import write_extxyz

import moldiff.evaluation
from moldiff.chem.cif import raw_cif
from moldiff.chem.crystals import Crystal, from_ase, to_ase, to_structure
from moldiff.cli import main
from moldiff.data.crystal_entry import CrystalEntry, to_crystal_system
from moldiff.data.store import pack, write_store
from moldiff.errors import BadRequest
from moldiff.evaluation.api import evaluate, evaluate_files
from moldiff.evaluation.conditional import (
    Regressor,
    asked_values,
    parse_properties,
    property_metrics,
    register_regressor,
    regressors,
)
from moldiff.evaluation.crystals.drawings import cell_model, cell_svg
from moldiff.evaluation.crystals.truths import read_truths
from moldiff.evaluation.definitions import definition, order
from moldiff.evaluation.molecules.data_row import read_data_row
from moldiff.evaluation.reference import Reference, load_reference

NACL = from_ase(bulk("NaCl", "rocksalt", a=5.64))
NACL_CSCL = from_ase(bulk("NaCl", "cesiumchloride", a=3.4))
KCL = from_ase(bulk("KCl", "rocksalt", a=6.3))
ZNS = from_ase(bulk("ZnS", "zincblende", a=5.41))
WURTZITE = from_ase(bulk("ZnS", "wurtzite", a=3.82, c=6.26))
CLASH = Crystal.of([11, 17], [[0, 0, 0], [0.05, 0, 0]], 4 * np.eye(3))
SET = [NACL, NACL_CSCL, KCL, ZNS, WURTZITE, NACL]


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOLDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MOLDIFF_DATA", str(tmp_path / "data"))


def extxyz(path: Path, crystals: list[Crystal], **info: list[Any]) -> Path:
    with open(path, "w") as file:
        for k, crystal in enumerate(crystals):
            atoms = to_ase(crystal)
            atoms.info.update({name: values[k] for name, values in info.items()})
            write_extxyz(file, [atoms], columns=None, write_results=False)
    return path


def cif_table(path: Path, crystals: list[Crystal], **columns: list[Any]) -> Path:
    lines = [",".join(["material_id", *columns, "cif"])]
    for k, crystal in enumerate(crystals):
        text = raw_cif(crystal).replace('"', '""')
        lines.append(",".join([f"mp-{k}", *(str(values[k]) for values in columns.values()), f'"{text}"']))
    path.write_text("\n".join(lines) + "\n")
    return path


def data_set(folder: Path, train: list[Crystal], val: list[Crystal]) -> Path:
    def packed(crystals: list[Crystal]) -> Any:
        return pack([to_crystal_system(CrystalEntry(k, f"c{k}", k, c)).system for k, c in enumerate(crystals)])  # type: ignore[misc]

    return write_store(folder, {"train": packed(train), "val": packed(val)}, {"name": folder.name, "kind": "crystal"})


def written(folder: Path) -> dict[str, Any]:
    """The same six crystals in every format and in memory."""
    cifs, poscars = folder / "cifs", folder / "poscars"
    cifs.mkdir()
    poscars.mkdir()
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for k, crystal in enumerate(SET):
            (cifs / f"{k}.cif").write_text(raw_cif(crystal))
            archive.writestr(f"inside/{k}.cif", raw_cif(crystal))
            (poscars / f"POSCAR_{k}.vasp").write_text(to_structure(crystal).to(fmt="poscar"))
    generated = folder / "run"
    generated.mkdir()
    extxyz(generated / "samples.extxyz", SET)
    (generated / "samples.csv").write_text("id,formula\n0,NaCl\n")
    many = folder / "many.cif.gz"
    many.write_bytes(gzip.compress("".join(raw_cif(c, f"c{k}") for k, c in enumerate(SET)).encode()))
    return {
        "cifs": cifs,
        "zip": folder / "a.zip",
        "poscars": poscars,
        "run": generated,
        "many": many,
        "extxyz": extxyz(folder / "a.extxyz", SET),
        "csv": cif_table(folder / "a.csv", SET),
        "ase": [to_ase(c) for c in SET],
        "pymatgen": [to_structure(c) for c in SET],
        "crystals": SET,
        "texts": [raw_cif(c) for c in SET],
    }


def test_every_format_gives_the_same_crystals(tmp_path: Path) -> None:
    sets = written(tmp_path)
    result = evaluate(sets, None)
    assert result.kind == "crystal" and len(result.sets) == len(sets)
    for found in result.sets:
        values = {name: estimate.value for name, estimate in found.metrics.items()}
        assert found.n == 6 and values["structure_validity"] == 1.0, found.name
        assert values["crystal_uniqueness"] == pytest.approx(5 / 6), found.name
        assert {v.formula for v in found.verdicts} == {"NaCl", "KCl", "ZnS"}
        assert sorted(v.space_group for v in found.verdicts) == [186, 216, 221, 225, 225, 225]


def test_references_by_name_by_data_set_and_by_files(tmp_path: Path) -> None:
    samples = {"a": [NACL, KCL, WURTZITE]}
    folder = data_set(tmp_path / "mine", [NACL, ZNS], [KCL])
    exact = evaluate(samples, folder)
    assert exact.metrics["a"]["crystal_novelty"].value == pytest.approx(2 / 3)
    assert exact.data is not None and exact.data.metrics["crystal_novelty"].value == 1.0 and exact.data.n == 1
    files = evaluate(samples, extxyz(tmp_path / "known.extxyz", [KCL, WURTZITE]))
    assert files.metrics["a"]["crystal_novelty"].value == pytest.approx(1 / 3) and files.data is None
    shipped = evaluate(samples)
    assert shipped.reference is not None and shipped.reference.name == "mp20"
    assert "crystal_novelty" not in shipped.metrics["a"] and "crystal_novelty_coarse" in shipped.metrics["a"]
    assert list(shipped.table.columns) == ["a", "data"]


def test_shipped_reference_knows_mp20() -> None:
    path = Path(moldiff.evaluation.__file__).parent / "references" / "mp20.safetensors"
    assert path.stat().st_size < 3e6
    known = load_reference("mp20")
    assert known.kind == "crystal" and known.n_systems == 26_321 and len(known.hashes) > 20_000
    row = read_data_row(known.data_row, 10_000)
    assert row is not None and row.n == 9_047 and row.metrics["structure_validity"].value == 1.0
    assert row.metrics["density_wasserstein"].value < 0.2 and 0.85 < row.metrics["composition_validity"].value < 0.95
    assert (
        row.metrics["property_mae_random/density"].value > row.metrics["property_mae/density"].value == pytest.approx(0, abs=1e-3)
    )
    assert 0 < row.metrics["e_above_hull"].value < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xtb": True}, "is for molecules"),
        ({"posebusters": True}, "is for molecules"),
        ({"hull": "hull.csv"}, "name a calculator"),
        ({"relax": True, "hull": "nowhere.csv"}, "does not exist"),
        ({"relax": True, "calculator": "nonsense"}, "unknown calculator 'nonsense'"),
        ({"truth": "nowhere.csv"}, "does not exist"),
        ({"truth": "molecules.xyz"}, "crystals are needed here"),
        ({"truth": "mine:test"}, "unknown split"),
        ({"truth": "mine:val:many"}, "a whole number"),
        ({"reference": "qm9"}, "is of molecules"),
        ({"properties": {"gap": 3.0}}, "unknown property of crystals 'gap'"),
        ({"properties": {"density": float("nan")}}, "must be finite"),
        ({"properties": {"density": "nowhere"}}, "have no column 'nowhere'"),
        ({"properties": {"e_above_hull": 0.0}}, "needs a calculator"),
    ],
)
def test_bad_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    data_set(tmp_path / "data" / "mine", [NACL], [KCL])
    molecule("H2O").write("molecules.xyz")
    with pytest.raises(BadRequest, match=message) as caught:
        evaluate([NACL], **{"reference": None, **options})
    assert "\n" not in str(caught.value)


def test_worlds_are_not_mixed(tmp_path: Path) -> None:
    solid, gas = extxyz(tmp_path / "solid.extxyz", SET), tmp_path / "gas.xyz"
    molecule("H2O").write(gas)
    with pytest.raises(BadRequest, match="gas holds molecules and solid crystals"):
        evaluate([solid, gas], None)
    with pytest.raises(BadRequest, match="one kind at a time"):
        evaluate([to_structure(NACL), "CCO"], None)
    for options in ({"hull": "h.csv"}, {"truth": "t.csv"}, {"calculator": "emt"}):
        with pytest.raises(BadRequest, match="is for crystals, and the samples are molecules"):
            evaluate(gas, None, **options)  # type: ignore[arg-type]
    found = evaluate([to_ase(NACL), to_ase(KCL), molecule("H2O"), None], None).sets[0]
    assert dict(found.failures()) == {"no structure": 1, "not periodic in three directions": 1}


def frame(lattice: str, x: str = "2", more: str = "") -> str:
    return f'2\nLattice="{lattice}" Properties=species:S:1:pos:R:3 {more}\nNa 0 0 0\nCl {x} 2 2\n'


def test_broken_crystals_are_failures_with_reasons(tmp_path: Path) -> None:
    good = raw_cif(NACL)
    broken = {
        "evil": good.replace("'x,y,z'", f'\'__import__("os").system("touch {tmp_path}/pwned"),y,z\''),
        "shell": good.replace("'x,y,z'", f"'$(touch {tmp_path}/pwned),y,z'"),
        "part": good.replace("  1.0", "  0.5", 1),
        "nan": good.replace("0.50000000", "nan", 1),
        "trunc": good[:300],
        "zero": good.replace("_cell_length_a                     3.98808225", "_cell_length_a  0.0"),
        "unknown": good.replace("Na  Na0", "Xx  Xx0"),
        "clash": raw_cif(CLASH),
        "huge": raw_cif(Crystal.of([11] * 2500, np.random.default_rng(0).random((2500, 3)), 30 * np.eye(3))),
        "empty": "",
    }
    (tmp_path / "cifs").mkdir()
    for name, text in {"good": good, **broken}.items():
        (tmp_path / "cifs" / f"{name}.cif").write_text(text)
    found = evaluate(tmp_path / "cifs", None, n_processes=1).sets[0]
    reasons = {v.name.removesuffix(".cif"): v.reason for v in found.verdicts}
    assert found.n == 11 and found.metrics["structure_validity"].value == pytest.approx(1 / 11)
    wanted = {
        "evil": "no symmetry operation", "shell": "no symmetry operation", "part": "partial occupancy", "nan": "non-finite",
        "trunc": "unreadable CIF", "zero": "zero cell", "unknown": "unknown element", "clash": "closer than", "good": "",
        "huge": "more than 2,000 atoms", "empty": "empty file",
    }  # fmt: skip
    assert all(part in reasons[name] for name, part in wanted.items()) and not (tmp_path / "pwned").exists()
    cube = "4 0 0 0 4 0 0 0 4"
    path = tmp_path / "a.extxyz"
    path.write_text(
        frame(cube) + frame(cube, "nan") + frame("0 0 0 0 0 0 0 0 0") + frame("4 0 0 0 4 0") + frame(cube, more='pbc="T T F"')
        + "2\nplain\nNa 0 0 0\nCl 1 1 1\n" + f'99999\nLattice="{cube}"\nNa 0 0 0\n'
    )  # fmt: skip
    verdicts = evaluate(path, None).sets[0].verdicts
    assert [v.structure_valid for v in verdicts] == [True, *[False] * 6] and all(v.reason for v in verdicts[1:])
    for name, message in (("b.extxyz", "empty file"), ("b.cif", "empty file")):
        (tmp_path / name).write_text("")
        with pytest.raises(BadRequest, match=message):
            evaluate(tmp_path / name, None)


def test_predictions_find_their_truths(tmp_path: Path) -> None:
    truths = [NACL, WURTZITE, KCL]
    data_set(tmp_path / "data" / "mp20", [from_ase(bulk("LiF", "rocksalt", a=4.03)), ZNS], truths)
    first = [NACL_CSCL, NACL, WURTZITE, ZNS, CLASH, KCL]
    for start in (0, 1):
        asked = [start, start, start + 1, start + 1, start, start + 2]
        path = extxyz(tmp_path / f"from{start}.extxyz", first, request=asked)
        result = evaluate(path, truth="mp20")
        values = {name: e.value for name, e in result.metrics[path.stem].items()}
        assert values["match_rate"] == 2 / 3 and values["match_rate/at_3"] == 1.0
        assert values["metre"] == 2 / 3 and "crystal_uniqueness" not in values and "density_wasserstein" not in values
        # Rock salt for the salts is what swapping elements in LiF gives; wurtzite it cannot know.
        assert result.metrics["substitution"]["match_rate"].value == 2 / 3
        assert any(f"counted from {start}" in note for note in result.notes)
        assert result.per_sample["rank"].tolist()[:6] == [1, 2, 1, 2, 3, 1]
        assert result.per_truth["n_predictions"].tolist()[:3] == [3, 2, 1]
        html = result.report(tmp_path / f"report{start}.html").read_text()
        assert html.count('<div class="pair">') >= 6 and "true</div>" in html  # each prediction beside its own true structure
    plain = evaluate(
        extxyz(tmp_path / "plain.extxyz", [NACL, WURTZITE, NACL_CSCL, ZNS]), truth=extxyz(tmp_path / "t.extxyz", truths)
    )
    assert plain.metrics["plain"]["match_rate"].value == 2 / 3
    assert [one is None for one in plain.sets[0].true] == [False, False, False, False]
    assert any("by their composition" in note for note in plain.notes)
    assert any("1 true structures have no prediction" in note for note in plain.notes)
    numbered = extxyz(tmp_path / "numbered.extxyz", truths, request=[70, 30, 50])
    named = evaluate(extxyz(tmp_path / "n.extxyz", [KCL, WURTZITE, NACL_CSCL], request=[50, 30, 70]), None, truth=numbered)
    assert named.metrics["n"]["match_rate"].value == 2 / 3 and named.per_sample["truth"].tolist() == [
        "#".join(("numbered.extxyz", k)) for k in "321"
    ]
    # Not far: structures to substitute in are found by the name of the reference.
    assert "substitution" in plain.metrics


def test_a_prediction_that_cannot_be_read_keeps_its_rank(tmp_path: Path) -> None:
    truth = cif_table(tmp_path / "truth.csv", [NACL, KCL])
    path = cif_table(tmp_path / "predicted.csv", [NACL, NACL, KCL], request=[1, 1, 2])
    path.write_text(path.read_text().replace("_atom_site_occupancy", "_atom_site_nothing", 1).replace("Na  Na0", "Xx  Xx0", 1))
    result = evaluate(path, None, truth=truth)
    values = {name: e.value for name, e in result.metrics["predicted"].items()}
    assert values["match_rate"] == 1 / 2 and values["match_rate/at_2"] == 1.0
    assert result.sets[0].n == 3 and any("no substitution baseline" in note for note in result.notes)
    out = result.save(tmp_path / "out")
    assert (out / "per_truth.csv").read_text().count("\n") == 3


def test_truths_by_part_of_a_split(tmp_path: Path) -> None:
    data_set(tmp_path / "data" / "mine", [NACL], [KCL, ZNS, NACL])
    assert len(read_truths("mine").crystals) == 3 and len(read_truths("mine:val:2").crystals) == 2
    assert len(read_truths(tmp_path / "data" / "mine").crystals) == 3 and len(read_truths("mine:train").crystals) == 1


def test_relaxation_by_a_calculator_named_behind_relax(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copper = [from_ase(bulk("Cu", a=a)) for a in (3.5, 3.7)]
    path = extxyz(tmp_path / "cu.extxyz", copper)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(path), "--relax", "emt", "--reference", "none", "--out", str(tmp_path / "out"), "--workers", "1"])
    assert ended.value.code == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    one = numbers["sets"]["cu"]
    assert one["metrics"]["relaxation_failed"]["value"] == 0 and one["metrics"]["volume_change"]["n"] == 2
    assert any(note.startswith("emt") for note in one["notes"]) and numbers["settings"]["calculator"] == "emt"
    with pytest.raises(BadRequest, match="neither a file nor a calculator"):
        evaluate_files([path, "emtt"], relax=True)


def test_report_stands_alone_and_draws_cells(tmp_path: Path) -> None:
    result = evaluate({"<b>mine</b>": [*SET, CLASH, None]})
    html = result.report(tmp_path / "report.html").read_text()
    assert "&lt;b&gt;mine&lt;/b&gt;" in html and "<b>mine</b>" not in html
    assert 'href="http' not in html and "@import" not in html and '"edges"' in html
    assert "atoms closer than 0.5 Å" in html and "no structure" in html and html.count("<svg") > 10
    blocks = json.loads(html.split("const BLOCKS = ")[1].split(";\n")[0])
    assert len(blocks) == 7 and all(len(model["edges"]) == 12 for model in blocks.values())


def test_cells_are_drawn_with_atoms_on_all_their_faces() -> None:
    cube = from_ase(bulk("Po", "sc", a=3.35))
    model = cell_model(cube)
    assert model["text"].splitlines()[0] == "8" and len(model["edges"]) == 12
    assert cell_svg(cube).count("<circle") == 8 and cell_svg(cube).count("<line") == 12
    assert cell_svg(Crystal.of([11], [[np.nan, 0, 0]], np.eye(3))) == "" and cell_model(Crystal.of([], [], np.eye(3))) == {}


def test_errors_of_asked_properties_have_known_answers() -> None:
    asked, values = np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.5, 2.0, 9.0, np.nan])
    known = np.array([[2, 1.0], [2, 3.0], [5, 7.0]], dtype=np.float32)
    found = {k: e.value for k, e in property_metrics("gap", asked, values, np.array([2, 2, 2, 5]), known).items()}
    assert found["property_mae/gap"] == pytest.approx(0.25) and found["property_failed/gap"] == pytest.approx(1 / 3)
    # |y - 1|, |y - 2| and |y - 4| over 1, 3, 7.
    assert found["property_mae_random/gap"] == pytest.approx(np.mean([8 / 3, 7 / 3, 7 / 3]))
    assert found["property_mae_size/gap"] == pytest.approx(np.mean([1, 1, 3]))
    assert asked_values([{"asked_gap": 2.0}, {}], None)["gap"].tolist()[0] == 2.0 and asked_values([{}], None) == {}
    assert parse_properties(["gap=3.5", "homo=col"]) == {"gap": 3.5, "homo": "col"}
    with pytest.raises(BadRequest, match="NAME=VALUE"):
        parse_properties(["gap"])
    assert definition("property_mae/gap").unit == "eV" and definition("match_rate/at_20").title == "match rate at 20"
    assert order(["match_rate/at_20", "match_rate/at_5", "match_rate"]) == ["match_rate", "match_rate/at_5", "match_rate/at_20"]


def test_properties_of_crystals_and_a_regressor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moldiff.evaluation import conditional

    monkeypatch.setattr(conditional, "_REGRESSORS", [])
    path = extxyz(tmp_path / "a.extxyz", [NACL, KCL], asked_density=[NACL.density + 0.5, KCL.density - 0.1])
    register_regressor(Regressor("zero", "crystal", ("density",), lambda samples: {"density": np.zeros(len(samples))}))
    assert [r.name for r in regressors("crystal")] == ["zero"] and regressors("molecule") == []
    reference = Reference(
        "r", "crystal", 1, np.zeros(0, dtype=np.int64), properties={"density": np.array([[2, 1.0]], np.float32)}
    )
    values = {name: e.value for name, e in evaluate(path, reference).metrics["a"].items()}
    assert values["property_mae/density"] == pytest.approx(0.3, abs=1e-6)
    asked = (NACL.density + 0.5, KCL.density - 0.1)
    assert values["property_mae_regressor/density"] == pytest.approx(np.mean(asked))
    assert values["property_mae_random/density"] == values["property_mae_size/density"] == pytest.approx(np.mean(asked) - 1)
    assert "regressor: zero" in evaluate(path, reference).sets[0].notes


def test_properties_of_molecules_by_gfn2(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    water = molecule("H2O")
    first = evaluate([water], None, properties={"gap": 10.0, "dipole": 0.0})
    gap, dipole = (first.per_sample[f"calculated_{name}"][0] for name in ("gap", "dipole"))
    assert 5 < gap < 25 and 1.5 < dipole < 3
    assert first.metrics["samples"]["property_mae/gap"].value == pytest.approx(abs(gap - 10))
    water.info["asked_gap"] = gap
    broken = Atoms("H2", [[0, 0, 0], [0, 0, 0.01]], info={"asked_gap": 1.0})
    again = evaluate([water, broken], None).metrics["samples"]
    assert again["property_mae/gap"].value == pytest.approx(0, abs=1e-6) and again["property_failed/gap"].value == 0.5
    lost = tmp_path / "lost.xyz"
    lost.write_text("1\nasked_gap=2.5\nXx 0 0 0\n" + "2\nasked_gap=4.0\nH 0 0 0\nH 0 0 0.74\n")
    assert evaluate(lost, None).metrics["lost"]["property_failed/gap"].value == 0.5
    shipped = load_reference("qm9")
    assert set(shipped.properties) == {"homo", "lumo", "gap", "dipole"}
    assert shipped.data_row["metrics"]["property_mae/gap"]["value"] < 0.01
