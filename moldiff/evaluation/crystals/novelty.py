"""Which crystals of a set are different from each other, and from those of the training data.

Comparisons stay within buckets of one reduced composition, so that 10,000 samples against 27,000 structures take minutes. The
structures are the same where StructureMatcher with pymatgen's own tolerances (ltol 0.2, stol 0.3, angle_tol 5) says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from moldiff.chem.crystals import Crystal
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.crystals.basic import JudgedCrystal
from moldiff.evaluation.crystals.matching import (
    PAIR_LIMIT,
    STRICT,
    Pair,
    Tolerance,
    compare_all,
    composition_key,
    crystal_key,
    reduced_structure,
    same_structure,
)
from moldiff.evaluation.parallel import Progress, map_items
from moldiff.evaluation.reference import Reference

if TYPE_CHECKING:
    from moldiff.data.store import Store

Composition = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Bucket:
    """Crystals of one composition, in the order of the samples."""

    crystals: tuple[Crystal, ...]
    tolerance: Tolerance
    limit: float


class Training:
    """The structures of a data set's split, or of a list, found by their reduced composition."""

    def __init__(self, source: Store | Sequence[Crystal]) -> None:
        self.source = source
        self.buckets: defaultdict[Composition, list[int]] = defaultdict(list)
        if isinstance(source, Sequence):
            cells = [crystal.numbers for crystal in source]
        else:
            z = source.tensor("atom_types").numpy()
            cells = [z[a:b] for a, b in pairwise(source.atom_offsets.tolist())]
        for i, numbers in enumerate(cells):
            self.buckets[composition_key(numbers)].append(i)

    def __len__(self) -> int:
        return len(self.source)

    def crystal(self, index: int) -> Crystal:
        """Return one structure."""
        source = self.source
        if isinstance(source, Sequence):
            return source[index]
        a, b = source.atom_offsets[index : index + 2].tolist()
        numbers, frac = source.tensor("atom_types")[a:b].numpy(), source.tensor("frac_coords")[a:b].numpy()
        return Crystal.of(numbers, frac, source.tensor("lattice")[index].numpy())

    def of(self, crystal: Crystal) -> list[Crystal]:
        """Return the structures of a crystal's reduced composition."""
        return [self.crystal(i) for i in self.buckets.get(composition_key(crystal.numbers), ())]


def cluster(
    crystals: Sequence[Crystal | None],
    *,
    tolerance: Tolerance = STRICT,
    limit: float = PAIR_LIMIT,
    n_processes: int | None = None,
    cache: ResultCache | None = None,
    progress: Progress | None = None,
) -> list[int | None]:
    """Number the different structures in the order of their first sample; None stays None.

    A crystal joins the first cluster whose first member it matches. Work is divided by composition.
    """
    members: defaultdict[Composition, list[int]] = defaultdict(list)
    for i, crystal in enumerate(crystals):
        if crystal is not None:
            members[composition_key(crystal.numbers)].append(i)
    crowded = [bucket for bucket in members.values() if len(bucket) > 1]
    tasks = [_Bucket(tuple(c for i in bucket if (c := crystals[i]) is not None), tolerance, limit) for bucket in crowded]
    keys = [_bucket_key(task) for task in tasks] if cache is not None else []
    known = {k: found["clusters"] for k, key in enumerate(keys) if cache is not None and (found := cache.get(key))}
    left = [k for k in range(len(tasks)) if k not in known]

    def keep(position: int, found: list[int]) -> None:
        if cache is not None and found:
            cache.put(keys[left[position]], {"clusters": found})

    # Each pair has its own limit; the one on a whole bucket must leave room for all of them.
    worst = max((len(tasks[k].crystals) for k in left), default=0)
    patience = None if worst <= 20 else limit * worst * (worst - 1) / 2
    work = [tasks[k] for k in left]
    fresh = map_items(_cluster, work, _apart, n_processes=n_processes, time_limit=patience, progress=progress, done=keep)
    known.update(zip(left, fresh, strict=True))
    # The first sample of each sample's structure, by which the clusters are then numbered.
    first: list[int | None] = [None if crystal is None else i for i, crystal in enumerate(crystals)]
    for k, bucket in enumerate(crowded):
        for i, representative in zip(bucket, known[k], strict=True):
            first[i] = bucket[representative]
    numbers = {i: n for n, i in enumerate(sorted({i for i in first if i is not None}))}
    return [None if i is None else numbers[i] for i in first]


def is_known(
    crystals: Sequence[Crystal | None],
    training: Training,
    *,
    tolerance: Tolerance = STRICT,
    limit: float = PAIR_LIMIT,
    n_processes: int | None = None,
    cache: ResultCache | None = None,
    progress: Progress | None = None,
) -> list[bool | None]:
    """Tell for each crystal whether the training data have the same structure; None stays None."""
    pairs, owners = [], []
    for i, crystal in enumerate(crystals):
        if crystal is not None:
            for other in training.of(crystal):
                pairs.append(Pair(crystal, other, tolerance, False, limit))
                owners.append(i)
    known: list[bool | None] = [None if crystal is None else False for crystal in crystals]
    found = compare_all(pairs, n_processes=n_processes, cache=cache, progress=progress)
    for i, match in zip(owners, found, strict=True):
        known[i] = known[i] or match.same
    return known


def mark_repeats(
    judged: Sequence[JudgedCrystal],
    reference: Reference | None = None,
    training: Training | None = None,
    *,
    n_processes: int | None = None,
    cache: ResultCache | None = None,
    progress: Progress | None = None,
) -> list[JudgedCrystal]:
    """Set ``cluster``, ``unique`` and the two kinds of novelty on the structurally valid samples.

    ``training`` gives the exact novelty, ``reference`` (hashes of composition and prototype label) the coarse one.
    """
    crystals = [one.crystal if one.verdict.structure_valid else None for one in judged]
    numbers = cluster(crystals, n_processes=n_processes, cache=cache, progress=progress)
    seen: set[int] = set()
    first = [n is not None and n not in seen and not seen.add(n) for n in numbers]  # type: ignore[func-returns-value]
    known: dict[int, bool] = {}
    if training is not None:
        asked = [crystal if is_first else None for crystal, is_first in zip(crystals, first, strict=True)]
        found = is_known(asked, training, n_processes=n_processes, cache=cache, progress=progress)
        known = {n: bool(k) for n, k, is_first in zip(numbers, found, first, strict=True) if is_first and n is not None}
    labels = [label for one in judged for label in one.labels]
    in_reference = dict(zip(labels, reference.contains(labels), strict=True)) if reference is not None else {}
    marked = []
    for one, number, is_first in zip(judged, numbers, first, strict=True):
        verdict = replace(one.verdict, cluster=number, unique=bool(is_first))
        if number is not None and training is not None:
            verdict = replace(verdict, novel=not known[number])
        if number is not None and reference is not None:
            verdict = replace(verdict, known_label=any(bool(in_reference[label]) for label in one.labels))
        marked.append(replace(one, verdict=verdict))
    return marked


def _cluster(bucket: _Bucket) -> list[int]:
    """Return for each crystal of a bucket the first one that it matches (itself where it is new)."""
    structures = [reduced_structure(crystal) for crystal in bucket.crystals]
    representatives: list[int] = []
    found = []
    for i, structure in enumerate(structures):
        same = next(
            (r for r in representatives if same_structure(structures[r], structure, bucket.tolerance, bucket.limit).same), None
        )
        if same is None:
            representatives.append(i)
        found.append(i if same is None else same)
    return found


def _apart(bucket: _Bucket, reason: str) -> list[int]:
    return list(range(len(bucket.crystals)))


def _bucket_key(bucket: _Bucket) -> str:
    inner = [crystal_key("", crystal) for crystal in bucket.crystals[1:]]
    return crystal_key("cluster-1", bucket.crystals[0], bucket.tolerance, bucket.limit, *inner)
