"""Which of several predicted structures of a composition is the right one: ways to rank them without truth, by match rate.

    python benchmarks/rankers.py --data mp20 --first 4000 --n 300 --most-atoms 12 --k 8 --pool pool.pt --out rankers.json

Draws ``k`` samples of each composition of validation rows ``first`` to ``first + n`` with up to ``most-atoms`` atoms (what is in
``pool`` already is not drawn again), compares each with its truth once (StructureMatcher as in ``moldiff evaluate --truth``),
and then says for each ranker and each number of candidates how often the one that it puts first matches. Fewer candidates than
``k`` are random parts of them, the mean of 24. Nothing is fitted.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from moldiff.chem.crystals import Crystal, quiet
from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import images, torus_log, volume
from moldiff.core.rng import Streams
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.crystals.baseline import SubstitutionBaseline
from moldiff.evaluation.crystals.elements import atomic_volumes, oxidation_states
from moldiff.evaluation.crystals.matching import Pair, compare, composition_key
from moldiff.evaluation.crystals.reference import crystals_of
from moldiff.generator import Generator
from moldiff.sampling.candidates import denoising_loss
from moldiff.sampling.control import Control

LEVELS = (0.05, 0.1, 0.2, 0.35, 0.55, 0.75)
EARLY = 0.27
Candidates = list[Crystal]


class Recorder(Control):
    """Keeps the prediction of the first step below time ``EARLY``."""

    def __init__(self, kept: dict[int, Tensor], indices: list[int]) -> None:
        self.kept, self.indices, self.seen = kept, indices, False

    def step(self, model: Any, sampler: Any, diffusion: Any, before: Any, after: Any, t: Tensor, s: Tensor, rng: Any) -> Any:
        if not self.seen and float(t[0]) < EARLY:
            self.seen = True
            self.kept.update(zip(self.indices, model.previous.frac_coords.clone(), strict=True))
        return after


class Record(Spec):
    """Samples as ever, their early predictions in ``kept``."""

    name = "record"

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def settings(self) -> None:
        return None

    def control(self, place: Place) -> Control:
        return Recorder(self.kept, list(place.indices))


def draw(generator: Generator, truths: list[Crystal], rows: list[int], k: int, path: Path) -> list[dict[int, Any]]:
    """Round by round {row: (fractional coordinates, cell, early prediction)}; sample j n + i of seed 0 belongs to row i."""
    rounds = torch.load(path) if path.exists() else []
    pairs = [("".join(f"{s}{c}" for s, c in _counts(truth)), 1) for truth in truths]
    for j in range(len(rounds), k):
        record = Record()
        request = generator.request(k, compositions=pairs, candidates=1, controls=[record])
        found = generator.draw(request, [j * len(truths) + i for i in rows])
        fields = [s.fields for s in found]
        early = [record.kept[s.index] for s in found]
        rounds.append({i: (torch.tensor(f["frac_coords"]), torch.tensor(f["lattice"]), e)
                       for i, f, e in zip(rows, fields, early, strict=True)})  # fmt: skip
        torch.save(rounds, path)
        print(f"round {j + 1} of {k} drawn", flush=True)
    return rounds[:k]


def _counts(crystal: Crystal) -> list[tuple[str, int]]:
    from ase.data import chemical_symbols

    return [(chemical_symbols[z], int((crystal.numbers == z).sum())) for z in dict.fromkeys(crystal.numbers.tolist())]


def fingerprint(crystal: Crystal, reach: float = 2.6, bins: int = 40, smear: float = 0.08) -> tuple[Tensor, Tensor]:
    """g(r) - 1 of each pair of elements [P, bins], r in (V/N)^(1/3), and their shares [P] (Oganov and Valle 2009)."""
    f, cell = torch.tensor(crystal.frac_coords), torch.tensor(crystal.lattice)
    n = len(f)
    r = ((torus_log(f[:, None], f[None])[:, :, None] + images(2, f)) @ cell).norm(dim=-1) / (volume(cell) / n) ** (1 / 3)
    kinds, place = torch.tensor(crystal.numbers).unique(return_inverse=True)
    a, b, image = ((r > 1e-6) & (r < reach + 3 * smear)).nonzero(as_tuple=True)
    centers = (torch.arange(bins, dtype=torch.float64) + 0.5) * (reach / bins)
    near = r[a, b, image]
    height = ((near[:, None] - centers) / smear).square().mul(-0.5).exp() / (smear * math.sqrt(2 * math.pi))
    height = height / near.square()[:, None]
    e = len(kinds)
    pair = torch.minimum(place[a], place[b]) * e + torch.maximum(place[a], place[b])
    total = torch.zeros(e * e, bins, dtype=torch.float64).index_add(0, pair, height)
    upper, count = torch.triu_indices(e, e), torch.bincount(place, minlength=e).double()
    number = count[upper[0]] * count[upper[1]] * torch.where(upper[0] == upper[1], 1.0, 2.0)
    g = total[upper[0] * e + upper[1]] * (n / (4 * math.pi * number))[:, None]
    return g - 1, number / number.sum()


def distances(crystals: Candidates) -> np.ndarray:
    """Cosine distances of fingerprints, 0 alike, 1 unlike: [K, K]."""
    found = [fingerprint(c) for c in crystals]
    x = torch.stack([(g * w[:, None].sqrt()).flatten() for g, w in found])
    x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return ((1 - x @ x.T) / 2).numpy()


def madelung(crystal: Crystal, eta: float = 1.6) -> float:
    """Electrostatic energy an atom of guessed oxidation states in a cell of volume N (Ewald); 0 where there are none."""
    key = composition_key(crystal.numbers)
    state = dict(zip((z for z, _ in key), oxidation_states(key), strict=True))
    q = np.array([state[z] for z in crystal.numbers.tolist()])
    n = len(q)
    if not q.any():
        return 0.0
    cell = crystal.lattice / (crystal.volume / n) ** (1 / 3)
    way = crystal.frac_coords[:, None] - crystal.frac_coords[None]
    r = np.linalg.norm((way - way.round())[:, :, None] @ cell + images(2, torch.zeros(1)).numpy() @ cell, axis=-1)
    near = torch.special.erfc(torch.tensor(eta * r)).numpy() / np.where(r < 1e-6, np.inf, r)
    waves = images(4, torch.zeros(1)).numpy().astype(float) @ (2 * np.pi * np.linalg.inv(cell).T)
    k2 = (waves**2).sum(1)
    waves, k2 = waves[k2 > 1e-9], k2[k2 > 1e-9]
    shape = np.abs((q[:, None] * np.exp(1j * (crystal.frac_coords @ cell) @ waves.T)).sum(0)) ** 2
    far = 2 * np.pi / n * (np.exp(-k2 / (4 * eta**2)) / k2 * shape).sum()
    return float((0.5 * np.einsum("i,j,ijk->", q, q, near) + far - eta / math.sqrt(np.pi) * (q**2).sum()) / n)


def n_operations(crystal: Crystal, tolerance: float) -> int:
    """Symmetry operations of the cell that spglib finds within a tolerance (Å)."""
    import spglib

    found = quiet(spglib.get_symmetry_dataset, crystal.cell, symprec=tolerance)
    return 1 if found is None else len(found.rotations)


def losses(generator: Generator, groups: dict[int, Candidates], draws: int, k: int) -> dict[int, np.ndarray]:
    """The denoising loss of each candidate at each level: {row: [K, levels, draws]}."""
    classes = {z: c for c, z in enumerate(generator.vocabulary.values["atom_types"])}
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for i, group in groups.items():
        by_size[len(group[0])].append(i)
    result: dict[int, np.ndarray] = {}
    for size, rows in sorted(by_size.items()):
        for part in (rows[s : s + 5] for s in range(0, len(rows), 5)):
            crystals = [c for i in part for c in groups[i]]
            fields = {
                "atom_types": torch.tensor([[classes[z] for z in c.numbers.tolist()] for c in crystals]),
                "frac_coords": torch.tensor(np.stack([c.frac_coords for c in crystals])).float(),
                "lattice": torch.tensor(np.stack([c.lattice for c in crystals])).float(),
            }
            x0 = AtomBatch(torch.ones(len(crystals), size, dtype=torch.bool), fields)
            table = torch.zeros(len(crystals), len(LEVELS), draws)
            with torch.inference_mode():
                for a, level in enumerate(LEVELS):
                    for r in range(draws):
                        rng = Streams.of(1000 + 10 * r + a, [i * 16 + j for i in part for j in range(k)])
                        table[:, a, r] = denoising_loss(generator.denoiser, generator.denoiser.diffusion, x0, rng, (level,), 1)
            result |= dict(zip(part, table.reshape(len(part), k, len(LEVELS), draws).numpy(), strict=True))
    return result


def rankers(
    generator: Generator, store: Store, groups: dict[int, Candidates], early: dict[int, list[Tensor]], k: int, draws: int
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """{name: function of the chosen candidates (indices) that gives their scores [n, chosen]}."""
    rows = list(groups)
    away = np.stack([distances(groups[i]) for i in rows])
    z, offsets = store.tensor("atom_types").numpy().astype(int), store.atom_offsets.tolist()
    cells = [z[a:b] for a, b in pairwise(offsets)]
    volumes = atomic_volumes(cells, np.abs(np.linalg.det(store.tensor("lattice").numpy().astype(float))))
    baseline = SubstitutionBaseline(store)

    def each(function: Callable[[Crystal], float]) -> np.ndarray:
        return np.array([[function(c) for c in groups[i]] for i in rows])

    def closeness(c: Crystal) -> float:
        f = torch.tensor(c.frac_coords)
        r = ((torus_log(f[:, None], f[None])[:, :, None] + images(1, f)) @ torch.tensor(c.lattice)).norm(dim=-1).numpy()
        radii = covalent_radii[c.numbers]
        return float((np.where(r < 1e-6, np.inf, r).min(-1) / (radii[:, None] + radii)).min())

    def moved(c: Crystal, before: Tensor) -> float:
        way = before.double().numpy() - c.frac_coords
        way -= way.round()
        way -= way.mean(0)
        way -= way.round()
        return float(np.sqrt(((way @ c.lattice) ** 2).sum(-1).mean()))

    gone = np.array([[moved(c, e) for c, e in zip(groups[i], early[i], strict=True)] for i in rows])
    doubt = np.stack([losses(generator, {i: groups[i]}, draws, k)[i] for i in rows])
    size = each(lambda c: math.log(c.volume / volumes[c.numbers].sum()))
    template = np.ones((len(rows), k))
    for m, i in enumerate(rows):
        nearest = baseline.predict(groups[i][0].numbers, 1)
        template[m] = distances([*groups[i], *nearest])[:k, k] if nearest else 1
    simple = {
        "no clash (distance over radii above 0.6)": (each(closeness) > 0.6).astype(float),
        "volume nearest to that of the elements": -np.abs(size),
        "greatest density": -size,
        "operations of symmetry within 0.4 Å": each(lambda c: n_operations(c, 0.4)),
        "electrostatic energy": -each(madelung),
        f"least way since t = {EARLY}": -gone,
        **{f"denoising loss at t = {t}": -doubt[:, :, a].mean(-1) for a, t in enumerate(LEVELS)},
        "denoising loss at t = 0.1, 0.2, 0.35, 0.55": -doubt[:, :, 1:5].mean((-1, -2)),
        "with training's structures: like the nearest template": -template,
    }
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {name: lambda s, x=x: x[:, s] for name, x in simple.items()}
    for width in (0.03, 0.1):
        found[f"consensus (kernel of width {width})"] = lambda s, w=width: np.exp(-away[:, s][:, :, s] / w).mean(-1)
    found["consensus and loss"] = lambda s: (
        -np.log(doubt[:, s][:, :, 1:5] + 0.02).mean((-1, -2)) + 0.5 * np.log(np.exp(-away[:, s][:, :, s] / 0.1).mean(-1))
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mp20-csp")
    parser.add_argument("--data", default="mp20")
    for name, value in (("first", 4000), ("n", 300), ("most-atoms", 12), ("k", 8), ("draws", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--pool", type=Path, default=Path("pool.pt"))
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    torch.set_num_threads(1)
    generator = Generator.from_pretrained(o.model, device="cpu")
    entries = crystals_of(Store(find_data(o.data), "val"), range(o.first, o.first + o.n))
    truths = [entry.crystal for entry in entries if entry.crystal is not None]
    rows = [i for i, truth in enumerate(truths) if len(truth) <= o.most_atoms]
    rounds = draw(generator, truths, rows, o.k, o.pool)
    groups = {i: [Crystal.of(truths[i].numbers[_order(truths[i])], r[i][0], r[i][1]) for r in rounds] for i in rows}
    match = np.array([[compare(Pair(c, truths[i])).same for c in groups[i]] for i in rows])
    parts = {k: _parts(o.k, k) for k in (2, 4, 8, 16) if k <= o.k}
    table = {"one draw": {1: match.mean()}, "the best, by truth": {k: np.mean([match[:, s].any(1).mean() for s in p])
                                                                   for k, p in parts.items()}}  # fmt: skip
    early = {i: [r[i][2] for r in rounds] for i in rows}
    for name, score in rankers(generator, Store(find_data(o.data), "train"), groups, early, o.k, o.draws).items():
        table[name] = {k: np.mean([_first(match[:, s], score(s)) for s in p]) for k, p in parts.items()}
    rates = {name: {str(k): round(100 * float(v), 1) for k, v in row.items()} for name, row in table.items()}
    for name, row in rates.items():
        print(f"{name:52s}", "  ".join(f"{v:5.1f}" for v in row.values()))
    asked = {key: value for key, value in vars(o).items() if key not in ("pool", "out")}
    values = {"settings": asked, "n": len(rows), "match_rate_percent": rates}
    o.out.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _order(crystal: Crystal) -> np.ndarray:
    """The order of the atoms in samples of a crystal's composition: its elements as they first come."""
    return np.concatenate([np.flatnonzero(crystal.numbers == z) for z in dict.fromkeys(crystal.numbers.tolist())])


def _parts(k: int, of: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.arange(k)] if of == k else [rng.choice(k, of, replace=False) for _ in range(24)]


def _first(match: np.ndarray, score: np.ndarray) -> float:
    return float(match[np.arange(len(match)), score.argmax(1)].mean())


if __name__ == "__main__":
    main()
