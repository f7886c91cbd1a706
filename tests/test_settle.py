"""Settling: the graph stays, the shape gets better, and what makes no sense is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import molecule
from rdkit.Chem import rdForceFieldHelpers

from moldiff import Generator, SampleSet
from moldiff.errors import BadRequest
from moldiff.model_store import model_info, write_manifest
from moldiff.sampling.settle import plan


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator.from_pretrained("qm9")


@pytest.fixture(scope="module")
def pair(generator: Generator) -> tuple[SampleSet, SampleSet]:
    """The same graphs as drawn and settled: the way down has 24 calls in both."""
    options = {"seed": 3, "size": 14}
    return generator.sample(8, steps=24, settle=0, **options), generator.sample(8, steps=36, settle=12, **options)


def test_graph_stays_and_positions_move(pair: tuple[SampleSet, SampleSet]) -> None:
    for plain, settled in zip(*pair, strict=True):
        assert np.array_equal(plain.numbers, settled.numbers)
        assert np.array_equal(plain.bond_types, settled.bond_types)
        assert np.array_equal(plain.charges, settled.charges)
        assert 1e-3 < np.abs(plain.positions - settled.positions).max() < 3


def test_energy_falls(pair: tuple[SampleSet, SampleSet]) -> None:
    energies = []
    for samples in pair:
        row = []
        for mol in samples.to_rdkit():
            field = mol and rdForceFieldHelpers.MMFFGetMoleculeForceField(
                mol, rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
            )
            row.append(field.CalcEnergy() if field else np.nan)
        energies.append(row)
    plain, settled = np.array(energies)
    both = np.isfinite(plain) & np.isfinite(settled)
    assert both.sum() >= 4
    assert np.median(settled[both] - plain[both]) < -1  # kcal/mol


def test_sample_does_not_depend_on_its_batch(generator: Generator) -> None:
    options = {"seed": 1, "steps": 12, "settle": 6, "size": 9}
    together, alone = generator.sample(3, **options), generator.sample(3, batch_size=1, **options)
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(a.positions, b.positions)


@pytest.mark.parametrize("n_calls", [*range(1, 12), 15, 30, 40, 77])
def test_plan_spends_all_calls_and_ends_low(n_calls: int) -> None:
    levels, calls = zip(*plan(n_calls), strict=True)
    assert sum(calls) == n_calls and min(calls) >= 1
    assert levels[-1] == 0.2
    if n_calls >= 24:
        assert levels[:4] == (1.2, 0.8, 1.2, 0.8) and levels[-3:] == (0.5, 0.3, 0.2) and max(calls) <= n_calls // 5 + 1


def test_default_is_the_models_share(generator: Generator) -> None:
    assert generator.config.sampling.settle == 0.4
    assert generator.request(1).settle == 40
    assert generator.request(1, steps=50).settle == 20
    assert generator.request(1, steps=20).settle == 0
    assert generator.request(1, steps=20, settle=5).settings()["settle"] == 5


def test_few_calls_are_drawn_cooler(generator: Generator) -> None:
    assert generator.request(1).temperature == generator.request(1, steps=50).temperature == 1.0
    assert generator.request(1, steps=20).temperature == 0.7
    assert generator.request(1, steps=20, temperature=1.0).temperature == 1.0


@pytest.mark.parametrize("settle", [-1, 19, 1.5])
def test_impossible_shares_are_refused(generator: Generator, settle: float) -> None:
    with pytest.raises(BadRequest, match="settle"):
        generator.request(1, steps=20, settle=settle)


def test_kept_parts_do_not_settle(generator: Generator) -> None:
    given = molecule("CH3OH")
    assert generator.request(1, positions=given).settle == 0
    with pytest.raises(BadRequest, match="does not go together"):
        generator.request(1, positions=given, settle=10)


def test_conformers_settle(generator: Generator) -> None:
    assert generator.request(1, smiles="CCO").settle == 40


def test_crystals_have_nothing_to_settle() -> None:
    with pytest.raises(BadRequest, match="positions and bonds"):
        Generator.from_pretrained("mp20-csp").request(1, formula="NaCl", settle=10)


def settled_with(folder: Path, name: str) -> Path:
    """A copy of qm9 whose positions another model settles."""
    copy = Path(shutil.copytree(model_info("qm9").folder, folder / "mine"))
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    settings["sampling"]["settle_with"] = name
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))
    write_manifest(copy, "mine")
    return copy


def test_another_model_settles(tmp_path: Path) -> None:
    own, other = (Generator.from_pretrained(settled_with(tmp_path / name, name)) for name in ("qm9", "qm9-cond"))
    options = {"seed": 3, "size": 9, "steps": 16}
    alone, there = own.sample(2, settle=8, **options), other.sample(2, settle=8, **options)
    for a, b in zip(alone, there, strict=True):
        assert np.array_equal(a.bond_types, b.bond_types)
        assert 1e-3 < np.abs(a.positions - b.positions).max() < 3
    again = other.sample(1, settle=8, start=1, **options)
    assert np.array_equal(again[0].positions, there[1].positions)
    assert other.request(1).settings()["settle_with"] == model_info("qm9-cond").weights_sha256
    assert other.request(1, settle=0).settings()["settle_with"] is None


@pytest.mark.parametrize(("name", "words"), [("no-such", "no-such"), ("mp20", "can't settle what .* draws")])
def test_a_settler_that_does_not_fit_is_refused(tmp_path: Path, name: str, words: str) -> None:
    generator = Generator.from_pretrained(settled_with(tmp_path, name))
    assert generator.request(1, settle=0).settle == 0
    with pytest.raises(BadRequest, match=words):
        generator.request(1)


def test_a_model_of_given_graphs_makes_conformers_and_nothing_else(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_info("qm9-cond").folder, tmp_path / "conformers"))
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    settings["training"].update(given_graph=1.0, given_places=0.0, given_parts=0.0)
    settings["sampling"]["conformers"] = "noise"
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))
    write_manifest(copy, "conformers")
    generator = Generator.from_pretrained(copy)
    with pytest.raises(BadRequest, match="graphs that are given: name one with smiles"):
        generator.request(1)
    (spec,) = generator.request(1, smiles="CCO").controls
    assert spec.settings()["begin"] == "noise"
    (other,) = Generator.from_pretrained("qm9-cond").request(1, smiles="CCO").controls
    assert other.settings()["begin"] == "embedding"
