"""Known prototypes with their elements swapped, ranked for a composition: what a structure prediction may begin with.

They come from a prepared data set (``KnownStructures``: the substitution baseline over its training part, and nothing else of it)
or from the AFLOW library (``aflow.AflowPrototypes``).
"""

from __future__ import annotations

import hashlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal
from moldiff.chem.molecules import symbols
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.baseline import SubstitutionBaseline, Template

#: The name that stands for the prototypes which pymatgen brings.
AFLOW = "aflow"
#: Two structures whose sorted distances differ by less than this, in (V/N)^(1/3), everywhere are one prototype.
SAME = 0.05
#: Neighbours of each element that are compared.
NEIGHBOURS = 6
#: Taken from the logarithm of the votes of a cell that had to be repeated: it would have a smaller primitive cell.
REPEATED = -2.0
_IMAGES = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Prototype:
    """A crystal of the wanted composition, made of a known one; ``label`` says of which and how.

    ``prior`` is the logarithm of how likely it is the right one, up to a constant, where the source knows that; else 0.
    """

    crystal: Crystal
    label: str
    prior: float = 0.0


class Prototypes(ABC):
    """A source of prototypes. ``name`` is what it is asked for by, ``digest`` the SHA-256 of what it reads."""

    name: str

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the file that the prototypes are read from."""

    @abstractmethod
    def found(self, numbers: NDArray[np.int64]) -> Iterator[Prototype]:
        """Prototypes for atomic numbers [N], atoms in their order, the best first; they may repeat themselves."""

    def ranked(self, numbers: Iterable[int], k: int) -> list[Prototype]:
        """Return the first ``k`` different ones, fewer where there are no more; a smaller k gives the beginning of a larger's."""
        return self.ranking(numbers).first(k)

    def ranking(self, numbers: Iterable[int]) -> Ranking:
        """The different ones for a composition, made as they are asked for."""
        return Ranking(self.found(np.asarray(list(numbers), dtype=np.int64)))


class Ranking:
    """The different ones among prototypes of one composition, in their order; several threads may ask."""

    def __init__(self, found: Iterator[Prototype]) -> None:
        self._found, self._lock = found, threading.Lock()
        self._kept: list[Prototype] = []
        self._seen: list[NDArray[np.float64]] = []

    def first(self, k: int) -> list[Prototype]:
        """The first ``k``, fewer where there are no more."""
        with self._lock:
            while len(self._kept) < k:
                one = next(self._found, None)
                if one is None:
                    break
                mark = fingerprint(one.crystal)
                if all(np.abs(mark - other).max(initial=0) >= SAME for other in self._seen):
                    self._seen.append(mark)
                    self._kept.append(one)
            return self._kept[: max(k, 0)]


class KnownStructures(Prototypes):
    """The training structures of a prepared data set of crystals.

    The order is that of ``baseline.SubstitutionBaseline``, ``prior`` the logarithm of the votes' share.
    """

    def __init__(self, store: Store, name: str = "") -> None:
        self.store, self.name = store, name or str(store.meta["name"])

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.store.path.read_bytes()).hexdigest()

    @cached_property
    def baseline(self) -> SubstitutionBaseline:
        """The look-up, made when first asked for: seconds for tens of thousands of crystals."""
        return SubstitutionBaseline(self.store)

    def found(self, numbers: NDArray[np.int64]) -> Iterator[Prototype]:
        for template in self.baseline.templates(numbers, MOST):
            prior = math.log(max(template.share, 1e-9)) + (REPEATED if template.repeat > 1 else 0.0)
            yield Prototype(self.baseline.build(template, numbers), self._label(template), prior)

    def _label(self, template: Template) -> str:
        store, i = self.store, template.index
        number = int(store.tensor("id")[i]) if "id" in store.names else i
        kind = f" (space group {int(store.column('space_group')[i])})" if "space_group" in store.properties else ""
        return f"{store.meta['name']}_{number}{kind}{swapped(template.swap)}{_repeats(template.repeat)}"


#: Templates of a composition that are looked at, at most.
MOST = 400


def fingerprint(crystal: Crystal) -> NDArray[np.float64]:
    """Sorted distances, in (V/N)^(1/3), to the ``NEIGHBOURS`` nearest atoms of each element, around the atoms of each: a vector.

    Its length depends on the composition alone. Images up to one cell away are looked at, as is right for Niggli cells.
    """
    offset = crystal.frac_coords[:, None] - crystal.frac_coords[None]
    offset -= np.round(offset)
    away = np.linalg.norm((offset[:, :, None] + _IMAGES) @ crystal.lattice, axis=-1)
    away[np.arange(len(away)), np.arange(len(away)), len(_IMAGES) // 2] = np.inf
    elements = np.unique(crystal.numbers)
    parts = []
    for a in elements:
        for b in elements:
            near = away[crystal.numbers == a][:, crystal.numbers == b]
            near = np.sort(near.reshape(len(near), -1), axis=1)[:, :NEIGHBOURS]
            parts.append(np.sort(near, axis=0).ravel())
    return np.asarray(np.concatenate(parts) / (crystal.volume / len(crystal)) ** (1 / 3))


def swapped(pairs: Iterable[tuple[int, int]]) -> str:
    """Say which elements (old, new) were swapped: ``, Na to K``; nothing where none were."""
    changes = sorted({(old, new) for old, new in pairs if old != new})
    return "".join(f", {symbols([old])[0]} to {symbols([new])[0]}" for old, new in changes)


def _repeats(n: int) -> str:
    return f", {n} cells" if n > 1 else ""


def find_prototypes(name_or_folder: str | Path) -> Prototypes:
    """The source of this name: ``aflow``, or a prepared data set of crystals by name or folder.

    Of a data set the training part is read and nothing else. Raises ``BadRequest`` for an unknown one and one of molecules.
    """
    name = str(name_or_folder)
    if name == AFLOW:
        from moldiff.evaluation.crystals.aflow import AflowPrototypes

        return AflowPrototypes()
    try:
        folder = find_data(name)
    except BadRequest as error:
        raise BadRequest(f"prototypes come from {AFLOW} or a prepared data set: {error}") from None
    return _opened(folder.resolve(), name)


@lru_cache(maxsize=4)
def _opened(folder: Path, name: str) -> KnownStructures:
    store = Store(folder, "train")
    if store.kind != "crystal":
        raise BadRequest(f"{name} holds {store.kind}s, and prototypes are crystals")
    return KnownStructures(store, name)
