"""Gradient guidance: samples are drawn towards whatever a differentiable function of the clean prediction calls good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from moldiff.core.batch import AtomBatch
from moldiff.core.vocabulary import Vocabulary
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.lattice import LogLattice
from moldiff.diffusion.process import Process, per_system
from moldiff.diffusion.torus import Torus
from moldiff.errors import MoldiffError
from moldiff.sampling.control import Control

WAYS = ("clean", "denoiser")
#: Spread of coordinates that are uniform in a cell: sqrt(1 / 12).
_TORUS_SPREAD = 0.29


@dataclass(frozen=True)
class CleanAtoms:
    """The predicted clean systems as a guidance function sees them: physical values and class probabilities, with gradients.

    ``mask`` bool [S, N] says which atoms are real and ``t`` [S] is the time (1 noise, 0 data). ``values`` holds ``positions``
    [S, N, 3] (Å), or ``frac_coords`` [S, N, 3] and ``lattice`` [S, 3, 3] (Å); ``probabilities`` holds ``atom_types`` [S, N, C],
    ``charges`` [S, N, Q] and ``bond_types`` [S, N, N, B], as far as the model has them, whose classes are the numbers in
    ``classes`` (atomic numbers, charges, bond orders).
    """

    mask: Tensor
    t: Tensor
    values: Mapping[str, Tensor]
    probabilities: Mapping[str, Tensor]
    classes: Mapping[str, tuple[int, ...]]

    @property
    def positions(self) -> Tensor:
        """Å, [S, N, 3]; of a crystal those in the predicted cell."""
        if "positions" in self.values:
            return self.values["positions"]
        return self.values["frac_coords"] @ self.values["lattice"]

    @property
    def lattice(self) -> Tensor:
        """Cell vectors as rows in Å, [S, 3, 3]."""
        return self.values["lattice"]

    @property
    def types(self) -> Tensor:
        """Probabilities of the elements ``classes["atom_types"]``, [S, N, C]."""
        return self.probabilities["atom_types"]

    @property
    def n_atoms(self) -> Tensor:
        """Number of real atoms, [S]."""
        return self.mask.sum(1)

    def mean(self, name: str) -> Tensor:
        """The expected value of a field: of ``charges`` [S, N] in e, of ``bond_types`` [S, N, N] the order; 0 on padding."""
        p = self.probabilities[name]
        value = (p * torch.tensor(self.classes[name], dtype=p.dtype, device=p.device)).sum(-1)
        m = self.mask if value.dim() == 2 else self.mask[:, :, None] & self.mask[:, None, :]
        return value * m

    def count(self, number: int) -> Tensor:
        """The expected number of atoms of an element, [S]."""
        return (self.types[..., self.classes["atom_types"].index(number)] * self.mask).sum(1)


#: One number a system, [S]: the larger, the better; like a log probability.
GuidanceFunction = Callable[[CleanAtoms], Tensor]


class GradientGuided:
    """A denoiser whose clean prediction is moved up the gradient of ``scale`` times ``function``.

    With f a log likelihood of what is wanted, the mean of x_0 moves by the posterior variance times the gradient of f. ``way``
    ``denoiser`` differentiates through the network: sigma^2 / alpha times the gradient by x_t (Chung et al. 2023, DPS), exact for
    linear f. ``clean`` takes the gradient by the clean prediction, and for the variance that of data of the field's own spread,
    sigma^2 / (alpha^2 + sigma^2) (as universal guidance, Bansal et al. 2023, at a fraction of the cost). Logits move by the
    gradient by the class probabilities: an exact tilt where f is linear in the one-hot classes.

    No move is larger than ``clip`` posterior standard deviations (root mean square over a system's atoms) nor ``clip`` in any
    logit. Systems with a non-finite value or gradient stay as they are; ``n_dropped`` counts them, of ``n_asked``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        diffusion: Diffusion,
        vocabulary: Vocabulary,
        function: GuidanceFunction,
        scale: float = 1.0,
        way: str = "clean",
        clip: float = 2.0,
    ) -> None:
        self.denoiser, self.diffusion, self.vocabulary = denoiser, diffusion, vocabulary
        self.function, self.scale, self.way, self.clip = function, scale, way, clip
        self.n_asked = self.n_dropped = 0

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        continuous = self.diffusion.continuous
        with torch.enable_grad():
            if self.way == "denoiser":
                leaves = {name: xt.data[name].detach().requires_grad_() for name in continuous}
                prediction = self.denoiser(xt.replace(**leaves), t, previous)
            else:
                prediction = self.denoiser(xt, t, previous)
                leaves = {name: prediction.data[name].detach().requires_grad_() for name in continuous}
                prediction = AtomBatch(xt.mask, {k: leaves.get(k, v.detach()) for k, v in prediction.data.items()})
            logits = self.diffusion.categorical
            p = {name: prediction.data[name].float().softmax(-1) for name in logits}
            if self.way == "clean":
                p = {name: value.detach().requires_grad_() for name, value in p.items()}
            names = [*leaves, *p]
            value = self._value(xt, t, prediction, p)
            gradients = torch.autograd.grad(value.sum(), [*leaves.values(), *p.values()], allow_unused=True)
        sound = value.detach().isfinite()
        for g in gradients:
            if g is not None:
                sound &= g.flatten(1).isfinite().all(1)
        self.n_asked += len(sound)
        self.n_dropped += int((~sound).sum())
        moved = {name: tensor.detach() for name, tensor in prediction.data.items()}
        for name, g in zip(names, gradients, strict=True):
            if g is not None:
                g = torch.where(per_system(sound, g), g, torch.zeros_like(g))
                moved[name] = moved[name] + self._move(name, g, t, xt).to(moved[name].dtype)
        return AtomBatch(xt.mask, moved)

    def _value(self, xt: AtomBatch, t: Tensor, prediction: AtomBatch, p: Mapping[str, Tensor]) -> Tensor:
        atoms = self._atoms(xt, t, prediction, p)
        try:
            value = self.function(atoms)
        except Exception as error:
            raise MoldiffError(f"the guidance function raised {type(error).__name__}: {error}") from error
        if not isinstance(value, Tensor) or value.shape != (xt.n_systems,):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise MoldiffError(f"the guidance function must return one number a system, [{xt.n_systems}], found {found}")
        if not value.requires_grad:
            raise MoldiffError("the guidance function's result does not depend on the atoms by any operation of torch")
        return value

    def _atoms(self, xt: AtomBatch, t: Tensor, prediction: AtomBatch, p: Mapping[str, Tensor]) -> CleanAtoms:
        values, probabilities = {}, dict(p)
        for name in (*prediction, *(name for name in xt if name not in prediction)):
            x, process = (prediction if name in prediction else xt).data[name], self.diffusion.processes.get(name)
            if name in p or name == "conditions":
                continue
            if name in self.vocabulary.values:
                index = not x.is_floating_point()
                probabilities[name] = one_hot(x, self.vocabulary.size(name)).float() if index else x
            else:
                values[name] = process.self_condition(x) if isinstance(process, LogLattice) else x
        return CleanAtoms(xt.mask, t, values, probabilities, self.vocabulary.values)

    def _move(self, name: str, gradient: Tensor, t: Tensor, xt: AtomBatch) -> Tensor:
        if name in self.diffusion.categorical:
            return (self.scale * gradient).clamp(-self.clip, self.clip)
        process = self.diffusion.processes[name]
        alpha, sigma = per_system(process.schedule.alpha(t), gradient), per_system(process.schedule.sigma(t), gradient)
        unit = _spread(process, gradient)
        noise = 1.0 if isinstance(process, Torus) else unit
        variance = (unit * noise * sigma).square() / ((alpha * unit).square() + (noise * sigma).square())
        factor = (noise * sigma).square() / alpha if self.way == "denoiser" else variance
        move = self.scale * factor * gradient
        if not math.isfinite(self.clip):
            return move
        share = (move / variance.sqrt().clamp_min(1e-12)).square().flatten(1)
        count = xt.n_atoms * gradient.shape[-1] if gradient.dim() == 3 else share.new_full((len(share),), share.shape[1])
        size = (share.sum(1) / count).sqrt()
        return move * per_system((self.clip / size.clamp_min(1e-12)).clamp_max(1.0), move)


def _spread(process: Process, like: Tensor) -> Tensor:
    """The spread of a field's data in its unit, shaped to broadcast against ``like``."""
    if isinstance(process, LogLattice):
        return like.new_tensor(process.std)
    return like.new_tensor(_TORUS_SPREAD if isinstance(process, Torus) else float(getattr(process, "scale", 1.0)))


class Gradient(Control):
    """Guides the denoiser by the gradient of a function (see ``GradientGuided``)."""

    def __init__(
        self, vocabulary: Vocabulary, function: GuidanceFunction, scale: float = 1.0, way: str = "clean", clip: float = 2.0
    ) -> None:
        self.vocabulary, self.function, self.scale, self.way, self.clip = vocabulary, function, scale, way, clip
        self.guided: GradientGuided | None = None

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.guided = GradientGuided(denoiser, diffusion, self.vocabulary, self.function, self.scale, self.way, self.clip)
        return self.guided
