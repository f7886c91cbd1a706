"""Settling: positions led to where the denoiser finds them likeliest, while the graph stays as it was drawn.

Ancestral noise keeps a molecule's graph right and leaves its shape warm: bonds a little long, torsions a little off. Here the
drawn structure is taken for one that carries more noise than it does and led back without noise, its classes shown clean, again
and again from high levels, which settles torsions, and at last from lower ones, which settles bonds. What comes out lies nearer
to minima of the energy; shapes are less various than the model's own distribution.
"""

from __future__ import annotations

import torch

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.inpaint import Known, Told
from moldiff.sampling.variations import mean, settle

#: Noise (Å a coordinate) from which the ways back begin: rounds of the high levels, of about so many calls each, then the low
#: levels, which get so large a share of the calls.
HIGH, LOW = (1.2, 0.8), (0.5, 0.3, 0.2)
CALLS_OF_A_ROUND = 6
SHARE_OF_LOW = 0.4
#: Fewer calls than this are too few for rounds: they are spread over these levels.
ROUNDS_FROM, FEW = 24, (0.8, 0.5, 0.2)
#: Fields that make a graph.
GRAPH = ("atom_types", "charges", "bond_types")


def can_settle(diffusion: Diffusion) -> bool:
    """Whether a model makes positions in free space and the bonds that hold them."""
    return "positions" in diffusion.continuous and "bond_types" in diffusion.processes


def plan(n_calls: int) -> list[tuple[float, int]]:
    """The levels that ``n_calls`` calls begin at, in their order, with the calls of each: at least one."""
    if n_calls < ROUNDS_FROM:
        return [(level, calls) for level, calls in _spread(FEW, n_calls) if calls]
    low = round(SHARE_OF_LOW * n_calls)
    rounds = round((n_calls - low) / CALLS_OF_A_ROUND)
    high = _spread(HIGH * rounds, n_calls - low)
    return high + _spread(LOW, low)


def _spread(levels: tuple[float, ...], n_calls: int) -> list[tuple[float, int]]:
    """Calls spread over levels as evenly as may be, the last of them having more."""
    least, more = divmod(n_calls, len(levels))
    return [(level, least + (k >= len(levels) - more)) for k, level in enumerate(levels)]


def settle_positions(denoiser: Denoiser, diffusion: Diffusion, x0: AtomBatch, n_calls: int, rng: Streams) -> AtomBatch:
    """Clean encoded systems [S] with their positions settled by ``n_calls`` network calls; classes and centres stay.

    Raises nothing; a system that is not finite stays so. Deterministic: ``rng`` is asked for nothing that is used.
    """
    process = diffusion.processes["positions"]
    scale = float(getattr(process, "scale", 1.0))
    known = {name: int(x0.mask.shape[1]) for name in GRAPH if name in diffusion.processes}
    told = Told(denoiser, diffusion, Known(x0, known), "clean")
    there, x = mean(x0), x0.replace(positions=center(x0.positions, x0.mask))
    for level, calls in plan(n_calls):
        t = process.schedule.time_of_ratio(torch.full((x.n_systems,), level / scale, device=x.device))
        xt = x.replace(positions=x.positions * process.schedule.alpha(t)[:, None, None])
        made = settle(told, diffusion, xt, t, calls, rng)
        x = x.replace(positions=center(made.positions, x.mask))
    moved = torch.where(x0.mask[..., None], x.positions + there, torch.zeros_like(x.positions))
    return x0.replace(positions=moved)
