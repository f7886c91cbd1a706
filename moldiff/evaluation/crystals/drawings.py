"""Pictures of single crystals: the cell with its atoms as SVG, and text for the 3D view."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal

SIZE = 150
#: Atoms this near to a face (fractional) are drawn on the opposite one too, as people expect of a cell.
_FACE = 0.03
#: More atoms than this are too many for a picture; the first ones are drawn.
_MOST = 400
_LONGEST = 1e3
_CORNERS = np.array(list(product((0.0, 1.0), repeat=3)))
_EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 1]


def drawable(crystal: Crystal | None) -> bool:
    """Tell whether there is anything to draw: atoms, finite numbers, known elements and a cell of some size."""
    if crystal is None or not len(crystal):
        return False
    finite = np.isfinite(crystal.frac_coords).all() and np.isfinite(crystal.lattice).all()
    known = crystal.numbers.min() >= 1 and crystal.numbers.max() <= 118
    return bool(finite and known and 0 < crystal.lengths.max() < _LONGEST)


def cell_svg(crystal: Crystal, size: int = SIZE) -> str:
    """Draw the cell and its atoms (those on faces on all of them), nearer ones in front; empty where nothing can be drawn."""
    from ase.data import chemical_symbols, covalent_radii

    if not drawable(crystal):
        return ""
    numbers, points = _with_faces(crystal)
    corners = _CORNERS @ crystal.lattice
    turn = _view(crystal)
    points, corners = points @ turn, corners @ turn
    middle = (corners.min(0) + corners.max(0)) / 2
    radii = 0.45 * np.array([covalent_radii[z] if z < len(covalent_radii) else 1.7 for z in numbers.tolist()])
    # The cell fills the picture; in small ones the atoms give way.
    reach = max(float(np.abs((corners - middle)[:, :2]).max()), 1e-6)
    radii = np.minimum(radii, 0.3 * reach)
    reach = max(reach, float(np.abs((points - middle)[:, :2]).max() + radii.max())) * 1.04
    scale = size / (2 * reach)

    def place(p: NDArray[np.float64]) -> tuple[float, float]:
        return size / 2 + scale * float(p[0] - middle[0]), size / 2 - scale * float(p[1] - middle[1])

    parts: list[tuple[float, str]] = []
    farthest = int(np.argmin(corners[:, 2]))
    for i, j in _EDGES:
        (x1, y1), (x2, y2) = place(corners[i]), place(corners[j])
        dash = ' stroke-dasharray="3 2"' if farthest in (i, j) else ""
        line = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#8c959f" stroke-width="1"{dash}/>'
        parts.append((float(min(corners[i, 2], corners[j, 2])), line))
    depth = (points[:, 2] - points[:, 2].min()) / max(float(np.ptp(points[:, 2])), 1e-6)
    for k, z in enumerate(numbers.tolist()):
        x, y = place(points[k])
        shade = 0.75 + 0.25 * depth[k]
        r, g, b = (int(255 * min(1.0, c * shade)) for c in _colour(z))
        ball = (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radii[k] * scale:.1f}" fill="rgb({r},{g},{b})" stroke="#30343b" '
            f'stroke-width="0.6"><title>{chemical_symbols[z]}</title></circle>'
        )
        parts.append((float(points[k, 2]), ball))
    body = "".join(text for _, text in sorted(parts, key=lambda part: part[0]))
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="0 0 {size} {size}">{body}</svg>'


def cell_model(crystal: Crystal) -> dict[str, Any]:
    """Return what the 3D view shows: the atoms as XYZ text and the edges of the cell (Å); empty where there is nothing."""
    from ase.data import chemical_symbols

    if not drawable(crystal):
        return {}
    numbers, points = _with_faces(crystal)
    lines = [
        f"{chemical_symbols[z]} {x:.3f} {y:.3f} {w:.3f}" for z, (x, y, w) in zip(numbers.tolist(), points.tolist(), strict=True)
    ]
    corners = np.round(_CORNERS @ crystal.lattice, 3).tolist()
    colours = {chemical_symbols[z]: _hex(z) for z in np.unique(numbers).tolist()}
    return {
        "format": "xyz",
        "colours": colours,
        "text": "\n".join([str(len(lines)), "", *lines, ""]),
        "edges": [[corners[i], corners[j]] for i, j in _EDGES],
    }


def _colour(z: int) -> tuple[float, float, float]:
    from ase.data.colors import jmol_colors

    r, g, b = jmol_colors[z].tolist() if z < len(jmol_colors) else (0.6, 0.6, 0.6)
    return r, g, b


def _hex(z: int) -> str:
    return "#" + "".join(f"{int(255 * c):02x}" for c in _colour(z))


def _with_faces(crystal: Crystal) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return numbers and positions (Å) of the atoms of the cell, wrapped, those near a face on the opposite one too."""
    frac = crystal.frac_coords[:_MOST] % 1.0
    numbers = crystal.numbers[:_MOST]
    frac = np.where(frac > 1 - _FACE, frac - 1, frac)
    all_numbers, all_frac = [], []
    for z, f in zip(numbers.tolist(), frac, strict=True):
        steps = [(0, 1) if abs(value) < _FACE else (0,) for value in f.tolist()]
        for shift in product(*steps):
            all_numbers.append(z)
            all_frac.append(f + np.array(shift))
    return np.array(all_numbers, dtype=np.int64), np.array(all_frac) @ crystal.lattice


def _view(crystal: Crystal) -> NDArray[np.float64]:
    """Return the turn [3, 3] that shows a cell nearly along its second vector, its third one upwards."""
    a, _, c = crystal.lattice
    up = c / max(float(np.linalg.norm(c)), 1e-9)
    right = a - (a @ up) * up
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(up, [1.0, 0.3, 0.2])
    right = right / np.linalg.norm(right)
    axes = np.stack([right, up, np.cross(right, up)], axis=1)
    y, x = 0.42, 0.28
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), np.sin(x)], [0, -np.sin(x), np.cos(x)]])
    turned: NDArray[np.float64] = axes @ about_y @ about_x
    return turned
