"""Learnt geometries: crystals laid upon each other, means of several, samples that begin there, and which comes first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_symmetry_groups import rutile, wurtzite
from test_templates import generator, model, templates  # noqa: F401  (fixtures)

from moldiff.chem.aligned import Laid, near
from moldiff.chem.crystals import Crystal
from moldiff.chem.orbits import kind_of, orbits
from moldiff.chem.symmetry import space_group
from moldiff.data.store import pack
from moldiff.data.symmetries import symmetries_of
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.matching import Pair, compare
from moldiff.evaluation.crystals.supported import FROM_NOISE, supported
from moldiff.training.templates import learn_templates


def laid(crystal: Crystal) -> Laid:
    found = orbits(crystal)
    place = {z: s for s, z in enumerate(kind_of(found, crystal.numbers).elements)}
    return Laid.of(found, np.array([place[int(z)] for z in crystal.numbers]))


def unit(crystal: Crystal) -> np.ndarray:
    return crystal.lattice / np.cbrt(crystal.volume / len(crystal))


def shuffled(crystal: Crystal, seed: int) -> Crystal:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(crystal))
    return Crystal(crystal.numbers[order], (crystal.frac_coords[order] + rng.random(3)) % 1, crystal.lattice)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_crystal_in_another_order_about_another_origin_lies_upon_itself(seed):
    for one in (rutile(), wurtzite()):
        found = near(laid(one), laid(shuffled(one, seed)), unit(one))
        assert found is not None and found[0] < 1e-6


def test_the_distance_is_that_of_the_free_coordinates():
    one, two = rutile(u=0.305), shuffled(rutile(u=0.32), 1)
    distance, x = near(laid(one), laid(two), unit(one))
    moved = 0.015 * np.sqrt(2) * 4.59 / np.cbrt(one.volume / 6)  # four of six atoms, along the diagonal of the base
    assert distance == pytest.approx(moved * np.sqrt(4 / 6), rel=1e-3)
    made = Crystal(one.numbers, x % 1, one.lattice)
    assert compare(Pair(made, rutile(u=0.32))).rms < 1e-3 and space_group(made, 1e-3).number == 136


def test_other_slots_or_operations_have_no_way():
    one = rutile()
    exchanged = Laid(laid(one).turns, laid(one).to, laid(one).x, 1 - laid(one).slot)
    assert near(laid(one), exchanged, unit(one)) is None


def test_a_geometry_is_the_mean_of_several_and_one_has_none(templates):  # noqa: F811
    g = templates.geometries
    numbers = templates.columns["number"].tolist()
    each = {numbers[k]: n for k, n in enumerate(templates.columns["n_geometries"].tolist()) if numbers[k] != 221}
    assert each == {225: 1, 186: 0, 136: 1}, "there is one wurtzite"
    assert sorted(g.columns["geometry_weight"].tolist()) == [2, 3, 4, 8] and g.n == 4


def test_means_of_free_coordinates_cells_and_volumes():
    crystals = [shuffled(rutile(a, c, u, metal), k) for k, (a, c, u, metal) in enumerate(
        [(4.59, 2.96, 0.30, "Ti"), (4.74, 3.19, 0.31, "Sn"), (4.4, 2.9, 0.308, "Mn"), (4.95, 3.38, 0.306, "Pb"),
         (8.0, 1.4, 0.30, "Mo")])]  # fmt: skip
    fields = [{"atom_types": c.numbers, "frac_coords": c.frac_coords, "lattice": c.lattice} for c in crystals]
    columns = {name: torch.tensor(value) for name, value in pack(fields).items()}
    found = learn_templates(columns, symmetries_of(columns, None, 0), epochs=1)
    assert len(found) == 1 and found.columns["geometry_weight"].tolist() == [4], "the flat cell is of another geometry"
    numbers = [22, 22, 8, 8, 8, 8]
    ((share, which),) = found.shares(0, (22, 8), numbers)
    one = found.symmetry(0, (22, 8), numbers, geometry=which)
    made = Crystal(np.array(numbers), one.base.double().numpy() % 1, one.cell.double().numpy())
    u = np.mean([0.30, 0.31, 0.308, 0.306])
    assert share == 1 and space_group(made, 1e-3).number == 136
    assert compare(Pair(made, rutile(u=u))).rms < 0.01
    assert made.volume == pytest.approx(crystals[0].volume, rel=0.4)


def test_samples_begin_at_geometries_every_other_time(generator):  # noqa: F811
    drawn = generator.sample(4, formula="NaCl", seed=1)
    assert [s.info["began"] for s in drawn] == ["geometry", "noise", "geometry", "noise"]
    exact = generator.sample(3, formula="NaCl", seed=1, strength=0)
    assert space_group(exact[0].to_crystal(), 1e-3).number == 225
    again = generator.sample(1, formula="NaCl", seed=2, strength=0)
    for name in ("frac_coords", "lattice"):
        assert np.array_equal(exact[0].fields[name], again[0].fields[name]), "strength 0 draws nothing"
        assert np.array_equal(exact[1].fields[name], drawn[1].fields[name]), "from noise it is the same sample"
    assert not np.array_equal(exact[0].fields["lattice"], drawn[0].fields["lattice"])
    assert {s.info["began"] for s in generator.sample(4, formula="NaCl", seed=1, strength=1)} == {"noise"}
    with pytest.warns(UserWarning, match="likelier with z = 1"):
        wurtzites = generator.sample(2, formula="NaCl", z=2, seed=1)
    assert all(s.info["began"] == "noise" for s in wurtzites), "of one crystal there is no mean"
    with pytest.raises(BadRequest, match="strength of a symmetry must lie in 0"):
        generator.sample(1, formula="NaCl", strength=1.5)


def test_samples_that_wake_late_do_not_depend_on_the_batch(generator):  # noqa: F811
    asked = {"compositions": [("NaCl", 1), ("CaTiO3", 1), ("CsBr", 1)], "seed": 4, "strength": 0.5}
    whole, parts = generator.sample(2, **asked), generator.sample(2, batch_size=2, **asked)
    assert {s.info["began"] for s in whole} == {"geometry", "noise"}
    for a, b in zip(whole, parts, strict=True):
        assert a.info == b.info and all(np.array_equal(a.fields[name], b.fields[name]) for name in a.fields)
        assert space_group(a.to_crystal(), 1e-3).number == int(a.info["symmetry"].split(":")[0])


def test_structures_that_are_the_same_lend_each_other_their_chances():
    one, two, other = rutile(u=0.30), rutile(u=0.31), wurtzite()
    titania = Crystal(np.array([22, 22, 8, 8, 8, 8]), np.random.default_rng(0).random((6, 3)), np.eye(3) * 4)
    assert supported([0.4, 0.35, 0.25], [titania, one, two]) == 1
    assert supported([0.4, 0.1, 0.1], [titania, one, two]) == 0
    assert supported([0.6, 0.3, 0.3], [titania, one, two]) == 0 and supported([0.6, 0.31, 0.3], [titania, one, two]) == 1
    assert supported([0.3, 0.29], [None, one]) == 1 and supported([0.3, 0.9 * FROM_NOISE * 0.3], [None, one]) == 0
    assert supported([0.5], [None]) == 0 and supported([0.5, 0.1], [other, None]) == 0
