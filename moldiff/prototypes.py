"""Structure prediction that begins at known prototypes, from a data set of known structures or from the AFLOW library."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from moldiff.composition import TYPES, Compositions
from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams, stream_seed
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.prototypes import AFLOW, Prototype, Prototypes, Ranking, find_prototypes
from moldiff.sampling.candidates import DRAWS, LEVELS
from moldiff.sampling.prototypes import NEVER

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.sampling.control import Control

#: Where a sample says that it began at no prototype.
NOISE = "noise"
#: What measurement found best (docs/experiments.md): the time to noise prototypes to, how many candidates a sample has, and how
#: many of these begin from noise. Structures of a data set are best as they are and in their order; AFLOW's need the model.
OF_DATA, OF_AFLOW = (0.0, 1, 0), (0.25, 6, 2)
_SALT = -101


@dataclass(frozen=True, eq=False)
class FromKnown(Spec):
    """Sample k of each composition begins at its k-th prototype of ``source``, noised to the time ``strength``.

    Strength 0 leaves it as it is. With ``rows_each`` K above 1 the first K - ``n_noise`` prototypes are ranked by the model's
    denoising loss and their prior, and sample k is the k-th of these; after them come the next so many. It stands against
    ``n_noise`` draws from noise. Where prototypes run out a sample is the best of all rows that hold none, drawn from noise.
    """

    source: Prototypes
    compositions: Compositions
    strength: float = 0.0
    rows_each: int = 1
    n_noise: int = 0
    known: dict[int, Ranking] = field(default_factory=dict, repr=False)
    memo: dict[Hashable, float] = field(default_factory=dict, repr=False)
    name = "prototypes"

    @property
    def calls_beside(self) -> int:  # type: ignore[override]
        """The calls that rank a candidate."""
        return len(LEVELS) * DRAWS if self.rows_each > 1 else 0

    @property
    def block(self) -> int:
        """Prototypes that are ranked together."""
        return self.rows_each - self.n_noise

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the prototypes are read from."""
        return self.source.digest

    def settings(self) -> dict[str, Any]:
        ranked = {"levels": list(LEVELS), "draws": DRAWS} if self.rows_each > 1 else {}
        return {
            "source": self.source.name, "sha256": self.digest, "strength": self.strength, "each": self.rows_each,
            "from_noise": self.n_noise, **ranked,
        }  # fmt: skip

    def check(self, info: ModelInfo) -> None:
        if TYPES not in info.config.given or "frac_coords" not in info.config.fields:
            raise BadRequest(
                f"prototypes are for models that predict the structure of a composition (mp20-csp), which {info.name} does not"
            )

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if other.name in ("keep", "keep_cell", "like", "positions"):
                raise BadRequest(f"a prototype has its own cell and sites, and {other.name.replace('_', '-')} others")
            if other.rows_each > 1:
                raise BadRequest(f"prototypes and {other.name} both choose among several systems: ask for one")

    def calls(self, steps: int) -> int:
        """What a sample costs at most where prototypes do not run out: a row of strength t needs its share t of the steps."""
        late = self.block * min(steps, math.ceil(self.strength * steps))
        return late + self.n_noise * steps + self.rows_each * self.calls_beside

    def prototypes(self, index: int, k: int) -> list[Prototype]:
        """The first ``k`` prototypes of sample ``index``'s composition, fewer where there are no more."""
        row = index % len(self.compositions.rows)
        if row not in self.known:
            self.known[row] = self.source.ranking(self.compositions.rows[row].numbers)
        return self.known[row].first(k)

    def control(self, place: Place) -> Control:
        from moldiff.sampling.prototypes import FromPrototypes

        each, rows = self.rows_each, len(self.compositions.rows)
        truths: list[dict[str, Any]] = []
        places: list[int] = []
        keys: list[Hashable] = []
        begins, labels, priors, seeds = [], [], [], []
        for r, i in enumerate(place.indices):
            asked, k = i % rows, i // rows
            first = k // self.block * self.block
            j = r % each
            rank = first + j
            found = self.prototypes(i, first + self.block)
            one = found[rank] if j < self.block and rank < len(found) else None
            left = k < len(found)  # whether the sample is one of the block's prototypes
            void = j < self.block and left == (one is None)
            truths.append(_fields(one, self.compositions.rows[asked].numbers))
            begins.append(0.0 if void else NEVER if one is None else self.strength)
            labels.append(NOISE if one is None else one.label)
            priors.append(-math.inf if void else 0.0 if one is None else one.prior)
            if j == 0:
                places.append(k - first if left else 0)
            # A prototype as it is has the same loss for all samples of the composition; other rows are each their own.
            same = one is not None and not self.strength and not void
            keys.append((place.seed, asked, rank) if same else None)
            base = stream_seed(place.seed, _SALT - (one is None))
            seeds.append(stream_seed(stream_seed(base, asked), rank if one is not None else k * each + j))
        truth = place.vocabulary.encode(AtomBatch.from_list(truths)).to(place.device)
        return FromPrototypes(
            truth,
            torch.tensor(begins, device=place.device),
            labels,
            each=each,
            n_noise=self.n_noise,
            prior=torch.tensor(priors, device=place.device),
            places=places,
            streams=Streams([torch.Generator().manual_seed(seed) for seed in seeds]) if each > 1 else None,
            keys=keys,
            memo=self.memo,
            n_groups=len(set(place.indices)),
            fewest=place.fewest,
        )


def _fields(one: Prototype | None, numbers: Sequence[int]) -> dict[str, Any]:
    """The physical fields of a prototype; for none a cell that is one, which nothing looks at."""
    n = len(numbers)
    types = torch.tensor(numbers, dtype=torch.int64)
    if one is None:
        return {TYPES: types, "frac_coords": torch.rand(n, 3, generator=torch.Generator().manual_seed(0)),
                "lattice": torch.eye(3) * (15.0 * n) ** (1 / 3)}  # fmt: skip
    return {TYPES: types, "frac_coords": torch.from_numpy(one.crystal.frac_coords).float() % 1,
            "lattice": torch.from_numpy(one.crystal.lattice).float()}  # fmt: skip


def prototypes_from(
    prototypes: Any, compositions: Compositions | None, strength: float | None = None, candidates: int | None = None
) -> FromKnown | None:
    """The specification behind ``--prototypes`` with ``--strength`` and ``--candidates``; None without.

    ``prototypes`` is the name or folder of a prepared data set, or ``aflow``; "none" asks for plain sampling. Raises
    ``BadRequest`` for an unknown data set and for prototypes without a composition.
    """
    if prototypes is None or str(prototypes) == "none":
        return None
    source = prototypes if isinstance(prototypes, Prototypes) else find_prototypes(prototypes)
    if compositions is None:
        raise BadRequest("prototypes are looked up for a composition: give a formula or compositions")
    default, each, noise = OF_AFLOW if source.name == AFLOW else OF_DATA
    t = default if strength is None else float(strength)
    if not 0 <= t <= 1:
        raise BadRequest(f"the strength of prototypes must lie in 0 (as they are) to 1 (noise), found {t:g}")
    k = each if candidates is None else candidates
    return FromKnown(source, compositions, t, k, min(noise, k - 1))
