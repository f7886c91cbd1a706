"""A trained property regressor: what it says of people's molecules, and as a function with gradients for guidance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.device import resolve_device
from moldiff.errors import BadRequest
from moldiff.model_store import ModelInfo, model_info

#: Molecules in hand at once.
BATCH = 256


class PropertyRegressor:
    """A regressor with its weights on a device.

    ``predict`` takes molecules; called with a clean prediction (``sampling.gradient_guidance.CleanAtoms``) it is a function of
    positions and element probabilities with gradients, fit for gradient guidance.
    """

    def __init__(self, info: ModelInfo, device: str | torch.device = "auto") -> None:
        self.info = info
        self.device = resolve_device(device)
        self.module = info.regressor().to(self.device).requires_grad_(False)
        self._stats = [info.config.condition_stats[name] for name in info.config.targets]
        self._elements = info.config.vocabulary["atom_types"]

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, device: str | torch.device = "auto") -> PropertyRegressor:
        """Load a regressor by name or folder; raises ``BadRequest`` for a model that makes samples, and as ``model_info``."""
        place = resolve_device(device)
        return cls(model_info(name_or_folder), place)

    def __repr__(self) -> str:
        return f"PropertyRegressor({self.info.name!r}, {', '.join(self.targets)})"

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the properties."""
        return tuple(self.info.config.targets)

    @property
    def units(self) -> dict[str, str]:
        """Unit of each property."""
        return {name: stats.unit for name, stats in zip(self.targets, self._stats, strict=True)}

    def predict(self, molecules: Iterable[Any], batch_size: int = BATCH) -> dict[str, NDArray[np.float64]]:
        """Each property of each molecule, in its unit.

        Molecules are RDKit molecules with a conformer and all hydrogens, ASE atoms, samples of a ``SampleSet``, or pairs of
        atomic numbers [N] and positions [N, 3] (Å). NaN where a molecule holds what the regressor does not know (elements,
        more atoms) or has no finite positions. Raises ``BadRequest`` for anything else.
        """
        pairs = [read_molecule(m) for m in molecules]
        out = np.full((len(pairs), len(self.targets)), np.nan)
        good = [i for i, (z, x) in enumerate(pairs) if self._knows(z, x)]
        good.sort(key=lambda i: len(pairs[i][0]))  # batches of one size are not padded
        for k in range(0, len(good), batch_size):
            part = good[k : k + batch_size]
            batch = self._batch([pairs[i] for i in part])
            with torch.no_grad():
                found = self.module(batch, torch.zeros(len(part), device=self.device))
            out[part] = self._physical(found).double().cpu().numpy()
        return {name: out[:, k] for k, name in enumerate(self.targets)}

    def __call__(self, atoms: Any) -> dict[str, Tensor]:
        """Each property [S] in its unit of clean predictions, with gradients.

        ``atoms`` has ``mask`` [S, N], ``positions`` [S, N, 3] (Å), ``types`` [S, N, C] probabilities of the elements
        ``classes["atom_types"]``. Elements that the regressor does not know count as none.
        """
        theirs = list(atoms.classes["atom_types"])
        order = [theirs.index(z) if z in theirs else len(theirs) for z in self._elements]
        types = F.pad(atoms.types, (0, 1))[..., order]
        states = self.module.signature.states("atom_types")
        types = F.pad(types, (0, states - types.shape[-1])) * atoms.mask[..., None]
        positions = center(atoms.positions, atoms.mask)
        found = self.module.clean({"positions": positions, "atom_types": types}, atoms.mask)
        values = self._physical(found)
        return {name: values[:, k] for k, name in enumerate(self.targets)}

    def _physical(self, found: Tensor) -> Tensor:
        return torch.stack([stats.physical(found[:, k]) for k, stats in enumerate(self._stats)], -1)

    def _knows(self, numbers: NDArray[Any], positions: NDArray[Any]) -> bool:
        known = len(numbers) > 0 and bool(np.isin(numbers, self._elements).all()) and bool(np.isfinite(positions).all())
        return known and len(numbers) <= self.info.config.max_atoms

    def _batch(self, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> AtomBatch:
        index = {z: k for k, z in enumerate(self._elements)}
        rows: list[Mapping[str, Any]] = [
            {"positions": np.asarray(x - x.mean(0), dtype=np.float32), "atom_types": np.array([index[int(a)] for a in z])}
            for z, x in pairs
        ]
        return AtomBatch.from_list(rows).to(self.device)


def read_molecule(molecule: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Atomic numbers [N] and positions [N, 3] (Å) of what people hold a molecule in; raises ``BadRequest`` for anything else."""
    if hasattr(molecule, "GetNumConformers"):
        if not molecule.GetNumConformers():
            raise BadRequest("an RDKit molecule without a conformer has no positions to judge: embed it first")
        numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
        return np.asarray(numbers, dtype=np.int64), np.asarray(molecule.GetConformer().GetPositions(), dtype=float)
    if isinstance(molecule, tuple) and len(molecule) == 2:
        numbers, positions = molecule
    elif hasattr(molecule, "numbers") and hasattr(molecule, "positions"):  # ASE atoms, samples
        numbers, positions = molecule.numbers, molecule.positions
    else:
        raise BadRequest(f"can't read a {type(molecule).__name__} as a molecule: give RDKit molecules, ASE atoms or samples")
    z, x = np.asarray(numbers, dtype=np.int64).reshape(-1), np.asarray(positions, dtype=float)
    if x.shape != (len(z), 3):
        raise BadRequest(f"a molecule of {len(z)} atoms needs positions of shape ({len(z)}, 3), found {x.shape}")
    return z, x
