"""Variations, ways between molecules, conformers of a graph, types for positions, repair."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from moldiff.chem.conformers import embed_graph
from moldiff.chem.graphs import compare_stereo, read_graph, same_neighbours
from moldiff.cli import main
from moldiff.conformers import GraphGiven
from moldiff.denoise import denoise
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.sample import Sample
from moldiff.sampling.grids import part_below, uniform_grid
from moldiff.sampling.variations import slerp
from moldiff.score import score
from moldiff.structures import Structure


@pytest.fixture(scope="module")
def generator(tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def shipped():
    return Generator.from_pretrained("qm9", device="cpu")


def methanol(shift: float = 0.0) -> Structure:
    """Methanol, GFN2-xTB geometry to two digits."""
    x = np.array([[-0.37, 0.0, 0.0], [0.98, 0.3, 0.0], [-0.57, -1.08, 0.0], [-0.85, 0.42, 0.89], [-0.85, 0.42, -0.89],
                  [1.48, -0.52, 0.0]])  # fmt: skip
    bonds = np.zeros((6, 6), dtype=np.int64)
    for i, j in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 5)):
        bonds[i, j] = bonds[j, i] = 1
    return Structure("methanol", np.array([6, 8, 1, 1, 1, 1]), (x + shift).astype(np.float32), bonds, np.zeros(6, dtype=np.int64))


def test_variations_are_nearer_the_less_they_are_noised(shipped):
    given = methanol(shift=5.0)
    distance = {}
    for strength in (0.05, 0.9):
        made = shipped.sample(6, steps=20, like=given, strength=strength)
        assert all(len(s) == 6 and s.info["source"] == "methanol" for s in made)
        distance[strength] = np.mean([np.abs(s.positions - given.positions).mean() for s in made])
    assert distance[0.05] < 0.1 < distance[0.9]  # in the frame of the molecule, 5 Å from the origin
    weak = shipped.sample(4, steps=20, like=given, strength=0.05)
    assert all(np.array_equal(s.numbers, given.numbers) and np.array_equal(s.bond_types, given.bonds) for s in weak)


def test_a_late_beginning_spends_the_last_part_of_the_grid():
    grid = uniform_grid(11)
    part = part_below(grid, 0.45)
    assert part[0] == pytest.approx(0.45) and torch.equal(part[1:], grid[grid < 0.45])
    assert torch.equal(part_below(grid, 1.0), grid)


def test_the_way_between_two_states_keeps_the_length_of_noise():
    a, b = torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(0)), torch.randn(3, 50, 3)
    assert torch.allclose(slerp(a, b, torch.zeros(3)), a, atol=1e-5) and torch.allclose(slerp(a, b, torch.ones(3)), b, atol=1e-5)
    middle = slerp(a, b, torch.full((3,), 0.5)).flatten(1).norm(dim=1)
    assert torch.allclose(middle, (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2, rtol=1e-4)


def test_interpolation_begins_and_ends_at_its_molecules(shipped):
    first, second = methanol(), methanol()
    made = shipped.interpolate(first, second, 3, strength=0.1, steps=20)
    assert [s.info["weight"] for s in made] == [0.0, 0.5, 1.0]
    assert np.abs(made[0].positions - first.positions).max() < 0.15
    with pytest.raises(BadRequest, match="equal sizes"):
        none = np.zeros((3, 3), dtype=np.int64)
        water = Structure("water", np.array([8, 1, 1]), np.eye(3, dtype=np.float32), none, none[0])
        shipped.interpolate(first, water, 3)
    same = shipped.sample(3, between=[first, second], strength=0.1, steps=20)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(made, same, strict=True))
    assert shipped.request(3, between=[first, second]).sampler == "ddim"
    with pytest.raises(BadRequest, match="found 1: name two"):
        shipped.request(3, between=[first])


def test_conformers_have_the_graph_and_the_handedness_that_are_asked_for(shipped):
    made = {}
    for smiles in ("C[C@H](O)N", "C[C@@H](O)N"):
        graph = read_graph(smiles)
        made[smiles] = shipped.sample(4, steps=30, smiles=smiles)
        for s in made[smiles]:
            assert np.array_equal(s.numbers, graph.numbers) and np.array_equal(s.bond_types, graph.bonds)
            assert compare_stereo(graph, s.positions) == "right"
            assert compare_stereo(graph, -s.positions) == "mirror"
    lengths = [np.linalg.norm(s.positions[0] - s.positions[1]) for s in made["C[C@H](O)N"]]
    assert 1.4 < np.median(lengths) < 1.65


def test_conformers_fit_their_graph_and_differ(shipped):
    graph = read_graph("CC1CC1C(=O)CO")  # from noise hardly any fits (docs/experiments.md)
    made = shipped.sample(4, steps=12, controls=[GraphGiven(graph, redraws=0)])
    fitting = [s for s in made if not s.problem]
    assert len(fitting) >= 2 and all(same_neighbours(graph, s.positions) for s in fitting)
    lengths = [np.linalg.norm(s.positions[:, None] - s.positions[None], axis=-1) for s in fitting]
    assert np.abs(lengths[0] - lengths[1]).max() > 0.1
    again = shipped.sample(2, steps=12, start=2, controls=[GraphGiven(graph, redraws=0)])
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(again, made[2:], strict=True))


def test_positions_of_another_graph_or_stereo_are_refused():
    def refused(asked, had):
        """Positions of one SMILES for another with the same order of atoms."""
        return GraphGiven(read_graph(asked)).refuses(
            Sample(0, {"atom_types": read_graph(had).numbers, "positions": embed_graph(read_graph(had).mol)})
        )

    assert refused("CCO", "CCO") == "" and refused("O/C=N/O", "O/C=N/O") == ""
    assert refused("O/C=N/O", "O/C=N\\O") == "stereochemistry other than asked for"
    assert refused("CCCO", "CC(C)O") == "positions of another graph than asked for"


def test_a_conformer_that_is_refused_is_drawn_anew_and_fails_in_the_end(generator):
    seen = []

    class Counting(GraphGiven):
        def refuses(self, sample):
            seen.append(sample.index)
            return super().refuses(sample)

    made = generator.sample(3, steps=3, controls=[Counting(read_graph("CCO"), redraws=2)])
    assert {s.problem for s in made} == {"positions of another graph than asked for"}  # random weights
    assert [seen.count(i) for i in range(3)] == [3, 3, 3]


def test_what_can_not_be_embedded_begins_at_noise_with_a_caution(generator):
    strained = GraphGiven(read_graph("C1C2CC12"), begin="noise")
    assert strained.begins == 1 and "few conformers" in strained.cautions(generator.info)[0]
    assert GraphGiven(read_graph("CCO")).begins < 1 and not GraphGiven(read_graph("CCO")).cautions(generator.info)
    with pytest.raises(BadRequest, match="embeding"):
        GraphGiven(read_graph("CCO"), begin="embeding").check(generator.info)


def test_given_positions_come_back_with_made_types(shipped):
    given = methanol(shift=2.0)
    made = shipped.sample(3, steps=30, positions=given)
    assert all(np.array_equal(s.positions, given.positions) for s in made)
    assert sum(np.array_equal(np.sort(s.numbers), np.sort(given.numbers)) for s in made) >= 2


def test_repair_brings_atoms_back_and_keeps_bonds_and_frame(shipped):
    truth = methanol(shift=3.0)
    rng = np.random.default_rng(1)
    broken = [
        Structure("x", truth.numbers, truth.positions + rng.normal(0, 0.2, (6, 3)).astype(np.float32), truth.bonds, truth.charges)
        for _ in range(4)
    ]
    before = np.array([bond_error(truth, b.positions) for b in broken])
    for noise in (0.2, None):
        found = denoise(shipped, broken, noise=noise, steps=8)
        after = np.array([bond_error(truth, r.sample.positions) for r in found])
        assert (after < before / 2).all(), (before, after)
        assert all(np.array_equal(r.sample.bond_types, truth.bonds) for r in found)
        shifts = [r.sample.positions.mean(0) - b.positions.mean(0) for r, b in zip(found, broken, strict=True)]
        assert np.abs(shifts).max() < 1e-3
    assert 0.08 < np.median([r.noise for r in found]) < 0.4


def bond_error(truth: Structure, x: np.ndarray) -> float:
    """Root mean square change of the distances between bonded atoms."""
    i, j = np.nonzero(np.triu(truth.bonds))
    lengths = [np.linalg.norm(p[i] - p[j], axis=1) for p in (truth.positions, x)]
    return float(np.sqrt(np.mean((lengths[0] - lengths[1]) ** 2)))


def test_the_anomaly_score_finds_the_atom_that_was_moved(shipped):
    good, bad = methanol(), methanol()
    bad.positions[1] += np.float32(0.3)
    scores = score(shipped, [good, bad], times=2)
    assert scores[1].anomaly > 2 * scores[0].anomaly and scores[1].worst_atom in (0, 1, 5)
    foreign = Structure("Hg", np.array([80]), np.zeros((1, 3), np.float32), np.zeros((1, 1), np.int64), np.zeros(1, np.int64))
    assert "Hg" in score(shipped, [good, foreign], times=2)[1].problem


def test_the_commands_write_what_they_promise(tiny_model, tmp_path, capsys):
    path = tmp_path / "water.xyz"
    path.write_text("3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    for arguments in (["denoise", str(path), "--out", str(tmp_path / "a.sdf"), "--steps", "3"],
                      ["score", str(path), "--out", str(tmp_path / "a.csv"), "--times", "2"]):  # fmt: skip
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--model", str(tiny_model), "--device", "cpu"])
        assert end.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "a.sdf").read_text().count("$$$$") == 1
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 1 and float(rows[0]["anomaly"]) > 0 and rows[0]["problem"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smiles": "C1CC"}, "does not parse"),
        ({"smiles": "C.O"}, "2 molecules"),
        ({"smiles": "CS"}, "contains S"),
        ({"smiles": "CCCCCCCCCCC"}, "makes"),
        ({"strength": 0.5}, "--like"),
        ({"like": methanol(), "strength": 1.5}, "strength must lie"),
        ({"like": methanol(), "smiles": "C"}, "both fix"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(generator, options, message):
    with pytest.raises(BadRequest, match=message):
        generator.sample(2, steps=3, **options)
