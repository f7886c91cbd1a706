"""The geometry of cells: every way to write a lattice and back, the torus, minimum images against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moldiff.core.geometry import random_rotations
from moldiff.core.periodic import (
    images,
    inverse,
    lattice_from_log,
    lattice_matrix,
    lattice_parameters,
    log_lattice,
    minimum_image,
    minimum_image_pairs,
    polar,
    six_from_symmetric,
    symmetric_exp,
    symmetric_from_six,
    torus_log,
    volume,
    wrap,
)


def cells(n: int, seed: int = 0) -> Tensor:
    """Random cells of both hands, 3 to 12 Å long with angles of 60 to 120 degrees, each turned its own way: float64."""
    g = torch.Generator().manual_seed(seed)
    lengths = 3 + 9 * torch.rand(n, 3, generator=g, dtype=torch.float64)
    angles = 65 + 50 * torch.rand(n, 3, generator=g, dtype=torch.float64)
    turn = random_rotations(n, g).double()
    turn = torch.linalg.qr(turn).Q  # orthogonal to float64's precision, of either hand
    return lattice_matrix(lengths, angles) @ turn


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_wrap_stays_in_the_cell_and_moves_by_whole_cells(values: list[float]) -> None:
    x = torch.tensor(values)
    y = wrap(x)
    assert bool(((y >= 0) & (y < 1)).all())
    torch.testing.assert_close(wrap(y), y, rtol=0, atol=0)
    shift = x.double() - y.double()
    assert float((shift - shift.round()).abs().max()) < 1e-4


def test_wrap_of_a_tiny_negative_number_is_zero() -> None:
    assert wrap(torch.tensor([-1e-9, 1.0, -0.0, 2.25])).tolist() == [0.0, 0.0, 0.0, 0.25]


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(-3, 3))
@settings(max_examples=60, deadline=None)
def test_torus_log_leads_from_start_to_end_the_short_way(a: float, b: float, k: int) -> None:
    start, end = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    way = torus_log(start, end)
    assert float(way.abs()) <= 0.5
    assert float(torus_log(start + way, end).abs()) < 1e-12
    gap = torus_log(start, end + k) - way
    assert float((gap - gap.round()).abs()) < 1e-12 and (abs(float(way)) > 0.499 or abs(float(gap)) < 1e-12)
    assert float(way + torus_log(end, start)) == pytest.approx(0, abs=1e-12)


def test_lattice_parameters_and_matrix_are_inverse() -> None:
    lattice = cells(300)
    lengths, angles = lattice_parameters(lattice)
    torch.testing.assert_close(lengths, torch.linalg.vector_norm(lattice, dim=-1))
    again = lattice_matrix(lengths, angles)
    torch.testing.assert_close(again @ again.mT, lattice @ lattice.mT)
    for one, two in zip(lattice_parameters(again), (lengths, angles), strict=True):
        torch.testing.assert_close(one, two)


def test_lattice_parameters_of_known_cells() -> None:
    hexagonal = torch.tensor([[2.0, 0, 0], [-1, math.sqrt(3), 0], [0, 0, 5]], dtype=torch.float64)
    lengths, angles = lattice_parameters(hexagonal)
    torch.testing.assert_close(lengths, torch.tensor([2.0, 2, 5], dtype=torch.float64))
    torch.testing.assert_close(angles, torch.tensor([90.0, 90, 120], dtype=torch.float64))
    assert float(volume(hexagonal)) == pytest.approx(10 * math.sqrt(3))
    assert bool(lattice_matrix(torch.ones(3), torch.tensor([170.0, 10.0, 20.0])).isnan().any())  # closes no cell


def test_volume_and_inverse() -> None:
    lattice = cells(200)
    torch.testing.assert_close(volume(lattice), torch.linalg.det(lattice).abs())
    torch.testing.assert_close(inverse(lattice), torch.linalg.inv(lattice))


def test_log_lattice_and_back() -> None:
    lattice = cells(300)
    six = log_lattice(lattice)
    again = lattice_from_log(six)
    torch.testing.assert_close(again, again.mT)
    torch.testing.assert_close(again @ again.mT, lattice @ lattice.mT)
    torch.testing.assert_close(log_lattice(again), six)
    torch.testing.assert_close(six[:, 5].exp(), volume(lattice))


def test_any_six_numbers_are_a_cell() -> None:
    six = torch.randn(300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    six[:, 5] += 4
    torch.testing.assert_close(log_lattice(lattice_from_log(six)), six)
    cube = lattice_from_log(torch.tensor([0.0, 0, 0, 0, 0, math.log(27)], dtype=torch.float64))
    torch.testing.assert_close(cube, 3 * torch.eye(3, dtype=torch.float64))


def test_float32_keeps_its_digits() -> None:
    lattice = cells(300)
    again = lattice_from_log(log_lattice(lattice.float())).double()
    gram = lattice @ lattice.mT
    assert float(((again @ again.mT - gram) / gram.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]).abs().max()) < 3e-6


def test_log_lattice_does_not_see_a_turn_and_polar_finds_it() -> None:
    lattice = cells(100)
    turn = torch.linalg.qr(torch.randn(100, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    torch.testing.assert_close(log_lattice(lattice @ turn), log_lattice(lattice))
    stretch, rotation = polar(lattice @ turn)
    torch.testing.assert_close(stretch @ rotation, lattice @ turn)
    torch.testing.assert_close(stretch, lattice_from_log(log_lattice(lattice)))
    eye = torch.eye(3, dtype=torch.float64).expand(100, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, eye)


def test_six_numbers_of_a_symmetric_matrix() -> None:
    six = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = symmetric_from_six(six)
    torch.testing.assert_close(matrix, matrix.mT)
    torch.testing.assert_close(six_from_symmetric(matrix), six)
    torch.testing.assert_close(matrix.diagonal(dim1=-2, dim2=-1).sum(-1), six[:, 5])
    shape = matrix - six[:, 5, None, None] / 3 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(shape.square().sum((-1, -2)), six[:, :5].square().sum(-1))  # an isometry


def test_symmetric_exp_is_the_matrix_exponential_with_gradients_where_eigenvalues_are_equal() -> None:
    six = 3 * torch.randn(100, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(symmetric_exp(symmetric_from_six(six)), torch.linalg.matrix_exp(symmetric_from_six(six)))
    cubic = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: symmetric_exp(symmetric_from_six(x)), cubic)


def reduced_cells(n: int) -> Tensor:
    """Minkowski-reduced random cells, by taking the shortest sums until none is shorter."""
    out = []
    for lattice in cells(n, 5):
        while True:
            lattice = lattice[torch.linalg.vector_norm(lattice, dim=-1).argsort()]
            a, b, c = lattice
            sums = torch.stack([c + i * a + j * b for i in (-1, 0, 1) for j in (-1, 0, 1)])
            best = sums[torch.linalg.vector_norm(sums, dim=-1).argmin()]
            shorter = min((b - a, b + a, b), key=lambda v: float(torch.linalg.vector_norm(v)))
            if torch.linalg.vector_norm(best) > torch.linalg.vector_norm(c) - 1e-9 and bool((shorter == b).all()):
                break
            lattice = torch.stack([a, shorter, best if bool((shorter == b).all()) else c])
        out.append(lattice)
    return torch.stack(out)


def test_minimum_image_is_the_shortest_of_all() -> None:
    lattice = reduced_cells(40)
    g = torch.Generator().manual_seed(2)
    x = 6 * torch.rand(40, 5, 3, generator=g, dtype=torch.float64) - 3
    found = minimum_image_pairs(x, lattice)
    # brute force over 343 images
    way = (x[:, None] - x[:, :, None])[..., None, :]
    way = way - way.round() + images(3, way)
    vectors = way @ lattice[:, None, None]
    shortest = torch.linalg.vector_norm(vectors, dim=-1).amin(-1)
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=-1), shortest)
    # and it leads to an image of the other atom
    landed = found @ inverse(lattice)[:, None] - (x[:, None] - x[:, :, None])
    assert float((landed - landed.round()).abs().max()) < 1e-9
    torch.testing.assert_close(minimum_image(x, x, lattice), torch.zeros_like(x))
