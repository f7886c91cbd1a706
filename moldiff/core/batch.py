"""AtomBatch: S systems padded to N atoms, the one container that every room passes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moldiff.core.fields import FIELDS, field

if TYPE_CHECKING:
    from torch_geometric.data import Data


@dataclass(frozen=True)
class AtomBatch:
    """S systems padded to N atoms; a single system is S = 1.

    ``mask`` is bool [S, N], true where an atom is real. ``data`` maps a field's name (see ``core.fields.FIELDS``) to its
    tensor; fields read as attributes (``batch.positions``). A *prediction* is an AtomBatch too, whose categorical fields carry
    logits in one more trailing axis. Frozen: use ``replace``.
    """

    mask: Tensor
    data: Mapping[str, Tensor] = dataclass_field(default_factory=dict)

    def __post_init__(self) -> None:
        s, n = self.mask.shape
        for name, value in self.data.items():
            scope = field(name).scope
            lead = {"atom": (s, n), "pair": (s, n, n), "system": (s,)}[scope]
            if tuple(value.shape[: len(lead)]) != lead:
                raise ValueError(f"field {name!r} of scope {scope!r} must begin with shape {lead}, not {tuple(value.shape)}")

    def __getattr__(self, name: str) -> Tensor:
        if name in FIELDS:
            try:
                value: Tensor = self.__dict__["data"][name]
                return value
            except KeyError:
                raise AttributeError(f"this batch carries no {name!r} (it carries: {', '.join(self.data)})") from None
        raise AttributeError(name)

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    @property
    def n_systems(self) -> int:
        """S, the number of systems."""
        return self.mask.shape[0]

    @property
    def n_max(self) -> int:
        """N, the padded number of atoms."""
        return self.mask.shape[1]

    @property
    def n_atoms(self) -> Tensor:
        """Number of real atoms of each system, int64 [S]."""
        return self.mask.sum(1)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.mask.device

    @property
    def pair_mask(self) -> Tensor:
        """bool [S, N, N]: true for ordered pairs of two different real atoms."""
        both = self.mask[:, :, None] & self.mask[:, None, :]
        return both & ~torch.eye(self.n_max, dtype=torch.bool, device=self.device)

    def scope_mask(self, name: str) -> Tensor:
        """The mask over a field's own scope: [S, N] for atoms, [S, N, N] for pairs, all-true [S] for systems."""
        scope = field(name).scope
        if scope == "atom":
            return self.mask
        if scope == "pair":
            return self.pair_mask
        return torch.ones(self.n_systems, dtype=torch.bool, device=self.device)

    def replace(self, **fields: Tensor) -> AtomBatch:
        """A copy in which the given fields are set (or added)."""
        return AtomBatch(self.mask, {**self.data, **fields})

    def select(self, names: Sequence[str]) -> AtomBatch:
        """A copy that carries only the named fields."""
        return AtomBatch(self.mask, {k: v for k, v in self.data.items() if k in names})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> AtomBatch:
        """Move all tensors; ``dtype`` changes the floating ones only."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, dtype) if dtype is not None and x.is_floating_point() else x.to(device)

        return AtomBatch(self.mask.to(device), {k: move(v) for k, v in self.data.items()})

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> AtomBatch:
        """Some of the systems, padding kept; an integer gives S = 1."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(index, None)
        if not isinstance(index, (slice, Tensor)):
            index = torch.as_tensor(index, device=self.device)
        return AtomBatch(self.mask[index], {k: v[index] for k, v in self.data.items()})

    def masked(self) -> AtomBatch:
        """A copy in which every padded entry holds the field's padding value."""
        out = {}
        for name, value in self.data.items():
            f = field(name)
            if f.scope == "system":
                out[name] = value
                continue
            m = self.scope_mask(name)
            m = m.reshape(m.shape + (1,) * (value.dim() - m.dim()))
            out[name] = torch.where(m, value, torch.full_like(value, f.padding))
        return AtomBatch(self.mask, out)

    @classmethod
    def from_list(cls, systems: Sequence[AtomBatch | Mapping[str, Any]], n_max: int | None = None) -> AtomBatch:
        """Pad single systems to one batch.

        Each system is an AtomBatch with S = 1, or a mapping from field name to an array without the system axis
        ([n, ...], [n, n, ...] or [...]). All must carry the same fields. ``n_max`` pads further than the largest.
        """
        if not systems:
            raise ValueError("cannot make a batch of no systems")
        rows = [s._single() if isinstance(s, AtomBatch) else {k: torch.as_tensor(v) for k, v in s.items()} for s in systems]
        names = list(rows[0])
        sizes = []
        for row in rows:
            if list(row) != names and set(row) != set(names):
                raise ValueError(f"all systems must carry the same fields, found {sorted(names)} and {sorted(row)}")
            sizes.append(next(v.shape[0] for k, v in row.items() if field(k).scope != "system"))
        n = max(max(sizes), n_max or 0)
        mask = torch.arange(n)[None, :] < torch.tensor(sizes)[:, None]
        data = {}
        for name in names:
            f = field(name)
            first = rows[0][name]
            if f.scope == "system":
                data[name] = torch.stack([r[name].to(f.dtype) for r in rows])
                continue
            axes = 1 if f.scope == "atom" else 2
            tail = first.shape[axes:]
            dtype = first.dtype if first.is_floating_point() else f.dtype
            out = torch.full((len(rows), *([n] * axes), *tail), f.padding, dtype=dtype)
            for i, (row, k) in enumerate(zip(rows, sizes, strict=True)):
                own = out[i, :k] if axes == 1 else out[i, :k, :k]
                own.copy_(row[name])
            data[name] = out
        return cls(mask.to(rows[0][names[0]].device), {k: v.to(rows[0][names[0]].device) for k, v in data.items()})

    def _single(self) -> dict[str, Tensor]:
        if self.n_systems != 1:
            raise ValueError(f"expected a single system, found {self.n_systems}")
        n = int(self.n_atoms[0])
        cut = {"atom": (0, slice(0, n)), "pair": (0, slice(0, n), slice(0, n)), "system": (0,)}
        return {k: v[cut[field(k).scope]] for k, v in self.data.items()}

    def to_list(self) -> list[AtomBatch]:
        """The systems one by one (S = 1), without padding."""
        out = []
        for i in range(self.n_systems):
            one = self[i : i + 1]
            n = int(one.n_atoms[0])
            cut = {"atom": (slice(None), slice(0, n)), "pair": (slice(None), slice(0, n), slice(0, n)), "system": (slice(None),)}
            out.append(AtomBatch(one.mask[:, :n], {k: v[cut[field(k).scope]] for k, v in one.data.items()}))
        return out

    def to_pyg(self) -> list[Data]:
        """The systems as PyG ``Data``: fields by their names, bonds as ``edge_index`` and ``edge_attr`` of the nonzero ones."""
        from torch_geometric.data import Data

        out = []
        for one in self.to_list():
            row = one._single()
            bonds = row.pop("bond_types", None)
            d = Data(**row, num_nodes=int(one.n_atoms[0]))
            if bonds is not None:
                d.edge_index = bonds.nonzero().T.contiguous()
                d.edge_attr = bonds[d.edge_index[0], d.edge_index[1]]
            out.append(d)
        return out

    @classmethod
    def from_pyg(cls, items: Sequence[Data], n_max: int | None = None) -> AtomBatch:
        """The inverse of ``to_pyg``: fields of the table are read by name, bonds from ``edge_index``/``edge_attr``.

        PyG's own names ``z`` and ``pos`` (as ``data.dataset.MolDataset`` gives them) stand for atom types and positions.
        """
        rows = []
        for d in items:
            row = {k: d[k] for k in FIELDS if k in d}
            row |= {k: d[short] for short, k in (("z", "atom_types"), ("pos", "positions")) if short in d and k not in d}
            if d.edge_index is not None and d.edge_attr is not None:
                bonds = torch.zeros(d.num_nodes, d.num_nodes, dtype=torch.int64)
                bonds[d.edge_index[0], d.edge_index[1]] = d.edge_attr.to(torch.int64).reshape(-1)
                row["bond_types"] = bonds
            rows.append(row)
        return cls.from_list(rows, n_max)
