"""Companions of what is asked: drawn from near training systems, told to the network, left out where they could contradict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SIZES, tiny_config

from moldiff.assemble import build_denoiser
from moldiff.chem.counts import NAMES, graph_counts
from moldiff.config import ConditionStats, parse_config
from moldiff.data.companions import CompanionTable
from moldiff.errors import BadRequest, DamagedFile
from moldiff.generator import Generator
from moldiff.model_export import export_model
from moldiff.model_store import model_info

GAPS = torch.linspace(2, 10, 400)


@pytest.fixture(scope="module")
def table():
    """Systems of 5 and 6 atoms; those of a gap above 6 have no double bond, others one or, of 6 atoms, two."""
    sizes = torch.arange(400) % 2 + 5
    doubles = torch.where(GAPS > 6, 0.0, (sizes - 4).float())
    values = torch.stack([GAPS, doubles], -1)
    values[::10, 0] = torch.nan
    return CompanionTable(("gap", "double_CO"), sizes, values)


@pytest.fixture(scope="module")
def model(table, tmp_path_factory):
    torch.manual_seed(0)
    stats = {
        name: ConditionStats(mean=m, std=s, low=0, high=10, least=0, greatest=10, known=400)
        for name, m, s in (("gap", 6.0, 2.0), ("double_CO", 0.5, 0.5))
    }
    config = tiny_config(conditions=["gap", "double_CO"], companions=["double_CO"], condition_stats=stats)
    folder = tmp_path_factory.mktemp("companions") / "tiny"
    return export_model(build_denoiser(config).state_dict(), config, None, folder, sizes=SIZES, companions=table).folder


@pytest.fixture
def told(model, monkeypatch):
    """A generator, and the conditions that its network is told, each once."""
    generator, seen = Generator.from_pretrained(model, device="cpu"), []
    forward = type(generator.denoiser).forward

    def listen(self, xt, t, previous=None):
        if "conditions" in xt:
            seen.append(xt.conditions.clone())
        return forward(self, xt, t, previous)

    generator.rule()
    monkeypatch.setattr(type(generator.denoiser), "forward", listen)
    return generator, seen


def test_a_table_is_what_it_was_when_it_is_read_again(table, tmp_path):
    table.save(tmp_path / "companions.safetensors")
    again = CompanionTable.load(tmp_path / "companions.safetensors")
    assert again.names == table.names and torch.equal(again.n_atoms, table.n_atoms)
    assert torch.allclose(again.values, table.values, rtol=1e-3, equal_nan=True)
    (tmp_path / "companions.safetensors").write_bytes(b"no table")
    with pytest.raises(DamagedFile, match="holds no table of companions"):
        CompanionTable.load(tmp_path / "companions.safetensors")


def test_systems_of_the_size_that_are_near_are_drawn(table):
    rows = table.nearest({"gap": 8.0}, {"gap": 2.0}, 6)
    assert len(rows) == 4 and (table.n_atoms[rows] == 6).all() and (GAPS[rows] - 8).abs().max() < 0.15
    assert not table.values[rows].isnan().any(), "what is not known is not near"
    assert (table.n_atoms[table.nearest({"gap": 8.0}, {"gap": 2.0}, 9)] == 6).all(), "the nearest size"
    for share in (0.0, 0.99):
        assert table.draw({"gap": 3.0}, {"gap": 2.0}, 6, ["double_CO"], share) == {"double_CO": 2.0}
    assert table.draw({"gap": 3.0, "double_CO": 0.0}, {"gap": 2.0, "double_CO": 0.5}, 6, ["double_CO"], 0.5) == {}
    columns = {"n_atoms": torch.tensor([3, 4]), "property.gap": torch.tensor([1.0, torch.nan])}
    unknown = CompanionTable.of(["gap", "double_CO"], columns)
    assert unknown.draw({"double_CO": 1.0}, {"double_CO": 1.0}, 3, ["gap"], 0.0) == {}


def test_the_network_is_told_them_and_each_row_its_own(told):
    generator, seen = told
    generator.sample(3, steps=2, settle=0, size=5, conditions={"gap": 3.0})
    assert torch.allclose(seen[0][:3], torch.tensor([-1.5, 1.0]).expand(3, 2)), "standardised: one double bond"
    seen.clear()
    generator.sample(3, steps=2, settle=0, size=6, conditions=[{"gap": 9.0}, {"gap": 3.0}, {"double_CO": 2.0}])
    assert torch.allclose(seen[0][:3, 1], torch.tensor([-1.0, 3.0, 3.0])) and seen[0][2, 0].isnan()


def test_they_are_left_out_where_that_is_asked_or_they_could_contradict(told):
    generator, seen = told
    for verbs in ({"companions": "none"}, {"exclude": ["N"]}, {"charge": 0}):
        seen.clear()
        generator.sample(2, steps=2, settle=0, size=5, conditions={"gap": 3.0}, **verbs)
        assert seen[0][:2, 1].isnan().all() and not seen[0][:2, 0].isnan().any()
    with pytest.raises(BadRequest, match="companions go with a condition"):
        generator.sample(1, companions="drawn")
    with pytest.raises(BadRequest, match="did you mean 'drawn'"):
        generator.sample(1, conditions={"gap": 3}, companions="drown")


def test_samples_do_not_depend_on_the_batch(model):
    generator = Generator.from_pretrained(model, device="cpu")
    asked = {"steps": 3, "settle": 0, "conditions": {"gap": (3, 9)}}
    whole, parts = generator.sample(6, **asked), generator.sample(6, batch_size=2, **asked)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(whole, parts, strict=True))
    assert generator.request(1, **asked).settings()["conditions"] == {"values": {"gap": "3.0..9.0"}, "guidance": 1.0}
    off = generator.request(1, **asked, companions="none").settings()["conditions"]
    assert off["companions"] == "none"


def test_companions_are_among_the_conditions_and_models_without_a_table_do_without(model, tmp_path):
    with pytest.raises(BadRequest, match=r"(?i)'double_co' is not among the conditions"):
        values = tiny_config().model_dump(mode="json")
        parse_config({**values, "conditions": ["gap"], "companions": ["double_CO"]}, "the settings")
    assert model_info(model).companions is not None and model_info("qm9").companions is None


def test_counts_of_a_graph():
    """Formamide, HC(=O)NH2."""
    z, bonds = np.array([6, 8, 7, 1, 1, 1]), np.zeros((6, 6), dtype=int)
    for i, j, order in ((0, 1, 2), (0, 2, 1), (0, 3, 1), (2, 4, 1), (2, 5, 1)):
        bonds[i, j] = bonds[j, i] = order
    found = graph_counts({"atom_types": z, "bond_types": bonds})
    assert set(found) == set(NAMES)
    expected = {"double_CO": 1, "single_HN": 2, "atoms_H": 3, "atoms_N": 1, "atoms_O": 1}
    assert {name: value for name, value in found.items() if value} == expected
