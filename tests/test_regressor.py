"""A regressor: invariant, differentiable, learns what a property is, ships as a model folder and is refused as a generator."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import tiny_config

from moldiff.assemble import build_denoiser, build_regressor
from moldiff.cli import main
from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.data.store import Store, join, write_store
from moldiff.errors import BadRequest
from moldiff.model_store import load_model, model_info
from moldiff.regressor import PropertyRegressor, read_molecule
from moldiff.train import train
from moldiff.training.data import training_columns, with_others
from moldiff.training.warm import fine_tuning_config, inherit_conditions, warm_regressor

CPU = {"accelerator": "cpu", "devices": 1}
FIELDS = {
    "positions": {"process": "gaussian", "schedule": {"name": "variance_exploding"}, "parameterization": "karras", "scale": 1.4},
    "atom_types": {"process": "categorical"},
}
NETWORKS = {
    "thin_pair": {
        "name": "thin_pair", "width": 32, "n_layers": 2, "n_heads": 2, "pair": 8, "pair_hidden": 8, "n_sets": 2, "ffn": 32,
    },
    "egnn": {"name": "egnn", "width": 32, "n_layers": 2},
}  # fmt: skip
TRAINING = {"batch_size": 16, "lr": 3e-3, "warmup": 5, "max_steps": 160, "log_every": 40, "clean_share": 0.8, "ema": 0.9}


def settings(network="thin_pair", **changes):
    values = {
        "fields": FIELDS, "targets": ["spread", "carbons"], "network": NETWORKS[network],
        "vocabulary": {"atom_types": [1, 6, 7, 8]}, "training": TRAINING, "data": {"name": "mine"}, **changes,
    }  # fmt: skip
    return tiny_config(**values)


@pytest.fixture(scope="module")
def labelled(tiny_data, tmp_path_factory):
    """The small data set with two properties: the root mean square of the coordinates and the number of carbons."""
    splits = {}
    for split in ("train", "val"):
        store = Store(tiny_data, split)
        columns = {name: store.tensor(name).numpy() for name in store.names}
        systems = [store.system(i) for i in range(len(store))]
        spread = np.array([float(s["positions"].square().mean().sqrt()) for s in systems], dtype=np.float32)
        spread[::9] = np.nan
        carbons = np.array([float((s["atom_types"] == 6).sum()) for s in systems], dtype=np.float32)
        splits[split] = {**columns, "property.spread": spread, "property.carbons": carbons}
    folder = tmp_path_factory.mktemp("labelled") / "mine"
    meta = {"name": "mine", "kind": "molecule", "properties": {"spread": "Å"}}
    return write_store(folder, splits, meta)


@pytest.fixture(scope="module")
def trained(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regressor")
    path = folder / "tiny.yaml"
    path.write_text(settings(name="tiny-regressor").to_yaml())
    info = train(path, out=folder / "run", data=labelled, **CPU)
    assert info is not None
    return info


def batch(seed=0):
    torch.manual_seed(seed)
    mask = torch.arange(6) < torch.tensor([[4], [6], [5]])
    data = {"positions": center(torch.randn(3, 6, 3), mask), "atom_types": torch.randint(0, 4, (3, 6))}
    return AtomBatch(mask, data).masked()


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_it_is_unchanged_by_turning_mirroring_permuting_and_padding(network):
    torch.manual_seed(1)
    regressor = build_regressor(settings(network)).eval()
    with torch.no_grad():
        for p in regressor.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        one, t = batch(), torch.tensor([0.0, 0.4, 1.0])
        wanted = regressor(one, t)
        turn = torch.linalg.qr(torch.randn(3, 3))[0]
        assert float(torch.linalg.det(turn)) != 0
        for q in (turn, -turn):
            torch.testing.assert_close(regressor(one.replace(positions=one.positions @ q), t), wanted, rtol=1e-4, atol=2e-5)
        first = one[:1].to_list()[0]
        torch.testing.assert_close(regressor(first, t[:1]), wanted[:1], rtol=1e-4, atol=2e-5)
        order = torch.tensor([2, 0, 3, 1])
        moved = first.replace(**{k: v[:, order] for k, v in first.data.items()})
        torch.testing.assert_close(regressor(moved, t[:1]), wanted[:1], rtol=1e-4, atol=2e-5)
        assert float((wanted[0] - wanted[1]).abs().min()) > 1e-4


def test_training_learns_and_the_model_folder_predicts(trained, labelled):
    regressor = PropertyRegressor.from_pretrained(trained.folder, "cpu")
    store = Store(labelled, "val")
    systems = [store.system(i) for i in range(len(store))]
    found = regressor.predict([(s["atom_types"].numpy(), s["positions"].numpy()) for s in systems])
    truth = store.column("carbons").numpy()
    assert np.abs(found["carbons"] - truth).mean() < 0.4 * np.abs(truth - truth.mean()).mean()
    truth = store.column("spread").numpy()
    known = np.isfinite(truth)
    assert np.abs(found["spread"] - truth)[known].mean() < 0.9 * np.abs(truth[known] - truth[known].mean()).mean()
    assert regressor.units == {"spread": "Å", "carbons": ""}
    assert "target `spread`" in trained.card and "mean absolute error, held out" in trained.card
    assert trained.config.condition_stats["spread"].known == 44 and "reference.safetensors" not in trained.files


def test_it_reads_what_people_have_and_knows_what_it_does_not_know(trained):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    regressor = PropertyRegressor.from_pretrained(trained.folder, "cpu")
    mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
    with pytest.raises(BadRequest, match="without a conformer"):
        regressor.predict([mol])
    AllChem.EmbedMolecule(mol, randomSeed=1)
    z, x = read_molecule(mol)
    many = [
        mol,
        Atoms(z, x + 7),
        (z, x @ np.diag([1, 1, -1])),
        Atoms("SH2", np.eye(3)),
        (z, x * np.nan),
        Atoms("H60", np.ones((60, 3))),
    ]
    found = regressor.predict(many)["spread"]
    assert np.isfinite(found[0]) and np.allclose(found[:3], found[0], atol=1e-4) and np.isnan(found[3:]).all()
    for wrong, words in ((["CO"], "can't read a str"), ([(z, x[:2])], "needs positions of shape")):
        with pytest.raises(BadRequest, match=words):
            regressor.predict(wrong)


def test_gradients_run_to_positions_and_element_probabilities_whatever_the_order_of_classes(trained):
    regressor = PropertyRegressor.from_pretrained(trained.folder, "cpu")
    one = batch()
    positions = one.positions.clone().requires_grad_()
    classes = (16, 8, 6, 1)  # no nitrogen, and sulphur, which it does not know
    logits = torch.randn(3, 6, 4, requires_grad=True)
    atoms = SimpleNamespace(mask=one.mask, positions=positions, types=logits.softmax(-1), classes={"atom_types": classes})
    values = regressor(atoms)
    values["spread"].sum().backward()
    assert float(positions.grad[one.mask].abs().min()) > 0 and float(positions.grad[~one.mask].abs().max()) == 0
    assert bool(logits.grad[one.mask].isfinite().all()) and float(logits.grad.abs().max()) > 0
    # certain probabilities say what indices say
    ours = torch.tensor([1, 6, 7, 8])
    numbers = torch.where(one.atom_types == 2, 1, ours[one.atom_types])
    sure = torch.stack([numbers == z for z in classes], -1).float()
    atoms = SimpleNamespace(mask=one.mask, positions=one.positions, types=sure, classes={"atom_types": classes})
    wanted = regressor.predict([(numbers[k, m].numpy(), one.positions[k, m].numpy()) for k, m in enumerate(one.mask)])
    np.testing.assert_allclose(regressor(atoms)["spread"].detach().numpy(), wanted["spread"], rtol=1e-4, atol=1e-4)


def test_it_is_no_generator_and_a_generator_is_no_regressor(trained, tiny_model, tmp_path, capsys):
    with pytest.raises(BadRequest, match="predicts spread, carbons and makes no samples"):
        load_model(trained.folder)
    with pytest.raises(BadRequest, match="is no regressor"):
        PropertyRegressor.from_pretrained(tiny_model)
    assert model_info(trained.folder).config.targets == ["spread", "carbons"]
    with pytest.raises(BadRequest, match="makes no samples"):
        build_denoiser(settings())
    with pytest.raises(SystemExit) as left:
        main(["generate", "--model", str(trained.folder), "-n", "2", "--out", str(tmp_path / "out")])
    assert left.value.code == 2 and "makes no samples" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_regressor_does_not_begin_as_a_generator(labelled, tiny_model, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(settings().to_yaml())
    with pytest.raises(BadRequest, match="is no regressor"):
        train(path, out=tmp_path / "run", data=labelled, start_from=tiny_model, **CPU)


def test_a_regressor_begins_as_another_and_learns_a_further_target(trained, labelled):
    old, seen = trained.regressor(), batch()
    config = settings(targets=["carbons", "new"])
    fresh = build_regressor(config)
    fresh.load_state_dict(warm_regressor(config, trained.config, old.state_dict()))
    t = torch.zeros(seen.n_systems)
    assert torch.allclose(fresh(seen, t)[:, 0], old(seen, t)[:, 1], atol=1e-6)
    config = fine_tuning_config(trained.config, "tiny-regressor", "mine", ["carbons"])
    assert config.targets == ["carbons"] and not config.conditions
    shipped = fine_tuning_config(model_info("qm9-regressor").config, "qm9-regressor", "mine", ["carbons"])
    assert shipped.data.also == [] and shipped.data.part is None, "what the old one learnt from is not asked for"
    kept = inherit_conditions(config, trained.config).condition_stats
    assert kept["carbons"] == trained.config.condition_stats["carbons"]
    with pytest.raises(BadRequest, match="tiny has the network egnn"):
        other = settings("egnn")
        warm_regressor(other, trained.config, old.state_dict())


def test_a_regressor_learns_from_further_data(labelled, tmp_path):
    config = settings(data={"name": str(labelled), "also": [str(labelled), str(labelled)], "part": (0.0, 0.5)})
    columns, _ = training_columns(config, Store(labelled, "train"))
    joined, whole = with_others(config, columns), Store(labelled, "train")
    n = len(columns["n_atoms"])
    assert len(joined["n_atoms"]) == n + 2 * len(whole)
    assert torch.equal(joined["positions"][-len(whole.tensor("positions")) :], whole.tensor("positions"))
    assert torch.equal(joined["property.carbons"][n : n + len(whole)], whole.column("carbons"))
    with pytest.raises(BadRequest, match="is for regressors"):
        with_others(tiny_config(data={"name": "mine", "also": [str(labelled)]}), columns)


def test_joined_splits_lack_what_one_of_them_lacks(labelled):
    store = Store(labelled, "train")
    columns = {name: store.tensor(name) for name in store.names}
    poorer = {name: value for name, value in columns.items() if name not in ("property.spread", "id")}
    joined = join(columns, {**poorer, "property.other": torch.ones(len(store))})
    assert "id" not in joined
    assert joined["property.spread"][len(store) :].isnan().all() and joined["property.other"][: len(store)].isnan().all()

