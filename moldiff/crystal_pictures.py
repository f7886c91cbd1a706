"""Crystals in notebooks: the cell, its atoms and the images that they are bonded to, in 3D and as plain SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import product
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal
from moldiff.errors import MoldiffError

if TYPE_CHECKING:
    from moldiff.samples import Sample, SampleSet

#: Atoms are drawn bonded below this many times the sum of their covalent radii.
BOND = 1.15
#: Metals are drawn bonded to each other in crystals of metals only: in others a short contact is no bond.
NONMETALS = (1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 33, 34, 35, 36, 52, 53, 54, 85, 86)
#: Radius of a ball, in covalent radii, and of a stick (Å).
BALL, STICK = 0.42, 0.09
#: Atoms drawn at most: a spoilt cell may hold thousands of images.
MOST = 400
_EDGES = [(a, b) for a in product((0, 1), repeat=3) for b in product((0, 1), repeat=3) if sum(b) - sum(a) == 1 and all(
    x <= y for x, y in zip(a, b, strict=True)
)]  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What is drawn: ``numbers`` [M], ``positions`` [M, 3] (Å), ``inside`` [M] (in the cell or not), ``bonds`` [B, 2]."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    inside: NDArray[np.bool_]
    bonds: NDArray[np.int64]
    lattice: NDArray[np.float64]

    @property
    def edges(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """The twelve edges of the cell as pairs of points (Å)."""
        return [(np.asarray(a) @ self.lattice, np.asarray(b) @ self.lattice) for a, b in _EDGES]


def scene(crystal: Crystal) -> Scene:
    """The atoms of a cell (those on a face also on the opposite one) and the images outside that they are bonded to."""
    from ase.data import covalent_radii

    frac = crystal.frac_coords - np.floor(crystal.frac_coords)
    radii = covalent_radii[crystal.numbers]
    shifts = np.array(list(product((-1, 0, 1), repeat=3)))
    shifts = shifts[np.argsort(np.abs(shifts).sum(1), kind="stable")]  # the cell itself first
    images = (frac[None] + shifts[:, None]).reshape(-1, 3)
    owner = np.tile(np.arange(len(crystal)), len(shifts))
    inside = (images > -1e-3).all(1) & (images < 1 + 1e-3).all(1)
    keep = np.flatnonzero(inside)
    x = images @ crystal.lattice
    near = _bonded(x[keep], x, radii[owner[keep]], radii[owner])
    # Each atom of the cell has its bonds once; its copies on opposite faces only those within the cell, or nothing could be seen.
    near &= (keep < len(crystal))[:, None] | inside[None]
    metal = ~np.isin(crystal.numbers, NONMETALS)[owner]
    if not metal.all():
        near &= ~(metal[keep][:, None] & metal[None])
    drawn = np.union1d(keep, np.flatnonzero(near.any(0)))
    drawn = drawn[np.argsort(~inside[drawn], kind="stable")][:MOST]
    place = {int(k): i for i, k in enumerate(drawn)}
    pairs = {
        (min(place[int(keep[i])], place[int(j)]), max(place[int(keep[i])], place[int(j)]))
        for i, j in np.argwhere(near)
        if int(keep[i]) in place and int(j) in place
    }
    bonds = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return Scene(crystal.numbers[owner[drawn]], x[drawn], inside[drawn], bonds, crystal.lattice)


def crystal_view(sample: Sample, width: int = 360, height: int = 300) -> Any:
    """A py3Dmol view of a crystal: its cell drawn, bonds across its faces with the images at their ends.

    Raises ``MoldiffError`` for a failed sample.
    """
    import py3Dmol

    crystal = sample.to_crystal()
    if crystal is None or not len(crystal):
        raise MoldiffError(f"{sample.id} failed ({sample.problem or 'no atoms'}): there is nothing to show")
    drawn = scene(crystal)
    view = py3Dmol.view(width=width, height=height)
    for number, x, inside in zip(drawn.numbers.tolist(), drawn.positions, drawn.inside.tolist(), strict=True):
        radius = BALL * _radius(number)
        view.addSphere({"center": _point(x), "radius": radius, "color": _hex(number), "opacity": 1.0 if inside else 0.75})
    for i, j in drawn.bonds.tolist():
        a, b = drawn.positions[i], drawn.positions[j]
        for start, end, number in ((a, (a + b) / 2, drawn.numbers[i]), ((a + b) / 2, b, drawn.numbers[j])):
            view.addCylinder({"start": _point(start), "end": _point(end), "radius": STICK, "color": _hex(int(number))})
    for a, b in drawn.edges:
        view.addCylinder({"start": _point(a), "end": _point(b), "radius": 0.03, "color": "#30343b"})
    view.setView([*(-np.array([0.5, 0.5, 0.5]) @ crystal.lattice).tolist(), 0, 0, 0, 0, 1])
    view.zoomTo()
    view.rotate(20, "x")
    view.rotate(-25, "y")
    return view


def crystal_drawing(crystal: Crystal, size: int = 230) -> str:
    """The same as a picture in plain SVG, which needs no network: nearer parts in front."""
    drawn = scene(crystal)
    turn = _orientation(crystal.lattice)
    x = (drawn.positions - 0.5 * crystal.lattice.sum(0)) @ turn
    corners = [((a - 0.5 * crystal.lattice.sum(0)) @ turn, (b - 0.5 * crystal.lattice.sum(0)) @ turn) for a, b in drawn.edges]
    radii = np.array([BALL * _radius(int(z)) for z in drawn.numbers])
    points = np.concatenate([x[:, :2], np.array(corners)[..., :2].reshape(-1, 2)])
    reach = float(np.abs(points).max() + radii.max()) + 0.1
    scale = size / (2 * reach)

    def place(p: NDArray[np.float64]) -> tuple[float, float]:
        return size / 2 + scale * float(p[0]), size / 2 - scale * float(p[1])

    low, high = float(x[:, 2].min()), float(x[:, 2].max())
    parts: list[tuple[float, str]] = []

    def line(a: NDArray[np.float64], b: NDArray[np.float64], color: str, width: float, depth: float) -> None:
        (x1, y1), (x2, y2) = place(a), place(b)
        text = f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width:.1f}"'
        parts.append((depth, text + ' stroke-linecap="round"/>'))

    for a, b in corners:
        line(a, b, "#9aa1ab", 1.0, float(min(a[2], b[2])) - 0.2)
    for i, j in drawn.bonds.tolist():
        middle = (x[i] + x[j]) / 2
        for end, number in ((x[i], drawn.numbers[i]), (x[j], drawn.numbers[j])):
            line(end, middle, _rgb(int(number), 0.8), 2 * STICK * scale, float(min(end[2], middle[2])))
    for k, number in enumerate(drawn.numbers.tolist()):
        shade = 0.8 + 0.2 * (float(x[k, 2]) - low) / max(high - low, 1e-6)
        px, py = place(x[k])
        radius = float(radii[k]) * scale
        opacity = "" if drawn.inside[k] else ' opacity="0.6"'
        ball = (
            f'<g{opacity}><circle cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}" fill="{_rgb(number, shade)}" stroke="#30343b" '
            f'stroke-width="0.6"/><circle cx="{px - 0.3 * radius:.1f}" cy="{py - 0.35 * radius:.1f}" r="{0.28 * radius:.1f}" '
            'fill="#fff" fill-opacity="0.55"/></g>'
        )
        parts.append((float(x[k, 2]) + 0.05, ball))
    body = "".join(text for _, text in sorted(parts, key=lambda p: p[0]))
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="0 0 {size} {size}">{body}</svg>'


def crystal_card(sample: Sample, verdict: Any, background: str = "#ffffff") -> str:
    """One sample in a notebook: its drawing, formula, space group and numbers."""
    crystal = sample.to_crystal()
    picture = "" if crystal is None or not len(crystal) or verdict.n_atoms == 0 else crystal_drawing(crystal)
    if verdict.structure_valid:
        note = f"{verdict.symbol} ({verdict.space_group}) · {verdict.density:.2f} g/cm³ · nearest {verdict.min_distance:.2f} Å"
    else:
        note = verdict.reason
    color = "#1a7f37" if verdict.structure_valid else "#b35900"
    mates = "" if verdict.cluster is None else f" · cluster {verdict.cluster}"
    return (
        '<div style="display:inline-block;margin:4px;padding:4px;border:1px solid #d0d7de;border-radius:6px;'
        f'background:{background};vertical-align:top;width:236px;overflow:hidden">'
        f'<div style="color:#57606a;font-size:11px">{escape(sample.id)} · {escape(verdict.formula)}{mates}</div>'
        f'{picture}<div style="color:{color};font-size:11px;font-family:monospace">{escape(note)}</div></div>'
    )


def crystal_set_html(samples: SampleSet, shown: int, background: str) -> str:
    """A set of crystals in a notebook: its rates, and cards of the first samples."""
    from moldiff.evaluation.definitions import definition
    from moldiff.sample_files import summary_rows

    rates = {definition(k).title: v for k, v in summary_rows(samples.metrics()).items() if isfinite(v)} if len(samples) else {}
    cell = '<td style="text-align:right;padding:2px 10px">'
    numbers = "".join(f"<tr>{cell}{escape(title)}</td>{cell}{100 * value:.1f} %</td></tr>" for title, value in rates.items())
    pairs = list(zip(samples.samples, samples.verdicts, strict=True))
    cards = "".join(crystal_card(s, v, background) for s, v in pairs[:shown])
    more = f"<div>and {len(samples) - shown:,} more</div>" if len(samples) > shown else ""
    return f"<div><div><b>{escape(repr(samples))}</b></div><table>{numbers}</table>{cards}{more}</div>"


def _bonded(
    a: NDArray[np.float64], b: NDArray[np.float64], ra: NDArray[np.float64], rb: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which points of ``a`` [A, 3] and ``b`` [B, 3] are bonded, by their radii."""
    d = np.linalg.norm(a[:, None] - b[None], axis=-1)
    close: NDArray[np.bool_] = (d < BOND * (ra[:, None] + rb[None])) & (d > 0.1)
    return close


def _orientation(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn the cell so that its first vector points right and one looks a little from above and from the side."""
    a = lattice[0] / max(float(np.linalg.norm(lattice[0])), 1e-9)
    up = np.cross(np.cross(a, lattice[2]), a)
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axes = np.stack([a, up, np.cross(a, up)], axis=1)
    p, q = np.radians(-22), np.radians(14)
    about_y = np.array([[np.cos(p), 0, -np.sin(p)], [0, 1, 0], [np.sin(p), 0, np.cos(p)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(q), np.sin(q)], [0, -np.sin(q), np.cos(q)]])
    turned: NDArray[np.float64] = axes @ about_y @ about_x
    return turned


def _radius(number: int) -> float:
    from ase.data import covalent_radii

    return float(covalent_radii[number]) if 0 < number < len(covalent_radii) else 1.5


def _rgb(number: int, shade: float = 1.0) -> str:
    from ase.data.colors import jmol_colors

    r, g, b = (int(255 * min(1.0, c * shade)) for c in jmol_colors[min(number, len(jmol_colors) - 1)])
    return f"rgb({r},{g},{b})"


def _hex(number: int) -> str:
    from ase.data.colors import jmol_colors

    return "#" + "".join(f"{int(255 * c):02x}" for c in jmol_colors[min(number, len(jmol_colors) - 1)])


def _point(x: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip("xyz", (round(float(v), 4) for v in x), strict=True))
