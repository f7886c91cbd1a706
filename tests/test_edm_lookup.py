"""EDM's distance look-up: its thresholds to the picometre, and molecules with known verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from moldiff.chem.edm import THRESHOLDS, edm_bond_orders, edm_stable_atoms
from moldiff.chem.molecules import build_molecule


def order_at(a: int, b: int, picometres: float) -> int:
    return int(edm_bond_orders([a, b], [[0.0, 0.0, 0.0], [0.0, 0.0, picometres / 100]])[0, 1])


@pytest.mark.parametrize(
    ("pair", "limits"),
    [
        ((6, 6), (164, 139, 123)),
        ((6, 7), (157, 134, 119)),
        ((6, 8), (153, 125, 116)),
        ((7, 7), (155, 130, 113)),
        ((7, 8), (150, 126, None)),
        ((8, 8), (158, 126, None)),
        ((1, 6), (119, None, None)),
        ((1, 7), (111, None, None)),
        ((1, 8), (106, None, None)),
        ((1, 1), (84, None, None)),
        ((6, 9), (145, None, None)),
        ((16, 16), (214, None, None)),
    ],
)
def test_thresholds(pair: tuple[int, int], limits: tuple[int | None, ...]) -> None:
    for order, limit in enumerate(limits, start=1):
        if limit is not None:
            assert order_at(*pair, limit - 0.1) == order_at(*pair[::-1], limit - 0.1) == order
            assert order_at(*pair, limit + 0.1) == order - 1
        else:
            assert order_at(*pair, 60) < order


def test_tables_are_symmetric_and_nested() -> None:
    np.testing.assert_array_equal(THRESHOLDS, THRESHOLDS.transpose(0, 2, 1))
    assert (THRESHOLDS[2][THRESHOLDS[2] > 0] < THRESHOLDS[1][THRESHOLDS[2] > 0]).all()
    assert (THRESHOLDS[1][THRESHOLDS[1] > 0] < THRESHOLDS[0][THRESHOLDS[1] > 0]).all()
    assert (THRESHOLDS[0] > 0).sum() == 2 * 64 - 11  # 64 pairs of elements, 11 of them of one element
    assert order_at(6, 80, 150) == 0


WATER = ([8, 1, 1], [[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])
NITROGEN = ([7, 7], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.098]])
HYDROGEN_CYANIDE = ([6, 7, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.156], [0.0, 0.0, -1.065]])
FORMALDEHYDE = ([6, 8, 1, 1], [[0.0, 0.0, -0.528], [0.0, 0.0, 0.677], [0.0, 0.938, -1.118], [0.0, -0.938, -1.118]])


@pytest.mark.parametrize("molecule", [WATER, NITROGEN, HYDROGEN_CYANIDE, FORMALDEHYDE])
def test_small_molecules_are_stable(molecule: tuple[list[int], list[list[float]]]) -> None:
    assert edm_stable_atoms(*molecule).all()
    assert build_molecule(*molecule, infer="edm").valid


def test_stretched_water_is_not_stable() -> None:
    numbers, positions = WATER
    stretched = np.array(positions)
    stretched[1] *= 1.4
    assert edm_stable_atoms(numbers, stretched).tolist() == [False, False, True]


def test_charges_play_no_part() -> None:
    # Ammonium: four single bonds at nitrogen, of which EDM allows three.
    corner = 1.02 / np.sqrt(3)
    positions = corner * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    assert edm_stable_atoms([7, 1, 1, 1, 1], positions).tolist() == [False, True, True, True, True]


def test_carbene_and_unknown_elements_are_unstable_and_nan_is_no_bond() -> None:
    assert edm_stable_atoms([6, 1, 1], [[0, 0, 0], [0, 0.98, 0.5], [0, -0.98, 0.5]]).tolist() == [False, True, True]
    assert edm_stable_atoms([26], [[0.0, 0.0, 0.0]]).tolist() == [False]
    assert edm_bond_orders([6, 6], [[0, 0, 0], [np.nan, 0, 0]]).sum() == 0
    assert edm_bond_orders([], np.zeros((0, 3))).shape == (0, 0)
