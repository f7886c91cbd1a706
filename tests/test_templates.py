"""Symmetries learnt for compositions: which is ranked first, samples that have it whatever the batch, and bad requests."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from ase.build import bulk
from conftest import crystal_config
from test_symmetry_groups import CRYSTAL_FIELDS, cell, perovskite, rutile, wurtzite

from moldiff.apart import CLOSE
from moldiff.assemble import build_denoiser
from moldiff.chem.crystals import Crystal, closeness
from moldiff.chem.symmetry import space_group
from moldiff.cli import main
from moldiff.composition import compositions_from
from moldiff.data.store import pack, write_store
from moldiff.data.symmetries import symmetries_of
from moldiff.errors import BadRequest, DamagedFile
from moldiff.evaluation.crystals.templates import Templates, orders_of, spread
from moldiff.generator import Generator
from moldiff.model_export import export_model
from moldiff.symmetry import WithSymmetry
from moldiff.training.templates import learn_templates

#: Rock salt of alkali halides, caesium chloride of the heavy ones, wurtzite, perovskite and rutile.
SALTS = [("NaCl", 5.64), ("NaF", 4.62), ("KCl", 6.29), ("KBr", 6.6), ("LiF", 4.03), ("LiCl", 5.1), ("KF", 5.3), ("LiBr", 5.5)]
CAESIUM = [("CsCl", 4.12), ("CsBr", 4.29), ("CsI", 4.57), ("TlBr", 3.97)]


@pytest.fixture(scope="module")
def templates() -> Templates:
    crystals = [cell(bulk(name, "rocksalt", a=a)) for name, a in SALTS]
    crystals += [cell(bulk(name, "cesiumchloride", a=a)) for name, a in CAESIUM]
    crystals += [wurtzite(), rutile(), rutile(4.7, 3.2, 0.3, "Sn"), perovskite(), perovskite("Sr"), perovskite("Ba", "Zr", 4.2)]
    columns = {
        name: torch.tensor(value)
        for name, value in pack(
            [{"atom_types": c.numbers, "frac_coords": c.frac_coords, "lattice": c.lattice} for c in crystals]
        ).items()
    }
    return learn_templates(columns, symmetries_of(columns, None, 0), epochs=2)


@pytest.fixture(scope="module")
def model(templates, tmp_path_factory):
    torch.manual_seed(0)
    config = crystal_config(
        name="tiny-templates", fields=CRYSTAL_FIELDS, vocabulary={"atom_types": [1, 3, 8, 11, 17, 20, 22, 26, 35, 55, 56, 82]}
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-templates"
    export_model(build_denoiser(config).state_dict(), config, None, folder, sizes={2: 5, 5: 8, 6: 3}, templates=templates)
    return folder


@pytest.fixture(scope="module")
def generator(model):
    return Generator.from_pretrained(model, device="cpu")


def test_near_elements_have_the_same_template(templates):
    assert len(templates) == 5
    asked = {"TlI": [81, 53], "SrTiO3": [38, 22, 8, 8, 8], "PbO2": [82, 8, 8, 82, 8, 8]}
    first = {name: templates.ranking(numbers)[0] for name, numbers in asked.items()}
    numbers = {name: int(templates.columns["number"][template]) for name, (_, template, _) in first.items()}
    assert numbers["TlI"] == 221 and numbers["SrTiO3"] == 221 and numbers["PbO2"] == 136
    perovskites = templates.ranking([38, 22, 8, 8, 8])
    assert perovskites[0][2] in ((38, 22, 8), (22, 38, 8)) and len(perovskites) == 2
    right = templates.ranking([20, 22, 8, 8, 8])[0]
    wrong = templates.symmetry(right[1], (right[2][1], right[2][0], right[2][2]), [20, 22, 8, 8, 8])
    good = templates.symmetry(right[1], right[2], [20, 22, 8, 8, 8])
    assert right[0] > 0.9 and good.label != wrong.label, "calcium has the large site, as in what was learnt"
    for ranked in ([37, 9], [38, 22, 8, 8, 8]):
        assert sum(chance for chance, *_ in templates.ranking(ranked)) == pytest.approx(1)
    assert len(templates.ranking([11, 17])) == 2, "the two orders of rock salt, and of caesium chloride, are one structure"
    assert templates.ranking([11, 17, 17]) == []


def test_a_multiple_of_a_primitive_cell_is_noticed(templates):
    assert templates.smaller([11, 17]) == 1 and templates.smaller([22, 22, 8, 8, 8, 8]) == 1
    assert templates.smaller([11, 11, 17, 17]) == 2, "salts are learnt with one formula unit, zinc oxide alone with two"
    assert templates.smaller([30, 30, 8, 8]) == 1 and templates.smaller([11] * 3 + [17] * 3) == 1, "of three units none is known"


def test_a_template_stands_for_atoms_in_any_order(templates):
    _, template, slots = templates.ranking([20, 22, 8, 8, 8])[0]
    for numbers in ([20, 22, 8, 8, 8], [8, 22, 8, 20, 8]):
        one = templates.symmetry(template, slots, numbers)
        to = one.operations.to
        kinds = torch.tensor(numbers)
        assert (kinds[to] == kinds).all() and (to.sort(1).values == torch.arange(5)).all()
        image = torch.einsum("gij,nj->gni", one.operations.rotations.float(), one.base)
        way = (image - one.base[to])[:, :1] - (image - one.base[to])  # a translation of the operation, the same for all atoms
        assert (way - way.round()).abs().max() < 1e-4


def test_file_and_refusal_of_a_damaged_one(templates, tmp_path):
    templates.save(tmp_path / "templates.safetensors")
    again = Templates.load(tmp_path / "templates.safetensors")
    assert again.ranking([11, 17]) == templates.ranking([11, 17])
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(DamagedFile, match=r"bad\.safetensors"):
        Templates.load(tmp_path / "bad.safetensors")


def test_spread_follows_chances_and_begins_with_the_likeliest():
    order = spread([0.2, 0.7, 0.1], 10)
    assert order[0] == 1 and collections.Counter(order) == {1: 7, 0: 2, 2: 1} and spread([0.2, 0.7, 0.1], 4) == order[:4]
    assert orders_of((1, 1, 3)) == [(0, 1, 2), (1, 0, 2)]


ROWS = [("NaCl", 1), ("CaTiO3", 1), ("Li2O3", 1), ("NaCl", 2)]


def test_samples_have_the_symmetry_that_they_say(generator):
    with pytest.warns(UserWarning, match="no symmetry for Li2O3: drawn without"):
        drawn = generator.sample(3, compositions=ROWS, seed=1)
    for s in drawn:
        label = s.info["symmetry"]
        assert (label == "none") == (s.info["request"] == 2)
        if label != "none":
            assert space_group(s.to_crystal(), 1e-3).number == int(label.split(":")[0])
    with pytest.warns(UserWarning):
        plain = generator.sample(3, compositions=ROWS, seed=1, symmetry="none")
    assert all("symmetry" not in s.info for s in plain)
    assert {space_group(s.to_crystal(), 1e-3).number for s in plain if s.info["request"] != 2} <= {1, 2}


def test_samples_do_not_depend_on_the_batch_or_on_candidates_order(generator):
    asked = {"compositions": ROWS[:2], "seed": 4}
    whole = generator.sample(6, **asked)
    parts = generator.sample(6, batch_size=2, **asked)
    for a, b in zip(whole, parts, strict=True):
        assert a.info == b.info and all(np.array_equal(a.fields[name], b.fields[name]) for name in a.fields)
    chosen = generator.sample(2, candidates=3, **asked)
    assert [s.info["symmetry"] for s in chosen] == [s.info["symmetry"] for s in whole[:4]] and "doubt" in chosen[0].info
    for s in chosen:
        assert space_group(s.to_crystal(), 1e-3).number == int(s.info["symmetry"].split(":")[0])


def test_samples_whose_atoms_meet_are_drawn_anew_and_others_stay(generator):
    asked = {"compositions": [("CaTiO3", 1), ("NaO", 2), ("PbO2", 2)], "seed": 2}
    rows = compositions_from(compositions=asked["compositions"])
    info = generator.info
    none, some = (
        generator.sample(6, **asked, symmetry="none", controls=[WithSymmetry(rows, info.templates(), "", redraws=n)])
        for n in (0, 4)
    )
    close = [closeness(s.to_crystal()) < CLOSE for s in none]
    assert sum(close) > 0 and sum(closeness(s.to_crystal()) < CLOSE for s in some) < sum(close)
    for a, b, was in zip(none, some, close, strict=True):
        assert np.array_equal(a.fields["frac_coords"], b.fields["frac_coords"]) == (not was) and a.info == b.info
        assert not b.problem, "one that stays close comes back all the same"
    assert min(closeness(c) for c in (wurtzite(), rutile(), perovskite())) > CLOSE
    assert closeness(Crystal(np.array([11, 17]), np.array([[0, 0, 0], [0.001, 0, 0]]), np.eye(3) * 5)) < 0.01


def test_a_space_group_that_is_asked(generator):
    for asked in ("Pm-3m", 221, [221, 194]):
        assert {s.info["symmetry"].split(":")[0] for s in generator.sample(2, formula="NaCl", symmetry=asked)} == {"221"}
    with pytest.raises(BadRequest, match=r"no structure of NaCl in the space group 14 \(it knows 221, 225\)"):
        generator.sample(1, formula="NaCl", symmetry="14")
    with pytest.raises(BadRequest, match="learned, none or space groups"):
        generator.sample(1, formula="NaCl", symmetry="Fm-4m")


def test_what_contradicts_a_symmetry_is_refused_or_wins(generator, tiny_csp, tmp_path, capsys):
    rock = cell(bulk("NaCl", "rocksalt", a=5.64))
    kept = generator.sample(1, formula="NaCl", keep_cell=rock.lattice)
    assert "symmetry" not in kept[0].info
    with pytest.raises(BadRequest, match="--symmetry none"):
        generator.sample(1, formula="NaCl", keep_cell=rock.lattice, symmetry="225")
    with pytest.raises(BadRequest, match="tiny-csp has not learnt symmetries"):
        Generator.from_pretrained(tiny_csp, device="cpu").sample(1, formula="NaCl", symmetry="225")
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(tiny_csp), "--formula", "NaCl", "--symmetry", "225", "--out", str(tmp_path / "no")])
    assert ended.value.code == 2 and "has not learnt symmetries" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_command_writes_the_symmetry(model, tmp_path):
    for out, more in ((tmp_path / "one", []), (tmp_path / "two", ["--candidates", "2"])):
        with pytest.raises(SystemExit) as ended:
            asked = ["--formula", "NaCl", "-n", "2", "--symmetry", "225", "--out", str(out), *more]
            main(["generate", "--model", str(model), *asked])
        text = (out / "samples.csv").read_text()
        assert ended.value.code == 0 and "symmetry" in text.splitlines()[0] and text.count(",225:") == 2


def test_training_with_symmetry_ships_what_it_learnt(tmp_path):
    crystals = [cell(bulk(name, "rocksalt", a=a)) for name, a in (("NaCl", 5.64), ("NaF", 4.62), ("LiCl", 5.1), ("LiF", 4.03))]
    fields = [{"atom_types": c.numbers, "frac_coords": c.frac_coords, "lattice": c.lattice} for c in crystals]
    data = write_store(tmp_path / "salts", {"train": pack(fields), "val": pack(fields)}, {"name": "salts", "kind": "crystal"})
    config = crystal_config(
        name="salts", fields=CRYSTAL_FIELDS, vocabulary={"atom_types": [3, 9, 11, 17]}, data={"name": str(data)},
        training={"batch_size": 4, "max_steps": 2, "given_symmetry": 0.5, "sample_minutes": None}, max_atoms=4,
    )  # fmt: skip
    (tmp_path / "salts.yaml").write_text(config.to_yaml())
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "salts.yaml"), "--out", str(tmp_path / "run")])
    assert ended.value.code == 0 and list(data.glob("symmetries-*.safetensors"))
    made = Generator.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert made.info.has_templates and "1 learnt for compositions" in made.info.card
    assert space_group(made.sample(1, formula="NaF")[0].to_crystal(), 1e-3).number == 225
