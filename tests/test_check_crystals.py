"""check_denoiser on crystals: a sound toy network passes, one fault a symmetry is found."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Signature
from moldiff.testing.denoisers import check_denoiser
from moldiff.testing.report import CheckFailed

CRYSTAL = Signature({"atom_types": (4, 4)}, ("frac_coords", "lattice"))


class TinyCrystal(nn.Module):
    """Messages from waves of fractional differences and the cell's inner products; predicts clean fields."""

    raw = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.types, self.message = nn.Embedding(4, 8), nn.Linear(8 + 8 + 12 + 12 + 9, 16)
        self.old = nn.Linear(4, 8)
        self.push, self.logits, self.cell = nn.Linear(16, 3), nn.Linear(16, 4), nn.Linear(16, 9)

    def differences(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, None] - x[:, None]

    def lattice(self, change: torch.Tensor, lattice: torch.Tensor) -> torch.Tensor:
        return (torch.eye(3) + 0.1 * change) @ lattice

    def forward(self, seen: AtomBatch, t: torch.Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        s, n = seen.mask.shape
        # the previous coordinates count relative to the present ones of the same atom
        d = self.differences(seen.frac_coords)
        old = torch.zeros_like(d) if memory is None else self.differences(memory.frac_coords)
        waves = [f(2 * math.pi * k * x) for x in (d, old) for k in (1, 2) for f in (torch.sin, torch.cos)]
        h = self.types(seen.atom_types) + t[:, None, None] * 0.1
        if memory is not None:
            h = h + self.old(memory.atom_types)
        gram = (seen.lattice @ seen.lattice.transpose(1, 2)).flatten(1)[:, None, None].expand(s, n, n, 9) / 20
        pair = [h[:, :, None].expand(s, n, n, -1), h[:, None].expand(s, n, n, -1), *waves, gram]
        mask = seen.pair_mask[..., None].float()
        message = torch.tanh(self.message(torch.cat(pair, -1))) * mask
        heard = message.sum(2)
        push = (self.push(message) * torch.sin(2 * math.pi * d) * mask).sum(2) * 0.1
        change = self.cell((heard * seen.mask[..., None]).sum(1)).reshape(s, 3, 3)
        clean = push if self.raw else (seen.frac_coords + push) % 1
        return AtomBatch(
            seen.mask,
            {
                "frac_coords": clean * seen.mask[..., None],
                "lattice": self.lattice(change, seen.lattice),
                "atom_types": self.logits(heard) * seen.mask[..., None],
            },
        )


class Displacements(TinyCrystal):
    raw = True


class NoMinimumImage(TinyCrystal):
    """Reads differences without their period: atoms at opposite faces are far apart."""

    def forward(self, seen, t, memory=None):
        out = super().forward(seen, t, memory)
        far = (self.differences(seen.frac_coords).abs() * seen.pair_mask[..., None]).sum((2, 3))
        return out.replace(atom_types=out.atom_types + 0.1 * far[..., None] * seen.mask[..., None])


class AbsoluteOrigin(TinyCrystal):
    """Reads where in the cell an atom is; periodic, so that images are right."""

    def forward(self, seen, t, memory=None):
        out = super().forward(seen, t, memory)
        place = torch.cos(2 * math.pi * seen.frac_coords).sum(-1, keepdim=True)
        return out.replace(atom_types=out.atom_types + 0.1 * place * seen.mask[..., None])


class FixedFrame(TinyCrystal):
    """Predicts the cell in the laboratory's frame."""

    def lattice(self, change, lattice):
        return lattice + 0.1 * change


class HandedCell(TinyCrystal):
    """Tells a cell from its mirror image."""

    def forward(self, seen, t, memory=None):
        out = super().forward(seen, t, memory)
        hand = torch.linalg.det(seen.lattice).sign()
        return out.replace(atom_types=out.atom_types + 0.1 * hand[:, None, None] * seen.mask[..., None])


def test_a_sound_crystal_network_passes_clean_or_raw() -> None:
    report = check_denoiser(TinyCrystal(), CRYSTAL)
    names = {m.name.split(":")[0] for m in report.measurements}
    assert {"images", "translation", "rotation"} <= names
    check_denoiser(Displacements(), CRYSTAL, raw=True)


@pytest.mark.parametrize(
    ("fault", "promises"),
    [
        (NoMinimumImage, {"images", "translation"}),
        (AbsoluteOrigin, {"translation"}),
        (FixedFrame, {"rotation", "reflection"}),
        (HandedCell, {"reflection"}),
    ],
)
def test_periodic_faults_are_found(fault: type[nn.Module], promises: set[str]) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_denoiser(fault(), CRYSTAL)
    head = str(caught.value).splitlines()[0]
    assert f"breaks {len(promises)} of" in head
    assert all(f"{name} (" in head for name in promises), head


def test_coordinates_and_displacements_are_not_confused() -> None:
    with pytest.raises(CheckFailed, match="translation"):
        check_denoiser(TinyCrystal(), CRYSTAL, raw=True)
    with pytest.raises(CheckFailed, match="translation"):
        check_denoiser(Displacements(), CRYSTAL)
