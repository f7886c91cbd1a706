"""Distances with known answers, and intervals that cover at the stated rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rdkit import Chem

from moldiff.chem.bonds import Bonds, bonds_of
from moldiff.evaluation import bootstrap
from moldiff.evaluation.molecules.distributions import (
    BINS,
    add_profile,
    by_type,
    collect,
    distances,
    diversity,
    profile,
    total_variation,
    wasserstein,
)
from moldiff.evaluation.molecules.geometry import bond_angles, internals, rmsd, torsion_angles, torsion_difference
from moldiff.evaluation.molecules.groups import GROUPS, NAMES, functional_groups

RNG = np.random.default_rng(5)


def histogram(family: str, values: np.ndarray) -> np.ndarray:
    return np.bincount(BINS[family].index(values), minlength=BINS[family].n)


def test_shifted_gaussians_are_as_far_apart_as_their_means() -> None:
    values = RNG.normal(1.4, 0.03, 200_000)
    a, b = histogram("bond_length", values), histogram("bond_length", values + 0.05)
    assert wasserstein(a, b, BINS["bond_length"].width) == pytest.approx(0.05, abs=1e-6)
    wider = histogram("bond_length", 1.4 + (values - 1.4) * 2)
    # Between N(m, s) and N(m, 2 s) it is s E|z|.
    assert wasserstein(a, wider, BINS["bond_length"].width) == pytest.approx(0.03 * math.sqrt(2 / math.pi), rel=0.01)
    assert wasserstein(a, a, 0.001) == 0.0


def test_wasserstein_agrees_with_scipy() -> None:
    from scipy.stats import wasserstein_distance

    a, b = RNG.normal(109, 4, 500), RNG.gamma(50, 2.2, 700)
    ours = wasserstein(histogram("angle", a), histogram("angle", b), BINS["angle"].width)
    assert ours == pytest.approx(wasserstein_distance(a, b), abs=BINS["angle"].width)


def test_torsions_take_the_short_way_round() -> None:
    a, b = histogram("torsion", np.full(10, 179.5)), histogram("torsion", np.full(10, -178.5))
    assert wasserstein(a, b, 1.0, circular=True) == pytest.approx(2.0)
    assert wasserstein(a, b, 1.0) == pytest.approx(358.0)
    opposite = histogram("torsion", np.array([0.5] * 10)), histogram("torsion", np.array([-179.5] * 10))
    assert wasserstein(*opposite, 1.0, circular=True) == pytest.approx(180.0)
    assert torsion_difference(np.array([179.0]), np.array([-179.0])) == pytest.approx(2.0)


def test_total_variation() -> None:
    assert total_variation(np.array([1, 1]), np.array([2, 2])) == 0.0
    assert total_variation(np.array([3, 0]), np.array([0, 1])) == 1.0
    assert total_variation(np.array([3, 1]), np.array([1, 1])) == pytest.approx(0.25)


def butane(torsion: float) -> tuple[np.ndarray, np.ndarray, Bonds]:
    """Four carbon atoms with a given torsion; bonds 1.5 Å, angles 90 degrees."""
    turn = math.radians(torsion)
    x = np.array([[1.5, 0, 0], [0, 0, 0], [0, 0, 1.5], [1.5 * math.cos(turn), -1.5 * math.sin(turn), 1.5]])
    # Seen along the second bond a positive torsion turns clockwise.
    return np.full(4, 6), x, Bonds(np.array([[0, 1], [1, 2], [2, 3]], dtype=np.int16), np.ones(3, np.int8), np.zeros(4, np.int8))


@pytest.mark.parametrize("torsion", [60.0, -60.0, 179.0, 0.0])
def test_internal_coordinates(torsion: float) -> None:
    from rdkit.Chem import rdMolTransforms
    from rdkit.Geometry import Point3D

    z, x, bonds = butane(torsion)
    inner = internals(z, bonds)
    assert (inner.bond_labels, inner.angle_labels, inner.torsion_labels) == (["C-C"] * 3, ["C-C-C"] * 2, ["C-C"])
    assert bond_angles(x, inner.angles) == pytest.approx([90, 90])
    conformer = Chem.Conformer(4)
    for i, point in enumerate(x):
        conformer.SetAtomPosition(i, Point3D(*point))
    ours = torsion_angles(x, inner.torsions)[0]
    assert abs(ours) == pytest.approx(abs(torsion), abs=1e-9)
    assert ours == pytest.approx(rdMolTransforms.GetDihedralDeg(conformer, 0, 1, 2, 3), abs=1e-6)


def test_straight_angles_have_no_torsion() -> None:
    x = np.array([[0.0, 0, 0], [0, 0, 1.2], [0, 0, 2.4], [1, 0, 3]])
    assert np.isnan(torsion_angles(x, np.array([[0, 1, 2, 3]]))).all()


def test_rmsd_ignores_motion_but_not_reflection() -> None:
    x = RNG.normal(size=(7, 3))
    turn, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    assert rmsd(x, x @ turn.T + 3.0) == pytest.approx(0.0, abs=1e-6)
    assert rmsd(x, x * [1, 1, -1]) > 0.1
    pair = np.array([[0.0, 0, 0], [0, 0, 1]])
    assert rmsd(pair, pair * 1.2) == pytest.approx(0.1)


def test_distances_of_a_set_from_itself_and_from_a_stretched_one() -> None:
    def stretched(scale: float) -> list[dict[str, np.ndarray]]:
        return [profile(z, x * scale, bonds, None) for z, x, bonds in (butane(t) for t in range(0, 180, 2))]

    counts: dict[str, np.ndarray] = {}
    for one in stretched(1.0):
        add_profile(counts, one)
    same = distances(collect(stretched(1.0)), counts, n_resamples=20)
    assert all(e.value == 0 for e in same.values())
    other = distances(collect(stretched(1.02)), counts, n_resamples=20)
    assert other["bond_length_wasserstein"].value == pytest.approx(0.03, abs=1e-3)
    assert other["angle_wasserstein"].value == 0 and other["element_tv"].value == 0
    assert by_type(collect(stretched(1.02)), counts, "bond_length")["C-C"] == pytest.approx((1.0, 0.03), abs=1e-3)
    assert "ring_size_tv" not in other


def test_types_that_the_samples_lack_show_in_the_type_distance() -> None:
    z, x, bonds = butane(60)
    counts: dict[str, np.ndarray] = {}
    add_profile(counts, profile(z, x, bonds, None))
    add_profile(
        counts,
        profile(
            [8, 6],
            [[0, 0, 0], [0, 0, 1.2]],
            Bonds(np.array([[0, 1]], np.int16), np.array([2], np.int8), np.zeros(2, np.int8)),
            None,
        ),
    )
    found = distances(collect([profile(z, x, bonds, None)]), counts, n_resamples=5)
    assert found["bond_type_tv"].value == pytest.approx(0.25)
    assert found["bond_length_wasserstein"].value == 0.0
    assert math.isnan(by_type(collect([profile(z, x, bonds, None)]), counts, "bond_length")["C=O"][1])


def test_functional_groups() -> None:
    assert all(Chem.MolFromSmarts(smarts) is not None for smarts in GROUPS.values())

    def names(smiles: str) -> set[str]:
        return {NAMES[i] for i in functional_groups(Chem.AddHs(Chem.MolFromSmiles(smiles)))}

    assert names("CC") == {"none"}
    assert names("CCO") == {"alcohol"}
    assert names("CC(=O)OC") == {"ester"}
    assert names("CC(N)=O") == {"amide"}
    assert names("C1CO1") == {"epoxide"}
    assert names("CC=O") == {"aldehyde"}
    assert names("C[N+](=O)[O-]") == {"nitro"}
    assert names("CC#N") == {"nitrile"}
    assert names("COC") == {"ether"}
    assert names("c1ccncc1") == {"heteroarene, 6"}
    ring = profile([6, 6, 6], None, None, Chem.MolFromSmiles("C1CC1"))
    assert ring["ring_size"].tolist() == [3]
    assert bonds_of(Chem.MolFromSmiles("C1CC1")).types.tolist() == [1, 1, 1]


def test_diversity() -> None:
    assert diversity(["CCO"] * 5, n_resamples=5).value == 0.0
    assert diversity(["CCO", "c1ccncc1"], n_resamples=5).value == 1.0
    assert math.isnan(diversity(["C"]).value)


def coverage(draw: object, truth: float, n_trials: int = 300) -> float:
    hits = 0
    for trial in range(n_trials):
        estimate = draw(np.random.default_rng(trial))  # type: ignore[operator]
        hits += estimate.low <= truth <= estimate.high
    return hits / n_trials


def test_interval_of_a_rate_covers() -> None:
    def draw(rng: np.random.Generator) -> bootstrap.Estimate:
        return bootstrap.mean((rng.random(200) < 0.9).astype(float), n_resamples=300)

    assert 0.91 <= coverage(draw, 0.9) <= 0.98


def test_interval_of_a_ratio_of_sums_covers() -> None:
    # Stable atoms over atoms: samples vary together, so counting atoms as independent would cover too rarely.
    def draw(rng: np.random.Generator) -> bootstrap.Estimate:
        atoms = rng.integers(10, 26, 200).astype(float)
        return bootstrap.ratio(np.where(rng.random(200) < 0.8, atoms, atoms - 5), atoms, n_resamples=300)

    assert 0.91 <= coverage(draw, 1 - 0.2 * 5 / 17.5) <= 0.98


def test_interval_of_a_median_covers() -> None:
    def draw(rng: np.random.Generator) -> bootstrap.Estimate:
        return bootstrap.median(rng.exponential(1.0, 101), n_resamples=300)

    assert 0.91 <= coverage(draw, math.log(2)) <= 0.98


def test_interval_of_a_distance_covers() -> None:
    bins = BINS["bond_length"]
    reference = histogram("bond_length", np.random.default_rng(0).normal(1.5, 0.02, 1_000_000))

    def draw(rng: np.random.Generator) -> bootstrap.Estimate:
        index = bins.index(rng.normal(1.52, 0.02, 300))

        def statistic(weights: np.ndarray) -> float:
            return wasserstein(np.bincount(index, weights, minlength=bins.n), reference, bins.width)

        return bootstrap.distance(statistic(np.ones(300)), 300, statistic, n_resamples=100)

    assert 0.89 <= coverage(draw, 0.02, 150) <= 0.99


def test_intervals_at_the_edges() -> None:
    perfect = bootstrap.mean(np.ones(100))
    assert (perfect.value, perfect.high, perfect.method) == (1.0, 1.0, "exact")
    assert perfect.low == pytest.approx(0.025 ** (1 / 100))
    nothing = bootstrap.mean(np.zeros(100))
    assert nothing.low == 0.0 and nothing.high == pytest.approx(1 - 0.025 ** (1 / 100))
    assert bootstrap.ratio(np.zeros(3), np.zeros(3)).n == 0
    assert math.isnan(bootstrap.median(np.array([math.nan])).value)
    worst = bootstrap.median(np.array([1.0, 2.0, math.inf]))
    assert worst.value == 2.0 and math.isinf(worst.high)
    assert worst.to_dict()["high"] is None


def test_intervals_repeat() -> None:
    values = RNG.normal(size=50)
    assert bootstrap.mean(values) == bootstrap.mean(values)
    assert bootstrap.Estimate.from_dict(bootstrap.mean(values).to_dict()) == bootstrap.mean(values)
