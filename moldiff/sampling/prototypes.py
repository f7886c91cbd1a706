"""Beginning at known structures: rows that wake late, noised to a time of the way, and the choice among several of them.

The idea of starting the reverse process at a structure that is noised in part is SDEdit's (Meng et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser, reorder
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.candidates import DRAWS, LEVELS, denoising_loss, is_crystal, with_first
from moldiff.sampling.control import Control, Step

#: A time after that of the prior: a row that begins then does not sleep.
NEVER = 2.0


class Sleeping:
    """A denoiser that says of a row that ``t`` lies above its time ``begins`` [S] what it begins at, ``truth``, and asks the
    network about the others only.

    A call never has fewer than ``fewest`` rows, so that their bits do not depend on how many sleep; with ``fewest`` None, or
    where the denoiser can't be asked about some of its rows (it has no ``part``), it is asked about all.
    """

    def __init__(
        self, denoiser: Denoiser, diffusion: Diffusion, truth: AtomBatch, begins: Tensor, fewest: int | None = None
    ) -> None:
        self.denoiser, self.diffusion, self.truth, self.begins, self.fewest = denoiser, diffusion, truth, begins, fewest
        self.awake = torch.zeros_like(begins, dtype=torch.bool)

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        awake, before = t <= self.begins, self.awake
        self.awake = awake
        said = {name: p.known(self.truth, xt) for name, p in self.diffusion.processes.items()}
        # Those that wake have no prediction of their own to be conditioned on.
        groups = ((awake & before, previous), (awake & ~before, None)) if previous is not None else ((awake, None),)
        for group, memory in groups:
            rows = group.nonzero().flatten()
            if len(rows):
                made = self._asked(xt, t, memory, rows)
                said = {name: value.index_copy(0, rows, made.data[name]) for name, value in said.items()}
        return AtomBatch(xt.mask, said)

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        self.truth, self.begins, self.awake = self.truth[index], self.begins[index], self.awake[index]
        reorder(self.denoiser, index)

    def _asked(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None, rows: Tensor) -> AtomBatch:
        """What the network says of these rows."""
        part = getattr(self.denoiser, "part", None)
        if part is None or self.fewest is None or len(rows) == len(t):
            return self.denoiser(xt, t, previous)[rows]
        more = filled(rows, min(self.fewest, len(t)))
        made: AtomBatch = part(more)(xt[more], t[more], None if previous is None else previous[more])
        return made[slice(0, len(rows))]


def filled(rows: Tensor, n: int) -> Tensor:
    """Rows [R] with the last one repeated until there are at least n."""
    return torch.cat([rows, rows[-1:].expand(max(0, n - len(rows)))])


class FromPrototypes(Control):
    """Row r begins at ``truth`` (encoded) noised to the grid's first time that is not above ``begins[r]``.

    A row with ``begins`` 0 comes back as ``truth`` says, bit by bit; one with a number above 1 begins from noise, whatever its
    ``truth``. ``labels`` say of each row where it begins.

    Of every ``each`` rows the first ``each - n_noise`` are ranked by the denoising loss (``sampling.candidates``) less ``prior``,
    those that are no crystal last; of these the one in the place ``places[g]``, from 0, of group g stands against the group's
    other rows, and the better one is brought to the first row. ``streams`` are those of the noise of that loss. ``keys`` name
    rows that hold the same prototype in the same state for several samples: ``memo`` remembers the loss of each. Rows whose prior
    is -inf hold nothing. Groups from ``n_groups`` on fill up the batch.
    """

    def __init__(
        self,
        truth: AtomBatch,
        begins: Tensor,
        labels: Sequence[str],
        *,
        each: int = 1,
        n_noise: int = 0,
        prior: Tensor | None = None,
        places: Sequence[int] = (),
        streams: Streams | None = None,
        keys: Sequence[Hashable] = (),
        memo: MutableMapping[Hashable, float] | None = None,
        n_groups: int | None = None,
        fewest: int | None = None,
    ) -> None:
        self.truth, self.begins, self.labels = truth, begins, list(labels)
        self.each, self.n_noise, self.prior, self.places = each, n_noise, prior, list(places)
        self.streams, self.n_groups, self.fewest = streams, n_groups, fewest
        self.keys, self.memo = list(keys), {} if memo is None else memo
        self.doubt: list[float] = []

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.inner = denoiser
        return Sleeping(denoiser, diffusion, self.truth, self.begins, self.fewest)

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        if xt.n_systems % self.each:
            raise ValueError(f"{xt.n_systems} rows are no whole number of groups of {self.each} candidates")
        return xt

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        rows = ((now.t > self.begins) & (now.s <= self.begins)).nonzero().flatten()
        if not len(rows):
            return after
        noised = now.diffusion.noise(self.truth[rows], now.s[rows], now.rng.subset(rows.tolist()))
        return after.replace(
            **{name: after.data[name].index_copy(0, rows, noised.data[name]) for name in now.diffusion.processes}
        )

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        still = self.begins <= 0
        x0 = x0.replace(
            **{
                name: torch.where(_wide(still, x0.data[name]), self.truth.data[name], x0.data[name])
                for name in diffusion.processes
            }
        )
        if self.each == 1:
            return x0
        doubt = self._doubt(x0, diffusion)
        best = self.choice(doubt)
        index = with_first(best, self.each)
        self.doubt = doubt[index][:: self.each].tolist()
        self.labels = [self.labels[r] for r in index.tolist()]
        reorder(self.inner, index)
        return x0[index]

    def _doubt(self, x0: AtomBatch, diffusion: Diffusion) -> Tensor:
        """The denoising loss of all rows [S], +inf for what is no crystal or holds nothing; the network is asked once a key."""
        keys: list[Hashable] = [r if key is None else key for r, key in enumerate(self.keys or [None] * x0.n_systems)]
        void = [False] * len(keys) if self.prior is None else (self.prior == -math.inf).tolist()
        lost = {key: math.inf for key, nothing in zip(keys, void, strict=True) if nothing}
        wanted = {key: r for r, key in reversed(list(enumerate(keys))) if key not in self.memo and not void[r]}
        rows = torch.tensor(sorted(wanted.values()), dtype=torch.long, device=x0.device)
        if len(rows):
            part, streams = getattr(self.inner, "part", None), self.streams
            assert streams is not None
            if part is None or self.fewest is None:
                value = denoising_loss(self.inner, diffusion, x0, streams, LEVELS, DRAWS)[rows]
            else:
                more = filled(rows, min(self.fewest, x0.n_systems))
                own = [*streams.subset(rows.tolist()).each, *Streams.of(0, range(len(more) - len(rows))).each]
                value = denoising_loss(part(more), diffusion, x0[more], Streams(own), LEVELS, DRAWS)[: len(rows)]
            value = torch.where(is_crystal(x0[rows]) & value.isfinite(), value, math.inf)
            fresh = dict(zip((keys[r] for r in rows.tolist()), value.tolist(), strict=True))
            self.memo.update({key: v for key, v in fresh.items() if not isinstance(key, int)})
            lost |= fresh
        return torch.tensor([lost[key] if key in lost else self.memo[key] for key in keys], device=x0.device)

    def choice(self, doubt: Tensor) -> Tensor:
        """The row of each group that is to come first, [G], from the doubt of all [S]."""
        cost = (doubt if self.prior is None else doubt - self.prior).reshape(-1, self.each)
        best = []
        for g, row in enumerate(cost):
            if self.n_groups is not None and g >= self.n_groups:
                best.append(0)
                continue
            split = self.each - self.n_noise
            order = row[:split].argsort(stable=True).tolist()
            rivals = [order[self.places[g] % split], *range(split, self.each)] if split else list(range(self.each))
            best.append(min(rivals, key=lambda r: float(row[r])))
        return torch.tensor(best, device=doubt.device)

    def facts(self, row: int) -> Mapping[str, Any]:
        """Where the system in a row began, and, where it was chosen, the model's doubt of it (None for what is no crystal)."""
        if self.each == 1:
            return {"began": self.labels[row]}
        group, place = divmod(row, self.each)
        if place or group >= len(self.doubt):
            return {}
        value = self.doubt[group]
        return {"began": self.labels[row], "doubt": float(f"{value:.5g}") if math.isfinite(value) else None}


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (like.dim() - 1))
