"""Companions of what is asked: values of further conditions, as training systems that are near to it have them.

A network that is told of a property alone has to find out by itself what brings it about. What a training system with nearly the
asked values is like, in conditions that the network follows easily (how many double bonds, of which elements), can be told
beside it: the property chooses such numbers from data, and the network makes a molecule of them (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moldiff.data.store import PROPERTY
from moldiff.errors import DamagedFile

#: Training systems that a model carries for this, at most.
MOST = 50_000
#: One of so many nearest systems is drawn, and of at most this share of those of its size.
NEAREST, SHARE = 16, 0.02


@dataclass(frozen=True, eq=False)
class CompanionTable:
    """Values [M, K] of the conditions ``names`` in their units, NaN where unknown, of training systems of ``n_atoms`` [M]."""

    names: tuple[str, ...]
    n_atoms: Tensor
    values: Tensor

    @classmethod
    def of(cls, names: Sequence[str], columns: Mapping[str, Tensor], most: int = MOST) -> CompanionTable:
        """The table of a store's columns, of ``most`` random systems where there are more."""
        n = len(columns["n_atoms"])
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort().values
        unknown = torch.full((n,), torch.nan)
        values = torch.stack([columns.get(PROPERTY + name, unknown).float() for name in names], -1)
        return cls(tuple(names), columns["n_atoms"][chosen].long(), values[chosen])

    def save(self, path: Path) -> None:
        """Write the table; values have half precision."""
        from safetensors.torch import save_file

        tensors = {"n_atoms": self.n_atoms.to(torch.int16), "values": self.values.half().contiguous()}
        save_file(tensors, path, {"names": ",".join(self.names)})

    @classmethod
    def load(cls, path: Path) -> CompanionTable:
        """Read a table; raises ``DamagedFile`` for a file that holds none."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                names = tuple(file.metadata()["names"].split(","))
                found = cls(names, file.get_tensor("n_atoms").long(), file.get_tensor("values").float())
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise DamagedFile(f"{path} holds no table of companions: {error}") from None
        if found.values.shape != (len(found.n_atoms), len(names)):
            raise DamagedFile(f"{path} holds no table of companions: {len(names)} names for {tuple(found.values.shape)} values")
        return found

    def nearest(self, asked: Mapping[str, float], scales: Mapping[str, float], size: int) -> Tensor:
        """Indices of the systems of ``size`` atoms (else of the nearest size) whose values are nearest to what is ``asked``, each
        in units of its scale; none where no system knows all of these."""
        columns = [self.names.index(name) for name in asked]
        scale = torch.tensor([scales[name] or 1.0 for name in asked])
        away = (self.n_atoms - size).abs()
        known = self.values[:, columns].isfinite().all(1)
        if not bool(known.any()):
            return torch.zeros(0, dtype=torch.long)
        rows = ((away == away[known].min()) & known).nonzero()[:, 0]
        far = ((self.values[rows][:, columns] - torch.tensor(list(asked.values()))) / scale).square().sum(1)
        count = max(1, min(NEAREST, round(SHARE * len(rows))))
        return rows[far.argsort(stable=True)[:count]]

    def draw(
        self, asked: Mapping[str, float], scales: Mapping[str, float], size: int, wanted: Sequence[str], share: float
    ) -> dict[str, float]:
        """The ``wanted`` values of one of the nearest systems, chosen by ``share`` in [0, 1); empty where there is none."""
        rows = self.nearest(asked, scales, size)
        if not len(rows):
            return {}
        row = self.values[rows[min(int(share * len(rows)), len(rows) - 1)]]
        found = {name: float(row[self.names.index(name)]) for name in wanted if name not in asked}
        return {name: value for name, value in found.items() if value == value}
