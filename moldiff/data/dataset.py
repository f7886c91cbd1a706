"""Data sets as PyTorch Geometric data sets, over the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data, Dataset

from moldiff.data.location import find_data
from moldiff.data.store import PROPERTY, Store


class MolDataset(Dataset):  # type: ignore[misc]
    """One split of a prepared data set.

    Items are PyG ``Data``: ``z`` int64 [N] atomic numbers, ``pos`` float32 [N, 3] Å, ``charges`` int64 [N], ``edge_index``
    int64 [2, 2B] with every bond in both directions, ``edge_attr`` int64 [2B] kekulised orders, ``idx`` the source's number,
    and ``y`` float32 [1, P] with the chosen property columns (NaN where unknown). Crystals carry ``frac_coords`` [N, 3] and
    ``lattice`` [1, 3, 3] instead of ``pos``. Only memory-mapped tensors are held, so that loader workers are cheap. ``data``
    is a ``Store``, or the name or folder of a data set; raises BadRequest for an unknown data set, split or property.
    """

    def __init__(
        self,
        data: Store | str | Path,
        split: str = "train",
        properties: Sequence[str] | None = None,
        transform: Callable[[Data], Any] | None = None,
        root: str | Path | None = None,
    ) -> None:
        self.store = data if isinstance(data, Store) else Store(find_data(data, root), split)
        self.properties: tuple[str, ...] = self.store.properties if properties is None else tuple(properties)
        for name in self.properties:
            self.store.column(name)
        super().__init__(None, transform)

    def len(self) -> int:
        """Return the number of systems."""
        return len(self.store)

    def get(self, idx: int) -> Data:
        """Return one system, untransformed."""
        system = self.store.system(idx)
        data = Data(z=system["atom_types"], num_nodes=len(system["atom_types"]))
        if "positions" in system:
            data.pos = system["positions"]
        if "lattice" in system:
            data.frac_coords, data.lattice = system["frac_coords"], system["lattice"][None]
        if "charges" in system:
            data.charges = system["charges"]
        if "bond_types" in system:
            data.edge_index = system["bond_types"].nonzero().T.contiguous()
            data.edge_attr = system["bond_types"][data.edge_index[0], data.edge_index[1]]
        if "id" in system:
            data.idx = system["id"].reshape(1)
        if self.properties:
            data.y = torch.stack([system[PROPERTY + name] for name in self.properties])[None]
        return data
