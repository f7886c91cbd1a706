"""Data for any process or diffusion, so that a check needs nothing but the part to be checked."""

from __future__ import annotations

import torch

from moldiff.core.fields import field
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.lattice import LogLattice
from moldiff.diffusion.process import Process
from moldiff.diffusion.torus import Torus
from moldiff.testing.oracles import ClassField, FieldModel, MixtureOracle, NormalField
from moldiff.testing.periodic import lattice_model, torus_model


def default_model(process: Process, n_atoms: int = 3, n_components: int = 3, seed: int = 0, free: int = -1) -> FieldModel:
    """Data for one process: well separated normals (on the torus, in the logarithm of the cell), or uneven classes.

    Of a categorical field the first ``free`` entries depend on the component and the others do not (-1: all depend).
    """
    generator = torch.Generator().manual_seed(seed + sum(map(ord, process.name)))
    f = field(process.name)
    if isinstance(process, Torus):
        return torus_model(process, n_atoms, n_components, seed)
    if isinstance(process, LogLattice):
        return lattice_model(process, n_atoms, n_components, seed)
    if f.categorical:
        n_entries = n_atoms if f.scope == "atom" else n_atoms * (n_atoms - 1) // 2
        n_classes = int(process.n_classes)  # type: ignore[attr-defined]
        p = torch.randn(n_components, n_entries, n_classes, generator=generator).mul(1.2).softmax(-1)
        if free >= 0:
            p[:, free:] = p[:1, free:]
        return ClassField(process.name, p, n_atoms)
    scale = float(getattr(process, "scale", 1.0))
    lead = (n_atoms,) if f.scope == "atom" else ()
    means = torch.randn(n_components, *lead, *(int(k or 1) for k in f.shape), generator=generator)
    stds = torch.linspace(0.25, 0.45, n_components)
    return NormalField(process.name, means * scale, stds * scale, bool(getattr(process, "zero_mean", False)))


def default_oracle(diffusion: Diffusion, n_atoms: int = 3, seed: int = 0, entangled: bool = False) -> MixtureOracle:
    """Correlated data for every field of a diffusion.

    All continuous fields depend on the component, and of the classes one entry in all, so that classes given x_t are
    independent and every step rule is exact. ``entangled`` lets every class depend on it: then only rules that draw from
    the posterior become exact, as steps get small.
    """
    weights = torch.tensor([0.5, 0.3, 0.2])
    models, free = {}, 1
    for name, process in diffusion.processes.items():
        if process.continuous or entangled:
            models[name] = default_model(process, n_atoms, len(weights), seed)
        else:
            models[name] = default_model(process, n_atoms, len(weights), seed, free)
            free = 0
    return MixtureOracle(weights, n_atoms, models)
