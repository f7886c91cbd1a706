"""``check_denoiser``: what every denoiser promises, tried on random systems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Denoiser, Signature
from moldiff.errors import unknown
from moldiff.testing.promises import PROMISES, Trial
from moldiff.testing.report import CheckFailed, Measurement, Report
from moldiff.testing.symmetries import random_batch, random_prediction


@contextmanager
def _evaluating(denoiser: Denoiser) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again outside."""
    modes = {m: m.training for m in denoiser.modules()} if isinstance(denoiser, nn.Module) else {}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _sentence(failure: Measurement) -> str:
    if failure.limit == 0:
        return f"not so: {failure.name}"
    return f"{failure.name}: relative error {failure.value:.2g}, allowed {failure.limit:.2g}"


def perturb(module: nn.Module, std: float = 0.1, seed: int = 0) -> nn.Module:
    """Add Gaussian noise to every weight in place, so that heads that begin at zero say something; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_((std * torch.randn(p.shape, generator=generator)).to(p))
    return module


def check_denoiser(
    denoiser: Denoiser,
    signature: Signature,
    *,
    example: AtomBatch | None = None,
    given: Sequence[str] = (),
    one_hot: Sequence[str] = (),
    raw: bool = False,
    sizes: Sequence[int] = (5, 3, 1, 6),
    skip: Sequence[str] = (),
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Report:
    """Try on random systems that a denoiser, or a network alone, keeps its promises (``testing.promises.PROMISES``).

    ``signature`` names the fields; those in ``given`` are inputs that need not be predicted, those in ``one_hot`` are float
    class vectors rather than indices. The systems have ``sizes`` atoms, or are those of ``example`` (encoded, its positions
    centred) where the fields need values of a special kind. ``raw`` says that fractional outputs are displacements, which a
    shift of the cell's origin leaves alone, rather than coordinates. ``skip`` leaves checks out by name. Errors are in units of
    a field's largest value and must not exceed ``tolerance`` (1e-4 suits float32, 5e-2 bfloat16, 1e-8 float64).

    Every check runs without and with a previous prediction, in evaluation mode. Returns the measurements. Raises
    ``CheckFailed``, which tells the broken promises, by which field and by how much; ``BadRequest`` for a name in ``skip``
    that is no check.
    """
    for name in skip:
        if name not in PROMISES:
            raise unknown("check", name, PROMISES)
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(signature, sizes, generator, dtype, one_hot) if example is None else example
    batch = batch.to(device)
    t = (0.05 + 0.9 * torch.rand(batch.n_systems, generator=generator)).to(device, dtype)
    expected = tuple(k for k in (*signature.continuous, *signature.categorical) if k not in given)
    subject = type(denoiser).__name__
    report = Report(subject)
    trial = Trial(denoiser, signature, batch, t, expected, tolerance, raw, generator, report, {})
    broken: list[str] = []
    with _evaluating(denoiser):
        for name, check in PROMISES.items():
            if name in skip:
                continue
            if name != "shapes" and trial.previous is None:
                break  # without a sound first prediction there is nothing to compare
            trial.title, before = name, len(report.failures)
            try:
                if name == "shapes":
                    first = trial(batch)
                    trial.previous = random_prediction(first, generator)
                    trial.scales = {k: v.abs().amax().clamp_min(1e-6) for k, v in first.masked().data.items()}
                check(trial)
            except Exception as error:  # noqa: BLE001 whatever a stranger's denoiser raises is a finding, not the end of the check
                trial.require(f"no exception (raised {type(error).__name__}: {error})", False)
            if len(report.failures) > before:
                broken.append(f"{name} ({(check.__doc__ or '').strip().splitlines()[0]})")
                if name == "shapes":
                    break
    if broken:
        facts = "\n  ".join(dict.fromkeys(map(_sentence, report.failures)))
        raise CheckFailed(f"{subject} breaks {len(broken)} of {len(PROMISES)} promises: {'; '.join(broken)}\n  {facts}")
    return report
