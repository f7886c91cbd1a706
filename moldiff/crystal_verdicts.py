"""Verdicts on crystals as they come: each judged by itself, then compared with those before it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moldiff.chem.crystals import Crystal, to_structure
from moldiff.data.crystal_entry import CrystalEntry
from moldiff.evaluation.crystals.basic import CrystalVerdict, JudgedCrystal, fractions, judge_crystals
from moldiff.evaluation.crystals.matching import composition_key, reduced_structure, same_structure
from moldiff.evaluation.parallel import map_items

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from moldiff.evaluation.reference import Reference

Composition = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Bucket:
    """Crystals of one composition: the first members of its clusters, and new ones."""

    known: tuple[Crystal, ...]
    new: tuple[Crystal, ...]


class Clusters:
    """Structures that are the same get one number, in the order of their first sample.

    A crystal joins the first cluster whose first member it matches (StructureMatcher with pymatgen's own tolerances), so that its
    number depends on what came before it and not on what follows.
    """

    def __init__(self) -> None:
        self.members: defaultdict[Composition, list[tuple[int, Crystal]]] = defaultdict(list)
        self.count = 0

    def restore(self, crystals: Sequence[Crystal | None], numbers: Sequence[int | None]) -> None:
        """Take up what earlier calls of ``add`` found."""
        for crystal, number in zip(crystals, numbers, strict=True):
            if number is not None and crystal is not None and number == self.count:
                self.members[composition_key(crystal.numbers)].append((number, crystal))
                self.count += 1

    def add(self, crystals: Sequence[Crystal | None], n_processes: int | None = None) -> list[int | None]:
        """The cluster of each crystal; None stays None."""
        buckets: defaultdict[Composition, list[int]] = defaultdict(list)
        for i, crystal in enumerate(crystals):
            if crystal is not None:
                buckets[composition_key(crystal.numbers)].append(i)
        crowded = [key for key, found in buckets.items() if len(found) + len(self.members[key]) > 1]
        tasks = [
            _Bucket(tuple(c for _, c in self.members[key]), tuple(c for i in buckets[key] if (c := crystals[i]) is not None))
            for key in crowded
        ]
        found = map_items(_assign, tasks, _apart, n_processes=n_processes)
        first: dict[int, tuple[Composition, int]] = {}  # the place among known and new ones of each crystal's first member
        for key, places in zip(crowded, found, strict=True):
            first |= {i: (key, place) for i, place in zip(buckets[key], places, strict=True)}
        before = {key: [number for number, _ in self.members[key]] for key in buckets}
        numbers: list[int | None] = []
        for i, crystal in enumerate(crystals):
            if crystal is None:
                numbers.append(None)
                continue
            key = composition_key(crystal.numbers)
            _, place = first.get(i, (key, 0))
            known, mates = before[key], buckets[key]
            if place < len(known):
                joined: int | None = known[place]
            else:
                mate = mates[place - len(known)]
                joined = numbers[mate] if mate < i else None
            if joined is None:
                joined, self.count = self.count, self.count + 1
                self.members[key].append((joined, crystal))
            numbers.append(joined)
        return numbers


class Judge:
    """Verdicts on crystals that come in parts; what is said of one does not depend on how they are cut into parts."""

    def __init__(self, reference: Reference | None = None, clusters: bool = True, n_processes: int | None = None) -> None:
        self.reference, self.n_processes = reference, n_processes
        self.clusters = Clusters() if clusters else None

    def restore(self, crystals: Sequence[Crystal | None], verdicts: Sequence[CrystalVerdict]) -> None:
        """Take up verdicts that were given before."""
        if self.clusters is not None:
            self.clusters.restore(crystals, [v.cluster for v in verdicts])

    def __call__(
        self, crystals: Sequence[Crystal | None], names: Sequence[str], problems: Sequence[str], first: int = 0
    ) -> list[CrystalVerdict]:
        """A verdict on each; ``problems`` say why there is nothing to judge."""
        entries = [
            CrystalEntry(first + i, name, first + i, crystal, problem=problem or ("" if crystal is not None else "no atoms"))
            for i, (crystal, name, problem) in enumerate(zip(crystals, names, problems, strict=True))
        ]
        judged = judge_crystals(entries, composition=False, n_processes=self.n_processes)
        verdicts = [_plain(one, self.reference) for one in judged]
        if self.clusters is None:
            return verdicts
        before = self.clusters.count
        sound = [c if v.structure_valid else None for c, v in zip(crystals, verdicts, strict=True)]
        marked = []
        for verdict, number in zip(verdicts, self.clusters.add(sound, self.n_processes), strict=True):
            fresh = number == before
            before += fresh
            marked.append(replace(verdict, cluster=number, unique=fresh))
        return marked


def crystal_rates(verdicts: Sequence[CrystalVerdict]) -> dict[str, float]:
    """The rates of a set of crystals by name, as evaluation defines them."""
    return {name: float(top.sum() / low.sum()) if low.sum() else math.nan for name, (top, low) in fractions(verdicts).items()}


def _plain(one: JudgedCrystal, reference: Reference | None) -> CrystalVerdict:
    """The verdict with numbers as they are printed, and whether the reference knows its composition and prototype."""
    v = one.verdict
    known = None
    if reference is not None and v.structure_valid:
        known = bool(reference.contains(one.labels).any())

    def short(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return replace(
        v,
        density=short(v.density),
        volume_per_atom=short(v.volume_per_atom),
        min_distance=short(v.min_distance),
        known_label=known,
    )


def _assign(bucket: _Bucket) -> list[int]:
    """For each new crystal the place, among known and new ones, of the first member of its cluster."""
    firsts: list[tuple[int, Structure]] = [(k, _reduced(c)) for k, c in enumerate(bucket.known)]
    places = []
    for k, crystal in enumerate(bucket.new, len(bucket.known)):
        structure = _reduced(crystal)
        place = next((j for j, other in firsts if same_structure(other, structure).same), k)
        if place == k:
            firsts.append((k, structure))
        places.append(place)
    return places


def _reduced(crystal: Crystal) -> Structure:
    try:
        return reduced_structure(crystal)
    except Exception:  # noqa: BLE001 - spglib and pymatgen raise many kinds for degenerate cells
        return to_structure(crystal)


def _apart(bucket: _Bucket, reason: str) -> list[int]:
    return list(range(len(bucket.known), len(bucket.known) + len(bucket.new)))
