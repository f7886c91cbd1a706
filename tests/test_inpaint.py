"""Parts given: what is kept comes back bit by bit, the rest is drawn as if it had been known, and wrong requests are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moldiff.chem.fragments import cut_fragment
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.schedules import Straight, VarianceExploding
from moldiff.diffusion.torus import Geodesic
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.keep import Keep, keep_from
from moldiff.sampling.ddpm import DDPM
from moldiff.sampling.grids import uniform_grid
from moldiff.sampling.inpaint import Inpaint, Known
from moldiff.sampling.loop import sample
from moldiff.structures import Structure


@pytest.fixture
def generator(tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu")


ETHANOL = """ethanol
  test

  3  2  0  0  0  0  0  0  0  0999 V2000
   10.1000    0.2000    0.3000 C   0  0  0  0  0  0  0  0  0  0  0  0
   11.5000    0.3000    0.1000 C   0  0  0  0  0  0  0  0  0  0  0  0
   12.1000    1.5000    0.4000 O   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  2  3  1  0
M  END
$$$$
"""


@pytest.fixture
def scaffold(tmp_path):
    path = tmp_path / "ethanol.sdf"
    path.write_text(ETHANOL)
    return path


@pytest.mark.parametrize("resamplings", [1, 3])
def test_kept_atoms_and_bonds_come_back_bit_by_bit(generator, scaffold, resamplings):
    spec = keep_from(scaffold, resamplings=resamplings)
    part = spec.fragment
    for s in generator.sample(5, steps=8, controls=[spec]):
        assert np.array_equal(s.numbers[:3], [6, 6, 8])
        assert s.positions[:3].tobytes() == part.positions.tobytes()  # in the frame of the file, 10 Å from the origin
        assert np.array_equal(s.bond_types[:3, :3], part.bonds) and np.array_equal(s.charges[:3], part.charges)
        assert np.abs(s.positions[3:].mean(0) - part.positions.mean(0)).max() < 1000


def test_a_kept_sample_does_not_depend_on_its_company(generator, scaffold):
    whole = generator.sample(9, steps=6, keep=scaffold, resamplings=2)
    for batch_size in (1, 4):
        again = generator.sample(9, steps=6, keep=scaffold, resamplings=2, batch_size=batch_size)
        assert all(np.array_equal(a.positions, b.positions) for a, b in zip(whole, again, strict=True))


def test_the_rest_follows_the_known_part():
    """Two atoms whose places are normal and correlated, one of them known: the exact conditional comes out."""

    class Pair:
        """Normal with a covariance between the atoms, so the exact denoiser is linear."""

        covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)

        def __call__(self, xt, t, previous=None):
            a, s = schedule.alpha(t)[0].double(), schedule.sigma(t)[0].double()
            gain = a * self.covariance @ torch.linalg.inv(a * a * self.covariance + s * s * torch.eye(3, dtype=torch.float64))
            return AtomBatch(xt.mask, {"positions": (gain.float() @ xt.positions)})

    schedule = VarianceExploding(sigma_max=20.0)
    diffusion = Diffusion({"positions": Gaussian("positions", schedule, scale=1.0)})
    n = 1500
    truth = AtomBatch(torch.ones(n, 3, dtype=torch.bool), {"positions": torch.full((n, 3, 3), 1.5)})
    like = AtomBatch(truth.mask)
    made = {}
    for times in (1, 8):
        control = Inpaint(Known(truth, {"positions": 1}), resamplings=times)
        out = sample(Pair(), diffusion, like, Streams.single(0), DDPM(), uniform_grid(40), control=control)
        assert bool((out.positions[:, 0] == 1.5).all())
        made[times] = float(out.positions[:, 1].mean())
        assert abs(float(out.positions[:, 2].mean())) < 0.1
    # the exact conditional mean is 0.9 x 1.5; resampling must come closer to it than plain replacement, and close
    assert abs(made[8] - 1.35) < 0.12 and abs(made[8] - 1.35) <= abs(made[1] - 1.35) + 0.02, made


def test_a_geodesic_keeps_its_known_atoms_and_refuses_resampling():
    diffusion = Diffusion({"frac_coords": Geodesic("frac_coords", Straight())})

    class Still:
        def __call__(self, xt, t, previous=None):
            return AtomBatch(xt.mask, {"frac_coords": xt.frac_coords})

    truth = AtomBatch(torch.ones(4, 5, dtype=torch.bool), {"frac_coords": torch.rand(4, 5, 3, generator=torch.Generator())})
    known = Known(truth, {"frac_coords": 2})
    out = sample(
        Still(), diffusion, AtomBatch(truth.mask), Streams.single(0), DDPM(), uniform_grid(10), control=Inpaint(known)
    )
    assert torch.equal(out.frac_coords[:, :2], truth.frac_coords[:, :2])
    with pytest.raises(BadRequest, match="noised"):
        sample(
            Still(), diffusion, AtomBatch(truth.mask), Streams.single(0), DDPM(), uniform_grid(10), control=Inpaint(known, 2)
        )


def test_attachment_points_open_only_their_atoms(generator):
    # *-CH2-OH drawn with its hydrogens: everything stays, and only the carbon may be bonded to what is new
    numbers, bonds = [0, 6, 8, 1, 1, 1], np.zeros((6, 6), dtype=int)
    for i, j in ((0, 1), (1, 2), (1, 3), (1, 4), (2, 5)):
        bonds[i, j] = bonds[j, i] = 1
    x = np.random.default_rng(0).normal(size=(6, 3))
    part = cut_fragment(numbers, x, bonds, [0] * 6)
    assert part.numbers.tolist() == [6, 8, 1, 1, 1] and part.open.tolist() == [True, False, False, False, False]
    assert part.n_whole == 5
    for s in generator.sample(6, steps=6, size="6-9", controls=[Keep(part)]):
        assert not s.bond_types[1:5, 5:].any() and not s.bond_types[5:, 1:5].any()
    assert {len(s) for s in generator.sample(12, steps=3, controls=[Keep(part, (1, 3))])} <= {6, 8}


def test_hydrogens_of_a_scaffold_are_free_unless_named(scaffold):
    from moldiff.keep import read_fragment

    assert read_fragment(scaffold).numbers.tolist() == [6, 6, 8]
    assert read_fragment(scaffold).n_whole == 9
    assert read_fragment(scaffold, smarts="[CH2]O").numbers.tolist() == [6, 8]
    assert read_fragment(scaffold, atoms=[2, 0]).numbers.tolist() == [8, 6]


def test_molecules_in_memory_are_kept_and_pieces_are_linked(generator, tmp_path):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    ring = Chem.AddHs(Chem.MolFromSmiles("C1CO1"))
    AllChem.EmbedMolecule(ring, randomSeed=1)
    Chem.MolToMolFile(ring, str(tmp_path / "ring.mol"))
    asked = {"steps": 4, "size": 9, "seed": 2}
    with pytest.warns(UserWarning):
        from_file, from_memory = (generator.sample(2, keep=k, **asked) for k in (tmp_path / "ring.mol", ring))
    for a, b in zip(from_file, from_memory, strict=True):
        assert np.allclose(a.positions[:3], b.positions[:3], atol=1e-4) and np.array_equal(a.numbers[:3], b.numbers[:3])
    x, none = np.array([[0.0, 0, 0], [4.0, 0, 0]], dtype=np.float32), np.zeros((1, 1), dtype=np.int64)
    apart = [Structure(f"o{i}", np.array([8]), x[i : i + 1], none, none[0]) for i in (0, 1)]
    with pytest.warns(UserWarning):
        made = generator.sample(2, keep=apart, steps=4, size=8)
    for s in made:
        assert s.numbers[:2].tolist() == [8, 8] and np.array_equal(s.positions[:2], x)
        assert s.bond_types[0, 1] == 0, "pieces stay apart, and are linked by new atoms alone"
    with pytest.raises(BadRequest, match="can't be kept"):
        generator.request(1, keep=ring_without_bonds())


def ring_without_bonds():
    from ase import Atoms

    return Atoms("CH", positions=[[0, 0, 0], [9, 0, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_smarts": "N"}, "matches nothing"),
        ({"keep_smarts": "C(("}, "not a SMARTS"),
        ({"keep_atoms": "0,7"}, "no atom 7"),
        ({"keep_atoms": "a"}, "atoms to keep are numbers"),
        ({"keep_atoms": "0", "keep_smarts": "C"}, "not by both"),
        ({"grow": "5"}, "makes at most"),
        ({"resamplings": 0}, "at least 1"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(generator, scaffold, options, message):
    with pytest.raises(BadRequest, match=message):
        generator.sample(2, steps=4, keep=scaffold, **options)


def test_foreign_elements_and_impossible_sizes_are_refused(generator, scaffold, tmp_path):
    foreign = tmp_path / "thiol.sdf"
    foreign.write_text(ETHANOL.replace(" O  ", " S  "))
    with pytest.raises(BadRequest, match="contains S, which tiny does not know"):
        generator.sample(2, keep=foreign)
    water = cut_fragment([8, 1, 1], np.eye(3), [[0, 1, 1], [1, 0, 0], [1, 0, 0]], [0, 0, 0], atoms=[0, 1, 2])
    with pytest.raises(BadRequest, match="4 to 5 atoms"):
        generator.sample(2, controls=[Keep(water, (1, 2))], size="6-8")
    with pytest.raises(BadRequest, match="--keep"):
        generator.sample(2, grow=3)
