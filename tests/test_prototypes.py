"""Predictions that begin at known prototypes: where they begin, what comes back, whatever the batch; bad requests."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from conftest import crystal_config, random_model

from moldiff import generate as runs
from moldiff.chem.crystals import Crystal, from_ase
from moldiff.cli import main
from moldiff.data.store import pack, write_store
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.aflow import AflowPrototypes
from moldiff.evaluation.crystals.matching import Pair, compare
from moldiff.evaluation.crystals.prototypes import find_prototypes
from moldiff.generator import Generator
from moldiff.prototypes import FromKnown

#: Rock salt of two elements that the store holds in other company, then what it holds no prototype of.
ROWS = [("LiH", 1), ("NaH", 1), ("LiOH3", 1)]


def salt(name: str, a: float, kind: str = "rocksalt") -> Crystal:
    return from_ase(bulk(name, kind, a=a))


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> str:
    """A data set of rock salts, of one caesium chloride and one zinc blende; its validation part holds LiH as zinc blende."""
    train = [salt("NaCl", 5.64), salt("LiF", 4.03), salt("KBr", 6.6)]
    train += [salt("TlBr", 3.97, "cesiumchloride"), salt("ZnS", 5.4, "zincblende")]

    def rows(crystals, kinds):
        fields = [
            {"atom_types": c.numbers, "frac_coords": c.frac_coords, "lattice": c.lattice, "id": 7 + i}
            for i, c in enumerate(crystals)
        ]
        return {**pack(fields), "property.space_group": np.array(kinds, dtype=np.float32)}

    folder = tmp_path_factory.mktemp("data") / "salts"
    parts = {"train": rows(train, [225, 225, 225, 221, 216]), "val": rows([salt("LiH", 4.1, "zincblende")], [216])}
    return str(write_store(folder, parts, {"name": "salts", "kind": "crystal"}))


@pytest.fixture(scope="module")
def generator(tiny_csp):
    return Generator.from_pretrained(tiny_csp, device="cpu")


def arrays(samples) -> list[bytes]:
    return [b"".join(s.fields[name].tobytes() for name in sorted(s.fields)) for s in samples]


def test_prototypes_of_a_data_set_are_different_and_of_its_training_part(known):
    source = find_prototypes(known)
    found = source.ranked([3, 1], 10)
    assert [one.crystal.numbers.tolist() for one in found] == [[3, 1]] * 3, "three different prototypes, not five crystals"
    assert compare(Pair(found[0].crystal, salt("LiH", 4.1))).same and "salts_8" in found[0].label
    kinds = ["225", "221", "216"]
    assert sorted(one.label.split("space group ")[1][:3] for one in found) == sorted(kinds)
    assert found[0].label.endswith("F to H") and found[0].prior == max(one.prior for one in found)
    assert [one.label for one in source.ranked([3, 1], 2)] == [one.label for one in found[:2]]
    assert source.ranked([3, 8, 1, 1, 1], 4) == [] and source.ranked([3, 1], 0) == []
    assert all("4.1" not in one.label and "val" not in one.label for one in found)


def test_aflow_needs_no_data_and_fills_orbits():
    source = find_prototypes("aflow")
    assert isinstance(source, AflowPrototypes) and source is not None
    first = source.ranked([17, 11], 1)[0]
    assert first.crystal.numbers.tolist() == [17, 11] and first.label.startswith("AFLOW AB_cF8_225_a_b")
    assert compare(Pair(first.crystal, salt("NaCl", 5.64))).same
    perovskite = source.ranked([20, 22, 8, 8, 8], 1)[0].crystal
    assert perovskite.reduced_formula == "CaTiO3"
    # Heusler alloys are none of the library's own; they come of orbits of one element that get two.
    heusler = source.ranked([25, 13, 28, 28], 6)
    wanted = Crystal.of([25, 13, 28, 28], [[0, 0, 0], [0.5] * 3, [0.25] * 3, [0.75] * 3], 2.9 * (1 - np.eye(3)))
    assert any(compare(Pair(one.crystal, wanted)).same for one in heusler)
    assert all(sorted(one.crystal.numbers.tolist()) == [13, 25, 28, 28] for one in heusler)


def test_strength_0_gives_the_known_structure_and_says_which(generator, known):
    drawn = generator.sample(4, compositions=ROWS, prototypes=known, candidates=1, seed=3)
    assert len(drawn) == 12
    for s in drawn:
        assert (s.info["began"] == "noise") == (s.index % 3 == 2 or s.index // 3 >= 3), s.info
    lih = [s for s in drawn if s.index % 3 == 0]
    assert compare(Pair(lih[0].to_crystal(), salt("LiH", 4.1))).same and "salts_8" in lih[0].info["began"]
    source = find_prototypes(known)
    for s, one in zip(lih, source.ranked([3, 1], 3), strict=False):
        assert s.info["began"].endswith(one.label)
        assert np.array_equal(s.fields["lattice"], one.crystal.lattice.astype(np.float32))
    assert len({s.info["began"] for s in lih}) == 4
    plain = generator.sample(4, compositions=ROWS, seed=3)
    assert [arrays(drawn)[i] == arrays(plain)[i] for i in range(12)] == [s.info["began"] == "noise" for s in drawn]


def test_strength_moves_samples_away_and_composition_stays(generator, known):
    asked = {"compositions": ROWS, "prototypes": known, "candidates": 1, "seed": 3}
    still, moved = generator.sample(2, **asked), generator.sample(2, **asked, strength=0.6)
    assert [s.info for s in still] == [s.info for s in moved]
    for a, b in zip(still, moved, strict=True):
        assert a.fields["atom_types"].tolist() == b.fields["atom_types"].tolist()
        assert np.array_equal(a.fields["lattice"], b.fields["lattice"]) == (a.info["began"] == "noise")
    wanted = {"LiH": [1, 3], "NaH": [1, 11], "LiOH3": [1, 1, 1, 3, 8]}
    for s in moved:
        assert sorted(s.fields["atom_types"].tolist()) == wanted[ROWS[s.index % 3][0]]


@pytest.mark.parametrize("options", [{"candidates": 1, "strength": 0.6}, {"candidates": 2}, {"candidates": 3, "strength": 0.6}])
def test_samples_do_not_depend_on_the_batch(generator, known, options):
    asked = {"compositions": ROWS, "prototypes": known, "seed": 5, **options}
    whole = generator.sample(4, **asked)
    for size in (1, 5):
        part = generator.sample(4, **asked, batch_size=size)
        assert arrays(part) == arrays(whole) and [s.info for s in part] == [s.info for s in whole]
    assert arrays(generator.sample(1, **asked, start=7)) == arrays(whole)[7:10]


def test_aflow_mixes_prototypes_and_noise_whatever_the_batch(generator):
    asked = {"compositions": ROWS, "prototypes": "aflow", "seed": 5}
    whole = generator.sample(2, **asked)
    spec = generator.request(1, **asked).controls[-1]
    assert (spec.strength, spec.rows_each, spec.n_noise) == (0.25, 6, 2)
    for size in (1, 4):
        assert arrays(generator.sample(2, **asked, batch_size=size)) == arrays(whole)
    assert all(s.info["began"] == "noise" or s.info["began"].startswith("AFLOW A") for s in whole)
    assert any(s.info["began"] != "noise" for s in generator.sample(8, **asked))


def test_candidates_return_every_prototype_once_in_the_models_order(generator, known):
    asked = {"formula": "LiH", "prototypes": known, "seed": 1}
    ranked = generator.sample(5, **asked, candidates=3)
    plain = generator.sample(3, **asked, candidates=1)
    assert {s.info["began"] for s in ranked[:3]} == {s.info["began"] for s in plain}
    assert [s.info["began"] for s in ranked[3:]] == ["noise"] * 2
    assert arrays(generator.sample(2, **asked, candidates=3)) == arrays(ranked)[:2], "a longer run begins with a shorter one"
    source = {one.label: one.prior for one in find_prototypes(known).ranked([3, 1], 3)}
    cost = [s.info["doubt"] - source[s.info["began"]] for s in ranked[:3]]
    assert cost == sorted(cost), "the sum of doubt and votes ranks them"


def test_the_network_is_asked_about_rows_that_are_awake(generator, known):
    rows = []
    inner = generator.denoiser.network.forward

    def counted(seen, *args):
        rows.append(seen.n_systems)
        return inner(seen, *args)

    generator.rule()
    generator.denoiser.network.forward = counted
    try:
        still = generator.request(20, formula="LiH", prototypes=known, candidates=1, steps=20)
        generator.draw(still, range(2))
        none, _ = sum(rows), rows.clear()
        late = generator.request(20, formula="LiH", prototypes=known, candidates=1, steps=20, strength=0.3)
        generator.draw(late, range(3))
        some = len(rows)
    finally:
        del generator.denoiser.network.forward
    assert none == 0 and still.calls_each == 0
    assert 0 < some <= late.calls_each + 1 == 7


def test_a_run_in_parts_leaves_the_same_bytes(generator, known, tmp_path):
    def go(out, batch, stop=None):
        request = generator.request(2, compositions=ROWS, prototypes=known, candidates=2, seed=2)
        folder = runs.open_run(out, request, "cpu", out.exists())
        if stop is None:
            runs.run(generator, request, folder, batch)
        else:
            with pytest.raises(RuntimeError, match="stopped"):
                runs.run(generator, request, folder, batch, progress=stop)
        return folder

    def stop(done: float, n: int) -> None:
        if done > 2.5:
            raise RuntimeError("stopped")

    whole = go(tmp_path / "a", 6)
    go(tmp_path / "b", 2, stop)
    parts = go(tmp_path / "b", 1)
    for name in ("samples.extxyz", "samples.csv", "metrics.json", "run.yaml"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    assert "began" in (whole / "samples.csv").read_text().splitlines()[0]
    values = yaml.safe_load((whole / "run.yaml").read_text())
    assert values["settings"]["prototypes"]["sha256"] == find_prototypes(known).digest
    assert json.loads((whole / "metrics.json").read_text())["calls_each"] == values["calls_each"] == 2 * 8


def test_a_models_own_prototypes_give_way(tmp_path, known):
    config = crystal_config(sampling={"sampler": "ddim", "steps": 4, "prototypes": "aflow"})
    generator = Generator.from_pretrained(random_model(config, tmp_path / "model"), device="cpu")
    assert isinstance(generator.request(2, formula="LiH").controls[-1], FromKnown)
    kept = {"keep_cell": 3.0 * np.eye(3)}
    asked = [{"prototypes": "none"}, {"candidates": 1}, {"reward": "crystal:density", "particles": 2}, kept]
    for options in asked:
        controls = generator.request(2, formula="LiH", **options).controls
        assert not any(isinstance(spec, FromKnown) for spec in controls), options
    mine = generator.request(2, formula="LiH", prototypes=known).controls[-1]
    assert mine.source.name == known and mine.strength == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prototypes": "nowhere"}, "prototypes come from aflow or a prepared data set"),
        ({"keep_cell": 3.0 * np.eye(3)}, "a prototype has its own cell"),
        ({"strength": 1.5}, "must lie in 0"),
        ({"strength": -0.1}, "must lie in 0"),
        ({"candidates": 65}, "whole number from 1 to 64"),
        ({"reward": "crystal:density", "particles": 2}, "prototypes and reward both choose"),
    ],
)
def test_bad_requests(generator, known, options, said):
    with pytest.raises(BadRequest, match=said):
        generator.request(2, formula="LiH", **{"prototypes": known, **options})


def test_models_and_data_that_do_not_fit(generator, tiny_crystal, tiny_model, tiny_data, known, tmp_path, capsys):
    with pytest.raises(BadRequest, match="for a composition"):
        Generator.from_pretrained(tiny_crystal, device="cpu").request(2, prototypes=known)
    with pytest.raises(BadRequest, match="tiny-crystal does not"):
        Generator.from_pretrained(tiny_crystal, device="cpu").request(2, prototypes=known, formula="LiH")
    with pytest.raises(BadRequest, match="holds molecules"):
        generator.request(2, prototypes=str(tiny_data), formula="LiH")
    out = str(tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "--model", str(tiny_model), "-n", "2", "--prototypes", "aflow", "--formula", "C2H6", "--out", out])
    assert "prototypes are crystals" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_parts_of_a_watched_denoiser():
    from moldiff.core.batch import AtomBatch
    from moldiff.sampling.watch import Watched

    def bad(xt, t, previous=None):
        return xt.replace(lattice=torch.where(xt.lattice > 2, torch.nan, xt.lattice))

    lattice = torch.eye(3).repeat(4, 1, 1)
    lattice[2] *= 3
    batch = AtomBatch(torch.ones(4, 1, dtype=torch.bool), {"lattice": lattice})
    watched, rows = Watched(bad, 4, torch.device("cpu")), torch.tensor([3, 2, 2])
    watched.part(rows)(batch[rows], torch.ones(3))
    assert watched.spoilt.tolist() == [False, False, True, False]
