"""A total charge: drawn exactly, read as likeliest, kept in every sample, and refused where it makes no sense."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from moldiff.charge import Charge
from moldiff.chem.valence import VALENCES
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.model_store import model_info
from moldiff.sampling.closed_shell import draw_even, likeliest_even
from moldiff.sampling.joint_graph import Chances, Graph, likeliest
from moldiff.sampling.total_charge import draw_with_sum, likeliest_with_sum
from moldiff.verbs import specs_from

VALUES = (-1, 0, 1)


def chances_given(logits: torch.Tensor, total: int) -> dict[tuple[int, ...], float]:
    """The product of independent chances given the sum, by classes."""
    p = logits.softmax(-1).numpy()
    found = {
        at: float(np.prod([p[i, c] for i, c in enumerate(at)]))
        for at in itertools.product(range(3), repeat=len(logits))
        if sum(VALUES[c] for c in at) == total
    }
    return {at: value / sum(found.values()) for at, value in found.items()}


@pytest.mark.parametrize("total", [0, 1, -2])
def test_draws_follow_the_chances_given_their_sum(total):
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n, truth = 30_000, chances_given(logits, total)
    u = torch.rand(n, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    drawn = draw_with_sum(logits.expand(n, -1, -1), VALUES, total, torch.ones(n, 3, dtype=torch.bool), u)
    counts: dict[tuple[int, ...], int] = {}
    for row in map(tuple, drawn.tolist()):
        counts[row] = counts.get(row, 0) + 1
    assert set(counts) <= set(truth)
    assert 0.5 * sum(abs(counts.get(at, 0) / n - p) for at, p in truth.items()) < 0.015


def test_the_likeliest_charges_of_a_sum_are_those_of_a_search():
    logits = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for total in (-1, 0, 2):
        found = likeliest_with_sum(logits, VALUES, total, torch.ones(20, 4, dtype=torch.bool))
        for row, one in zip(found.tolist(), logits, strict=True):
            truth = chances_given(one, total)
            assert tuple(row) == max(truth, key=lambda at: truth[at])


def test_padding_counts_nothing_and_an_impossible_sum_is_let_go():
    logits = torch.zeros(2, 3, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    u = torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    drawn = draw_with_sum(logits, VALUES, 2, mask, u)
    assert drawn[0].tolist() == [2, 2, 0]
    assert set(drawn[1, 1:].tolist()) == {0}  # one atom can't carry two


def test_an_ion_has_an_odd_sum_of_atomic_numbers():
    odd = torch.tensor([True, False, True, False])
    logits, mask = torch.randn(50, 5, 4, generator=torch.Generator().manual_seed(0)), torch.ones(50, 5, dtype=torch.bool)
    u = torch.rand(50, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    for wanted in (False, True):
        for found in (draw_even(logits, odd, mask, u, wanted), likeliest_even(logits, odd, mask, wanted)):
            assert (odd[found].sum(1) % 2 == int(wanted)).all()


def test_a_graph_is_read_at_its_total_charge():
    """Ammonia and a proton: of charge +1 they are ammonium, where hydrogen hangs on."""
    numbers, none = np.array([7, 1, 1, 1, 1]), np.zeros((5, 5), dtype=np.int64)
    read = Graph(numbers, np.zeros(5, dtype=np.int64), none)
    bonds = np.full((5, 5, 2), np.log(0.5))
    charges = np.log(np.tile([[0.2, 0.5, 0.3]], (5, 1)))
    found = likeliest(read, Chances((0, 1), bonds, VALUES, charges), VALENCES, 100.0, 1)
    assert found is not None and [VALUES[c] for c in found[1]] == [1, 0, 0, 0, 0] and found[0][0, 1:].tolist() == [1, 1, 1, 1]
    assert likeliest(read, Chances((0, 1), bonds, VALUES, charges), VALENCES, 100.0, -1) is None


@pytest.mark.parametrize("valences", ["held", "free"])
def test_every_sample_has_the_charge(valences):
    shipped = Generator.from_pretrained("qm9", device="cpu")
    for total in (0, 1):
        with pytest.warns(UserWarning) if total else _nothing():
            made = shipped.sample(5, seed=3, steps=4, settle=0, size=9, charge=total, valences=valences)
        assert [int(s.charges.sum()) for s in made] == [total] * 5


def test_what_makes_no_sense_is_refused():
    info = model_info("qm9")
    with pytest.raises(BadRequest, match="whole number"):
        specs_from(info, charge=0.5)
    with pytest.raises(BadRequest, match="says every charge"):
        Generator.from_pretrained("qm9", device="cpu").request(2, charge=1, smiles="CCO")
    with pytest.raises(BadRequest, match="makes no formal charges"):
        Charge(0).check(model_info("mp20"))


class _nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None
