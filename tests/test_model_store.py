"""Model folders: what is altered, cut or a pickle is refused before it is loaded; what is sound comes back as it was."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from conftest import SIZES, tiny_config
from safetensors.torch import load_file, save_file

from moldiff import model_store
from moldiff.assemble import build_denoiser
from moldiff.errors import BadRequest, DamagedFile
from moldiff.model_export import export_model, export_run
from moldiff.model_store import MANIFEST, SETTINGS, WEIGHTS, load_model, model_info, write_manifest


@pytest.fixture
def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "tiny")


def test_a_model_comes_back_as_it_was_stored(tiny_model):
    info = model_info(tiny_model)
    assert info.name == "tiny" and info.sizes == SIZES and info.config.max_atoms == 12
    model = load_model(tiny_model)
    stored = load_file(tiny_model / WEIGHTS)
    loaded = model.denoiser.state_dict()
    assert set(stored) == set(loaded)
    assert all(v.dtype == torch.float16 and torch.equal(loaded[k], v.float()) for k, v in stored.items())
    assert info.n_parameters == sum(v.numel() for v in loaded.values())
    assert not model.denoiser.training


def test_the_reference_and_the_card_travel_with_it(tiny_model):
    info = model_info(tiny_model)
    assert info.reference().contains(["CO", "CCO"]).tolist() == [True, False]
    assert "# tiny" in info.card and "not at all" in info.card and "3 to 9 atoms" in info.card


@pytest.mark.parametrize("name", ["weights.safetensors", "config.yaml", "sizes.json", "README.md", "reference.safetensors"])
def test_a_flipped_bit_in_any_file_is_found(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(DamagedFile, match=f"{name} was altered"):
        model_info(copy)


@pytest.mark.parametrize("name", ["weights.safetensors", "sizes.json"])
def test_a_truncated_or_missing_file_is_found(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:-7])
    with pytest.raises(DamagedFile, match="truncated"):
        model_info(copy)
    (copy / name).unlink()
    with pytest.raises(DamagedFile, match="missing"):
        model_info(copy)


@pytest.mark.parametrize("name", ["weights.pt", "model.ckpt", "pytorch_model.bin", "extra.pkl"])
def test_pickles_are_refused_unread(copy, tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (copy / name).write_bytes(pickle.dumps(Bomb()))
    for target in (copy, copy / name):
        with pytest.raises(DamagedFile, match="pickle"):
            model_info(target)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_under_the_name_of_the_weights_is_no_model(copy):
    (copy / WEIGHTS).write_bytes(pickle.dumps({"a": 1}))
    write_manifest(copy, "tiny")
    with pytest.raises(DamagedFile, match="does not fit"):
        load_model(copy)


def test_weights_of_another_network_are_refused(copy):
    save_file({"network.other": torch.zeros(3)}, copy / WEIGHTS)
    write_manifest(copy, "tiny")
    with pytest.raises(DamagedFile, match="does not fit"):
        load_model(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"files": {}}', '{"files": {"weights.safetensors": {}}}'])
def test_a_damaged_manifest_is_found(copy, text):
    (copy / MANIFEST).write_text(text)
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        model_info(copy)


def test_a_manifest_cannot_lead_out_of_its_folder(copy, tmp_path):
    (tmp_path / "elsewhere").write_text("x")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["../elsewhere"] = {"bytes": 1, "sha256": "0"}
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedFile):
        model_info(copy)


def test_unknown_names_and_folders(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setattr(model_store, "SHIPPED", tiny_model.parent)
    assert model_info("tiny").folder == tiny_model
    assert [info.name for info in model_store.list_models()] == ["tiny"]
    with pytest.raises(BadRequest, match="did you mean 'tiny'"):
        model_info("tyny")
    with pytest.raises(BadRequest, match="no such model folder"):
        model_info(tmp_path / "nowhere")
    with pytest.raises(BadRequest, match="not a model folder"):
        model_info(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadRequest, match="a model is a folder"):
        model_info(tmp_path / "notes.txt")


def test_a_wrong_key_in_the_settings_names_the_right_one(copy):
    path = copy / SETTINGS
    path.write_text(path.read_text().replace("max_atoms:", "max_atom:"))
    write_manifest(copy, "tiny")
    with pytest.raises(BadRequest, match="did you mean 'max_atoms'"):
        model_info(copy)


def test_export_leaves_a_foreign_folder_alone_and_replaces_a_model(tmp_path):
    weights = build_denoiser(tiny_config()).state_dict()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BadRequest, match="no model folder"):
        export_model(weights, tiny_config(), None, tmp_path / "mine", sizes=SIZES)
    first = export_model(weights, tiny_config(), None, tmp_path / "out", sizes=SIZES)
    second = export_model(weights, tiny_config(), None, tmp_path / "out", sizes=SIZES, storage="float32")
    assert first.files[WEIGHTS] != second.files[WEIGHTS] and second.reference() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]
    with pytest.raises(BadRequest, match="float16"):
        export_model(weights, tiny_config(), None, tmp_path / "x", sizes=SIZES, storage="int4")


def test_a_folder_without_a_state_is_no_run(tmp_path):
    with pytest.raises(BadRequest, match=r"no state\.pt"):
        export_run(tmp_path, tmp_path / "out")
