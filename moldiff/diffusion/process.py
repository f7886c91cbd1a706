"""The protocol of a process: one field's prior, noise, loss and step."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.schedules import Schedule


def per_system(value: Tensor, like: Tensor) -> Tensor:
    """Append axes to a [S] tensor so that it broadcasts against ``like`` [S, ...]."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


class Process(ABC):
    """How one field is noised and denoised.

    ``weight`` multiplies this field's loss. Tensors are those of the encoded batch; times are [S], 0 = data, 1 = noise.
    """

    name: str
    schedule: Schedule
    weight: float
    continuous: bool = True
    """Whether predictions are values (moved without a draw at eta 0) rather than logits of classes."""
    reversible: bool = True
    """Whether a step at eta 1 is the exact reverse of ``renoise``, so that (x_s, x_t) is distributed as in noising."""

    free_origin: bool = False
    """Whether a common shift of all atoms means nothing (zero centre of mass, zero drift)."""

    stochastic: bool = True
    """Whether noise can be put in: a step obeys eta, and ``renoise`` exists (where it does not, it raises ``BadRequest``)."""

    @abstractmethod
    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        """A draw at t = 1, of the shape that ``like``'s mask asks for."""

    @abstractmethod
    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        """A draw of x_t given the clean batch."""

    @abstractmethod
    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        """Loss of a clean prediction, one number a system [S]."""

    @abstractmethod
    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        """A draw of x_s (s <= t) given x_t and the clean prediction; eta 0 is deterministic, 1 ancestral."""

    @abstractmethod
    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        """A draw of x_u (u >= t) given x_t: noising carried on from where it stands."""

    @abstractmethod
    def finish(self, prediction: Tensor, batch: AtomBatch) -> Tensor:
        """The clean value that a prediction stands for (the mode, for classes)."""

    def known(self, x0: AtomBatch, xt: AtomBatch) -> Tensor:
        """The prediction of a denoiser that knows the clean batch; with ``free_origin``, up to a common shift of its atoms."""
        return x0.data[self.name]

    def network_input(self, xt: AtomBatch, t: Tensor) -> Tensor:
        """What the network sees in place of x_t."""
        return xt.data[self.name]

    def to_clean(self, raw: Tensor, xt: AtomBatch, t: Tensor) -> Tensor:
        """The clean prediction from the network's raw output."""
        return raw

    def self_condition(self, prediction: Tensor) -> Tensor:
        """What the network sees of its own previous clean prediction."""
        return prediction

    def blend(self, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
        """first + weight (second - first) of two clean predictions, weight [S]: what higher-order samplers step with."""
        return first + per_system(weight, first) * (second - first)
