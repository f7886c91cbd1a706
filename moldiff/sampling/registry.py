"""Samplers by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from moldiff.errors import BadRequest, unknown
from moldiff.sampling.annealed import Annealed
from moldiff.sampling.ddpm import DDIM, DDPM
from moldiff.sampling.dpm_solver import DPMSolver
from moldiff.sampling.euler import Euler
from moldiff.sampling.heun import ExponentialHeun, Heun
from moldiff.sampling.loop import Sampler
from moldiff.sampling.predictor_corrector import PredictorCorrector

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "exponential_heun": ExponentialHeun,
    "dpm_solver": DPMSolver,
    "predictor_corrector": PredictorCorrector,
    "annealed": Annealed,
}


def sampler_class(name: str) -> type[Sampler]:
    """The class of a sampler; an unknown name raises ``BadRequest`` with the known ones."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    return SAMPLERS[name]


def sampler_options(name: str) -> dict[str, float]:
    """The options of a sampler and their defaults."""
    parameters = inspect.signature(sampler_class(name)).parameters
    return {key: p.default for key, p in parameters.items()}


def make_sampler(name: str, options: Mapping[str, Any] | None = None) -> Sampler:
    """A sampler by name with its options; an unknown name, option or value raises ``BadRequest``."""
    known = sampler_options(name)
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise unknown(f"option of sampler {name!r}", key, known)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRequest(f"option {key!r} of sampler {name!r} must be a number, found {value!r}")
        values[key] = float(value)
    return sampler_class(name)(**values)
