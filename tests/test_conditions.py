"""Conditions in training: standardised, null where unknown, dropped one by one and together, their ranges kept with the model."""

from __future__ import annotations

import pytest
import torch
from conftest import SIZES, tiny_config

from moldiff.assemble import build_denoiser, build_vocabulary
from moldiff.config import load_config
from moldiff.core.rng import Streams, stream_seed
from moldiff.data.batches import BucketBatches
from moldiff.data.store import Store
from moldiff.denoisers.layers.embeddings import ConditionEmbedding, TimeEmbedding
from moldiff.errors import BadRequest
from moldiff.model_export import export_model
from moldiff.training.conditions import standardised, with_condition_stats
from moldiff.training.module import DiffusionModule, TrainOptions
from moldiff.training.run import fit
from moldiff.training.told import alone, left_out

CPU = {"accelerator": "cpu", "devices": 1}
TRAINING = {"batch_size": 8, "warmup": 2, "sample_minutes": None, "log_every": 4, "max_steps": 4}
UNITS = {"gap": "eV"}


@pytest.fixture
def columns(tiny_data):
    store = Store(tiny_data)
    found = {name: store.tensor(name) for name in store.names}
    gap = torch.linspace(3, 9, 50)
    gap[::10] = torch.nan
    return {**found, "property.gap": gap, "property.group": (torch.arange(50) % 7).float()}


def conditional(**training: object):
    return tiny_config(conditions=["gap", "group"], condition_classes={"group": 8}, training={**TRAINING, **training})


def test_statistics_are_of_the_known_values_and_kept_once_there(columns):
    config = with_condition_stats(conditional(), columns, UNITS)
    known = columns["property.gap"][~columns["property.gap"].isnan()].double()
    gap, group = config.condition_stats["gap"], config.condition_stats["group"]
    assert gap.unit == "eV" and gap.known == 45
    assert gap.mean == pytest.approx(float(known.mean()), rel=1e-6)
    assert gap.std == pytest.approx(float(known.std(correction=0)), rel=1e-6)
    assert gap.least < gap.low < gap.high < gap.greatest == 9
    assert (group.mean, group.std, group.least, group.greatest) == (0, 1, 0, 6)
    assert gap.physical(gap.standardise(5.0)) == pytest.approx(5.0)
    other = {**columns, "property.gap": columns["property.gap"] * 2}
    assert with_condition_stats(config, other).condition_stats == config.condition_stats


def test_batches_carry_standardised_values_and_nan_where_unknown(columns):
    config = with_condition_stats(conditional(), columns)
    values = standardised(config, columns)
    assert values.shape == (50, 2) and torch.equal(values[:, 0].isnan(), columns["property.gap"].isnan())
    assert float(values[:, 0].nanmean()) == pytest.approx(0, abs=1e-5)
    assert torch.equal(values[:, 1], columns["property.group"])
    batches = BucketBatches(columns, build_vocabulary(config), 8, conditions=values, fields=tuple(config.fields))
    found, wanted = batches.batch(1).conditions, values[torch.from_numpy(batches.indices(1))]
    torch.testing.assert_close(found, wanted, equal_nan=True, rtol=0, atol=0)
    del columns["property.gap"]  # known from earlier training, absent here
    assert bool(standardised(config, columns)[:, 0].isnan().all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"property.gap": torch.full((50,), torch.nan)}, "no known value"),
        ({"property.gap": torch.full((50,), 2.0)}, "the value 2 only"),
        ({"property.group": torch.full((50,), 8.0)}, "holds 8, which is no class 0 to 7"),
    ],
)
def test_a_column_that_cannot_be_learned_is_refused_in_a_sentence(columns, change, words):
    with pytest.raises(BadRequest, match=words):
        with_condition_stats(conditional(), {**columns, **change})
    del columns["property.gap"]
    with pytest.raises(BadRequest, match=r"no column 'gap' \(known: group\)"):
        with_condition_stats(conditional(), columns)


def test_an_unknown_condition_adds_exactly_nothing_even_after_training():
    torch.manual_seed(0)
    embedding = ConditionEmbedding((0, 5), 16)
    like = torch.randn(4, 16)
    with torch.no_grad():
        for p in embedding.parameters():
            p.normal_()
    nothing = torch.full((4, 2), torch.nan)
    assert torch.equal(embedding(nothing, like), torch.zeros(4, 16)) and torch.equal(embedding(None, like), torch.zeros(4, 16))
    one = nothing.clone()
    one[:, 0] = torch.tensor([-1.0, 0.0, 1.0, 100.0])
    said = embedding(one, like)
    assert bool((said.norm(dim=1) > 0.1).all()) and float(said[3].norm()) < 50
    both = one.clone()
    both[:, 1] = torch.tensor([0.0, 1.0, 4.0, 4.0])
    torch.testing.assert_close(embedding(both, like) - said, embedding.each[1].weight.T[[0, 1, 4, 4]])


def test_what_a_system_is_told_does_not_depend_on_its_place_in_the_batch():
    torch.manual_seed(1)
    time = TimeEmbedding(48, conditions=(0, 0, 6))
    with torch.no_grad():
        for p in time.parameters():
            p.normal_()
    t, n = torch.rand(37), torch.randint(3, 9, (37,))
    conditions = torch.stack([torch.randn(37), torch.randn(37), torch.randint(0, 6, (37,)).float()], -1)
    whole = time.condition(conditions, torch.zeros(37, 48))
    for k in (16, 23, 36):
        rolled = time.condition(conditions.roll(k, 0), torch.zeros(37, 48)).roll(-k, 0)
        assert torch.equal(rolled, whole)
    assert time(t, n, conditions).shape == (37, 48)


def test_dropout_is_of_each_condition_on_its_own_and_of_all_together(columns, monkeypatch):
    columns["property.gap"] = torch.linspace(3, 9, 50)
    config = with_condition_stats(conditional(), columns)
    denoiser = build_denoiser(config)
    batches = BucketBatches(
        columns,
        build_vocabulary(config),
        50,
        conditions=standardised(config, columns),
        fields=tuple(config.fields),
        bucket_width=99,
    )
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(type(denoiser), "forward", lambda self, xt, t, previous=None: seen.append(xt.conditions) or xt)
    monkeypatch.setattr(type(denoiser.diffusion), "loss", lambda *_: {})
    options = TrainOptions(condition_dropout=0.2, condition_dropout_each=0.4, self_conditioning=0)
    module = DiffusionModule(denoiser, batches, options)
    for step in range(80):
        module.losses(batches.batch(0), Streams.single(stream_seed(0, step)))
    null = torch.cat(seen).isnan()
    assert len(null) == 4000
    assert float(null.float().mean()) == pytest.approx(1 - 0.8 * 0.6, abs=0.03)
    assert float(null.all(1).float().mean()) == pytest.approx(0.2 + 0.8 * 0.16, abs=0.03)
    assert float((null[:, 0] & ~null[:, 1]).float().mean()) == pytest.approx(0.8 * 0.4 * 0.6, abs=0.03)


def test_one_condition_alone_is_a_known_one_and_each_as_often():
    conditions = torch.zeros(6000, 3)
    conditions[:, 2] = torch.nan
    told = torch.zeros(6000, 3, dtype=torch.bool)
    dropped = alone(conditions, told, 0.5, torch.Generator().manual_seed(0))
    single = dropped.sum(1) == 2
    assert float(single.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert dropped[single, 2].all() and not dropped[~single].any()
    assert float(dropped[single, 0].float().mean()) == pytest.approx(0.5, abs=0.03)
    assert alone(conditions, told, 0.0, None) is told


def test_companions_are_told_together_or_not_at_all_whatever_else_is():
    options = TrainOptions(condition_dropout_each=0.3, condition_alone=1.0, companion_share=0.6)
    companions = torch.tensor([False, False, True, True])
    dropped = left_out(torch.zeros(8000, 4), options, companions, torch.Generator().manual_seed(0))
    assert (dropped[:, :2].sum(1) == 1).all(), "one property alone"
    both, none = (~dropped[:, 2:]).all(1), dropped[:, 2:].all(1)
    assert float(both.float().mean()) == pytest.approx(0.6 + 0.4 * 0.5 * 0.25, abs=0.02)
    assert float(none.float().mean()) == pytest.approx(0.4 * (0.5 + 0.5 * 0.25), abs=0.02)


def test_weights_of_conditions_learn_faster_even_where_the_origin_has_them(columns):
    config = with_condition_stats(conditional(), columns)
    denoiser = build_denoiser(config)
    origin = {k: v.clone() for k, v in denoiser.state_dict().items()}
    batches = BucketBatches(columns, build_vocabulary(config), 50, fields=tuple(config.fields))
    for rate, factors in ((1.0, [1.0, 1.0]), (5.0, [1.0, 1.0, 5.0])):
        optimizer = DiffusionModule(denoiser, batches, TrainOptions(condition_lr=rate), origin).configure_optimizers()
        assert [group.get("factor", 1.0) for group in optimizer.param_groups] == factors
    fast = {id(p) for p in optimizer.param_groups[2]["params"]}
    assert fast == {id(p) for k, p in denoiser.named_parameters() if ".condition." in k} and fast


def test_ranges_travel_with_the_run_and_with_the_model_and_stand_on_its_card(columns, tmp_path):
    config = conditional()
    result = fit(config, columns, tmp_path / "run", **CPU)
    kept = load_config(tmp_path / "run" / "settings.yaml")
    assert kept.condition_stats["gap"].known == 45 and result.steps == 4
    named = with_condition_stats(config, columns, UNITS)
    info = export_model(result.denoiser.state_dict(), named, None, tmp_path / "model", sizes=SIZES)
    assert info.config.condition_stats == named.condition_stats
    assert (
        "condition `gap`" in info.card
        and f"{named.condition_stats['gap'].low:.4g} to " in info.card
        and " eV (1st to 99th" in info.card
        and "45 training systems" in info.card
    )
    assert "one of 8 classes" in info.card
