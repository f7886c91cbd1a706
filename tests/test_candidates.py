"""Candidates: the model's choice comes first, whatever the batch; what it costs is said; bad requests."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from ase.build import bulk
from conftest import crystal_config, random_model

from moldiff import generate as runs
from moldiff.cli import main
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.sampling.candidates import DRAWS, LEVELS, Chosen, is_crystal
from moldiff.steer.candidates import Candidates, candidates_from

ROWS = [("NaCl", 2), ("Li2O", 1), ("NaCl", 1)]


@pytest.fixture(scope="module")
def generator(tiny_csp):
    return Generator.from_pretrained(tiny_csp, device="cpu")


def parts(atoms) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.tensor(atoms.numbers), torch.tensor(atoms.get_scaled_positions()), torch.tensor(atoms.cell[:])


def batch(crystals) -> AtomBatch:
    types, places, cells = (torch.stack(x) for x in zip(*(parts(atoms) for atoms in crystals), strict=True))
    mask = torch.ones(types.shape, dtype=torch.bool)
    return AtomBatch(mask, {"atom_types": types, "frac_coords": places.float(), "lattice": cells.float()})


def salt(cubic: bool = True, kind: str = "rocksalt", a: float = 5.64):
    return bulk("NaCl", kind, a, cubic=cubic)


class Believer:
    """A denoiser that knows one crystal and takes everything for it; it hears of rows that move."""

    def __init__(self, diffusion, atoms) -> None:
        self.diffusion, self.atoms, self.index, self.times = diffusion, atoms, None, []

    def __call__(self, xt, t, previous=None):
        self.times.append(float(t[0]))
        known = batch([self.atoms] * xt.n_systems)
        return xt.replace(**{name: p.known(known, xt) for name, p in self.diffusion.processes.items()})

    def reorder(self, index):
        self.index = index.tolist()


def moved(atoms, by: float, seed: int = 0):
    atoms = atoms.copy()
    atoms.rattle(by, seed=seed)
    return atoms


def chosen_of(generator, groups: list[list], n_groups: int | None = None, believed=None):
    k = len(groups[0])
    diffusion = generator.denoiser.diffusion
    x0 = batch([atoms for group in groups for atoms in group])
    control, believer = Chosen(k, n_groups=n_groups), Believer(diffusion, believed or salt())
    control.wrap(believer, diffusion)
    control.start(x0, diffusion, Streams.of(0, range(x0.n_systems)))
    return control, believer, x0, control.finish(x0, diffusion)


def test_what_the_model_believes_comes_first_and_takes_its_memory_along(generator):
    groups = [[moved(salt(), 0.4), salt(), moved(salt(), 0.3)], [salt(), moved(salt(), 0.3), moved(salt(), 0.3, 1)],
              [moved(salt(), 0.5), salt(a=6.6), moved(salt(), 0.05)]]  # fmt: skip
    control, believer, x0, out = chosen_of(generator, groups)
    assert believer.index == [1, 1, 2, 3, 4, 5, 8, 7, 8]
    assert torch.equal(out.frac_coords[0], x0.frac_coords[1]) and torch.equal(out.lattice[6], x0.lattice[8])
    doubts = [control.facts(row)["doubt"] for row in (0, 3, 6)]
    assert max(doubts[:2]) < 1e-6 < doubts[2] and control.facts(1) == {}
    assert sorted(set(believer.times)) == pytest.approx(LEVELS) and len(believer.times) == len(LEVELS) * DRAWS
    other = chosen_of(generator, groups, believed=moved(salt(), 0.4))[1]
    assert other.index[0] == 0, "what comes first is the model's choice, not the most regular one"


def test_what_is_no_crystal_comes_last(generator):
    clash = salt()
    clash.positions[1] = clash.positions[0] + 0.1
    broken = batch([clash, salt(), salt()])
    broken.data["lattice"][2, 0, 0] = math.nan
    assert is_crystal(broken).tolist() == [False, True, False]
    assert is_crystal(batch([salt(a=0.9)])).tolist() == [False], "atoms and images of others overlap"
    control, believer, _, _ = chosen_of(generator, [[clash, moved(salt(), 0.8)], [clash, clash]], believed=clash)
    assert believer.index == [1, 1, 2, 3] and control.facts(2) == {"doubt": None}


def test_groups_that_only_fill_up_are_left_alone(generator):
    bad = moved(salt(), 0.4)
    control, believer, _, _ = chosen_of(generator, [[bad, salt()], [bad, salt()]], n_groups=1)
    assert believer.index == [1, 1, 2, 3] and control.facts(0) != {} and control.facts(2) == {}
    with pytest.raises(ValueError, match="whole number of groups"):
        Chosen(3).start(batch([salt(), salt()]), None, Streams.of(0, range(2)))


def arrays(samples) -> list[bytes]:
    return [b"".join(s.fields[name].tobytes() for name in sorted(s.fields)) for s in samples]


def test_samples_do_not_depend_on_the_batch_and_are_among_the_plain_draws(generator):
    whole = generator.sample(3, compositions=ROWS, candidates=4, seed=5)
    assert len(whole) == 9
    for size in (1, 4):
        assert arrays(generator.sample(3, compositions=ROWS, candidates=4, seed=5, batch_size=size)) == arrays(whole)
    assert arrays(generator.sample(1, compositions=ROWS, candidates=4, seed=5, start=6)) == arrays(whole)[6:]
    one, plain = (generator.sample(n, formula="NaCl", z=2, seed=5, candidates=k) for n, k in ((5, 4), (20, 1)))
    found = [arrays(plain).index(x) for x in arrays(one)]
    assert [i // 4 for i in found] == list(range(5)), "row k of sample i has stream i K + k"
    assert len({i % 4 for i in found}) > 1, "not always the first of them"
    assert all(s.info["doubt"] > 0 for s in one) and "doubt" not in plain[0].info


def test_what_a_sample_costs_is_what_the_network_is_asked(generator, tmp_path):
    request = generator.request(16, formula="NaCl", candidates=3)
    rows = []
    inner = generator.denoiser.network.forward

    def counted(seen, *args):
        rows.append(seen.n_systems)
        return inner(seen, *args)

    generator.rule()
    generator.denoiser.network.forward = counted
    try:
        result = runs.run(generator, request, runs.open_run(tmp_path / "run", request, "cpu", False))
    finally:
        del generator.denoiser.network.forward
    assert request.calls_each == 3 * (request.steps + len(LEVELS) * DRAWS)
    assert sum(rows) == 16 * request.calls_each and result.calls_each == request.calls_each
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["calls_each"] == request.calls_each
    values = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert values["calls_each"] == request.calls_each and values["settings"]["candidates"]["each"] == 3
    assert generator.request(16, formula="NaCl").calls_each == request.steps


def test_a_run_in_parts_leaves_the_same_bytes(generator, tmp_path):
    def go(out, batch, stop=None):
        request = generator.request(2, compositions=ROWS, candidates=3, seed=2)
        folder = runs.open_run(out, request, "cpu", out.exists())
        if stop is None:
            runs.run(generator, request, folder, batch)
        else:
            with pytest.raises(RuntimeError, match="stopped"):
                runs.run(generator, request, folder, batch, progress=stop)
        return folder

    def stop(done: float, n: int) -> None:
        if done > 2.5:
            raise RuntimeError("stopped")

    whole = go(tmp_path / "a", 6)
    go(tmp_path / "b", 2, stop)
    parts = go(tmp_path / "b", 1)
    for name in ("samples.extxyz", "samples.csv", "metrics.json", "ranked.csv", "run.yaml"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    assert "doubt" in (whole / "samples.csv").read_text().splitlines()[0]


def test_a_models_own_number_of_candidates(tmp_path):
    config = crystal_config(sampling={"sampler": "ddim", "steps": 4, "candidates": 3})
    generator = Generator.from_pretrained(random_model(config, tmp_path / "model"), device="cpu")
    asked = generator.request(2, formula="NaCl")
    assert asked.controls[-1] == Candidates(3) and asked.calls_each > 12
    assert generator.request(2, formula="NaCl", candidates=1).calls_each == 4, "1 is plain sampling"
    steered = generator.request(2, formula="NaCl", reward="crystal:density", particles=2)
    assert [spec.name for spec in steered.controls] == ["compositions", "reward"], "a reward comes before the model's default"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"candidates": 0}, "whole number from 1 to 64"),
        ({"candidates": 65}, "whole number from 1 to 64"),
        ({"candidates": 2.0}, "whole number from 1 to 64"),
        ({"candidates": True}, "whole number from 1 to 64"),
        ({"candidates": 4, "reward": "crystal:density"}, "candidates and reward both draw"),
    ],
)
def test_bad_requests(generator, options, said):
    with pytest.raises(BadRequest, match=said):
        generator.request(2, formula="NaCl", **options)


def test_candidates_need_crystals_of_one_composition(tiny_crystal, tiny_model, tmp_path, capsys):
    made = Generator.from_pretrained(tiny_crystal, device="cpu")
    with pytest.raises(BadRequest, match="need one composition"):
        made.request(2, candidates=2)
    drawn = made.sample(2, formula="NaCl", z=2, candidates=3)
    assert [sorted(s.fields["atom_types"].tolist()) for s in drawn] == [[11, 11, 17, 17]] * 2
    out = str(tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "--model", str(tiny_model), "-n", "2", "--candidates", "2", "--formula", "C2H6", "--out", out])
    assert "name a condition" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert candidates_from(None) is None and candidates_from(None, 8) is None and candidates_from(None, 8, True) == Candidates(8)
