"""Parts given: fields of some atoms are known, the rest is made to fit them, by replacement and resampling.

In each step the denoiser's clean prediction of the known part is replaced by the truth. The sampler's own step then carries that
part along the exact reverse of its noising, so that at every time it is the noised truth, for any process (the straight ways of a
torus too, which cannot be noised anew) and any sampler, and self-conditioning sees the truth as well.

Positions are known up to a shift only: the centre of the known atoms is free in a frame whose origin is the centre of all.
Noise is isotropic, so the inner coordinates of the known atoms and their centre are independent, and only the former are
replaced. At the end everything is put into the frame of the truth, and known values are copied bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.core.periodic import circular_mean, wrap
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.process import Process
from moldiff.errors import BadRequest
from moldiff.sampling.control import Control, Step


class Known:
    """The truth of some entries of S encoded systems.

    ``truth`` carries the fields of which something is known, the known atoms first; ``parts`` says for each which entries are: a
    number k for the first k atoms (for pairs: the bonds between them), or a bool mask of the field's scope; system fields are
    known whole. Fields of ``free_origin`` take a number, since their mean over the known atoms is what stays free.
    """

    def __init__(self, truth: AtomBatch, parts: Mapping[str, int | Tensor]) -> None:
        self.truth, self.parts = truth, dict(parts)
        self.masks: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if isinstance(part, int):
                first = self.first(part)
                self.masks[name] = AtomBatch(first).scope_mask(name)
            else:
                self.masks[name] = part

    def first(self, k: int) -> Tensor:
        """The mask of the first k atoms, [S, N]."""
        mask = self.truth.mask.clone()
        mask[:, k:] = False
        return mask

    def seen(self, name: str) -> AtomBatch:
        """The truth as if only the atoms that are known in this field existed, for the process's own verbs."""
        part = self.parts[name]
        return AtomBatch(self.first(part), self.truth.data) if isinstance(part, int) else self.truth

    def flags(self, processes: Mapping[str, Process]) -> dict[str, Tensor]:
        """``given_atoms`` [S, N, 2] (all classes of an atom, its place) and ``given_pairs`` [S, N, N]: 1 where known."""
        none = torch.zeros_like(self.truth.mask)
        classes, place, pairs = none, none, torch.zeros_like(self.truth.pair_mask)
        of_atoms = [n for n, p in processes.items() if field(n).scope == "atom"]
        labels = [n for n in of_atoms if not processes[n].continuous]
        if labels and all(n in self.masks for n in labels):
            classes = torch.stack([self.masks[n] for n in labels]).all(0)
        for name in of_atoms:
            if processes[name].continuous and name in self.masks:
                place = self.masks[name]
        for name, mask in self.masks.items():
            if field(name).scope == "pair":
                pairs = mask
        return {"given_atoms": torch.stack([classes, place], -1).float(), "given_pairs": pairs.float()}

    def merge(self, name: str, known: Tensor, other: Tensor, free_origin: bool = False) -> Tensor:
        """``known`` where it is known, else ``other``; with ``free_origin`` the known atoms keep their mean in ``other``."""
        mask = self.masks[name]
        mask = mask.reshape(*mask.shape, *[1] * (other.dim() - mask.dim()))
        if free_origin:
            m = mask.to(other.dtype)
            known = known + ((other - known) * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp_min(1)
        return torch.where(mask, known, other)


class Told:
    """A denoiser whose prediction of what is known is the truth.

    With ``shown`` "clean" it also sees the known values without noise, as ``xt``; with "noisy" as the loop has them.
    """

    def __init__(self, denoiser: Denoiser, diffusion: Diffusion, known: Known, shown: str = "noisy") -> None:
        self.denoiser, self.diffusion, self.known, self.shown = denoiser, diffusion, known, shown

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        processes, known = self.diffusion.processes, self.known
        prediction = self.denoiser(self.see(xt), t, previous)
        told = {}
        for name in known.masks:
            process = processes[name]
            truth = process.known(known.seen(name), xt)
            told[name] = known.merge(name, truth, prediction.data[name], process.free_origin)
        return prediction.replace(**told)

    def see(self, xt: AtomBatch) -> AtomBatch:
        """What the network sees in place of x_t: known values without noise, and which they are, unless ``shown`` is "noisy"."""
        if self.shown != "clean":
            return xt
        processes, known = self.diffusion.processes, self.known
        clean = {name: certain_state(processes[name], known.seen(name)) for name in known.masks}
        merged = {n: known.merge(n, v, xt.data[n], processes[n].free_origin) for n, v in clean.items()}
        return xt.replace(**merged, **known.flags(processes))


def certain_state(process: Process, x0: AtomBatch) -> Tensor:
    """x_t as it would be without any noise: the clean value of a continuous field, the class itself of a categorical one."""
    return process.known(x0, x0) if process.continuous else x0.data[process.name]


class Inpaint(Control):
    """Keeps what is ``known``, in every step and exactly at the end.

    ``resamplings`` R makes every stretch of ``jump`` steps R times, noising back to its start in between, so that both parts get
    to know each other (Lugmayr et al. 2022, RePaint). R = 1 is plain replacement. ``fresh`` replaces the known part of the state
    by newly noised truth after each step, as in RePaint, instead of letting it follow its own way.
    """

    def __init__(
        self, known: Known, resamplings: int = 1, jump: int = 1, fresh: bool = False, shown: str = "noisy"
    ) -> None:
        if resamplings < 1 or jump < 1:
            raise BadRequest(f"resamplings and jump must be at least 1, found {resamplings} and {jump}")
        self.known, self.resamplings, self.jump, self.fresh, self.shown = known, resamplings, jump, fresh, shown
        self._times: list[Tensor] = []

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        for name in self.known.masks:
            if name not in diffusion.processes:
                raise BadRequest(f"the model does not make {name!r}, so that there is nothing to keep of it")
        return Told(denoiser, diffusion, self.known, self.shown)

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        self._times = []
        return xt

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        diffusion, rng = now.diffusion, now.rng
        after = self._noised(after, diffusion, now.s, rng)
        if self.resamplings == 1:
            return after
        self._times = [*(self._times or [now.t]), now.s]
        if len(self._times) <= self.jump:
            return after
        times, self._times = self._times, []
        for _ in range(self.resamplings - 1):
            after = self._noised(diffusion.renoise(after, times[-1], times[0], rng), diffusion, times[0], rng)
            for a, b in pairwise(times):
                after = self._noised(now.sampler.step(now.model, diffusion, after, a, b, rng), diffusion, b, rng)
        return after

    def _noised(self, xt: AtomBatch, diffusion: Diffusion, t: Tensor, rng: Streams) -> AtomBatch:
        if not self.fresh:
            return xt
        return noised_truth(self.known, xt, diffusion, t, rng)

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        return restored(self.known, x0, diffusion)


def noised_truth(known: Known, xt: AtomBatch, diffusion: Diffusion, t: Tensor, rng: Streams) -> AtomBatch:
    """x_t in which what is known is newly noised truth."""
    fields = {}
    for name in known.masks:
        process = diffusion.processes[name]
        fields[name] = known.merge(name, process.noise(known.seen(name), t, rng), xt.data[name], process.free_origin)
    return xt.replace(**fields)


def restored(known: Known, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
    """Clean systems in the frame of the truth, in which what is known is the truth bit by bit."""
    fields: dict[str, Tensor] = {}
    for name, mask in known.masks.items():
        made, truth = x0.data[name], known.truth.data[name]
        shape = mask.reshape(*mask.shape, *[1] * (made.dim() - mask.dim()))
        if diffusion.processes[name].free_origin:
            if name == "frac_coords":
                made = wrap(made + circular_mean(truth - made, mask))
            else:
                m = shape.to(made.dtype)
                made = made + ((truth - made) * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp_min(1)
                made = torch.where(x0.mask[..., None], made, torch.zeros_like(made))
        fields[name] = torch.where(shape, truth.to(made.dtype), made)
    return x0.replace(**fields)


def unable(diffusion: Diffusion, names: Sequence[str], resamplings: int) -> str:
    """Why what is known of these fields can't be kept with so many resamplings, or an empty string."""
    for name in names:
        if name not in diffusion.processes:
            return f"the model does not make {name!r}, so that there is nothing to keep of it"
    stiff = [name for name, process in diffusion.processes.items() if not process.stochastic]
    if resamplings > 1 and stiff:
        return f"the process of {stiff[0]!r} can't be noised anew, so steps can't be made more than once: use --resamplings 1"
    return ""
