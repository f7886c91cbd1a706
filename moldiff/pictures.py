"""Pictures for notebooks: 2D depictions by RDKit and 3D ball-and-stick drawings as plain SVG, which need no network."""

from __future__ import annotations

from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moldiff.evaluation.definitions import definition
from moldiff.sample_files import summary_rows

if TYPE_CHECKING:
    from moldiff.samples import Sample, SampleSet

#: Samples that a notebook shows at once.
SHOWN = 8
BACKGROUND = "#ffffff"


def drawing_2d(sample: Sample, size: int = 170) -> str:
    """The structural formula without hydrogens on carbon, as SVG; an empty string where there is none."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    mol = sample.to_rdkit() or sample.to_rdkit(sanitize=False)
    if mol is None or sample.bond_types is None:
        return ""
    with rdBase.BlockLogs():
        try:
            flat = Chem.RemoveHs(mol, sanitize=False)
            flat.UpdatePropertyCache(strict=False)
            flat.RemoveAllConformers()
            drawer = rdMolDraw2D.MolDraw2DSVG(size, size)
            options: Any = drawer.drawOptions()
            options.prepareMolsBeforeDrawing = False
            rdDepictor.Compute2DCoords(flat)
            drawer.DrawMolecule(flat)
            drawer.FinishDrawing()
        except (RuntimeError, ValueError):
            return ""
    text: str = drawer.GetDrawingText()
    return text[text.index("<svg") :]


def drawing_3d(sample: Sample, size: int = 170) -> str:
    """Balls and sticks seen along the thinnest direction of the molecule, nearer atoms in front, as SVG."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    if sample.problem or sample.positions is None or len(sample) == 0:
        return ""
    x = np.asarray(sample.positions, dtype=np.float64)
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=True)[2] if len(x) > 1 else np.eye(3)
    x = x @ axes.T @ _tilt()
    z = sample.numbers
    radii = 0.5 * covalent_radii[z]
    reach = float(np.abs(x[:, :2]).max() + radii.max() + 0.1)
    scale = size / (2 * reach)
    depth = (x[:, 2] - x[:, 2].min()) / max(float(np.ptp(x[:, 2])), 1e-6)
    px, py = size / 2 + scale * x[:, 0], size / 2 - scale * x[:, 1]
    parts: list[tuple[float, str]] = []
    for i, j in _sticks(sample):
        order = 1 if sample.bond_types is None else int(sample.bond_types[i, j])
        along = np.array([px[j] - px[i], py[j] - py[i]])
        across = np.array([-along[1], along[0]]) / max(float(np.linalg.norm(along)), 1e-6)
        for k in range(order):
            dx, dy = across * (k - (order - 1) / 2) * 0.19 * scale
            line = (
                f'<line x1="{px[i] + dx:.1f}" y1="{py[i] + dy:.1f}" x2="{px[j] + dx:.1f}" y2="{py[j] + dy:.1f}" '
                f'stroke="#8a8f98" stroke-width="{(0.18 if order == 1 else 0.1) * scale:.1f}" stroke-linecap="round"/>'
            )
            parts.append((float(min(x[i, 2], x[j, 2]) + 0.01), line))
    for k, number in enumerate(z.tolist()):
        shade = 0.85 + 0.15 * depth[k]
        r, g, b = (int(255 * min(1.0, c * shade)) for c in jmol_colors[number])
        radius = radii[k] * scale
        ball = (
            f'<circle cx="{px[k]:.1f}" cy="{py[k]:.1f}" r="{radius:.1f}" fill="rgb({r},{g},{b})" stroke="#30343b" '
            f'stroke-width="0.7"/><circle cx="{px[k] - 0.3 * radius:.1f}" cy="{py[k] - 0.35 * radius:.1f}" '
            f'r="{0.3 * radius:.1f}" fill="#fff" fill-opacity="0.55"/>'
        )
        parts.append((float(x[k, 2]), ball))
    body = "".join(text for _, text in sorted(parts, key=lambda p: p[0]))
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="0 0 {size} {size}">{body}</svg>'


def sample_set_html(samples: SampleSet) -> str:
    """The set in a notebook: its rates, and the first samples with both drawings and their verdicts."""
    if samples.kind == "crystal":
        from moldiff.crystal_pictures import crystal_set_html

        return crystal_set_html(samples, SHOWN, BACKGROUND)
    rates = summary_rows(samples.metrics()) if len(samples) else {}
    known = {definition(name).title: value for name, value in rates.items() if isfinite(value)}
    cell = '<td style="text-align:right;padding:2px 10px">'
    numbers = "".join(f"<tr>{cell}{escape(title)}</td>{cell}{100 * value:.1f} %</td></tr>" for title, value in known.items())
    cards = []
    for sample, verdict in list(zip(samples.samples, samples.verdicts, strict=True))[:SHOWN]:
        good = verdict.valid and verdict.connected
        note = (verdict.smiles or "·") if good else verdict.reason or "in several parts"
        color = "#1a7f37" if good else "#b35900"
        cards.append(
            '<div style="display:inline-block;margin:4px;padding:4px;border:1px solid #d0d7de;border-radius:6px;'
            f'background:{BACKGROUND};vertical-align:top;width:348px;overflow:hidden">'
            f'<div style="color:#57606a;font-size:11px">{escape(sample.id)} · {escape(verdict.formula)}</div>'
            f'<div style="display:flex">{drawing_2d(sample)}{drawing_3d(sample)}</div>'
            f'<div style="color:{color};font-size:11px;font-family:monospace">{escape(note)}</div></div>'
        )
    more = f"<div>and {len(samples) - SHOWN:,} more</div>" if len(samples) > SHOWN else ""
    return f"<div><div><b>{escape(repr(samples))}</b></div><table>{numbers}</table>{''.join(cards)}{more}</div>"


def _sticks(sample: Sample) -> NDArray[np.int64]:
    from moldiff.chem.edm import edm_bond_orders

    known, positions = sample.bond_types, sample.positions
    bonds = edm_bond_orders(sample.numbers, np.asarray(positions)) if known is None else known
    return np.argwhere(np.triu(bonds, 1))


def _tilt() -> NDArray[np.float64]:
    """A small turn, so that flat molecules do not hide their hydrogens."""
    a, b = 0.35, 0.25
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turned: NDArray[np.float64] = about_x @ about_y
    return turned
