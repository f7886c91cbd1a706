"""Temperature on the logits of a denoiser: a wrapper that goes with any sampler."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.errors import BadRequest, unknown


class Sharpened:
    """A denoiser whose logits are divided by a temperature: below 1 it chooses likelier classes, above 1 freer ones.

    ``temperature`` is one number for every categorical field of ``diffusion`` or a mapping from field to number. The
    denoiser itself still sees its own, untempered prediction as self-conditioning. Raises ``BadRequest`` for a field that
    has no logits or a temperature that is not positive.
    """

    def __init__(self, denoiser: Denoiser, diffusion: Diffusion, temperature: float | Mapping[str, float]) -> None:
        names = diffusion.categorical
        wanted = temperature if isinstance(temperature, Mapping) else dict.fromkeys(names, temperature)
        for name, value in wanted.items():
            if name not in names:
                raise unknown("categorical field", name, names)
            if not value > 0:
                raise BadRequest(f"temperature of {name!r} must be positive, found {value!r}")
        self.denoiser, self.temperature = denoiser, dict(wanted)

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        before = None
        if previous is not None:
            before = previous.replace(**{k: previous.data[k] * v for k, v in self.temperature.items()})
        prediction = self.denoiser(xt, t, before)
        return prediction.replace(**{k: prediction.data[k] / v for k, v in self.temperature.items()})
