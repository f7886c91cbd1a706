"""Training: a resume is exact, SIGTERM saves first, two processes make the steps of one with both batches."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_config

from moldiff.assemble import build_denoiser, build_vocabulary
from moldiff.config import Config
from moldiff.core.rng import Streams, stream_seed
from moldiff.data.batches import BucketBatches
from moldiff.data.store import Store
from moldiff.errors import BadRequest, DamagedFile
from moldiff.train import train
from moldiff.training.module import DiffusionModule, TrainOptions, learning_rate
from moldiff.training.run import fit
from moldiff.training.state import read_state

CPU = {"accelerator": "cpu", "devices": 1}


def settings(**training: object) -> Config:
    options = {"batch_size": 8, "lr": 1e-3, "warmup": 2, "sample_minutes": None, "log_every": 2, "max_steps": 8, **training}
    return tiny_config(training=options)


@pytest.fixture(scope="module")
def columns(tiny_data):
    store = Store(tiny_data)
    return {name: store.tensor(name) for name in store.names}


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.fixture
def sigterm_as_before():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_and_the_resume_is_exact_bit_by_bit(columns, tmp_path, monkeypatch, sigterm_as_before):
    fit(settings(), columns, tmp_path / "straight", **CPU)
    straight = read_state(tmp_path / "straight" / "state.pt")
    assert straight["done"] == 8

    step = DiffusionModule.training_step

    def terminated(self, index, batch_index):
        if int(index) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, index, batch_index)

    monkeypatch.setattr(DiffusionModule, "training_step", terminated)
    result = fit(settings(), columns, tmp_path / "parts", **CPU)
    monkeypatch.undo()
    first = read_state(tmp_path / "parts" / "state.pt")
    assert not result.complete and first["done"] == 3
    result = fit(settings(), columns, tmp_path / "parts", resume=True, **CPU)
    assert result.complete
    resumed = read_state(tmp_path / "parts" / "state.pt")
    for key in ("weights", "ema", "optimizer", "done", "seen"):
        assert equal(straight[key], resumed[key]), key
    assert not equal(first["weights"], resumed["weights"])


def test_training_learns_and_leaves_its_curve(columns, tmp_path):
    fit(settings(max_steps=60, lr=3e-3, log_every=10), columns, tmp_path, **CPU)
    with open(tmp_path / "curve.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 6 and losses[-1] < 0.6 * losses[0]
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_a_non_finite_gradient_spoils_one_step_and_not_the_run(columns, tmp_path, monkeypatch):
    step = DiffusionModule.training_step

    def poisoned(self, index, batch_index):
        loss = step(self, index, batch_index)
        return loss * torch.nan if int(index) == 1 else loss

    monkeypatch.setattr(DiffusionModule, "training_step", poisoned)
    result = fit(settings(max_steps=3), columns, tmp_path, **CPU)
    assert result.steps == 3 and all(bool(torch.isfinite(p).all()) for p in result.denoiser.parameters())


def test_the_minute_limit_ends_a_run(columns, tmp_path):
    result = fit(settings(max_steps=None, max_minutes=1e-4), columns, tmp_path, **CPU)
    assert result.complete and 1 <= result.steps < 100
    with pytest.raises(BadRequest, match="needs a limit"):
        fit(settings(max_steps=None), columns, tmp_path / "x", **CPU)


def test_learning_rate_rises_holds_and_falls():
    o = TrainOptions(lr=1.0, warmup=10, decay_from=0.5)
    assert learning_rate(0, 0.0, o) == pytest.approx(0.1)
    assert learning_rate(100, 0.3, o) == pytest.approx(1.0) == learning_rate(100, 0.5, o)
    assert learning_rate(100, 0.75, o) == pytest.approx(0.505) and learning_rate(100, 1.0, o) == pytest.approx(0.01)


def test_damaged_and_missing_states_are_one_sentence(columns, tmp_path):
    with pytest.raises(BadRequest, match="nothing to resume"):
        fit(settings(), columns, tmp_path, resume=True, **CPU)
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(DamagedFile, match="not a readable training state"):
        fit(settings(), columns, tmp_path, resume=True, **CPU)


def test_train_exports_a_model_that_generates(tiny_data, tmp_path):
    from moldiff.generator import Generator

    path = tmp_path / "tiny.yaml"
    path.write_text(settings(max_steps=2).to_yaml())
    info = train(path, [], tmp_path / "run", data=tiny_data, **CPU)
    assert info.folder == tmp_path / "run" / "model" and info.sizes == {5: 25, 8: 25}
    assert info.config.data.root is None and str(tmp_path) not in (info.folder / "config.yaml").read_text()
    reference = info.reference()
    assert reference.contains(["C", "CC", "CCC"]).tolist() == [True, True, False]
    assert reference.data_row["n"] == 10 and reference.data_row["metrics"]["molecule_stability"]["value"] == 1
    assert len(Generator.from_pretrained(info.folder).sample(2)) == 2
    with pytest.raises(BadRequest, match=r"other settings: network\.width was 32, is 48"):
        train(path, ["network.width=48"], tmp_path / "run", data=tiny_data, resume=True, **CPU)


def test_data_is_found_beside_the_settings_and_under_the_root(tiny_data, tmp_path, monkeypatch):
    from moldiff.training.data import locate_data

    monkeypatch.setenv("MOLDIFF_DATA", str(tmp_path / "empty"))
    configs = tiny_data.parent / "configs"
    with pytest.raises(BadRequest, match="tiny"):
        locate_data(tiny_config(), configs / "tiny.yaml")
    (tmp_path / "repo" / "configs").mkdir(parents=True)
    (tmp_path / "repo" / "data").symlink_to(tiny_data.parent)
    found = locate_data(tiny_config(), tmp_path / "repo" / "configs" / "tiny.yaml")
    assert found.data.root == str(tiny_data.parent.resolve()) and found.data.name == "tiny"
    monkeypatch.setenv("MOLDIFF_DATA", str(tiny_data.parent))
    assert locate_data(tiny_config()).data.root == str(tiny_data.parent.resolve())


def averaged_steps(columns, n_steps: int, world: int) -> DiffusionModule:
    """What data parallelism must come to: each step descends along the mean gradient of all ranks' batches."""
    config = settings(max_steps=n_steps)
    torch.manual_seed(config.training.seed)
    options = TrainOptions(**{k: getattr(config.training, k) for k in TrainOptions.__dataclass_fields__})
    ranks = [
        BucketBatches(columns, build_vocabulary(config), 8, 0, rank, world, fields=tuple(config.fields)) for rank in range(world)
    ]
    module = DiffusionModule(build_denoiser(config), ranks[0], options)
    (optimizer,) = [module.configure_optimizers()]
    for index in range(n_steps):
        optimizer.zero_grad()
        for rank, batches in enumerate(ranks):
            rng = Streams.single(stream_seed(options.seed + 1, index * world + rank))
            losses = module.losses(batches.batch(index), rng)
            (module.denoiser.diffusion.total(losses).mean() / world).backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        module.on_train_batch_end(None, None, index)
    return module


def test_two_processes_descend_along_the_mean_gradient_of_both(columns, tiny_data, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(settings(max_steps=3).to_yaml())
    command = [
        sys.executable, "-m", "moldiff.cli", "train", str(path), "--data", str(tiny_data), "--out", str(tmp_path / "run"),
        "--devices", "2", "--strategy", "ddp", "--accelerator", "cpu", "--threads", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "MOLDIFF_DEBUG": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    state = read_state(tmp_path / "run" / "state.pt")
    expected = averaged_steps(columns, 3, 2)
    assert state["done"] == 3 and state["seen"] == 2 * sum(len(expected.batches.indices(k)) for k in range(3))
    for name, value in expected.denoiser.state_dict().items():
        assert torch.allclose(state["weights"][name], value, atol=2e-6), name
    assert (tmp_path / "run" / "model" / "weights.safetensors").is_file()
