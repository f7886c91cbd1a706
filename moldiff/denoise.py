"""Repair: distorted structures pulled back to plausible ones, each from its own level of noise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moldiff.control import Place
from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.errors import BadRequest
from moldiff.given import GRAPH_FIELDS
from moldiff.keep import FIELDS
from moldiff.samples import Sample, SampleSet
from moldiff.sampling.inpaint import Known, Told, noised_truth
from moldiff.sampling.tiles import Tile, run_tiles
from moldiff.sampling.variations import mean, settle
from moldiff.score import unfit
from moldiff.structures import Structure, encoded_rows, read_anything

if TYPE_CHECKING:
    from moldiff.generator import Generator

#: Network calls of one repair.
STEPS = 20
#: Least and greatest noise (Å, root mean square a coordinate) that is looked for, and rounds of looking.
LEAST, MOST, ROUNDS = 0.02, 0.5, 6
FORMATS = (".sdf", ".extxyz")


@dataclass(frozen=True)
class Repair:
    """A repaired structure as a sample, with the noise (Å a coordinate) that it was taken to carry."""

    sample: Sample
    noise: float


def denoise(
    generator: Generator,
    structures: Sequence[Structure],
    *,
    noise: float | None = None,
    steps: int = STEPS,
    eta: float = 0.0,
    seed: int = 0,
    progress: Callable[[float, int], None] | None = None,
) -> list[Repair]:
    """Positions that the model finds likely near those of each structure; types, charges and bonds stay.

    A structure is taken for one with ``noise`` Å of normal noise a coordinate (estimated for each where it is None) and led
    back to none in ``steps`` calls. Where bonds are neither given nor perceived they are made. What the model can't know is
    returned as a failed sample. Raises ``BadRequest`` for numbers that make no sense.
    """
    if steps < 1:
        raise BadRequest(f"steps must be at least 1, found {steps}")
    if noise is not None and not 0 < noise <= 5:
        raise BadRequest(f"noise must lie above 0 and be at most 5 Å, found {noise:g}")
    if generator.info.config.kind != "molecule":
        raise BadRequest(f"{generator.info.name} makes crystals: only molecules are repaired")
    diffusion = generator.denoiser.diffusion
    results: dict[int, Repair] = {}
    for i, one in enumerate(structures):
        problem = "" if one.bonds is None and len(one) and "coordinates" not in one.problem else unfit(generator, one)
        if problem:
            results[i] = Repair(Sample(i, {"atom_types": one.numbers, "positions": one.positions}, problem), float("nan"))
    names = [name for name in FIELDS if name in diffusion.processes]
    lock = threading.Lock()

    def work(group: bool, tile: Tile, stopped: threading.Event) -> None:
        if stopped.is_set():
            return
        place = Place(tile.filled, tile.size, generator.info, generator.vocabulary, diffusion, generator.device, seed)
        told = encoded_rows(place, structures, names)
        known = [n for n in (GRAPH_FIELDS if group else ("atom_types",)) if n in names]
        streams = Streams.of(seed, tile.filled)
        repaired, found = repair(
            generator.denoiser, diffusion, told, Known(told, dict.fromkeys(known, tile.size)), streams, noise, steps, eta
        )
        physical = generator.vocabulary.decode(repaired.to("cpu"))
        with lock:
            for k, i in enumerate(tile.indices):
                fields = {name: value[k].numpy() for name, value in physical.data.items()}
                problem = "" if np.isfinite(fields["positions"]).all() else "non-finite numbers"
                level = float(found[k])
                results[i] = Repair(Sample(i, fields, problem, {"source": structures[i].name, "noise": round(level, 4)}), level)
            if progress is not None:
                progress(len(results), len(structures))

    for group in (True, False):
        todo = [(i, len(s)) for i, s in enumerate(structures) if i not in results and (s.bonds is not None) is group]
        if todo:
            run_tiles(partial(work, group), todo, generator.rule(), generator.device)
    return [results[i] for i in range(len(structures))]


@torch.no_grad()
def repair(
    denoiser: Denoiser, diffusion: Diffusion, x: AtomBatch, known: Known, rng: Streams, noise: float | None, steps: int,
    eta: float = 0.0,
) -> tuple[AtomBatch, Tensor]:  # fmt: skip
    """Encoded systems led back from their own noise, and that noise [S] in Å; the frame and what is known stay."""
    process = diffusion.processes["positions"]
    scale = float(getattr(process, "scale", 1.0))
    told = Told(denoiser, diffusion, known, "clean")
    clean = x.replace(positions=center(x.positions, x.mask))
    level = (
        torch.full((x.n_systems,), noise, device=x.device) if noise is not None else estimated(told, diffusion, clean, scale)
    )
    t = process.schedule.time_of_ratio(level / scale)
    xt = noised_truth(known, diffusion.noise(clean, t, rng), diffusion, t, rng)
    xt = xt.replace(positions=clean.positions * process.schedule.alpha(t)[:, None, None])
    made = settle(told, diffusion, xt, t, steps, rng, eta)
    kept = {name: x.data[name] for name in known.masks}
    return made.replace(positions=made.positions + mean(x), **kept), level


def estimated(denoiser: Denoiser, diffusion: Diffusion, x: AtomBatch, scale: float) -> Tensor:
    """The noise of centred systems in Å a coordinate, [S]: that at which what the denoiser takes away is as much as it was told.

    It begins at the most and goes to what was taken away, round by round.
    """
    process = diffusion.processes["positions"]
    free = 3 * (x.n_atoms - 1).clamp_min(1).float()
    level = torch.full((x.n_systems,), MOST, device=x.device)
    for _ in range(ROUNDS):
        t = process.schedule.time_of_ratio(level / scale)
        xt = x.replace(positions=x.positions * process.schedule.alpha(t)[:, None, None])
        prediction = denoiser(xt, t, None)
        away = center(prediction.positions, x.mask) - x.positions
        level = (away.square().flatten(1).sum(1) / free).sqrt().clamp(LEAST, MOST)
    return level


def denoise_file(
    source: Path, out: Path, model: str, noise: float | None = None, steps: int = STEPS, seed: int = 0, device: str = "auto"
) -> SampleSet:
    """What ``moldiff denoise`` does: read, repair, write SDF or extxyz."""
    from rich.console import Console

    from moldiff.device import resolve_device
    from moldiff.generator import Generator
    from moldiff.model_store import model_info

    if out.suffix not in FORMATS:
        raise BadRequest(f"repaired structures are written as {' or '.join(FORMATS)}, not {out.suffix or out.name!r}")
    if noise is not None and not 0 < noise <= 5:
        raise BadRequest(f"noise must lie above 0 and be at most 5 Å, found {noise:g}")
    info, place = model_info(model), resolve_device(device)
    structures = read_anything(source)
    console = Console(stderr=True)
    with console.status(f"{info.name}: repairing {len(structures)} structures"):
        generator = Generator(info, info.denoiser(), place)
        found = denoise(generator, structures, noise=noise, steps=steps, seed=seed)
    samples = SampleSet([one.sample for one in found], None, info)
    samples.save(out)
    failed = [one.sample.problem for one in found if one.sample.problem]
    console.print(f"wrote {out} ({len(found)} structures" + (f", {len(failed)} failed: {failed[0]})" if failed else ")"))
    return samples
