"""De novo crystals within a drawn symmetry: slots of one element, element limits, space groups asked for, bad requests."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from conftest import crystal_config
from test_symmetry_groups import CRYSTAL_FIELDS
from test_templates import templates  # noqa: F401  (a fixture)

from moldiff.assemble import build_denoiser, build_vocabulary
from moldiff.chem.symmetry import space_group
from moldiff.cli import main
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.core.symmetry import Group
from moldiff.diffusion.registry import build_diffusion
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.model_export import export_model
from moldiff.training.symmetry import noised

ELEMENTS = [1, 3, 8, 11, 17, 20, 22, 26, 35, 55, 56, 82]
TYPES = {"process": "categorical", "schedule": {"name": "linear"}, "prior_kind": "absorbing", "rule": "posterior"}
COUNTS = {2: {(1, 1): 12}, 4: {(2, 2): 1}, 5: {(3, 1, 1): 3}, 6: {(4, 2): 2}, 3: {(2, 1): 1}}


@pytest.fixture(scope="module")
def model(templates, tmp_path_factory):  # noqa: F811
    torch.manual_seed(0)
    config = crystal_config(
        name="tiny-drawn", fields={**CRYSTAL_FIELDS, "atom_types": TYPES}, given=[], vocabulary={"atom_types": ELEMENTS},
        sampling={"sampler": "ddpm", "steps": 4, "redraws": 2},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny-drawn"
    sizes = {2: 5, 3: 1, 4: 2, 5: 8, 6: 3}
    export_model(
        build_denoiser(config).state_dict(), config, None, folder, sizes=sizes, element_counts=COUNTS, templates=templates
    )
    return folder


@pytest.fixture(scope="module")
def generator(model):
    return Generator.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def told(templates, tmp_path_factory):  # noqa: F811
    """A model that is told space groups, with templates."""
    torch.manual_seed(0)
    config = crystal_config(
        name="tiny-told", fields={**CRYSTAL_FIELDS, "atom_types": TYPES}, given=[], vocabulary={"atom_types": ELEMENTS},
        sampling={"sampler": "ddpm", "steps": 4, "redraws": 2}, conditions=["space_group"],
        condition_classes={"space_group": 231},
    )  # fmt: skip
    folder, sizes = tmp_path_factory.mktemp("models") / "tiny-told", {2: 5, 3: 1, 4: 2, 5: 8, 6: 3}
    weights = build_denoiser(config).state_dict()
    export_model(weights, config, None, folder, sizes=sizes, element_counts=COUNTS, templates=templates)
    return Generator.from_pretrained(folder, device="cpu")


def group_of(s) -> int:
    return int(s.info["symmetry"].split(":")[0])


def test_a_space_group_among_the_conditions_is_drawn(told):
    for s in told.sample(6, conditions={"space_group": 221}):
        assert group_of(s) == s.info["asked_space_group"] == 221 == space_group(s.to_crystal(), 1e-3).number
    assert {group_of(s) for s in told.sample(12, conditions={"space_group": (130, 140)})} == {136}
    rows = [{"space_group": 225}, {"space_group": 136}, {"space_group": 221}]
    drawn = told.sample(9, conditions=rows)
    assert [group_of(s) for s in drawn] == [225, 136, 221] * 3 and {len(s.to_crystal()) for s in drawn[1::3]} == {6}
    assert all("symmetry" not in s.info for s in told.sample(3, conditions={"space_group": 225}, symmetry="none", size=2))
    with pytest.raises(BadRequest, match="both say which space group"):
        told.sample(1, conditions={"space_group": 225}, symmetry=221)
    with pytest.raises(BadRequest, match="and the space group 2"):
        told.sample(1, conditions={"space_group": 2})


def test_a_size_without_the_space_group_that_is_asked_is_said(told):
    with pytest.warns(UserWarning, match=r"no known symmetry has 4 atoms in the space group 225: drawn without one"):
        (one,) = told.sample(1, conditions=[{"space_group": 225, "n_atoms": 4}])
    assert one.info["symmetry"] == "none"


def slots(s) -> collections.Counter:
    return collections.Counter(collections.Counter(s.to_crystal().numbers.tolist()).values())


def test_samples_have_the_symmetry_and_the_slots_that_they_say(generator, templates):  # noqa: F811
    drawn = generator.sample(40, seed=1)
    seen = collections.Counter()
    for s in drawn:
        label = s.info["symmetry"]
        assert (label == "none") == (len(s.to_crystal()) == 3), "no template has three atoms"
        if label != "none":
            number, template = map(int, label.split(":"))
            seen[number] += 1
            assert space_group(s.to_crystal(), 1e-3).number == number
            assert slots(s) == collections.Counter(templates.counts[template]), "one element a slot, another in each"
    assert {225, 221} <= set(seen)


def test_symmetries_come_as_often_as_crystals_have_them(generator, templates):  # noqa: F811
    from moldiff.symmetry import symmetry_from

    spec = symmetry_from(generator.info, None, None, True).beside([])
    numbers = templates.columns["number"].tolist()
    drawn = collections.Counter(numbers[spec.template(0, i, 2)] for i in range(3000))
    assert set(drawn) == {225, 221} and drawn[225] / 3000 == pytest.approx(8 / 12, abs=0.04)


def test_samples_do_not_depend_on_the_batch(generator):
    whole, parts = generator.sample(12, seed=3), generator.sample(12, seed=3, batch_size=3)
    for a, b in zip(whole, parts, strict=True):
        assert a.info == b.info and all(np.array_equal(a.fields[name], b.fields[name]) for name in a.fields)


def test_element_limits_hold(generator):
    for s in generator.sample(20, seed=2, elements=["Na", "Cl", "O", "Ti"], require=["Cl"]):
        found = set(s.to_crystal().numbers.tolist())
        assert found <= {11, 17, 8, 22} and 17 in found
    for s in generator.sample(20, seed=2, exclude=["O", "H"], n_elements="any"):
        assert not {8, 1} & set(s.to_crystal().numbers.tolist())
    assert {len(set(s.to_crystal().numbers.tolist())) for s in generator.sample(12, seed=2, n_elements=3)} == {3}
    with pytest.raises(BadRequest, match="n-elements asks for 3 elements"):
        generator.sample(1, elements=["Na", "Cl"], n_elements=3)


def test_a_space_group_that_is_asked(generator):
    for s in generator.sample(10, seed=1, symmetry="Pm-3m"):
        assert s.info["symmetry"].startswith("221:") and space_group(s.to_crystal(), 1e-3).number == 221
    assert {len(s.to_crystal()) for s in generator.sample(10, seed=1, symmetry=136)} == {6}
    with pytest.raises(BadRequest, match=r"no size that tiny-drawn can make .* satisfies the space group 2"):
        generator.sample(1, symmetry=2)
    assert all("symmetry" not in s.info for s in generator.sample(3, symmetry="none"))


def test_what_does_not_go_together_gives_way_or_is_refused(generator, model, tmp_path, capsys):
    cell = np.eye(3) * 5
    assert "symmetry" not in generator.sample(1, keep_cell=cell, size=2)[0].info
    with pytest.raises(BadRequest, match="keep-cell and a symmetry contradict each other: say --symmetry none"):
        generator.sample(1, keep_cell=cell, size=2, symmetry="225")
    with pytest.raises(BadRequest, match="tiny-drawn begins at noise"):
        generator.sample(1, strength=0.5, symmetry="225")
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(model), "-n", "4", "--symmetry", "225", "--out", str(tmp_path / "cubic")])
    assert ended.value.code == 0 and (tmp_path / "cubic" / "samples.csv").read_text().count(",225:") == 4
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(model), "--symmetry", "Fm-4m", "--out", str(tmp_path / "no")])
    assert ended.value.code == 2 and "space groups (225, Fm-3m)" in capsys.readouterr().err


def test_types_of_an_element_are_masked_together_in_symmetric_noise():
    config = crystal_config(fields={**CRYSTAL_FIELDS, "atom_types": TYPES}, given=[])
    vocabulary = build_vocabulary(config)
    fields = {name: one.model_dump(exclude={"weight"}) for name, one in config.fields.items()}
    diffusion = build_diffusion(fields, vocabulary)
    one = {"atom_types": torch.tensor([8, 8, 8, 26, 26, 3]), "frac_coords": torch.rand(6, 3), "lattice": torch.eye(3) * 5}
    x0 = vocabulary.encode(AtomBatch.from_list([one] * 64))
    way = torch.rand(64, 6, 3)
    way[32:] = torch.nan
    xt = noised(diffusion, x0.replace(frac_way=way), torch.full((64,), 0.5), Streams.single(0), Group.of([None] * 64, 6))
    masked = xt.atom_types == 7
    alike = (masked[:, 0] == masked[:, 1]) & (masked[:, 1] == masked[:, 2]) & (masked[:, 3] == masked[:, 4])
    assert alike[:32].all() and not alike[32:].all() and 0.3 < masked[:32].float().mean() < 0.7
    assert (masked[:32, 0] != masked[:32, 3]).any(), "elements are masked apart from each other"
