"""Formulas and elements that are asked for: read as people write them, refused in a sentence, and never missed by a sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moldiff.chem.formula import parse_elements, parse_formula
from moldiff.composition import compositions_from, make_composition, read_compositions
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.elements import unbalanced
from moldiff.generator import Generator
from moldiff.model_store import model_info
from moldiff.request import make_request
from moldiff.sampling.allowed import Counted, assign, shifted
from moldiff.verbs import specs_from

KNOWN = {"H": 1, "Li": 3, "O": 8, "Na": 11, "Cl": 17, "Fe": 26, "Pb": 82}


@pytest.fixture(scope="module")
def crystals(tiny_crystal):
    return Generator.from_pretrained(tiny_crystal, device="cpu")


@pytest.fixture(scope="module")
def told(tiny_csp):
    return Generator.from_pretrained(tiny_csp, device="cpu")


@pytest.fixture(scope="module")
def molecules(tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("LiFePO4", {3: 1, 26: 1, 15: 1, 8: 4}),
        ("Ca(OH)2", {20: 1, 8: 2, 1: 2}),
        ("K4[Fe(CN)6]", {19: 4, 26: 1, 6: 6, 7: 6}),
        ("CuSO4·5H2O", {29: 1, 16: 1, 8: 9, 1: 10}),
        (" O6 Na3 ", {8: 6, 11: 3}),
        ("Fe₂O₃", {26: 2, 8: 3}),
        ("CH3CH2OH", {6: 2, 1: 6, 8: 1}),
    ],
)
def test_formulas_are_read_as_people_write_them(text, counts):
    assert parse_formula(text) == counts


@pytest.mark.parametrize(
    "text",
    ["", "()", "((", "Xx2", "lifepo4", "Li-2", "2", "Li(O", "Li)O", "Li(O]", "Li0", "(" * 50 + "Li" + ")" * 50, "Li" * 999],
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(BadRequest):
        make_composition(text)


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text):
    try:
        assert all(n > 0 for n in parse_formula(text).values())
    except ValueError as error:
        assert len(str(error)) < 200


def test_elements_are_read_with_a_hint_for_a_wrong_letter():
    assert parse_elements("Li, Fe,O") == (3, 26, 8) == parse_elements(["Li", "Fe", "O"])
    with pytest.raises(ValueError, match="did you mean Fe"):
        parse_elements("FE")


@pytest.mark.parametrize("formula", ["NaCl", "Fe3O4", "LiFePO4", "NiTi", "BaTiO3", "CaC2", "FeS2", "KMnO4", "SiC"])
def test_compounds_that_exist_are_balanced(formula):
    assert not unbalanced(make_composition(formula).counts)


@pytest.mark.parametrize("formula", ["NaCl2", "LiO3", "CaF3", "NaF3"])
def test_compounds_that_can_t_be_are_not(formula):
    assert unbalanced(make_composition(formula).counts)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,z\nNaCl,1\n", "needs a column 'formula'"),
        ("formula,z\nNaCl,1\nNaCl,x\n", "line 3: z must be a whole number"),
        ("formula,z\nNaCl,0\n", "line 2: z must be"),
        ("formula\nLi0.5O\n", "line 2: 'Li0.5O' has counts that are no whole numbers"),
        ("formula\n", "holds no compositions"),
        ("formula\n\x00", ""),
    ],
)
def test_a_list_of_compositions_that_is_wrong_is_refused_with_its_line(tmp_path, text, match):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(BadRequest, match=match):
        read_compositions(tmp_path / "c.csv")


def test_a_list_of_compositions(tmp_path):
    (tmp_path / "c.csv").write_text("name, Formula ,Z\na,NaCl,2\nb,Li2O,\n".replace(" ", ""))
    rows = read_compositions(tmp_path / "c.csv")
    assert [(r.formula, r.z, r.n_atoms) for r in rows] == [("NaCl", 2, 4), ("Li2O", 1, 3)]


@pytest.mark.parametrize(
    ("verbs", "match"),
    [
        ({"formula": "KCl"}, "does not know K"),
        ({"formula": "NaCl", "z": 10}, "20 atoms, too many"),
        ({"formula": "Na"}, "1 atoms, too few"),
        ({"formula": "NaCl", "z": 0}, "z must be"),
        ({"formula": "NaCl", "z": 1.5}, "z must be a whole number"),
        ({"z": 2}, "give a formula"),
        ({"formula": "NaCl", "compositions": ["NaCl"]}, "not both"),
        ({"elements": "Li,Zz"}, "no element 'Zz'"),
        ({"elements": "Li,K"}, "--elements: .* does not know K"),
        ({"require": "K"}, "--require: .* does not know K"),
        ({"require": "Li", "exclude": "Li"}, "contradict each other: both name Li"),
        ({"elements": "Li,O", "exclude": "O"}, "contradict each other: both name O"),
        ({"elements": "Li,O", "require": "Fe"}, "Fe, which --elements leaves out"),
        ({"exclude": list(KNOWN)}, "leaves none"),
        ({"formula": "NaCl", "exclude": "Cl"}, "NaCl holds Cl"),
        ({"formula": "NaCl", "require": "Fe"}, "NaCl lacks Fe"),
        ({"formula": "NaCl", "z": 2, "size": "5-8"}, "contradict each other"),
        ({"elements": ""}, "no element is named"),
        ({"forumla": "NaCl"}, "did you mean 'formula'"),
    ],
)
def test_what_can_t_be_is_refused_in_a_sentence_before_weights_load(tiny_crystal, verbs, match):
    info = model_info(tiny_crystal)
    verbs = dict(verbs)
    size = verbs.pop("size", None)
    with pytest.raises(BadRequest, match=match):
        make_request(info, 5, size=size, controls=specs_from(info, **verbs))


def test_a_model_that_is_told_the_composition_asks_for_one(tiny_csp, tiny_model):
    with pytest.raises(BadRequest, match="give a formula or compositions"):
        make_request(model_info(tiny_csp), 5)
    info = model_info(tiny_model)
    with pytest.raises(BadRequest, match="z counts formula units"):
        make_request(info, 5, controls=specs_from(info, formula="CH4", z=2))


def test_what_is_doubtful_is_said_and_done(tiny_csp):
    info = model_info(tiny_csp)
    request = make_request(info, 2, controls=specs_from(info, compositions=[("NaCl2", 1), ("NaCl", 5), "NaCl"]))
    said = request.cautions(info)
    assert request.n == 6 and len(said) == 2
    assert "more atoms (10)" in said[0] and "NaCl2 has no common oxidation states" in said[1]


def test_a_told_composition_comes_out_in_every_sample(told):
    samples = told.sample(4, compositions=[("NaCl", 2), ("Li2O", 1), ("Fe", 5)], batch_size=5)
    assert len(samples) == 12 and [s.info["request"] for s in samples] == [0, 1, 2] * 4
    wanted = ([11, 11, 17, 17], [3, 3, 8], [26] * 5)
    assert all(sorted(s.numbers.tolist()) == wanted[s.info["request"]] for s in samples)
    one = told.sample(2, compositions=[("NaCl", 2), ("Li2O", 1), ("Fe", 5)], start=6, batch_size=1)
    assert [s.fields["lattice"].tolist() for s in one][:2] == [s.fields["lattice"].tolist() for s in samples][6:8]


@pytest.mark.parametrize(
    ("which", "formula", "n"), [("crystals", "LiFeO2", 60), ("crystals", "Pb3O4", 20), ("molecules", "C2H5NO", 30)]
)
def test_a_formula_is_exact_where_types_are_made(request, which, formula, n):
    generator = request.getfixturevalue(which)
    counts = make_composition(formula).counts
    wanted = sorted(z for z, k in counts for _ in range(k))
    assert all(sorted(s.numbers.tolist()) == wanted for s in generator.sample(n, formula=formula, steps=6))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_element_ever_leaks(crystals, molecules, data):
    generator, known = data.draw(st.sampled_from([(crystals, KNOWN), (molecules, {"H": 1, "C": 6, "N": 7, "O": 8})]))
    left = data.draw(st.sets(st.sampled_from(sorted(known)), min_size=1, max_size=len(known)))
    require = data.draw(st.sets(st.sampled_from(sorted(left)), max_size=min(2, len(left))))
    only = {"elements": sorted(left)} if data.draw(st.booleans()) else {"exclude": sorted(set(known) - left)}
    verbs = {k: v for k, v in {**only, "require": sorted(require)}.items() if v}
    temperature = data.draw(st.sampled_from([1.0, 50.0]))
    allowed, needed = {known[e] for e in left}, {known[e] for e in require}
    for sample in generator.sample(40, steps=3, temperature=temperature, seed=data.draw(st.integers(0, 999)), **verbs):
        found = set(sample.numbers.tolist())
        assert found <= allowed and needed <= found


def test_a_spoilt_prediction_leaks_nothing_either(crystals, spoil_types):
    spoil_types(crystals)
    for sample in crystals.sample(10, exclude="Pb,Fe", require="Li"):
        assert sample.problem and not {82, 26} & set(sample.numbers.tolist()) and 3 in sample.numbers


def test_the_prior_holds_allowed_classes_only(molecules):
    from moldiff.core.batch import AtomBatch
    from moldiff.core.rng import Streams

    diffusion, n = molecules.denoiser.diffusion, 200
    like = AtomBatch(torch.ones(n, 5, dtype=torch.bool))
    high = torch.tensor([5, 0, 5, 0]).expand(n, 4)
    control = Counted("atom_types", torch.zeros_like(high), high)
    types = control.start(diffusion.prior(like, Streams.of(0, range(n))), diffusion, Streams.of(1, range(n))).atom_types
    shares = torch.bincount(types.flatten(), minlength=4) / types.numel()
    assert shares[1] == shares[3] == 0 and abs(float(shares[0]) - 0.5) < 0.06


def test_an_exact_formula_of_an_absorbing_process_is_set_at_once(crystals):
    from moldiff.core.batch import AtomBatch
    from moldiff.core.rng import Streams

    like = AtomBatch(torch.ones(3, 4, dtype=torch.bool))
    counts = torch.tensor([[0, 1, 2, 0, 0, 1, 0], [4, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 2, 0, 2]])
    diffusion = crystals.denoiser.diffusion
    drawn = diffusion.prior(like, Streams.of(0, range(3)))
    xt = Counted("atom_types", counts, counts).start(drawn, diffusion, Streams.of(1, range(3)))
    assert torch.equal(torch.nn.functional.one_hot(xt.atom_types, 7).sum(1), counts)


def test_shifts_bring_expected_counts_to_their_bounds_and_change_nothing_else():
    torch.manual_seed(0)
    logits, mask = 3 * torch.randn(6, 9, 4), torch.ones(6, 9, dtype=torch.bool)
    mask[3:, 7:] = False
    exact = torch.tensor([[4, 2, 2, 1]] * 3 + [[3, 2, 2, 0]] * 3)
    found = (shifted(logits, exact, exact, mask).softmax(-1) * mask[..., None]).sum(1)
    assert (found - exact).abs().max() < 0.02 and (found[3:, 3] == 0).all()
    free = (logits.softmax(-1) * mask[..., None]).sum(1)
    loose = shifted(logits, torch.zeros_like(exact), torch.full_like(exact, 9), mask)
    assert torch.allclose(loose, logits)
    low = torch.zeros_like(exact)
    low[:, 2] = 3
    raised = (shifted(logits, low, torch.full_like(low, 9), mask).softmax(-1) * mask[..., None]).sum(1)
    assert torch.allclose(raised[:, 2], free[:, 2].clamp_min(3), atol=0.02)


@given(st.integers(0, 10_000))
def test_an_assignment_obeys_its_bounds_and_keeps_likely_choices(seed):
    generator = torch.Generator().manual_seed(seed)
    s, n, c = 4, 7, 5
    logits = torch.randn(s, n, c, generator=generator)
    mask = torch.arange(n)[None] < torch.tensor([7, 7, 5, 1])[:, None]
    truth = torch.randint(c, (s, n), generator=generator)
    counts = (torch.nn.functional.one_hot(truth, c) * mask[..., None]).sum(1)
    low = (counts - torch.randint(3, (s, c), generator=generator)).clamp_min(0)
    high = counts + torch.randint(3, (s, c), generator=generator)
    value = assign(logits, low, high, mask)
    found = (torch.nn.functional.one_hot(value, c) * mask[..., None]).sum(1)
    assert (found >= low).all() and (found <= high).all()
    certain = torch.nn.functional.one_hot(truth, c) * 50.0 + logits
    assert torch.equal(assign(certain, counts, counts, mask) * mask, truth * mask)


def test_samples_do_not_depend_on_the_batch(crystals):
    whole = crystals.sample(9, exclude="Pb", require="Li,O", batch_size=9)
    parts = crystals.sample(9, exclude="Pb", require="Li,O", batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        assert all((a.fields[name] == b.fields[name]).all() for name in a.fields)


def test_compositions_from_nothing_are_none():
    assert compositions_from() is None
    with pytest.raises(BadRequest, match="empty"):
        compositions_from(compositions=[])


def test_elements_and_a_kept_part_go_together(molecules, tmp_path):
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
    AllChem.EmbedMolecule(mol, randomSeed=1)
    Chem.MolToMolFile(mol, str(tmp_path / "x.sdf"))
    with pytest.raises(BadRequest, match="what is kept holds O"):
        molecules.sample(2, keep=tmp_path / "x.sdf", keep_atoms="0,1", exclude="O")
    for sample in molecules.sample(12, keep=tmp_path / "x.sdf", keep_atoms="0,1", exclude="N", require="O,H", size="8-9"):
        numbers = sample.numbers.tolist()
        assert numbers[:2] == [6, 8] and 7 not in numbers and 1 in numbers
    with pytest.raises(BadRequest, match=r"both fix atom_types|can't come from both"):
        molecules.sample(2, keep=tmp_path / "x.sdf", keep_atoms="0,1", formula="C2H6O")
