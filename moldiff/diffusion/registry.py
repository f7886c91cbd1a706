"""Processes by name, so that which fields are diffused, and how, is configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.lattice import LogLattice
from moldiff.diffusion.onehot import OneHot
from moldiff.diffusion.process import Process
from moldiff.diffusion.schedules import SCHEDULES, Schedule
from moldiff.diffusion.torus import Geodesic, WrappedNormal
from moldiff.errors import BadRequest, unknown

# processes of periodic systems, and the one field that each is for
_PERIODIC: dict[str, tuple[Callable[..., Process], str]] = {
    "wrapped_normal": (WrappedNormal, "frac_coords"),
    "geodesic": (Geodesic, "frac_coords"),
    "log_lattice": (LogLattice, "lattice"),
}


def build_schedule(options: Mapping[str, Any]) -> Schedule:
    """A schedule from ``{"name": ..., **options}``."""
    options = dict(options)
    name = options.pop("name")
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise BadRequest(f"schedule {name!r}: {error}") from None


def build_process(field: str, vocabulary: Vocabulary, options: Mapping[str, Any]) -> Process:
    """The process of one field from ``{"process": ..., "schedule": {...}, **options}``."""
    options = dict(options)
    kind = options.pop("process")
    schedule = build_schedule(options.pop("schedule"))
    try:
        if kind == "gaussian":
            return Gaussian(field, schedule, **options)
        if kind == "categorical":
            return Categorical(field, schedule, vocabulary.size(field), **options)
        if kind == "one_hot":
            return OneHot(field, schedule, vocabulary.size(field), **options)
        if kind in _PERIODIC:
            process, home = _PERIODIC[kind]
            if field != home:
                raise BadRequest(f"process {kind!r} is one of {home!r}, not of {field!r}")
            return process(field, schedule, **options)
    except TypeError as error:
        raise BadRequest(f"process {kind!r} of {field!r}: {error}") from None
    raise unknown("process", kind, ("gaussian", "categorical", "one_hot", *_PERIODIC))


def build_diffusion(fields: Mapping[str, Mapping[str, Any]], vocabulary: Vocabulary) -> Diffusion:
    """A joint diffusion from ``{field: process options}``."""
    return Diffusion({name: build_process(name, vocabulary, options) for name, options in fields.items()})
