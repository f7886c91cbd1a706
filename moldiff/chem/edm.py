"""EDM's distance look-up: bond orders and stability from bare coordinates, with its published lengths and margins (no RDKit).

Source: Hoogeboom, Garcia Satorras, Vignac and Welling, "Equivariant Diffusion for Molecule Generation in 3D", ICML 2022,
appendix.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SYMBOLS = {
    "H": 1, "B": 5, "C": 6, "N": 7, "O": 8, "F": 9, "Al": 13, "Si": 14, "P": 15, "S": 16, "Cl": 17, "As": 33, "Br": 35,
    "I": 53, "Hg": 80, "Bi": 83,
}  # fmt: skip
#: Typical lengths in picometres.
SINGLE = (
    "H-H 74  H-B 119  H-C 109  H-N 101  H-O 96  H-F 92  H-Si 148  H-P 144  H-S 134  H-Cl 127  H-As 152  H-Br 141  H-I 161 "
    "B-Cl 175  C-C 154  C-N 147  C-O 143  C-F 135  C-Si 185  C-P 184  C-S 182  C-Cl 177  C-Br 194  C-I 214 "
    "N-N 145  N-O 140  N-F 136  N-P 177  N-S 168  N-Cl 175  N-Br 214  N-I 222 "
    "O-O 148  O-F 142  O-Si 163  O-P 163  O-S 151  O-Cl 164  O-Br 172  O-I 194 "
    "F-F 142  F-Si 160  F-P 156  F-S 158  F-Cl 166  F-Br 178  F-I 187 "
    "Si-Si 233  Si-S 200  Si-Cl 202  Si-Br 215  Si-I 243  P-P 221  P-S 210  P-Cl 203  P-Br 222 "
    "S-S 204  S-Cl 207  S-Br 225  S-I 234  Cl-Cl 199  Cl-Br 214  Br-Br 228  I-I 266"
)
DOUBLE = "C-C 134  C-N 129  C-O 120  C-S 160  N-N 125  N-O 121  O-O 121  O-P 150  P-S 186"
TRIPLE = "C-C 120  C-N 116  C-O 113  N-N 110"
#: A distance below length + margin (pm) is a bond of that order; the highest order that fits is taken.
MARGINS = (10, 5, 3)
#: Numbers of bonds (summed orders) that make an atom stable; charges play no part.
ALLOWED: dict[int, tuple[int, ...]] = {
    1: (1,), 5: (3,), 6: (4,), 7: (3,), 8: (2,), 9: (1,), 13: (3,), 14: (4,), 15: (3, 5), 16: (4,), 17: (1,), 33: (3,),
    35: (1,), 53: (1,), 80: (1, 2), 83: (3, 5),
}  # fmt: skip


def _thresholds() -> NDArray[np.float64]:
    """Upper distances in Å, [3, 119, 119] by order and atomic numbers; -1 where the pair has no such bond."""
    table = np.full((3, 119, 119), -1.0)
    for order, (text, margin) in enumerate(zip((SINGLE, DOUBLE, TRIPLE), MARGINS, strict=True)):
        words = text.split()
        for pair, length in zip(words[::2], words[1::2], strict=True):
            a, b = (SYMBOLS[symbol] for symbol in pair.split("-"))
            table[order, a, b] = table[order, b, a] = (int(length) + margin) / 100
    return table


THRESHOLDS = _thresholds()


def edm_bond_orders(numbers: ArrayLike, positions: ArrayLike) -> NDArray[np.int8]:
    """Infer bond orders 0..3 as a symmetric matrix [N, N] from atomic numbers [N] and positions [N, 3] (Å).

    Pairs of elements that the tables lack, and non-finite distances, have order 0. The published carbon-sulphur double bond
    depends on which atom comes first; here it holds in both directions.
    """
    z = np.asarray(numbers, dtype=np.int64)
    x = np.asarray(positions, dtype=np.float64).reshape(len(z), 3)
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    limits = THRESHOLDS[:, z[:, None], z[None, :]]
    single, double, triple = distances[None] < limits
    # A shorter class counts only inside the longer one, as in the published nesting.
    orders = single.astype(np.int8) + (single & double) + (single & double & triple)
    np.fill_diagonal(orders, 0)
    return np.asarray(orders, dtype=np.int8)


def edm_stable_atoms(numbers: ArrayLike, positions: ArrayLike) -> NDArray[np.bool_]:
    """Tell for each atom whether EDM's look-up gives it an allowed number of bonds; a molecule is stable when all atoms are."""
    z = np.asarray(numbers, dtype=np.int64)
    valence = edm_bond_orders(z, positions).sum(axis=-1, dtype=np.int64)
    return np.array([v in ALLOWED.get(a, ()) for a, v in zip(z.tolist(), valence.tolist(), strict=True)], dtype=np.bool_)
