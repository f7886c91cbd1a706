"""Space groups of crystals: operations, what they leave of noise and cells, kinds of structures, training on symmetric noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.spacegroup import crystal as in_group
from conftest import crystal_config
from safetensors.torch import load_file

from moldiff.assemble import build_vocabulary
from moldiff.chem.crystals import Crystal, from_ase, niggli, primitive
from moldiff.chem.orbits import kind_of, orbits
from moldiff.chem.symmetry import space_group, space_group_number
from moldiff.core.periodic import lattice_from_log, log_lattice, wrap
from moldiff.core.rng import Streams
from moldiff.core.symmetry import MOST, Group, Operations
from moldiff.data.batches import BucketBatches
from moldiff.data.store import pack
from moldiff.data.symmetries import symmetries_of
from moldiff.diffusion.registry import build_diffusion
from moldiff.errors import BadRequest
from moldiff.training.module import DiffusionModule, TrainOptions
from moldiff.training.symmetry import SymmetricNoise, check_symmetric, noised


def cell(atoms) -> Crystal:
    return niggli(primitive(from_ase(atoms)))


def salt(name="NaCl", a=5.64) -> Crystal:
    return cell(bulk(name, "rocksalt", a=a))


def rutile(a=4.59, c=2.96, u=0.305, metal="Ti") -> Crystal:
    return cell(in_group([metal, "O"], [(0, 0, 0), (u, u, 0)], spacegroup=136, cellpar=[a, a, c, 90, 90, 90]))


def wurtzite(a=3.25, c=5.2, u=0.382) -> Crystal:
    return cell(bulk("ZnO", "wurtzite", a=a, c=c, u=u))


def perovskite(first="Ca", second="Ti", a=3.9) -> Crystal:
    places = [(0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0)]
    return cell(in_group([first, second, "O"], places, spacegroup=221, cellpar=[a, a, a, 90, 90, 90]))


CRYSTALS = [salt(), rutile(), wurtzite(), perovskite()]


def group_of(*crystals: Crystal) -> Group:
    found = [orbits(one) for one in crystals]
    each = [Operations(torch.tensor(one.rotations), torch.tensor(one.to)) for one in found]
    return Group.of(each, max(len(one) for one in crystals))


def broken(frac: np.ndarray, one) -> float:
    """How far (in cells) coordinates [N, 3] are from having the operations of an ``Orbits``."""
    image = np.einsum("gij,nj->gni", one.rotations.astype(float), frac) + one.shifts[:, None] / 24
    way = image - frac[one.to]
    return float(np.abs(way - np.rint(way)).max())


@pytest.mark.parametrize(("crystal", "number", "n"), list(zip(CRYSTALS, (225, 136, 186, 221), (48, 16, 12, 48), strict=True)))
def test_operations_take_the_crystal_to_itself_wherever_its_cell_begins(crystal, number, n):
    moved = Crystal(crystal.numbers, (crystal.frac_coords + np.array([0.123, 0.456, 0.789])) % 1, crystal.lattice)
    for one in (orbits(crystal), orbits(moved)):
        assert one.number == number and len(one.rotations) == n <= MOST
        assert broken(one.frac_coords, one) < 1e-6 and broken(one.base, one) < 1e-6
    wrong = orbits(crystal).frac_coords + np.eye(len(crystal), 3) * 0.07
    assert broken(wrong, orbits(crystal)) > 0.05, "the test can fail"


def test_the_base_says_nothing_of_cell_and_free_coordinates():
    for first, second in ((rutile(), rutile(5.2, 3.1, 0.29)), (wurtzite(), wurtzite(4.0, 6.6, 0.37))):
        a, b = orbits(first), orbits(second)
        assert np.allclose(a.rotations, b.rotations) and kind_of(a, first.numbers).code == kind_of(b, second.numbers).code
        way = a.base - b.base
        assert np.abs(way - np.rint(way)).max() < 1e-4 < np.abs(first.frac_coords - second.frac_coords).max()


def test_kinds_are_one_for_one_structure_and_tell_others_apart():
    plain = kind_of(orbits(salt()), salt().numbers)
    swapped = Crystal(salt().numbers[::-1].copy(), salt().frac_coords, salt().lattice)
    assert plain.code == kind_of(orbits(swapped), swapped.numbers).code and len(plain.alike) == 2
    caesium = cell(bulk("CsCl", "cesiumchloride", a=4.12))
    assert kind_of(orbits(caesium), caesium.numbers).code != plain.code
    ca, ti = (perovskite(*pair) for pair in (("Ca", "Ti"), ("Ti", "Ca")))
    a, b = kind_of(orbits(ca), ca.numbers), kind_of(orbits(ti), ti.numbers)
    assert a.code == b.code and a.counts == (1, 1, 3) and len(a.alike) == 1
    assert a.elements == b.elements[:2][::-1] + b.elements[2:], "which element has the octahedron is told"


def test_the_shared_part_is_symmetric_and_a_projection():
    rng = torch.Generator().manual_seed(0)
    for crystal in CRYSTALS:
        one, group = orbits(crystal), group_of(crystal)
        field = torch.randn(1, len(crystal), 3, generator=rng) * 0.1
        shared = group.shared(field)
        assert broken(one.frac_coords + shared[0].numpy(), one) < 1e-5
        assert torch.allclose(group.shared(shared), shared, atol=1e-6)
    alone = Group.of([None], 3)
    field = torch.randn(1, 3, 3, generator=rng)
    assert torch.allclose(alone.shared(field), field)


def test_a_way_is_uniform_where_the_site_is_free_and_nothing_where_it_is_not():
    n = 4000
    noise = torch.rand(n, 2, 3, generator=torch.Generator().manual_seed(1))
    assert group_of(*[salt()] * 2).way(noise[:2]).abs().max() < 1e-4
    crystal = rutile()
    one, group = orbits(crystal), group_of(crystal)
    each = Group(*(x.expand(n, *x.shape[1:]) for x in (group.rotations, group.to, group.real)))
    way = each.way(torch.rand(n, len(crystal), 3, generator=torch.Generator().manual_seed(2)))
    assert all(broken(one.frac_coords + way[k].numpy(), one) < 1e-4 for k in range(20))
    moving = way.abs().amax(2) > 1e-4
    assert moving[:, crystal.numbers == 8].float().mean() > 0.95 and not moving[:, crystal.numbers == 22].any()
    lead = int(np.flatnonzero(crystal.numbers == 8)[0])
    free = (way[:, lead].abs().amax(1) % 1).sort().values  # of (u, u, 0) in some basis: |u| uniform in 0 .. 1/2
    assert (free - torch.linspace(0, 0.5, n)).abs().max() < 0.03


def test_cells_get_the_symmetry_and_keep_their_volume():
    rng = torch.Generator().manual_seed(3)
    for crystal, name in ((salt(), "cubic"), (rutile(), "tetragonal"), (wurtzite(), "hexagonal")):
        group = group_of(crystal)
        own = log_lattice(torch.tensor(crystal.lattice)[None].float())
        assert torch.allclose(group.cell(own), own, atol=1e-4), "its own cell stays"
        six = own + 0.2 * torch.randn(1, 6, generator=rng)
        made = group.cell(six)
        assert torch.allclose(lattice_from_log(made).det().abs(), lattice_from_log(six).det().abs(), rtol=1e-4)
        again = Crystal(crystal.numbers, crystal.frac_coords, lattice_from_log(made)[0].double().numpy())
        assert space_group(again, 1e-3).system == name
        loose = Crystal(crystal.numbers, crystal.frac_coords, lattice_from_log(six)[0].double().numpy())
        assert space_group(loose, 1e-3).system != name


@pytest.fixture(scope="module")
def columns():
    fields = [{"atom_types": c.numbers, "frac_coords": c.frac_coords, "lattice": c.lattice} for c in CRYSTALS * 2]
    return {name: torch.tensor(value) for name, value in pack(fields).items()}


def test_symmetries_of_a_data_set_are_kept_beside_it(columns, tmp_path):
    found = symmetries_of(columns, tmp_path, 0)
    files = list(tmp_path.glob("symmetries-*.safetensors"))
    assert len(found) == 8 and len(files) == 1
    assert [found.orbits(i).number for i in range(4)] == [225, 136, 186, 221]
    for i, crystal in enumerate(CRYSTALS):
        assert broken(found.frac_coords(i).numpy(), orbits(crystal)) < 1e-5
        assert found.operations(i).to.tolist() == orbits(crystal).to.tolist()
        assert found.orbits(i).letters == orbits(crystal).letters
    again = symmetries_of(columns, tmp_path, 0)
    assert {k: v.tolist() for k, v in again.columns.items()} == {k: v.tolist() for k, v in load_file(files[0]).items()}
    assert symmetries_of({**columns, "lattice": columns["lattice"] * 1.01}, tmp_path, 0) is not None
    assert len(list(tmp_path.glob("*.safetensors"))) == 2, "other crystals, another file"


CRYSTAL_FIELDS = {
    "frac_coords": {"process": "geodesic", "schedule": {"name": "straight"}, "coupling": "matched"},
    "lattice": {"process": "log_lattice", "schedule": {"name": "linear"}},
}


def geodesic(**training):
    config = crystal_config(
        vocabulary={"atom_types": [8, 11, 17, 20, 22, 30]}, fields=CRYSTAL_FIELDS, training={"batch_size": 8, **training}
    )
    vocabulary = build_vocabulary(config)
    fields = {name: options.model_dump() for name, options in config.fields.items()}
    return config, vocabulary, build_diffusion(fields, vocabulary)


def test_training_noise_keeps_the_group_and_its_target_is_the_way_back(columns):
    _, vocabulary, diffusion = geodesic()
    symmetries = symmetries_of(columns, None, 0)
    batches = BucketBatches(columns, vocabulary, 8, fields=("frac_coords", "lattice", "atom_types"), bucket_width=6)
    index = torch.arange(8)
    x0, group = SymmetricNoise(symmetries, 1.0).prepare(batches.gather(index), index, Streams.single(5))
    t = torch.linspace(0.1, 1, 8)
    xt = noised(diffusion, x0, t, Streams.single(6), group)
    for i in range(8):
        n = int(x0.mask[i].sum())
        assert broken(xt.frac_coords[i, :n].double().numpy(), symmetries.orbits(i)) < 1e-4
        made = lattice_from_log(xt.lattice[i]).double().numpy()
        one = Crystal(CRYSTALS[i % 4].numbers, symmetries.frac_coords(i).numpy(), made)
        assert space_group(one, 1e-3).number == symmetries.orbits(i).number
    process = diffusion.processes["frac_coords"]
    exact = xt.frac_coords - t[:, None, None] * x0.frac_way
    assert process.loss(exact, x0, xt, t).max() < 1e-6 < process.loss(xt.frac_coords, x0, xt, t)[1]
    wrapped = wrap(exact) - x0.frac_coords
    assert (wrapped - wrapped.round()).abs()[x0.mask].max() < 1e-4, "the way leads to the crystal"
    plain, alone = SymmetricNoise(symmetries, 0.0).prepare(batches.gather(index), index, Streams.single(5))
    assert plain.frac_way.isnan().all() and int(alone.real.sum()) == 8
    same = noised(diffusion, plain, t, Streams.single(6), alone)
    free = diffusion.noise(batches.gather(index), t, Streams.single(6))
    assert torch.equal(same.frac_coords, free.frac_coords) and torch.allclose(same.lattice, free.lattice, atol=1e-4)
    assert torch.allclose(
        process.loss(same.frac_coords, plain, same, t), process.loss(free.frac_coords, batches.gather(index), free, t)
    )


def test_a_step_of_training_descends_on_symmetric_noise(columns):
    from moldiff.assemble import build_denoiser

    config, vocabulary, _ = geodesic()
    batches = BucketBatches(columns, vocabulary, 8, fields=("frac_coords", "lattice", "atom_types"), bucket_width=6)
    module = DiffusionModule(
        build_denoiser(config), batches, TrainOptions(), symmetric=SymmetricNoise(symmetries_of(columns, None, 0), 0.5)
    )
    loss = module.training_step(torch.tensor(0), 0)
    loss.backward()
    grown = [p.grad.abs().sum() for p in module.denoiser.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and float(sum(grown)) > 0
    with pytest.raises(BadRequest, match="geodesic"):
        wrapped = {"process": "wrapped_normal", "schedule": {"name": "variance_exploding", "sigma_max": 0.6}}
        check_symmetric(build_diffusion({"frac_coords": wrapped}, vocabulary))


def test_space_groups_by_number_and_symbol():
    asked = {"225": 225, "Fm-3m": 225, "P6_3mc": 186, "0": None, "231": None, "Zz": None}
    assert {text: space_group_number(text) for text in asked} == asked
