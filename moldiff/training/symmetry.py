"""Training on the symmetric way: noise that keeps a crystal's own space group, as a sampler that is given one makes it."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import wrap
from moldiff.core.rng import Streams
from moldiff.core.symmetry import Group
from moldiff.data.symmetries import Symmetries
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.torus import WAY, Geodesic
from moldiff.errors import BadRequest


class SymmetricNoise:
    """Noises a ``share`` of the crystals of a batch within their own symmetry, the others as ever."""

    def __init__(self, symmetries: Symmetries, share: float) -> None:
        self.symmetries, self.share = symmetries, share

    def prepare(self, x0: AtomBatch, index: Tensor, rng: Streams) -> tuple[AtomBatch, Group]:
        """The encoded batch of the systems ``index`` [S], those chosen with symmetric coordinates and ways; and its groups."""
        chosen = (torch.rand(len(index), generator=rng.shared) < self.share).tolist()
        which = index.tolist()
        each = [self.symmetries.operations(i) if one else None for i, one in zip(which, chosen, strict=True)]
        group = Group.of(each, x0.n_max, x0.device)
        frac = x0.frac_coords.clone()
        for k, (i, one) in enumerate(zip(which, chosen, strict=True)):
            if one:
                exact = self.symmetries.frac_coords(i)
                frac[k, : len(exact)] = wrap(exact).to(frac)
        way = group.way(torch.rand(frac.shape, generator=rng.shared).to(frac.device)) * x0.mask[..., None]
        none = torch.full_like(way, torch.nan)  # a way that is not given is drawn by the process
        given = torch.tensor(chosen, device=x0.device)[:, None, None]
        return x0.replace(frac_coords=frac, frac_way=torch.where(given, way, none)), group


def noised(diffusion: Diffusion, x0: AtomBatch, t: Tensor, rng: Streams, group: Group) -> AtomBatch:
    """x_t of a batch whose coordinates go the ways that it carries, the noise of its cells made symmetric too.

    Where a system goes such ways the atoms of an element lose their type together, as a sampler decides on them together.
    """
    xt = diffusion.noise(x0, t, rng)
    if "lattice" in diffusion.processes:
        xt = xt.replace(lattice=group.cell(xt.lattice))
    types = diffusion.processes.get("atom_types")
    if isinstance(types, Categorical) and types.prior_kind == "absorbing" and WAY in x0:
        own = x0.atom_types
        first = (own[:, :, None] == own[:, None, :]).long().argmax(-1)
        together = ~x0.data[WAY].isnan().any(-1)
        xt = xt.replace(atom_types=torch.where(together, xt.atom_types.gather(1, first), xt.atom_types))
    return xt


def check_symmetric(diffusion: Diffusion) -> None:
    """Raise ``BadRequest`` for a model that can't be trained so: its coordinates must go the geodesic way."""
    if not isinstance(diffusion.processes.get("frac_coords"), Geodesic):
        raise BadRequest("training.given_symmetry needs crystals whose frac_coords go the geodesic way")
