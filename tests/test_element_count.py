"""The number of elements of a crystal: settled beforehand, never missed, refused in a sentence where it can't be."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import crystal_config, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from moldiff.apart import too_close
from moldiff.chem.crystals import Crystal
from moldiff.core.batch import AtomBatch
from moldiff.data.batches import element_histogram
from moldiff.errors import BadRequest, DamagedFile
from moldiff.generator import Generator
from moldiff.model_export import export_model, write_element_counts
from moldiff.model_store import ELEMENT_COUNTS, model_info, shipped_models, write_manifest
from moldiff.request import make_request
from moldiff.sampling.element_count import Bounds, ElementCount
from moldiff.verbs import specs_from

TABLE = {2: {(2,): 2, (1, 1): 3}, 4: {(2, 2): 6, (3, 1): 3, (2, 1, 1): 1}, 5: {(5,): 4, (1, 1, 1, 1, 1): 4}, 8: {(4, 3, 1): 3}}
NUMBERS = (1, 3, 8, 11, 17, 26, 82)


@pytest.fixture(scope="module")
def tabled(tiny_crystal, tmp_path_factory):
    """The tiny model of crystals with a table of numbers of elements."""
    folder = tmp_path_factory.mktemp("models") / "tabled"
    shutil.copytree(tiny_crystal, folder)
    write_element_counts(folder, TABLE)
    write_manifest(folder, "tiny-crystal")
    return folder


@pytest.fixture(scope="module")
def crystals(tabled):
    return Generator.from_pretrained(tabled, device="cpu")


@pytest.fixture(scope="module")
def plain(tiny_crystal):
    return Generator.from_pretrained(tiny_crystal, device="cpu")


def n_elements(sample) -> int:
    return len(set(sample.numbers.tolist()))


def shares(sample) -> tuple[int, ...]:
    return tuple(sorted(Counter(sample.numbers.tolist()).values(), reverse=True))


def spec_of(request):
    return next(spec for spec in request.controls if spec.name == "n_elements")


def make_bounds(least, caps, allowed, required, kept=()):
    one = torch.tensor([least]), torch.tensor([caps]), torch.tensor([allowed]), torch.tensor([required])
    return Bounds(*one, torch.tensor(kept, dtype=torch.int64))


def spread(bounds, rows):
    fields = (bounds.least, bounds.caps, bounds.allowed, bounds.required)
    return Bounds(*(x.expand(rows, *x.shape[1:]) for x in fields), bounds.kept)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_class_is_admissible_just_where_the_rest_can_still_meet_the_bounds(data):
    n_classes, n = 4, data.draw(st.integers(1, 5))
    allowed = data.draw(st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
    required = [a and data.draw(st.booleans()) for a in allowed]
    if data.draw(st.booleans()):  # numbers of atoms of each class
        caps = list(Counter(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))).values())
        least = len(caps)
    else:  # the number of classes alone
        least = data.draw(st.integers(1, n))
        caps = [n] * data.draw(st.integers(least, n))
    caps = sorted(caps, reverse=True) + [0] * (n - len(caps))
    known = data.draw(st.lists(st.sampled_from([c for c in range(4) if allowed[c]]), max_size=n - 1))

    def met(types):
        kinds = Counter(types)
        ranked = sorted(kinds.values(), reverse=True)
        fits = least <= len(kinds) and all(a <= b for a, b in zip(ranked, [*caps, 0, 0, 0, 0], strict=False))
        return fits and all(allowed[c] for c in kinds) and all(c in kinds for c in range(4) if required[c])

    ends = [list(end) for end in itertools.product(range(n_classes), repeat=n - len(known)) if met([*known, *end])]
    if not ends:
        return
    state = torch.tensor([[*known, *[-1] * (n - len(known))]])
    found = make_bounds(least, caps, allowed, required).admissible(state, torch.ones(1, n, dtype=torch.bool))[0]
    assert {c for c in range(n_classes) if found[c]} == {end[0] for end in ends}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_atoms_that_are_decided_together_meet_the_bounds_together(data):
    torch.manual_seed(data.draw(st.integers(0, 999)))
    rows, wanted = 20, data.draw(st.sampled_from([(1,), (5,), (2, 2), (2, 1, 1), (6, 2, 1), (3, 3, 2, 1), (1,) * 6]))
    n, kept = sum(wanted), [0, 0, 3] if len(wanted) > 1 and wanted[0] > 1 and data.draw(st.booleans()) else []
    caps = [*wanted, *[0] * (n - len(wanted))]
    bounds = spread(make_bounds(len(wanted), caps, [True] * 12, [False] * 12, kept), rows)
    mask = torch.ones(rows, n, dtype=torch.bool)
    state = bounds.state(torch.full((rows, n), 12), mask)
    while bool((state < 0).any()):
        which = (state < 0) & (torch.rand(rows, n) < 0.5)
        logits = 3 * torch.randn(rows, n, 12)
        proposed = torch.randint(12, (rows, n))
        state = bounds.decide(state, mask, which, proposed, logits, torch.rand(rows, n))
        assert bool((state[which] >= 0).all())
    assert {tuple(sorted(Counter(row).values(), reverse=True)) for row in state.tolist()} == {wanted}
    assert all(row[: len(kept)] == kept for row in state.tolist())


def test_what_replaces_a_draw_follows_the_constrained_softmax():
    rows = 6000
    bounds = spread(make_bounds(2, [2, 2], [True, True, True, False], [False] * 4), rows)
    logits = torch.tensor([1.0, 0.5, 0.0, 3.0]).expand(rows, 2, 4)
    torch.manual_seed(0)
    state = torch.tensor([[0, -1]]).expand(rows, 2)
    proposed = torch.distributions.Categorical(logits=logits).sample()
    drawn = bounds.decide(state, torch.ones(rows, 2, dtype=torch.bool), state < 0, proposed, logits, torch.rand(rows, 2))[:, 1]
    shares = torch.bincount(drawn, minlength=4) / rows
    assert shares[0] == shares[3] == 0 and abs(float(shares[1]) - float(torch.sigmoid(torch.tensor(0.5)))) < 0.03


def test_atoms_that_the_last_call_finds_masked_are_decided_by_it(plain):
    diffusion, n = plain.denoiser.diffusion, 5
    bounds = make_bounds(2, [3, 2, 0, 0, 0], [True] * 7, [False] * 7)
    xt = AtomBatch(torch.ones(1, n, dtype=torch.bool), {"atom_types": torch.tensor([[4, 7, 7, 7, 7]])})
    logits = torch.zeros(1, n, 7)
    logits[0, range(n), [0, 1, 2, 3, 4]] = torch.tensor([1.0, 3.0, 5.0, 2.0, 4.0])  # the third atom is the most certain
    control = ElementCount(bounds)
    wrapped = control.wrap(lambda xt, t, previous=None: xt.replace(atom_types=logits), diffusion)
    prediction = wrapped(xt, torch.ones(1))
    x0 = control.finish(xt.replace(atom_types=prediction.data["atom_types"].argmax(-1)), diffusion)
    assert x0.atom_types.tolist() == [[4, 2, 2, 2, 4]]  # the last atom says what it is; of equal logits the first that may be


def test_sizes_and_numbers_of_elements_are_drawn_from_the_training_table(tabled):
    info, n = model_info(tabled), 5200
    request = make_request(info, n, seed=3, controls=specs_from(info))
    spec = spec_of(request)
    assert request.settings()["n_elements"] == "trained"
    drawn = [(size, *spec.bounds(3, i, size)) for i in range(n) if (size := request.size_of(i))]
    assert all(least == len(caps) for _, least, caps in drawn)
    for size, row in TABLE.items():
        here = [caps for k, _, caps in drawn if k == size]
        for caps, weight in row.items():
            assert here.count(caps) / len(here) == pytest.approx(weight / sum(row.values()), abs=0.04)
    ranged = make_request(info, n, controls=specs_from(info, n_elements="1-2"))
    sizes = [ranged.size_of(i) for i in range(n)]  # of the crystals of one or two elements 5, 9 and 4 of 18
    assert set(sizes) == {2, 4, 5} and sizes.count(4) / n == pytest.approx(0.5, abs=0.03)


def test_samples_have_the_number_that_was_drawn_for_them_in_any_batch(crystals):
    samples = crystals.sample(40, seed=5, steps=6)
    spec = spec_of(samples.request)
    for s in samples:
        assert spec.bounds(5, s.index, len(s.numbers)) == (n_elements(s), shares(s))
    assert len({n_elements(s) for s in samples}) > 2
    for batch, start in ((1, 0), (7, 20)):
        again = crystals.sample(5, seed=5, steps=6, batch_size=batch, start=start)
        for s in again:
            assert s.numbers.tolist() == samples[s.index].numbers.tolist()
            assert s.fields["lattice"].tobytes() == samples[s.index].fields["lattice"].tobytes()


@pytest.mark.parametrize("which", ["crystals", "plain"])
@pytest.mark.parametrize(("asked", "least", "most"), [(1, 1, 1), ("4", 4, 4), ("2-3", 2, 3), ((3, 5), 3, 5)])
def test_a_number_that_is_asked_for_is_never_missed(request, which, asked, least, most):
    samples = request.getfixturevalue(which).sample(30, n_elements=asked, temperature=20.0, steps=3)
    assert all(least <= n_elements(s) <= most for s in samples)
    assert samples.request.settings()["n_elements"] == [least, most]


def test_it_holds_beside_other_element_limits(plain, crystals):
    for generator in (plain, crystals):
        for s in generator.sample(25, n_elements=3, elements="Li,Fe,O,Na,Pb", require="Li,Pb", size="4-8", steps=3):
            found = set(s.numbers.tolist())
            assert len(found) == 3 and {3, 82} <= found <= {3, 26, 8, 11, 82}
        for s in generator.sample(25, elements="Li,O", require="O", steps=3):  # fewer than any crystal of 8 atoms has
            assert {8} <= set(s.numbers.tolist()) <= {3, 8}
        for s in generator.sample(10, n_elements=2, exclude="H,Na,Cl,Fe,Pb", steps=3):
            assert set(s.numbers.tolist()) == {3, 8}


def test_kept_sites_count(plain, crystals):
    crystal = Crystal.of([11, 11, 17], np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]]), np.eye(3) * 4.5)
    for s in plain.sample(12, keep=crystal, n_elements=3, size="4-5", steps=4):
        assert s.numbers[:3].tolist() == [11, 11, 17] and n_elements(s) == 3
    for s in plain.sample(12, keep=crystal, n_elements=2, require="Cl", size=5, steps=4):
        assert s.numbers[:3].tolist() == [11, 11, 17] and n_elements(s) == 2
    for s in crystals.sample(20, keep=crystal, size=4, steps=4):
        assert s.numbers[:3].tolist() == [11, 11, 17] and shares(s) in TABLE[4]
    with pytest.raises(BadRequest, match="allows 1, and 2 are required or kept: Na, Cl"):
        plain.sample(2, keep=crystal, n_elements=1)
    with pytest.raises(BadRequest, match=r"satisfies .*4 elements at least"):
        plain.sample(2, keep=crystal, n_elements=4, size=4)


def test_particles_of_a_sample_have_its_number(crystals):
    samples = crystals.sample(4, n_elements=2, reward=lambda s: float(s.volume), particles=3, steps=4)
    assert [n_elements(s) for s in samples] == [2] * 4


def test_a_spoilt_prediction_changes_nothing_about_it(crystals, spoil_types):
    spoil_types(crystals)
    assert all(n_elements(s) == 2 for s in crystals.sample(10, n_elements=2, exclude="Pb"))


def test_any_is_what_a_model_without_a_table_does(crystals, plain, tabled, tmp_path):
    before = [s.numbers.tolist() for s in plain.sample(12, seed=2)]
    assert [s.numbers.tolist() for s in crystals.sample(12, seed=2, n_elements="any")] == before
    assert [s.numbers.tolist() for s in crystals.sample(12, seed=2)] != before
    off = tmp_path / "off"
    shutil.copytree(tabled, off)
    text = (off / "config.yaml").read_text().replace("n_elements: trained", "n_elements: any")
    (off / "config.yaml").write_text(text)
    write_manifest(off, "off")
    info = model_info(off)
    assert not make_request(info, 3, controls=specs_from(info)).controls
    assert len(make_request(info, 3, controls=specs_from(info, n_elements="trained")).controls) == 1


def test_a_formula_says_it_all(crystals):
    samples = crystals.sample(3, formula="LiFeO2")
    assert [spec.name for spec in samples.request.controls] == ["compositions"]


@pytest.mark.parametrize(
    ("verbs", "match"),
    [
        ({"n_elements": 0}, "at least 1 element"),
        ({"n_elements": "3-2"}, "must be a number, a range such as 2-4, trained or any, found '3-2'"),
        ({"n_elements": "-1"}, "must be a number"),
        ({"n_elements": "many"}, "found 'many'"),
        ({"n_elements": 2.5}, "found 2.5"),
        ({"n_elements": True}, "found True"),
        ({"n_elements": 8}, "asks for 8 elements, and tiny-crystal knows 7"),
        ({"n_elements": 3, "size": 2}, "no size .* satisfies 3 elements at least"),
        ({"n_elements": 2, "require": "Li,Fe,O"}, "allows 2, and 3 are required or kept: Li, O, Fe"),
        ({"n_elements": 3, "elements": "Li,O"}, "asks for 3 elements, and --elements and --exclude leave 2"),
        ({"n_elements": "6-7", "exclude": "Li,O"}, "leave 5"),
        ({"n_elements": 2, "formula": "LiFeO2"}, "contradicts compositions"),
        ({"n_elements": 3, "formula": "LiFeO2", "z": 1}, "contradicts compositions"),
    ],
)
def test_what_can_t_be_is_refused_in_a_sentence_before_weights_load(tabled, verbs, match):
    info, verbs = model_info(tabled), dict(verbs)
    size = verbs.pop("size", None)
    with pytest.raises(BadRequest, match=match):
        make_request(info, 5, size=size, controls=specs_from(info, **verbs))


def test_models_that_can_t_say_so(tiny_model, tiny_csp, tiny_crystal):
    for folder, verbs, match in (
        (tiny_model, {"n_elements": 2}, "makes molecules, and --n-elements is for crystals"),
        (tiny_model, {"n_elements": "trained"}, "is for crystals"),
        (tiny_csp, {"n_elements": 2, "formula": "NaCl", "z": 2}, "is told its composition"),
        (tiny_crystal, {"n_elements": "trained"}, f"has no {ELEMENT_COUNTS}"),
    ):
        info = model_info(folder)
        with pytest.raises(BadRequest, match=match):
            make_request(info, 5, controls=specs_from(info, **verbs))


def test_more_elements_than_the_largest_crystal_has_atoms(tmp_path):
    types = {"process": "categorical", "prior_kind": "absorbing", "rule": "posterior"}
    config = crystal_config(fields={**crystal_config().model_dump()["fields"], "atom_types": types}, given=[])
    random_model(config, tmp_path / "m")
    (tmp_path / "m" / "sizes.json").write_text('{"n_atoms": {"2": 5, "4": 1}}')
    write_manifest(tmp_path / "m", "m")
    info = model_info(tmp_path / "m")
    with pytest.raises(BadRequest, match="asks for 5 elements, and tiny-csp makes 4 atoms at most"):
        make_request(info, 5, controls=specs_from(info, n_elements=5))


def test_the_table_is_counted_from_the_data_and_written_with_the_model(tmp_path, tiny_crystal):
    columns = {"n_atoms": torch.tensor([2, 3, 2], dtype=torch.int32), "atom_types": torch.tensor([1, 8, 82, 82, 82, 3, 3])}
    columns["atom_types"] = columns["atom_types"].to(torch.uint8)
    assert element_histogram(columns) == {2: {(1, 1): 1, (2,): 1}, 3: {(3,): 1}}
    info = model_info(tiny_crystal)
    weights = info.denoiser().state_dict()
    made = export_model(weights, info.config, None, tmp_path / "m", sizes=info.sizes, element_counts=TABLE)
    assert made.element_counts == TABLE and ELEMENT_COUNTS in made.files and info.element_counts is None
    for wrong in ({"2": 3}, {"3": {"1-1": 5}}, {"2": {"2-0": 5}}, {"2": {"a": 5}}):
        (tmp_path / "m" / ELEMENT_COUNTS).write_text(json.dumps({"by_n_atoms": wrong}))
        with pytest.raises(DamagedFile, match=r"altered|truncated"):
            model_info(tmp_path / "m")
        write_manifest(tmp_path / "m", "m")
        with pytest.raises(DamagedFile, match="no table of numbers of elements"):
            model_info(tmp_path / "m")


def test_the_tables_that_ship_agree_with_the_sizes():
    found = {name: info for name, folder in shipped_models().items() if (info := model_info(folder)).element_counts}
    assert {"mp20", "mp20-cond"} <= set(found)
    for info in found.values():
        assert {n: sum(row.values()) for n, row in info.element_counts.items()} == info.sizes


def test_crystals_whose_atoms_meet_are_drawn_anew(crystals, plain):
    """Random weights put atoms anywhere; the indices of those that are well stay what they were."""
    once, again = (crystals.sample(24, seed=2, redraws=n) for n in (0, 3))
    met = [bool(too_close(s)) for s in once]
    assert any(met) and sum(bool(too_close(s)) for s in again) < sum(met)
    assert all(not s.problem for s in again)  # the last draw stands
    for a, b, bad in zip(once, again, met, strict=True):
        assert bad or np.array_equal(a.fields["frac_coords"], b.fields["frac_coords"])
    assert "redraws" not in plain.request(1).settings() and plain.request(1, redraws=2).settings()["redraws"] == 2


@pytest.mark.parametrize(("wanted", "words"), [(-1, "0 to 20"), (21, "0 to 20"), ("many", "whole number")])
def test_redraws_that_make_no_sense_are_refused(plain, wanted, words):
    with pytest.raises(BadRequest, match=words):
        plain.request(1, redraws=wanted)


def test_redraws_are_for_crystals(tiny_model):
    with pytest.raises(BadRequest, match="crystals"):
        Generator.from_pretrained(tiny_model, device="cpu").request(1, redraws=1)
