"""The facade: the same molecule for any batch, memory that runs out, numbers that are none, requests that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny_config

from moldiff.assemble import build_denoiser
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.errors import BadRequest, MoldiffError
from moldiff.generator import Generator
from moldiff.request import parse_size
from moldiff.samples import Sample, SampleSet
from moldiff.sampling.tiles import TileRule, make_tiles


@pytest.fixture
def generator(tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu")


def same(a: Sample, b: Sample) -> bool:
    return a.index == b.index and a.problem == b.problem and all(np.array_equal(a.fields[k], b.fields[k]) for k in a.fields)


def test_a_sample_does_not_depend_on_batch_size_number_start_or_threads(generator):
    whole = generator.sample(21, seed=3)
    for batch_size in (1, 4, 16):
        again = generator.sample(21, seed=3, batch_size=batch_size)
        assert all(same(a, b) for a, b in zip(whole, again, strict=True)), f"batch size {batch_size}"
    assert all(same(a, b) for a, b in zip(whole[5:9], generator.sample(4, seed=3, start=5), strict=True))
    torch.set_num_threads(2)
    try:
        assert all(same(a, b) for a, b in zip(whole, generator.sample(21, seed=3), strict=True)), "two threads"
    finally:
        torch.set_num_threads(1)


def test_other_seeds_and_indices_give_other_samples(generator):
    a, b = generator.sample(6, seed=0), generator.sample(6, seed=1)
    assert not any(len(x) == len(y) and np.array_equal(x.positions, y.positions) for x, y in zip(a, b, strict=True))
    equal = [s for s in a if len(s) == len(a[0])]
    assert all(not np.array_equal(equal[0].positions, s.positions) for s in equal[1:])


def test_sizes_follow_the_histogram_and_the_request(generator):
    request = generator.request(4000)
    drawn = [request.size_of(i) for i in range(4000)]
    total = sum(generator.info.sizes.values())
    for size, count in generator.info.sizes.items():
        assert abs(drawn.count(size) / 4000 - count / total) < 0.03
    assert {len(s) for s in generator.sample(12, size=8)} == {8}
    narrow = generator.request(500, size="5-6")
    assert {narrow.size_of(i) for i in range(500)} == {5, 6}


@pytest.mark.parametrize("limit", [12, 2])
def test_out_of_memory_halves_and_gives_the_same_results(generator, monkeypatch, limit):
    expected = generator.sample(40, seed=5, size="5-8")
    inner, largest = generator.denoiser.network.forward, []

    def limited(seen: AtomBatch, *rest):
        if seen.n_systems > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        largest.append(seen.n_systems)
        return inner(seen, *rest)

    monkeypatch.setattr(generator.denoiser.network, "forward", limited)
    generator._rule = TileRule(6, 16, 2)
    notes = []
    request = generator.request(40, seed=5, size="5-8")
    drawn = [s for part in generator.stream(request, notice=notes.append) for s in part]
    assert [s.index for s in drawn] == list(range(40))
    if limit >= 6:  # below the smallest tile, products may round differently
        assert all(same(a, b) for a, b in zip(expected, drawn, strict=True))
    assert max(largest) <= limit
    assert any("out of memory" in note for note in notes)


def test_memory_for_not_even_one_is_one_sentence(generator, monkeypatch):
    def hopeless(*_):
        raise MemoryError

    generator._rule = TileRule(6, 16, 1)
    monkeypatch.setattr(generator.denoiser.network, "forward", hopeless)
    with pytest.raises(MoldiffError, match="does not fit"):
        generator.sample(2)


def test_any_other_failure_ends_the_run(generator, monkeypatch):
    def broken(*_):
        raise ValueError("a fault of the network")

    generator._rule = TileRule(6, 16, 2)
    monkeypatch.setattr(generator.denoiser.network, "forward", broken)
    with pytest.raises(ValueError, match="a fault of the network"):
        generator.sample(20)


@pytest.mark.parametrize("only_on_the_way", [False, True])
def test_a_non_finite_sample_is_recorded_as_failed_and_leaves_its_neighbours_alone(generator, monkeypatch, only_on_the_way):
    expected = generator.sample(16, seed=2, size=6)
    inner, calls = generator.denoiser.network.forward, [0]

    def poisoned(seen: AtomBatch, *rest):
        raw = inner(seen, *rest)
        calls[0] += 1
        if only_on_the_way and calls[0] != 2:
            return raw
        name = "bond_types" if only_on_the_way else "positions"
        value = raw.data[name].clone()
        value[3] = torch.nan
        return raw.replace(**{name: value})

    generator._rule = TileRule(16, 16, 1)
    monkeypatch.setattr(generator.denoiser.network, "forward", poisoned)
    drawn = generator.sample(16, seed=2, size=6)
    assert [s.index for s in drawn if s.problem] == [3]
    assert drawn[3].problem == "non-finite numbers"
    assert not drawn.verdicts[3].valid and drawn.verdicts[3].reason == "non-finite numbers"
    assert all(same(a, b) for a, b in zip(expected, drawn, strict=True) if a.index != 3)


def test_tiles_cover_every_sample_once_in_its_exact_size():
    sizes = [(i, 5 + i % 3) for i in range(40)]
    for least, most, workers in ((6, 64, 1), (6, 64, 8), (16, 16, 2), (6, 7, 1), (1, 1, 1)):
        tiles = make_tiles(sizes, TileRule(least, most, workers))
        assert sorted((i, t.size) for t in tiles for i in t.indices) == sizes
        assert all(least <= t.rows <= most and len(t.filled) == t.rows and set(t.filled) == set(t.indices) for t in tiles)
    assert len(make_tiles([(i, 9) for i in range(64)], TileRule(6, 64, 2))) == 2, "both cores are kept busy"


def test_halving_ends():
    rule, seen = TileRule(6, 16, 4), []
    while rule is not None:
        seen.append((rule.workers, rule.least, rule.most))
        rule = rule.halved()
    assert seen == [(4, 6, 16), (1, 6, 16), (1, 6, 8), (1, 4, 4), (1, 2, 2), (1, 1, 1)]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("n_atoms", [9, 18, 29])
def test_a_network_of_the_shipped_size_gives_the_same_bits_for_any_number_of_rows(precision, n_atoms):
    network = {"name": "thin_pair", "n_layers": 2, "precision": precision}
    denoiser = build_denoiser(tiny_config(network=network, max_atoms=29)).eval()
    xt = denoiser.diffusion.prior(AtomBatch(torch.ones(64, n_atoms, dtype=torch.bool)), Streams.of(0, range(64)))

    def twice(rows: torch.Tensor) -> AtomBatch:
        t = torch.full((len(rows),), 0.5)
        return denoiser(xt[rows], t, denoiser(xt[rows], t))

    with torch.no_grad():
        expected = twice(torch.arange(64))
        for rows in (torch.arange(6), torch.arange(9).flip(0), torch.tensor([5] * 6), torch.randperm(64)[:33]):
            found = twice(rows)
            for name in found:
                assert torch.equal(found.data[name], expected.data[name][rows]), (name, len(rows))


def test_a_machine_whose_products_depend_on_the_rows_gets_tiles_of_one_size(generator, monkeypatch):
    generator._rule = None
    monkeypatch.setattr("moldiff.sampling.tiles._same_bits", lambda *_: False)
    expected = generator.sample(20, seed=3)
    assert (generator._rule.least, generator._rule.most) == (16, 16)
    assert all(same(a, b) for a, b in zip(expected, generator.sample(20, seed=3, batch_size=3), strict=True))


def test_progress_rises_to_the_end(generator):
    told = []
    generator.sample(10, batch_size=4, progress=lambda done, n: told.append((done, n)))
    assert {n for _, n in told} == {10}
    assert told == sorted(told) and 8 <= told[-1][0] <= 10


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "heun", "dpm_solver"])
def test_every_sampler_runs_on_the_same_weights(generator, sampler):
    drawn = generator.sample(3, sampler=sampler, steps=5)
    assert len(drawn) == 3 and not any(s.problem for s in drawn)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "at least 1"),
        ({"n": 2.5}, "whole number"),
        ({"n": True}, "whole number"),
        ({"n": 3, "seed": -1}, "seed"),
        ({"n": 3, "steps": 1}, "steps"),
        ({"n": 3, "sampler": "dppm"}, "did you mean 'ddpm'"),
        ({"n": 3, "sampler": "ddpm", "options": {"etta": 1}}, "did you mean 'eta'"),
        ({"n": 3, "grid": "uniformly"}, "did you mean 'uniform'"),
        ({"n": 3, "temperature": 0}, "temperature"),
        ({"n": 3, "temperature": float("nan")}, "temperature"),
        ({"n": 3, "size": 30}, "3 to 9 atoms"),
        ({"n": 3, "size": "5-30"}, "3 to 9 atoms"),
        ({"n": 3, "size": 7}, "no system of size 7"),
        ({"n": 3, "size": "nine"}, "range"),
        ({"n": 3, "size": (9, 3)}, "range"),
        ({"n": 3, "batch_size": 0}, "batch size"),
        ({"n": 3, "batch_size": "many"}, "batch size"),
        ({"n": 3, "start": -1}, "start"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(generator, options, words):
    with pytest.raises(BadRequest, match=words):
        generator.sample(**options)


def test_options_are_added_to_the_models_own_where_the_sampler_is_its_own(generator, monkeypatch):
    tuned = generator.config.sampling.model_copy(update={"sampler": "ddpm", "options": {"noise_scale": 0.9}})
    monkeypatch.setattr(generator.config, "sampling", tuned)
    assert generator.request(1).options == {"noise_scale": 0.9}
    assert generator.request(1, options={"eta": 0.5}).options == {"noise_scale": 0.9, "eta": 0.5}
    assert generator.request(1, sampler="heun").options == {}


def test_sizes_are_read_in_every_form():
    assert parse_size(18) == parse_size("18") == (18, 18)
    assert parse_size("9-20") == parse_size((9, 20)) == (9, 20)


def test_an_unknown_device_is_named(tiny_model):
    with pytest.raises(BadRequest, match="known: auto, cpu"):
        Generator.from_pretrained(tiny_model, device="gpu")


def test_a_model_without_bonds_gets_them_by_its_rule(generator):
    from moldiff.samples import from_batch

    water = AtomBatch.from_list(
        [{"atom_types": [8, 1, 1], "positions": torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])}]
    )
    for how in ("edm", "rdkit"):
        (sample,) = from_batch(water, [0], how)
        assert sample.bond_types is not None and sample.bond_types[0].tolist() == [0, 1, 1]
    verdict = SampleSet([sample]).verdicts[0]
    assert verdict.valid and verdict.smiles == "O"
