"""Valences held: elements drawn as closed shells exactly, graphs read together exactly, what is known untouched."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from moldiff.chem.valence import VALENCES
from moldiff.core.batch import AtomBatch
from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion.registry import build_diffusion
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.model_store import model_info
from moldiff.sampling.allowed import as_set
from moldiff.sampling.closed_shell import draw_even, likeliest_even
from moldiff.sampling.joint_graph import FAR, Graph, JointGraph
from moldiff.valences import Valences
from moldiff.verbs import specs_from

WORDS = Vocabulary({"atom_types": [1, 6, 7, 8], "charges": [-1, 0, 1], "bond_types": [0, 1, 2, 3]})
ODD = torch.tensor([True, False, True, False])
PROCESS = {"process": "categorical", "schedule": {"name": "variance_exploding"}}
DIFFUSION = build_diffusion(dict.fromkeys(("atom_types", "charges", "bond_types"), PROCESS), WORDS)


def total_variation(classes: torch.Tensor, chances: np.ndarray) -> float:
    """Between the frequencies of rows of classes [M, N] and chances over all of them [C, ..., C]."""
    counts = np.zeros(chances.shape)
    np.add.at(counts, tuple(classes.T.numpy()), 1)
    return 0.5 * np.abs(counts / len(classes) - chances).sum()


def all_chances(logits: torch.Tensor, wanted: bool) -> np.ndarray:
    """The product of independent chances given the parity, over all classes of the atoms of logits [N, C]."""
    p, n = logits.softmax(-1).numpy(), len(logits)
    out = np.zeros((p.shape[1],) * n)
    for at in itertools.product(range(p.shape[1]), repeat=n):
        even = sum(bool(ODD[c]) for c in at) % 2 == 0
        out[at] = np.prod([p[i, c] for i, c in enumerate(at)]) * (even == wanted)
    return out / out.sum()


def draws(logits: torch.Tensor, n: int = 40_000) -> torch.Tensor:
    u = torch.rand(n, logits.shape[0], logits.shape[1] + 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mask = torch.ones(n, logits.shape[0], dtype=torch.bool)
    return draw_even(logits.expand(n, -1, -1), ODD, mask, u.clamp(1e-12, 1 - 1e-12))


def test_even_draws_follow_the_conditioned_chances():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = draws(logits)
    assert not (ODD[found].sum(1) % 2).any()
    assert total_variation(found, all_chances(logits, True)) < 0.015
    assert total_variation(found, all_chances(logits, False)) > 0.9  # the measure tells parities apart


def test_even_draws_leave_padding_and_certain_atoms_alone():
    logits = torch.tensor([[[40.0, 0, 0, 0], [0, 40.0, 0, 0], [0, 3.0, 1.0, 0], [40.0, 0, 0, 0]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    u = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert draw_even(logits, ODD, mask, u).tolist() == [[0, 1, 2, 0]]  # H, C, and so N, although C is likelier
    hopeless = torch.full((1, 1, 4), -1e9, dtype=torch.float64)
    hopeless[..., 0] = 0
    assert draw_even(hopeless, ODD, mask[:, :1], u[:, :1]).tolist() == [[0]]  # one hydrogen alone has no chance to be even


def test_the_likeliest_even_classes_are_those_of_a_search():
    rng = torch.Generator().manual_seed(2)
    for _ in range(40):
        logits = torch.randn(4, 4, generator=rng, dtype=torch.float64)
        best = max(
            (at for at in itertools.product(range(4), repeat=4) if sum(bool(ODD[c]) for c in at) % 2 == 0),
            key=lambda at: sum(float(logits[i, c]) for i, c in enumerate(at)),
        )
        assert tuple(likeliest_even(logits[None], ODD, torch.ones(1, 4, dtype=torch.bool))[0].tolist()) == best


def test_no_atom_becomes_a_forbidden_class_to_be_even():
    logits = torch.tensor([[[0.0, -1e9, 1.0, -1e9]] * 3], dtype=torch.float64)  # hydrogen and nitrogen alone, three of them
    assert likeliest_even(logits, ODD, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[2, 2, 2]]


def read(numbers, charges, bond_logits, charge_logits=None, **options):
    """What JointGraph makes of one system whose own reading is the argmax; numbers, charges and orders of what comes out."""
    n = len(numbers)
    types = torch.tensor([[WORDS.values["atom_types"].index(z) for z in numbers]])
    if charge_logits is None:
        charge_logits = 8.0 * torch.nn.functional.one_hot(torch.tensor([[q + 1 for q in charges]]), 3).float()
    x0 = AtomBatch(
        torch.ones(1, n, dtype=torch.bool),
        {"atom_types": types, "charges": charge_logits.argmax(-1), "bond_types": bond_logits.argmax(-1)},
    )
    prediction = x0.replace(charges=charge_logits, bond_types=bond_logits)
    made = WORDS.decode(JointGraph(WORDS, VALENCES, **options).read(prediction, x0, DIFFUSION))
    return made.charges[0].tolist(), made.bond_types[0]


def bond_logits(n: int, chances: dict[tuple[int, int], tuple[float, ...]]) -> torch.Tensor:
    """Logits [1, N, N, 4]: certainly no bond but between these pairs, whose chances of 0, 1, 2, 3 are given."""
    out = torch.zeros(1, n, n, 4)
    out[..., 0] = 20.0
    for (i, j), p in chances.items():
        out[0, i, j] = out[0, j, i] = torch.tensor(p).log()
    return out


CERTAIN = (1e-6, 1 - 3e-6, 1e-6, 1e-6)


def test_bonds_that_are_wrong_together_are_read_together():
    """Formaldehyde whose double bond is read as a single one, by a little."""
    logits = bond_logits(4, {(0, 1): (0.01, 0.5, 0.48, 0.01), (0, 2): CERTAIN, (0, 3): CERTAIN})
    assert int(logits.argmax(-1)[0, 0, 1]) == 1
    charges, orders = read([6, 8, 1, 1], [0, 0, 0, 0], logits)
    assert int(orders[0, 1]) == int(orders[1, 0]) == 2 and charges == [0, 0, 0, 0]
    assert int(orders.sum()) == 2 * 4


def test_charges_are_read_with_bonds():
    """Ammonia oxide, whose charges are a little less likely than none."""
    logits = bond_logits(5, {(0, 1): CERTAIN, (0, 2): CERTAIN, (0, 3): CERTAIN, (0, 4): CERTAIN})
    charged = torch.zeros(1, 5, 3)
    charged[..., 1] = 6.0
    charged[0, 0, 2] = charged[0, 4, 0] = 5.5
    charges, orders = read([7, 1, 1, 1, 8], [0] * 5, logits, charged)
    assert charges == [1, 0, 0, 0, -1]
    assert orders[0].tolist() == [0, 1, 1, 1, 1]


def test_the_read_graph_is_that_of_a_search():
    """All graphs of two carbons, oxygen and two hydrogens without charges, tried one by one."""
    rng = torch.Generator().manual_seed(5)
    numbers = [6, 6, 8, 1, 1]
    n, pairs = 5, list(itertools.combinations(range(5), 2))
    valence = {1: 1, 6: 4, 8: 2}
    charged = torch.zeros(1, n, 3)
    charged[..., 1] = 200.0  # certainly none
    for _ in range(5):
        raw = torch.randn(n, n, 4, generator=rng)
        logits = (raw + raw.transpose(0, 1))[None]
        log_p = logits[0].log_softmax(-1)
        best, chosen = -np.inf, None
        for orders in itertools.product(*(range(4 if j < 3 else 2) for _, j in pairs)):
            sums = [0] * n
            for (i, j), o in zip(pairs, orders, strict=True):
                sums[i] += o
                sums[j] += o
            if any(sums[i] != valence[z] for i, z in enumerate(numbers)):
                continue
            made = np.zeros((n, n), dtype=np.int64)
            for (i, j), o in zip(pairs, orders, strict=True):
                made[i, j] = made[j, i] = o
            if not Graph(np.array(numbers), np.zeros(n, dtype=np.int64), made).right(VALENCES):
                continue
            value = sum(float(log_p[i, j, o]) for (i, j), o in zip(pairs, orders, strict=True))
            if value > best:
                best, chosen = value, made
        _, found = read(numbers, [0] * n, logits, charged, most=1000.0)
        assert chosen is not None and np.array_equal(found.numpy(), chosen)


def test_pieces_are_brought_together():
    """Two fragments whose bond is just not read: the likeliest right graph alone would still be two (H2 and CO)."""
    logits = bond_logits(4, {(0, 1): (1e-6, 1e-6, 0.5, 0.5), (0, 2): (0.5, 0.49, 1e-6, 1e-6), (0, 3): (0.5, 0.49, 1e-6, 1e-6),
                             (2, 3): (0.4, 0.6, 1e-6, 1e-6)})  # fmt: skip
    _, orders = read([6, 8, 1, 1], [0] * 4, logits)
    assert Graph(np.array([6, 8, 1, 1]), np.zeros(4, dtype=np.int64), orders.numpy()).right(VALENCES)
    assert orders[0].tolist() == [0, 2, 1, 1]


def test_what_is_known_or_too_unlikely_or_impossible_stays():
    certain = {(0, 1): (0.0, 1.0, 0.0, 0.0), (0, 2): CERTAIN, (0, 3): CERTAIN}
    logits = bond_logits(4, certain).clamp(-FAR, FAR)
    logits[0, 0, 1] = logits[0, 1, 0] = torch.tensor([-60.0, 60.0, -60.0, -60.0])  # kept, as a fragment's bond is
    _, orders = read([6, 8, 1, 1], [0] * 4, logits)
    assert int(orders[0, 1]) == 1  # not formaldehyde, for the bond was given
    logits = bond_logits(4, {(0, 1): CERTAIN, (0, 2): CERTAIN, (0, 3): CERTAIN})
    _, orders = read([6, 8, 1, 1], [0] * 4, logits, most=5.0)
    assert int(orders[0, 1]) == 1
    _, orders = read([6, 8, 1, 1], [0] * 4, logits, most=20.0)
    assert int(orders[0, 1]) == 2
    logits = bond_logits(3, {(0, 1): CERTAIN, (0, 2): CERTAIN})
    _, orders = read([8, 1, 6], [0] * 3, logits)  # OH and a carbon: an odd number of electrons
    assert orders[0].tolist() == [0, 1, 1]


def test_the_spec_gives_way_and_refuses(tiny_model, tiny_crystal):
    molecules, crystals = model_info(tiny_model), model_info(tiny_crystal)
    assert not specs_from(molecules)
    assert [s.name for s in specs_from(molecules, valences="held")] == ["valences"]
    with pytest.raises(BadRequest, match="held"):
        specs_from(molecules, valences="hold")
    with pytest.raises(BadRequest, match="valences"):
        Generator.from_pretrained(tiny_crystal, device="cpu").sample(1, valences="held", formula="NaCl")
    assert not [s for s in specs_from(crystals) if s.name == "valences"]
    wanted = Generator.from_pretrained(tiny_model, device="cpu")
    given = wanted.request(1, valences="held", formula="CH4")
    assert [s.elements for s in given.controls if isinstance(s, Valences)] == [False]
    assert not [s for s in wanted.request(1, valences="held", smiles="C").controls if isinstance(s, Valences)]
    assert given.settings()["valences"] == "held"


def test_samples_are_even_in_any_company(tiny_model):
    generator = Generator.from_pretrained(tiny_model, device="cpu")
    held = generator.sample(12, seed=1, valences="held")
    assert all(sum(s.numbers.tolist()) % 2 == 0 for s in held)
    assert any(sum(s.numbers.tolist()) % 2 for s in generator.sample(12, seed=1))  # as random weights do
    alone = generator.sample(1, seed=1, start=7, valences="held")[0]
    assert np.array_equal(alone.positions, held[7].positions) and np.array_equal(alone.bond_types, held[7].bond_types)


def test_atoms_that_have_left_the_mask_are_certain():
    """One hydrogen is set, two atoms are masked: they make the number even, and the set one is never another."""
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found = draws(as_set(logits[None], torch.tensor([[0, 4, 4]]))[0], 2000)
    assert (found[:, 0] == 0).all() and not (ODD[found].sum(1) % 2).any()
    assert len(found[:, 1].unique()) == 4
