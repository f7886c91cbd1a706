"""Which data a training run reads: a set by path, by name or beside the settings file; and which of its systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moldiff.chem.molecules import symbols
from moldiff.config import Config
from moldiff.core.vocabulary import Vocabulary
from moldiff.data.location import find_data
from moldiff.data.store import Store, join, select
from moldiff.errors import BadRequest

#: A data set of which more than this share can't be represented is not the model's: refused even with ``data.skip_unknown``.
_MOST_SKIPPED = 0.5
_WORDS = {"atom_types": "elements", "charges": "formal charges", "bond_types": "bonds of order"}


def locate_data(config: Config, settings: str | Path | None = None) -> Config:
    """The settings with ``data.root`` and ``data.name`` leading to the data set's folder, absolute.

    Tried in this order: under ``data.root``; ``data.name`` as a path, from here or from the folder of the ``settings`` file;
    by name under ``MOLDIFF_DATA``; in ``../data`` beside the folder of the settings file (the sets that come with the
    repository). Raises ``BadRequest`` where none is there.
    """
    name, root = config.data.name, config.data.root
    here = None if settings is None else Path(settings).resolve().parent
    if root is None and here is not None:
        beside = [here / name, here.parent / "data" / name]
        try:
            folder = find_data(name)
        except BadRequest:
            found = [p for p in beside if (p / "meta.json").is_file()]
            if not found:
                raise
            folder = found[0]
    elif root is not None and (Path(root) / name / "meta.json").is_file():
        folder = Path(root) / name
    else:
        folder = find_data(name, root)
    folder = folder.resolve()
    data = config.data.model_copy(update={"name": folder.name, "root": str(folder.parent)})
    return config.model_copy(update={"data": data})


def training_store(config: Config, data: str | Path | None = None) -> Store:
    """The training split that the settings name, or that of another data set given by name or path."""
    located = config
    if data is None:
        located = locate_data(config)
        data = Path(str(located.data.root)) / located.data.name
    return Store(find_data(data), config.data.split)


def training_columns(config: Config, store: Store) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The columns of the systems that the settings train on, and how many systems were left out, by reason.

    ``data.part`` is taken first. Systems that the model can't represent (elements, charges, bonds, size) are left out where
    ``data.skip_unknown`` says so. Raises ``BadRequest`` for them otherwise, and where they are more than half.
    """
    columns = {name: store.tensor(name) for name in store.names}
    if config.data.part is not None:
        columns = select(columns, part_of(len(store), config.data.part))
    n = len(columns["n_atoms"])
    reasons = misfits(columns, Vocabulary(config.vocabulary), config.max_atoms)
    wrong = torch.zeros(n, dtype=torch.bool)
    for found in reasons.values():
        wrong |= found
    if not bool(wrong.any()):
        return columns, {}
    counts = {reason: int(found.sum()) for reason, found in reasons.items()}
    said = "; ".join(f"{reason} ({count:,} of {n:,} systems)" for reason, count in counts.items())
    if not config.data.skip_unknown:
        raise BadRequest(
            f"{store.folder} holds what {config.name} can't represent: {said}; --set data.skip_unknown=true leaves them out"
        )
    if int(wrong.sum()) > _MOST_SKIPPED * n:
        raise BadRequest(f"most of {store.folder} is nothing that {config.name} can represent: {said}")
    return select(columns, (~wrong).nonzero()[:, 0]), counts


def with_others(config: Config, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns with those of the data sets that ``data.also`` names, which a regressor learns from too.

    Raises ``BadRequest`` for a generator, whose sizes and novelty are those of one data set, and for data of another kind.
    """
    joined = dict(columns)
    if config.data.also and not config.targets:
        raise BadRequest(f"data.also is for regressors, and {config.name} has no targets: it makes what one data set holds")
    for name in config.data.also:
        store = Store(find_data(name, config.data.root), config.data.split)
        if store.kind != config.kind:
            raise BadRequest(f"{config.name} learns from {config.kind}s, but {store.folder} holds {store.kind}s")
        data = config.data.model_copy(update={"part": None})
        joined = join(joined, training_columns(config.model_copy(update={"data": data}), store)[0])
    return joined


def part_of(n: int, part: tuple[float, float]) -> Tensor:
    """The indices, ascending, of the systems of n that lie between two fractions of a random order that never changes."""
    low, high = part
    if not 0 <= low < high <= 1:
        raise BadRequest(f"data.part takes two fractions with 0 <= from < to <= 1, found {list(part)}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    chosen = order[round(low * n) : round(high * n)]
    if not len(chosen):
        raise BadRequest(f"data.part {list(part)} of {n:,} systems is none")
    return chosen.sort().values


def misfits(columns: Mapping[str, Tensor], vocabulary: Vocabulary, max_atoms: int) -> dict[str, Tensor]:
    """Which systems a model can't represent, by reason: bool [M] each; no entry for what does not occur."""
    sizes = columns["n_atoms"].long()
    owners = {"atom_types": sizes, "charges": sizes, "bond_types": columns.get("n_bonds", torch.zeros_like(sizes)).long()}
    reasons: dict[str, Tensor] = {}
    for name, counts in owners.items():
        if name not in columns or name not in vocabulary.values:
            continue
        foreign = ~torch.isin(columns[name].long(), torch.tensor(vocabulary.values[name]))
        if bool(foreign.any()):
            found = columns[name][foreign].unique().tolist()
            values = ", ".join(
                symbols(found) if name == "atom_types" else [f"{v:+d}" if name == "charges" else str(v) for v in found]
            )
            owner = torch.repeat_interleave(torch.arange(len(sizes)), counts)
            systems = torch.zeros(len(sizes), dtype=torch.bool)
            systems[owner[foreign]] = True
            reasons[f"{_WORDS[name]} {values}"] = systems
    large = sizes > max_atoms
    if bool(large.any()):
        reasons[f"too many atoms (max_atoms is {max_atoms})"] = large
    return reasons
