"""PyG data sets over the store, and the data set that the repository ships."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Dataset
from torch_geometric.loader import DataLoader

from moldiff.chem.edm import edm_stable_atoms
from moldiff.chem.molecules import build_molecule, canonical_smiles, n_fragments, n_radicals
from moldiff.chem.valence import stable_atoms
from moldiff.core.batch import AtomBatch
from moldiff.data import MolDataset, Store
from moldiff.errors import BadRequest

QUICKSTART = Path(__file__).parents[1] / "data" / "quickstart"


def test_items_are_pyg_data() -> None:
    data = MolDataset(QUICKSTART, properties=["gap", "dipole"])
    assert isinstance(data, Dataset) and len(data) == len(Store(QUICKSTART))
    item, system = data[7], Store(QUICKSTART).system(7)
    assert torch.equal(item.z, system["atom_types"]) and torch.equal(item.pos, system["positions"])
    assert item.edge_index.shape == (2, int((system["bond_types"] > 0).sum())) and item.is_undirected()
    assert torch.equal(item.edge_attr, system["bond_types"][item.edge_index[0], item.edge_index[1]])
    assert item.y.tolist() == [[float(system["property.gap"]), float(system["property.dipole"])]]
    assert MolDataset(QUICKSTART, "val").properties == ("dipole", "energy", "gap", "homo", "lumo")


def test_loader_batches_and_transform() -> None:
    def doubled(item: object) -> object:
        item.pos = 2 * item.pos  # type: ignore[attr-defined]
        return item

    data = MolDataset(QUICKSTART, transform=doubled)
    batch = next(iter(DataLoader(data, batch_size=5)))
    assert batch.num_graphs == 5 and batch.y.shape == (5, 5) and len(batch.charges) == len(batch.z)
    assert torch.equal(batch.pos[: len(data[0].z)], 2 * Store(QUICKSTART).system(0)["positions"])
    assert int(batch.edge_index.max()) < len(batch.z)


def test_items_become_a_batch_of_the_library() -> None:
    data = MolDataset(QUICKSTART)
    batch = AtomBatch.from_pyg([data[3], data[30]])
    system = data.store.system(3)
    n = len(system["atom_types"])
    assert torch.equal(batch.atom_types[0, :n], system["atom_types"])
    assert torch.equal(batch.bond_types[0, :n, :n], system["bond_types"])
    assert torch.equal(batch.positions[0, :n], system["positions"])


def test_workers_get_no_copy_of_the_data() -> None:
    data = MolDataset(QUICKSTART)
    data[5]
    assert len(pickle.dumps(data)) < 10_000


def test_unknown_names() -> None:
    with pytest.raises(BadRequest, match="did you mean 'gap'"):
        MolDataset(QUICKSTART, properties=["gaps"])
    with pytest.raises(BadRequest, match="did you mean 'val'"):
        MolDataset(QUICKSTART, "vall")


def test_the_shipped_set_is_sound() -> None:
    train, val = Store(QUICKSTART), Store(QUICKSTART, "val")
    train.verify()
    val.verify()
    assert 1300 <= len(train) <= 2700 and abs(len(val) / (len(train) + len(val)) - 0.1) < 0.01
    assert sum(file.stat().st_size for file in QUICKSTART.iterdir()) < 1_500_000
    seen: set[str] = set()
    for store in (train, val):
        for i in range(0, len(store), 7):
            system = {key: value.numpy() for key, value in store.system(i).items()}
            z, x, b, q = (system[k] for k in ("atom_types", "positions", "bond_types", "charges"))
            assert set(z.tolist()) <= {1, 6, 7, 8} and (z > 1).sum() <= 6
            assert stable_atoms(z, b, q).all()
            built = build_molecule(z, x, b, q)
            assert built.mol is not None and n_fragments(built.mol) == 1 and n_radicals(built.mol) == 0
            smiles = canonical_smiles(built.mol)
            assert smiles not in seen
            seen.add(smiles)
    assert (train.tensor("charges") != 0).sum() > 50


def test_edm_look_up_on_relaxed_molecules() -> None:
    # QM9's own molecules give 99.3 % of atoms and 95.1 % of molecules; these are smaller and odder, so the share is lower.
    store = Store(QUICKSTART)
    neutral = [s for s in (store.system(i) for i in range(0, len(store), 3)) if not s["charges"].any()]
    verdicts = [edm_stable_atoms(s["atom_types"].numpy(), s["positions"].numpy()) for s in neutral]
    assert 0.95 < np.concatenate(verdicts).mean() < 1.0
    assert 0.80 < np.mean([v.all() for v in verdicts]) < 1.0
