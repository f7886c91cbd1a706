"""Warm start and fine-tuning: the new model begins as the old one, and what does not fit is one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import SIZES, tiny_config

from moldiff.assemble import build_denoiser
from moldiff.core.batch import AtomBatch
from moldiff.data.store import Store, select, write_store
from moldiff.errors import BadRequest
from moldiff.model_export import export_model
from moldiff.model_store import load_model
from moldiff.train import train
from moldiff.training.data import part_of, training_columns
from moldiff.training.warm import new_weights, warm_weights

CPU = {"accelerator": "cpu", "devices": 1}
STEPS = ["training.max_minutes=null", "training.max_steps=6"]
STATS = {"mean": 5.0, "std": 2.0, "low": 2.0, "high": 8.0, "least": 1.0, "greatest": 9.0, "known": 10}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder that knows the condition gap, its weights far from zero."""
    torch.manual_seed(3)
    config = tiny_config(conditions=["gap"], condition_stats={"gap": STATS})
    denoiser = build_denoiser(config)
    with torch.no_grad():
        denoiser.network.time.condition.each[0].weight.normal_()
    folder = tmp_path_factory.mktemp("models") / "base"
    export_model(denoiser.state_dict(), config, None, folder, sizes=SIZES, storage="float32")
    return folder


@pytest.fixture
def labelled(tiny_data, tmp_path):
    """The small data set with a column pIC50, unknown for every fifth molecule."""
    folder = tmp_path / "mine"
    splits = {}
    for split in ("train", "val"):
        store = Store(tiny_data, split)
        columns = {name: store.tensor(name).numpy() for name in store.names}
        values = torch.linspace(4, 9, len(store))
        values[::5] = torch.nan
        splits[split] = {**columns, "property.pIC50": values.numpy()}
    return write_store(folder, splits, {"name": "mine", "kind": "molecule"})


def predictions(denoiser, conditions):
    torch.manual_seed(5)
    n = 6
    bonds = torch.randint(0, 4, (2, n, n)).triu(1)
    batch = AtomBatch(
        torch.ones(2, n, dtype=torch.bool),
        {
            "positions": torch.randn(2, n, 3), "atom_types": torch.randint(0, 4, (2, n)), "charges": torch.randint(0, 3, (2, n)),
            "bond_types": bonds + bonds.transpose(1, 2), "conditions": conditions,
        },
    )  # fmt: skip
    with torch.no_grad():
        return denoiser.eval()(batch, torch.tensor([0.3, 0.8])).data


def test_the_new_model_is_the_old_one_whatever_the_old_condition_says(base):
    old = load_model(base)
    config = tiny_config(conditions=["pIC50", "gap"], max_atoms=20)
    new = build_denoiser(config)
    weights = warm_weights(config, old.config, old.denoiser.state_dict())
    new.load_state_dict(weights)
    assert new_weights(config, old.config, list(weights)) == ["network.time.condition.each.0.weight"]
    for gap in (0.7, float("nan")):
        for activity in (1.5, float("nan")):
            found = predictions(new, torch.tensor([[activity, gap]] * 2))
            wanted = predictions(old.denoiser, torch.tensor([[gap]] * 2))
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    told = predictions(new, torch.tensor([[0.0, 0.7]] * 2))["positions"]
    assert not torch.equal(told, predictions(new, torch.tensor([[0.0, -0.7]] * 2))["positions"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocabulary": {"atom_types": [1, 6], "charges": [-1, 0, 1], "bond_types": [0, 1, 2, 3]}}, "vocabulary.atom_types is"),
        ({"network": {"name": "thin_pair", "width": 48, "n_heads": 2}}, r"width \(48 instead of 32\)"),
        ({"network": {"name": "egnn"}}, "has the network egnn, tiny has thin_pair"),
        ({"condition_classes": {"gap": 3}, "conditions": ["gap"]}, "has 3 classes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(base, changes, words):
    old = load_model(base)
    with pytest.raises(BadRequest, match=words):
        warm_weights(tiny_config(**changes), old.config, old.denoiser.state_dict())


def test_fine_tuning_needs_no_settings_file_and_exports_a_model(base, labelled, tmp_path):
    info = train(None, STEPS, tmp_path / "run", data=labelled, start_from=base, conditions=["pIC50"], **CPU)
    assert info is not None and info.config.conditions == ["gap", "pIC50"]
    assert info.config.condition_stats["gap"].mean == 5 and info.config.condition_stats["pIC50"].known == 40
    assert info.config.training.start_from == "base" and "| began as | base |" in info.card and "condition `pIC50`" in info.card
    assert sum(info.sizes.values()) == 50 and "root: null" in (info.folder / "config.yaml").read_text()
    old, new = load_model(base).denoiser.state_dict(), info.denoiser().state_dict()
    moved = float((new["network.time.outer.weight"] - old["network.time.outer.weight"]).abs().mean())
    assert 1e-6 < moved < 1e-3
    assert float(new["network.time.condition.each.1.weight"].abs().mean()) > 3 * moved  # it learns faster
    again = train(
        None, ["training.max_minutes=null", "training.max_steps=8"], tmp_path / "run", data=labelled, start_from=base,
        conditions=["pIC50"], resume=True, **CPU,
    )  # fmt: skip
    assert again is not None and "8 steps" in again.card


def test_the_pull_holds_weights_near_where_they_began(base, labelled, tmp_path):
    moved = {}
    for pull in (0.0, 4000.0):
        overrides = [*STEPS, f"training.pull={pull}", "training.warmup=0"]
        info = train(None, overrides, tmp_path / str(pull), data=labelled, start_from=base, conditions=["pIC50"], **CPU)
        old, new = load_model(base).denoiser.state_dict(), info.denoiser().state_dict()
        moved[pull] = sum(float((new[k] - old[k]).abs().sum()) for k in old)
        assert float(new["network.time.condition.each.1.weight"].abs().max()) > 1e-3
    assert moved[4000.0] < 0.4 * moved[0.0]


def test_bad_requests_come_before_anything_is_computed(base, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr("moldiff.training.run.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(BadRequest, match="needs a settings file, or a model"):
        train(None, data=labelled)
    with pytest.raises(BadRequest, match="needs data"):
        train(None, start_from=base)
    with pytest.raises(BadRequest, match=r"no column 'pIC5' \(known: pIC50\)"):
        train(None, out=tmp_path / "a", data=labelled, start_from=base, conditions=["pIC5"])
    with pytest.raises(BadRequest, match="unknown model 'qm8'"):
        train(None, out=tmp_path / "b", data=labelled, start_from="qm8")
    with pytest.raises(BadRequest, match=r"unknown key 'training\.pul'"):
        train(None, ["training.pul=1"], tmp_path / "c", data=labelled, start_from=base)


def with_foreign(folder, every):
    store = Store(folder)
    columns = {name: store.tensor(name).clone() for name in store.names}
    first = columns["n_atoms"].long().cumsum(0) - columns["n_atoms"].long()
    columns["atom_types"][first[::every]] = 16
    shutil.rmtree(folder)
    splits = {"train": {k: v.numpy() for k, v in columns.items()}}
    return Store(write_store(folder, splits, {"name": "mine", "kind": "molecule"}))


def test_systems_that_the_model_cannot_represent_are_refused_or_left_out(labelled):
    store = with_foreign(labelled, 10)
    config = tiny_config(data={"name": "mine"})
    with pytest.raises(BadRequest, match=r"elements S \(5 of 50 systems\)"):
        training_columns(config, store)
    skipping = tiny_config(data={"name": "mine", "skip_unknown": True})
    columns, left_out = training_columns(skipping, store)
    assert len(columns["n_atoms"]) == 45 and left_out == {"elements S": 5} and not bool((columns["atom_types"] == 16).any())
    with pytest.raises(BadRequest, match="most of"):
        training_columns(tiny_config(data={"name": "mine", "skip_unknown": True}, max_atoms=5), with_foreign(labelled, 1))


def test_selected_systems_keep_their_atoms_and_bonds_and_parts_share_nothing(labelled):
    store = Store(labelled)
    index = torch.tensor([7, 2, 40])
    found = select({name: store.tensor(name) for name in store.names}, index)
    for k, i in enumerate(index.tolist()):
        wanted = store.system(i)
        atoms = slice(*[int(found["n_atoms"][:j].sum()) for j in (k, k + 1)])
        bonds = slice(*[int(found["n_bonds"][:j].sum()) for j in (k, k + 1)])
        assert torch.equal(found["positions"][atoms], wanted["positions"]) and int(found["id"][k]) == int(wanted["id"])
        assert torch.equal(found["bond_index"][bonds].long(), store.bonds(i)[0])
    first, second = part_of(101, (0, 0.5)), part_of(101, (0.5, 1))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(101)) and first.tolist() == sorted(first.tolist())
    with pytest.raises(BadRequest, match="two fractions"):
        part_of(10, (0.5, 0.2))


def test_the_manifest_of_a_fine_tuned_model_is_whole(base, labelled, tmp_path):
    info = train(None, STEPS, tmp_path / "run", data=labelled, start_from=base, **CPU)
    assert info.config.name == "tiny-mine"
    assert set(json.loads((info.folder / "manifest.json").read_text())["files"]) >= {"weights.safetensors", "config.yaml"}
