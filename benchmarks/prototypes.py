"""What a network adds to known prototypes: noised and denoised, ranked by its loss, and AFLOW's in the place of a data set's.

    python benchmarks/prototypes.py --data mp20 --first 4000 --n 200 --k 10 --source mp20 --strengths 0.05,0.1,0.2,0.35 --out ...

For each composition of validation rows ``first`` to ``first + n`` the first ``k`` prototypes of ``source`` are compared with the
truth: as they are, the first one (``--all``: each) noised to each strength and denoised, and which of them the denoising loss
chooses, alone and with the logarithm of the votes. No number is fitted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.crystals.matching import Pair, compare
from moldiff.evaluation.crystals.prototypes import find_prototypes
from moldiff.evaluation.crystals.reference import crystals_of
from moldiff.generator import Generator
from moldiff.sampling.candidates import DRAWS, LEVELS, denoising_loss, is_crystal
from moldiff.sampling.loop import sample
from moldiff.sampling.registry import make_sampler
from moldiff.sampling.variations import FromNoised

Rms = NDArray[np.float64]
#: Compositions a line of ``k`` prototypes; streams of the noise are numbered by both.
STRIDE = 64


def encoded(generator: Generator, crystals: Sequence[Crystal]) -> AtomBatch:
    """The crystals of one size as the network sees them."""
    rows = [
        {
            "atom_types": torch.tensor(c.numbers),
            "frac_coords": torch.tensor(c.frac_coords, dtype=torch.float32),
            "lattice": torch.tensor(c.lattice, dtype=torch.float32),
        }
        for c in crystals
    ]
    return generator.vocabulary.encode(AtomBatch.from_list(rows))


def parts(crystals: Sequence[Crystal], most: int = 64) -> list[list[int]]:
    """Indices of crystals of one size each, at most so many together."""
    sizes: dict[int, list[int]] = {}
    for j, c in enumerate(crystals):
        sizes.setdefault(len(c), []).append(j)
    return [js[a : a + most] for _, js in sorted(sizes.items()) for a in range(0, len(js), most)]


@torch.inference_mode()
def denoised(generator: Generator, crystals: Sequence[Crystal], streams: Sequence[int], t: float, calls: int) -> list[Crystal]:
    """The crystals noised to ``t`` and brought back by the model's own sampler in ``calls`` calls."""
    diffusion, settings = generator.denoiser.diffusion, generator.config.sampling
    out: dict[int, Crystal] = {}
    for js in parts(crystals):
        x0 = encoded(generator, [crystals[j] for j in js])
        rng = Streams.of(0, [streams[j] for j in js])
        made = make_sampler(settings.sampler, settings.options)
        grid = torch.linspace(t, 1e-3, calls)
        came = sample(generator.denoiser, diffusion, x0, rng, made, grid, True, None, None, FromNoised(x0, t))
        physical = generator.vocabulary.decode(came)
        for row, j in enumerate(js):
            out[j] = Crystal.of(*(physical.data[name][row].numpy() for name in ("atom_types", "frac_coords", "lattice")))
    return [out[j] for j in range(len(crystals))]


@torch.inference_mode()
def doubts(generator: Generator, crystals: Sequence[Crystal], streams: Sequence[int]) -> Rms:
    """The denoising loss of each crystal, +inf for what is none."""
    out = np.full(len(crystals), np.inf)
    for js in parts(crystals):
        x0, rng = encoded(generator, [crystals[j] for j in js]), Streams.of(1, [streams[j] for j in js])
        value = denoising_loss(generator.denoiser, generator.denoiser.diffusion, x0, rng, LEVELS, DRAWS)
        out[js] = torch.where(is_crystal(x0) & value.isfinite(), value, torch.inf).numpy()
    return out


def distances(groups: Sequence[Sequence[Crystal]], truths: Sequence[Crystal], k: int) -> Rms:
    """RMS distance of each to its truth [n, k], NaN where they do not match."""
    rms = np.full((len(truths), k), np.nan)
    for i, group in enumerate(groups):
        for j, c in enumerate(group):
            match = compare(Pair(c, truths[i], limit=5.0))
            rms[i, j] = np.nan if match.rms is None else match.rms
    return rms


def said(rms: Rms) -> dict[str, float]:
    """Match rate (%) and RMSE of the matches."""
    return {"match_rate": 100 * float(np.mean(~np.isnan(rms))), "rmse": float(np.nanmean(rms)) if (~np.isnan(rms)).any() else 0.0}


def chosen(rms: Rms, cost: Rms) -> dict[str, float]:
    """What the least cost chooses, and its difference from the first with its standard error (points)."""
    best = rms[np.arange(len(rms)), cost.argmin(1)]
    gain = (~np.isnan(best)).astype(float) - ~np.isnan(rms[:, 0])
    return {**said(best), "gain": 100 * float(gain.mean()), "error": 100 * float(gain.std() / len(gain) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mp20-csp")
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--source", default="mp20")
    parser.add_argument("--first", type=int, default=4000)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--strengths", default="0.05,0.1,0.2,0.35")
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--all", action="store_true", help="denoise and rank all k prototypes, not the first")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    generator, source, k = Generator.from_pretrained(options.model, "cpu"), find_prototypes(options.source), options.k
    rows = range(options.first, options.first + options.n)
    truths = [row.crystal for row in crystals_of(Store(find_data(options.data), "val"), rows)]
    found = [source.ranked(truth.numbers.tolist(), k) for truth in truths]
    groups = [[one.crystal for one in line] for line in found]
    rms = distances(groups, truths, k)
    flat = [(i, j) for i, group in enumerate(groups) for j in range(len(group))]
    streams = [i * STRIDE + j for i, j in flat]
    result: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(options).items()}}
    result["first"], result["none"] = said(rms[:, 0]), sum(not group for group in groups)
    result["best_of"] = {m: 100 * float((~np.isnan(rms[:, :m])).any(1).mean()) for m in (1, 2, 3, 5, 10, 20) if m <= k}

    def ranked(rms: Rms, crystals: Sequence[Crystal]) -> dict[str, Any]:
        loss, prior = np.full((len(truths), k), np.inf), np.zeros((len(truths), k))
        for (i, j), value in zip(flat, doubts(generator, crystals, streams), strict=True):
            loss[i, j], prior[i, j] = value, found[i][j].prior
        told = {f"loss_of_{m}": chosen(rms[:, :m], loss[:, :m]) for m in (2, 5, 10) if m <= k}
        return {**told, **{f"loss_and_votes_of_{m}": chosen(rms[:, :m], (loss - prior)[:, :m]) for m in (2, 5, 8, 10) if m <= k}}

    result["as_they_are"] = ranked(rms, [groups[i][j] for i, j in flat])
    for t in [float(text) for text in options.strengths.split(",") if text]:
        some = [p for p in range(len(flat)) if options.all or flat[p][1] == 0]
        came = denoised(generator, [groups[flat[p][0]][flat[p][1]] for p in some], [streams[p] for p in some], t, options.calls)
        moved: list[list[Crystal]] = [[] for _ in truths]
        for p, crystal in zip(some, came, strict=True):
            moved[flat[p][0]].append(crystal)
        after = distances(moved, truths, k)
        was, now = ~np.isnan(rms[:, 0]), ~np.isnan(after[:, 0])
        result[f"from_{t:g}"] = {
            "first": said(after[:, 0]), "lost": int((was & ~now).sum()), "gained": int((now & ~was).sum()),
            "rmse_of_both": [float(x[was & now, 0].mean()) for x in (rms, after)] if (was & now).any() else None,
            **({"best": 100 * float((~np.isnan(after)).any(1).mean()), **ranked(after, came)} if options.all else {}),
        }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
