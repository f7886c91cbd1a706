"""What is logged of crystals during training: how many are valid, and how near their atoms come to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from moldiff.assemble import build_vocabulary
from moldiff.config import Config
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import NetworkDenoiser

#: Systems that are drawn together.
_PART = 100


def monitor_crystals(config: Config, columns: Mapping[str, Tensor]) -> Callable[[NetworkDenoiser], dict[str, float]]:
    """A function of a denoiser: validity and distances of a few samples, the same prior draws at every call.

    They have the sizes of random training crystals, and their types where the model is told them. ``columns`` are the store's.
    """
    from moldiff.chem.crystals import check_crystal, min_distance
    from moldiff.sampling.grids import make_grid
    from moldiff.sampling.loop import sample
    from moldiff.sampling.registry import make_sampler

    vocabulary, options, chosen = build_vocabulary(config), config.training, config.sampling
    blank = _like_training(columns, options.n_monitor)

    def measure(denoiser: NetworkDenoiser) -> dict[str, float]:
        device = next(denoiser.parameters()).device
        was_training = denoiser.training
        denoiser.eval()
        valid, nearest, volumes = 0, [], []
        for k in range(0, blank.n_systems, _PART):
            part = blank[k : k + _PART]
            like = vocabulary.encode(part) if "atom_types" in config.given else AtomBatch(part.mask)
            sampler = make_sampler(chosen.sampler, chosen.options)
            grid = make_grid(chosen.grid, options.monitor_calls, denoiser.diffusion.schedule, sampler.calls_per_step)
            rng = Streams.of(1, range(k, k + part.n_systems))
            drawn = sample(denoiser, denoiser.diffusion, like.to(device), rng, sampler, grid, chosen.self_conditioning)
            for one in vocabulary.decode(drawn.to("cpu")).to_list():
                z, frac, cell = (one.data[f][0].numpy() for f in ("atom_types", "frac_coords", "lattice"))
                problem = check_crystal(z, frac, cell)
                valid += not problem
                if problem in ("", "overlapping atoms"):
                    nearest.append(min_distance(frac, cell))
                    volumes.append(abs(float(np.linalg.det(cell))) / len(z))
        denoiser.train(was_training)
        return {
            "structure_validity": valid / blank.n_systems,
            "min_distance": round(float(np.median(nearest)), 3) if nearest else 0.0,
            "volume_per_atom": round(float(np.median(volumes)), 2) if volumes else 0.0,
        }

    return measure


def _like_training(columns: Mapping[str, Tensor], n: int) -> AtomBatch:
    """Sizes and types of random training systems, ordered by size, as a physical batch."""
    sizes = columns["n_atoms"].long()
    ends = sizes.cumsum(0)
    rows = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(1))[:n]
    rows = rows[sizes[rows].argsort(stable=True)]
    types = [columns["atom_types"][int(ends[i] - sizes[i]) : int(ends[i])].long() for i in rows]
    return AtomBatch.from_list([{"atom_types": z} for z in types])
