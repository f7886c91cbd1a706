"""Fixtures that several tests share: a model folder with random weights, and a small data set."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moldiff.config import Config, parse_config

torch.set_num_threads(1)

SETTINGS = {
    "name": "tiny",
    "data": {"name": "tiny"},
    "vocabulary": {"atom_types": [1, 6, 7, 8], "charges": [-1, 0, 1], "bond_types": [0, 1, 2, 3]},
    "fields": {
        "positions": {
            "process": "gaussian", "schedule": {"name": "variance_exploding"}, "parameterization": "karras", "scale": 1.4,
        },
        "atom_types": {"process": "categorical"},
        "charges": {"process": "categorical"},
        "bond_types": {"process": "categorical"},
    },
    "network": {
        "name": "thin_pair", "width": 32, "n_layers": 2, "n_heads": 2, "pair": 8, "pair_hidden": 8, "n_sets": 2, "ffn": 32,
    },
    "max_atoms": 12,
    "sampling": {"sampler": "ddpm", "steps": 5},
}  # fmt: skip
SIZES = {3: 5, 5: 20, 6: 30, 8: 20, 9: 1}


def tiny_config(**changes: object) -> Config:
    """The settings of the tiny model, with top-level sections replaced."""
    return parse_config({**SETTINGS, **changes}, "tiny")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights and a reference that knows two molecules."""
    from moldiff.assemble import build_denoiser
    from moldiff.evaluation.reference import Reference, hash_texts
    from moldiff.model_export import export_model

    torch.manual_seed(0)
    config = tiny_config()
    reference = Reference("tiny", "molecule", 2, np.sort(hash_texts(["C", "CO"])), {}, {"n": 2, "metrics": {"validity": 1.0}})
    folder = tmp_path_factory.mktemp("models") / "tiny"
    weights = build_denoiser(config).state_dict()
    export_model(weights, config, None, folder, {"trained": "not at all"}, sizes=SIZES, reference=reference)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 60 zigzag chains C_n H_(2n+2) of 5 and 8 atoms, bonds and all."""
    from moldiff.data.store import pack, write_store

    rng = np.random.default_rng(0)
    systems = []
    for k in range(60):
        carbons = 1 + k % 2
        numbers = [6] * carbons + [1] * (2 * carbons + 2)
        bonds = [(i, i + 1) for i in range(carbons - 1)]
        free, h = [4 - (carbons > 1)] * carbons, carbons
        for c in range(carbons):
            for _ in range(free[c]):
                bonds.append((c, h))
                h += 1
        x = rng.normal(size=(len(numbers), 3)) * math.sqrt(len(numbers)) / 2
        system = {
            "atom_types": np.array(numbers), "positions": x - x.mean(0), "charges": np.zeros(len(numbers)),
            "bond_index": np.array(bonds), "bond_types": np.ones(len(bonds)), "id": k,
        }  # fmt: skip
        systems.append(system)
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return write_store(folder, {"train": pack(systems[:50]), "val": pack(systems[50:])}, {"name": "tiny", "kind": "molecule"})


CRYSTAL_FIELDS = {
    "frac_coords": {"process": "geodesic", "schedule": {"name": "straight"}},
    "lattice": {
        "process": "log_lattice", "schedule": {"name": "linear"},
        "mean": [0.02, 0.03, 0.0, -0.09, -0.29, 2.91], "std": [0.23, 0.2, 0.23, 0.15, 0.34, 0.38],
    },
}  # fmt: skip


def crystal_config(**changes: object) -> Config:
    """The settings of a tiny model of crystals of seven elements that is told the types; more fields as they are given."""
    settings = {
        "name": "tiny-csp", "kind": "crystal", "data": {"name": "tiny"},
        "vocabulary": {"atom_types": [1, 3, 8, 11, 17, 26, 82]}, "fields": CRYSTAL_FIELDS, "given": ["atom_types"],
        "network": {"name": "cspnet", "width": 16, "n_layers": 2, "pair": 8, "n_frequencies": 4, "n_memory": 2},
        "max_atoms": 12, "sampling": {"sampler": "ddim", "steps": 4},
    }  # fmt: skip
    return parse_config({**settings, **changes}, "tiny-csp")


@pytest.fixture(scope="session")
def tiny_csp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights that is told the composition of a crystal."""
    return random_model(crystal_config(), tmp_path_factory.mktemp("models") / "tiny-csp")


@pytest.fixture(scope="session")
def tiny_crystal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights that makes crystals, types from an absorbing state."""
    types = {"process": "categorical", "schedule": {"name": "linear"}, "prior_kind": "absorbing", "rule": "posterior"}
    config = crystal_config(
        name="tiny-crystal", fields={**CRYSTAL_FIELDS, "atom_types": types}, given=[], sampling={"sampler": "ddpm", "steps": 4}
    )
    return random_model(config, tmp_path_factory.mktemp("models") / "tiny-crystal")


def random_model(config: Config, folder: Path) -> Path:
    """Export a model that has learnt nothing."""
    from moldiff.assemble import build_denoiser
    from moldiff.model_export import export_model

    torch.manual_seed(0)
    export_model(build_denoiser(config).state_dict(), config, None, folder, sizes={2: 5, 4: 10, 5: 8, 8: 3})
    return folder


@pytest.fixture
def spoil_types(monkeypatch: pytest.MonkeyPatch):
    """A function that makes a generator's network say NaN of all types."""

    def spoil(generator) -> None:
        network = generator.denoiser.network
        whole = network.forward

        def spoilt(*arguments):
            raw = whole(*arguments)
            return raw.replace(atom_types=torch.full_like(raw.data["atom_types"], float("nan")))

        monkeypatch.setattr(network, "forward", spoilt)

    return spoil
