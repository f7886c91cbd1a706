"""How likely structures are under a model: an anomaly detector for files of molecules."""

from __future__ import annotations

import csv
import io
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from moldiff.control import Place
from moldiff.core.rng import Streams
from moldiff.errors import BadRequest, unknown
from moldiff.given import check_size
from moldiff.keep import FIELDS, check_known
from moldiff.sampling.likelihood import check_processes, flow_likelihood, restoring, surprise, variational_bound
from moldiff.sampling.tiles import Tile, run_tiles
from moldiff.structures import Structure, encoded_rows

if TYPE_CHECKING:
    from moldiff.generator import Generator

METHODS = ("bound", "flow")
#: Network calls of the bound are twice this (self-conditioning).
TIMES = 24
#: Noise over signal at which an anomaly is looked for; of .03 to .4 the least tells best (docs/experiments.md).
RATIO = 0.03
#: Noise over signal at which classes are doubted, and how many Å a nat of doubt counts.
CLASS_RATIO, WORTH = 0.2, 0.1


@dataclass(frozen=True)
class Score:
    """What a model thinks of one structure; numbers are NaN where ``problem`` says why there are none.

    ``anomaly`` is what to sort by, greater for stranger structures, and ``worst_atom`` (from 0) where it is found: how far
    (Å) the model would move an atom if the structure had noise over signal of ``RATIO``, and 0.1 Å for each nat by which it
    doubts the atom's type, charge and bonds. ``log_likelihood`` is a lower bound of log p in nats (positions in Å, at a
    resolution of 0.04 Å in qm9), ``per_atom`` the same over the number of atoms; ``positions`` and ``classes`` are the parts
    of the bound. ``flow`` is the log density of the positions given all else, by the ODE, where it was asked for.
    """

    name: str
    n_atoms: int
    anomaly: float = math.nan
    worst_atom: int = -1
    log_likelihood: float = math.nan
    per_atom: float = math.nan
    positions: float = math.nan
    classes: float = math.nan
    flow: float = math.nan
    problem: str = ""


COLUMNS = tuple(Score.__dataclass_fields__)


def score(
    generator: Generator,
    structures: Sequence[Structure],
    *,
    method: str = "bound",
    times: int = TIMES,
    seed: int = 0,
    progress: Callable[[float, int], None] | None = None,
) -> list[Score]:
    """Score structures in their order; structure i's draws depend on ``seed`` and i alone.

    ``times`` are the noise levels of the bound. ``method`` ``flow`` adds the ODE's density. A structure that the model can't know
    (a foreign element, too many atoms, bonds that can't be told) has a score with a problem. Raises ``BadRequest`` for a model
    whose processes have no likelihood here, an unknown method and a wrong number.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if times < 2:
        raise BadRequest(f"times must be at least 2, found {times}")
    info, diffusion = generator.info, generator.denoiser.diffusion
    if info.config.kind != "molecule":
        raise BadRequest(f"{info.name} makes crystals, whose likelihood is not written down")
    check_processes(diffusion)
    results: dict[int, Score] = {}
    for i, one in enumerate(structures):
        problem = unfit(generator, one)
        if problem:
            results[i] = Score(one.name, len(one), problem=problem)
    names = [name for name in FIELDS if name in diffusion.processes]
    lock = threading.Lock()

    def work(tile: Tile, stopped: threading.Event) -> None:
        if stopped.is_set():
            return
        place = Place(tile.filled, tile.size, info, generator.vocabulary, diffusion, generator.device, seed)
        x0 = encoded_rows(place, structures, names)
        streams = Streams.of(seed, tile.filled)
        moved = restoring(generator.denoiser, diffusion, x0, RATIO)
        moved = moved + WORTH * surprise(generator.denoiser, diffusion, x0, CLASS_RATIO)
        bound = variational_bound(generator.denoiser, diffusion, x0, streams, times)
        flow = torch.full((x0.n_systems,), math.nan)
        if method == "flow":
            flow = flow_likelihood(generator.denoiser, diffusion, x0, streams)
        with lock:
            for k, i in enumerate(tile.indices):
                total, parts = float(bound.total[k]), {n: float(v[k]) for n, v in bound.fields.items()}
                worst, atom = (v.item() for v in moved[k].max(0))
                there = parts.pop("positions", math.nan)
                results[i] = Score(
                    structures[i].name, tile.size, worst, int(atom), total, total / tile.size, there, sum(parts.values()),
                    float(flow[k]),
                )  # fmt: skip
            if progress is not None:
                progress(len(results), len(structures))

    todo = [(i, len(one)) for i, one in enumerate(structures) if i not in results]
    run_tiles(work, todo, generator.rule(), generator.device)
    return [results[i] for i in range(len(structures))]


def unfit(generator: Generator, structure: Structure) -> str:
    """Why a model can't be asked about a structure, or an empty string."""
    if structure.problem:
        return structure.problem
    try:
        bonds = () if structure.bonds is None else structure.bonds
        check_known(generator.info, "it", structure.numbers, structure.charges, bonds)
        check_size(generator.info, "it", len(structure))
    except BadRequest as error:
        return str(error)
    return ""


def csv_text(scores: Sequence[Score]) -> str:
    """The scores as CSV, a row each; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in scores:
        row = asdict(one)
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else f"{v:.4f}" if isinstance(v, float) else v
                         for k, v in row.items()})  # fmt: skip
    return text.getvalue()
