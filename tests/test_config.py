"""Settings: every fault is one sentence with its place, and YAML goes round."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import SETTINGS, tiny_config

from moldiff.assemble import build_denoiser, build_regressor
from moldiff.config import apply_overrides, load_config, parse_config
from moldiff.errors import BadRequest

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_settings_file_of_the_repository_builds_a_model(path):
    config = load_config(path)
    assert config.name == path.stem
    (build_regressor if config.targets else build_denoiser)(config)


def test_yaml_goes_round():
    config = tiny_config()
    assert parse_config(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.batchsize=3", "unknown key 'training.batchsize'; did you mean 'batch_size'"),
        ("trainin.lr=3", "did you mean 'training'"),
        ("training.lr=-1", r"training\.lr: .*greater than 0"),
        ("training.lr=fast", r"training\.lr: .*number"),
        ("sampling.steps=1", r"sampling\.steps: .*greater than or equal to 2"),
        ("kind=protein", "kind"),
        ("bonds=guessed", "bonds"),
        ("name.first=x", "is a value, not a section"),
        ("=3", "KEY=VALUE"),
        ("training", "KEY=VALUE"),
    ],
)
def test_wrong_settings_are_one_sentence(override, words):
    with pytest.raises(BadRequest, match=words) as found:
        parse_config(apply_overrides(yaml.safe_load(yaml.safe_dump(SETTINGS)), [override]), "tiny.yaml")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"network": {"name": "thin_pear"}}, "did you mean 'thin_pair'"),
        ({"network": {"name": "thin_pair", "widht": 3}}, "did you mean 'width'"),
        ({"fields": {"positions": {"process": "gausian"}}}, "did you mean 'gaussian'"),
        ({"fields": {"positions": {"process": "gaussian", "schedule": {"name": "cosin"}}}}, "did you mean 'cosine'"),
        ({"fields": {"positions": {"process": "gaussian", "scales": 3}}}, "scales"),
        ({"fields": {"positons": {"process": "gaussian"}}}, "did you mean 'positions'"),
        ({"vocabulary": {"atom_types": [1, 6, 600], "charges": [0], "bond_types": [0, 1]}}, "atom_types"),
    ],
)
def test_parts_are_looked_up_by_name_and_named_when_wrong(section, words):
    with pytest.raises(BadRequest, match=words):
        build_denoiser(tiny_config(**section))


def test_overrides_reach_deep_and_are_read_as_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(tiny_config().to_yaml())
    config = load_config(path, ["training.max_minutes=30", "network.width=48", "conditions=[gap]", "data.root=null"])
    assert config.training.max_minutes == 30 and config.network.model_dump()["width"] == 48 and config.conditions == ["gap"]


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "\x00"])
def test_files_that_are_no_settings(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(BadRequest, match=r"a\.yaml"):
        load_config(path)
    with pytest.raises(BadRequest, match="no such settings file"):
        load_config(tmp_path / "b.yaml")
