"""Checks for your own parts: each compares with an exact answer and raises ``CheckFailed`` naming what is out of bounds."""

from moldiff.testing.defaults import default_model, default_oracle
from moldiff.testing.denoisers import check_denoiser, perturb
from moldiff.testing.oracles import ClassField, FieldModel, MixtureOracle, NormalField
from moldiff.testing.periodic import LogLatticeField, TorusField
from moldiff.testing.processes import check_process
from moldiff.testing.report import CheckFailed, Measurement, Report
from moldiff.testing.samplers import check_sampler, default_diffusion

__all__ = [
    "CheckFailed",
    "ClassField",
    "FieldModel",
    "LogLatticeField",
    "Measurement",
    "MixtureOracle",
    "NormalField",
    "Report",
    "TorusField",
    "check_denoiser",
    "check_process",
    "check_sampler",
    "default_diffusion",
    "default_model",
    "default_oracle",
    "perturb",
]
