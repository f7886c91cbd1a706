"""Continuous one-hot diffusion of a categorical field: EDM's way to make atom types."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.gaussian import Gaussian, Parameterization
from moldiff.diffusion.schedules import Schedule


class OneHot(Gaussian):
    """Gaussian diffusion of the one-hot vector of a class index (Hoogeboom et al. 2022, EDM, section 3.3).

    x_0 is the index field of the encoded batch; x_t is float [..., n_classes] with x_t = alpha onehot(x_0) + sigma eps / factor.
    In units of the noise this is EDM's ``factor`` times the one-hot vector (0.25 for types), and exactly that is what the
    network sees. A prediction is the clean vector (its exact value: the class probabilities), not logits; ``finish`` takes its
    largest entry. With ``parameterization`` ``eps`` the raw output is the noise and the loss its plain squared error, as in EDM.
    """

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        n_classes: int,
        parameterization: Parameterization = "eps",
        factor: float = 0.25,
        weight: float = 1.0,
        max_weight: float = 1e6,
    ) -> None:
        super().__init__(name, schedule, parameterization, 1 / factor, False, weight, max_weight)
        self.n_classes = n_classes

    @property
    def n_states(self) -> int:
        """Length of the vector that the network sees."""
        return self.n_classes

    def clean(self, x0: AtomBatch) -> Tensor:
        return self._inside(one_hot(x0.data[self.name], self.n_classes).float(), x0)

    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        return rng.normal(like, self.name, (self.n_classes,))

    def finish(self, prediction: Tensor, batch: AtomBatch) -> Tensor:
        index = prediction.argmax(-1)
        return torch.where(batch.scope_mask(self.name), index, torch.zeros_like(index))

    def self_condition(self, prediction: Tensor) -> Tensor:
        return prediction
