"""Crystals of which the cell, and maybe some sites, are known, in whatever cell of their lattice a file gives them."""

from __future__ import annotations

from collections import Counter

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import torus_log, wrap
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.errors import BadRequest
from moldiff.sampling.control import Step
from moldiff.sampling.inpaint import Inpaint, Known

_NEVER = 1e3  # beyond any squared distance on the torus


class KeptCell(Inpaint):
    """Keeps a lattice and the first ``sites`` of the atoms, and hands both back as they were given, bit by bit.

    ``known`` holds them in the cell in which the model works (Niggli-reduced), whose rows are ``basis`` @ ``lattice``: a matrix
    of whole numbers [S, 3, 3], and the lattice [S, 3, 3] in Å as it is to come back. ``frac_coords`` [S, K, 3] and ``classes``
    [S, K] are those of the kept sites, in that lattice. ``matched`` gives kept sites the points of the noise that lie nearest
    to them, as a geodesic with the coupling "matched" was trained; which atom has which point of an iid noise is free.
    """

    def __init__(
        self,
        known: Known,
        basis: Tensor,
        lattice: Tensor,
        frac_coords: Tensor,
        classes: Tensor,
        resamplings: int = 1,
        matched: bool = False,
    ) -> None:
        super().__init__(known, resamplings)
        self.basis, self.lattice, self.frac_coords, self.classes = basis, lattice, frac_coords, classes
        self.matched = matched
        self._began = False

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        xt, k, self._began = super().start(xt, diffusion, rng), self.classes.shape[1], False
        if not k:
            return xt
        fixed = self._types_fixed(xt, diffusion)
        if fixed:
            xt = self._kept_first(xt)
        if not self.matched:
            return xt
        truth = self.known.truth.frac_coords[:, :k]
        return xt.replace(frac_coords=nearest_points(truth, xt.frac_coords, xt.atom_types if fixed else None))

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        k, first, self._began = self.classes.shape[1], not self._began, True
        wrong = first and k and self._types_fixed(now.before, now.diffusion)
        if wrong and not torch.equal(now.before.atom_types[:, :k], self.classes):
            raise BadRequest("types were fixed after the kept sites had been put first: name the formula before what is kept")
        return super().step(now, after)

    def _types_fixed(self, xt: AtomBatch, diffusion: Diffusion) -> bool:
        """Whether the types are told, or all set: an absorbing process keeps an exact formula that is set at once."""
        process = diffusion.processes.get("atom_types")
        if process is None:
            return True
        absorbs = getattr(process, "prior_kind", "") == "absorbing"
        return absorbs and bool((xt.atom_types[xt.mask] < getattr(process, "n_classes", 0)).all())

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        k = self.classes.shape[1]
        if k and "atom_types" in diffusion.processes:
            x0 = self._recounted(x0)
        x0 = super().finish(x0, diffusion)
        frac = wrap(x0.frac_coords @ self.basis.to(x0.frac_coords))
        frac = torch.cat([self.frac_coords.to(frac), frac[:, k:]], 1)
        return x0.replace(frac_coords=frac, lattice=self.lattice.to(x0.lattice))

    def _recounted(self, x0: AtomBatch) -> AtomBatch:
        """The kept sites with their classes, the others with what is left, so that a formula which was met stays met."""
        k, rows = self.classes.shape[1], []
        for made, kept in zip(x0.atom_types.tolist(), self.classes.tolist(), strict=True):
            left = Counter(made)
            left.subtract(kept)
            rest = made[k:]
            if min(left.values()) >= 0:
                missed = []
                for i, c in enumerate(rest):
                    if left[c] > 0:
                        left[c] -= 1
                    else:
                        missed.append(i)
                for i, c in zip(missed, left.elements(), strict=True):
                    rest[i] = c
            rows.append([*kept, *rest])
        return x0.replace(atom_types=torch.tensor(rows, device=x0.device))

    def _kept_first(self, batch: AtomBatch) -> AtomBatch:
        """The same classes, those of the kept sites first. Atoms are all alike as yet, so any may have any of them."""
        rows = []
        for rest, kept in zip(batch.atom_types.tolist(), self.classes.tolist(), strict=True):
            for c in kept:
                rest.remove(c)
            rows.append([*kept, *rest])
        return batch.replace(atom_types=torch.tensor(rows, device=batch.device))


def nearest_points(truth: Tensor, noise: Tensor, kinds: Tensor | None = None, rounds: int = 3) -> Tensor:
    """The points of a noise in another order, so that the first K lie as near as they can to the K places of ``truth``.

    ``truth`` [S, K, 3] and ``noise`` [S, N, 3] are fractional, ``kinds`` [S, N] of atoms whose points may not be exchanged for
    each other's (None: all may). Nearness is up to a common shift, as in ``diffusion.coupling.nearest_order``, which finds it
    in the same way.
    """
    k, out = truth.shape[1], []
    forbidden = None if kinds is None else (kinds[:, :k, None] != kinds[:, None, :]).to(truth.dtype) * _NEVER
    shift = torch.zeros_like(truth[:, :1])
    for _ in range(rounds):
        way = torus_log(truth[:, :, None], (noise + shift)[:, None])
        cost = way.square().sum(-1)
        costs = (cost if forbidden is None else cost + forbidden).cpu().numpy()
        chosen = torch.stack([torch.from_numpy(linear_sum_assignment(c)[1]) for c in costs]).to(noise.device)
        shift = shift - way.gather(2, chosen[:, :, None, None].expand(-1, -1, 1, 3)).squeeze(2).mean(1, keepdim=True)
    labels = [[0] * noise.shape[1]] * len(noise) if kinds is None else kinds.tolist()
    for row, label in zip(chosen.tolist(), labels, strict=True):
        left = [j for j in range(len(label)) if j not in set(row)]
        order = list(row)
        for i in range(k, len(label)):
            j = next(j for j in left if label[j] == label[i])
            left.remove(j)
            order.append(j)
        out.append(order)
    return noise.gather(1, torch.tensor(out, device=noise.device)[..., None].expand_as(noise))
