"""Training with known entries: fragments hang together, the network is told what it sees, and begins as the one it was."""

from __future__ import annotations

import pytest
import torch
from conftest import random_model, tiny_config

from moldiff.assemble import build_denoiser, build_vocabulary
from moldiff.core.batch import AtomBatch
from moldiff.core.precision import cpu_has_bfloat16, product_dtype
from moldiff.core.rng import Streams
from moldiff.data.batches import BucketBatches
from moldiff.data.store import Store
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.keep import Keep, keep_from
from moldiff.sampling.inpaint import Told
from moldiff.testing import check_denoiser
from moldiff.training.given import Shares, check_shares, random_known, random_parts
from moldiff.training.module import DiffusionModule, TrainOptions
from moldiff.training.warm import new_weights, warm_weights

FIELDS = {
    "positions": {
        "process": "gaussian", "schedule": {"name": "variance_exploding"}, "parameterization": "karras", "scale": 1.4,
        "zero_mean": True,
    },
    **{name: {"process": "categorical"} for name in ("atom_types", "charges", "bond_types")},
}  # fmt: skip
NETWORK = {
    "name": "thin_pair", "width": 32, "n_layers": 2, "n_heads": 4, "pair": 8, "pair_hidden": 16, "n_sets": 4, "ffn": 32,
}  # fmt: skip


def decane(n_systems: int = 64) -> AtomBatch:
    """Chains of ten carbons with their hydrogens, as encoded systems (class 0 is hydrogen, 1 carbon)."""
    n = 32
    bonds = torch.zeros(n, n, dtype=torch.int64)
    h = 10
    for c in range(10):
        if c:
            bonds[c - 1, c] = 1
        for _ in range(3 if c in (0, 9) else 2):
            bonds[c, h] = 1
            h += 1
    bonds = bonds + bonds.T
    types = torch.tensor([1] * 10 + [0] * 22)
    return AtomBatch(
        torch.ones(n_systems, n, dtype=torch.bool),
        {
            "positions": torch.randn(n_systems, n, 3), "atom_types": types.expand(n_systems, n),
            "charges": torch.ones(n_systems, n, dtype=torch.int64), "bond_types": bonds.expand(n_systems, n, n),
        },
    )  # fmt: skip


def test_random_parts_hang_together_and_closed_atoms_have_all_their_neighbours() -> None:
    x0 = decane()
    kept, pairs = random_parts(x0, torch.Generator().manual_seed(0))
    chains = kept[:, :10]
    count = chains.sum(1)
    assert int(count.min()) >= 1 and int(count.max()) <= 9 and len(set(count.tolist())) >= 6
    for row in chains.tolist():
        ends = [k for k in range(10) if row[k]]
        assert ends == list(range(ends[0], ends[-1] + 1))  # a stretch of the chain
    bonded = x0.bond_types > 0
    theirs = (bonded & chains.new_zeros(64, 32).logical_or(kept)[:, None, :])[:, 10:].any(2)
    hydrogens = kept[:, 10:]
    assert ((hydrogens == theirs).all(1) | ~hydrogens.any(1)).all() and hydrogens.any() and not hydrogens.any(1).all()
    inside = kept[:, :, None] & kept[:, None, :] & x0.pair_mask
    assert (pairs | ~inside).all()
    more = (pairs & ~inside).any(2) & kept  # atoms of which bonds to all others are known
    assert more.any() and not (bonded & ~kept[:, None, :] & more[:, :, None]).any()


def test_what_is_known_is_shown_clean_and_flagged_and_the_rest_is_as_it_was() -> None:
    config = tiny_config(network={**NETWORK, "given": True}, fields=FIELDS)
    x0, denoiser = decane(200), build_denoiser(config)
    diffusion = denoiser.diffusion
    x0 = x0.replace(positions=x0.positions - x0.positions.mean(1, keepdim=True))
    known = random_known(x0, diffusion.processes, Shares(0.3, 0.2, 0.3), torch.Generator().manual_seed(1))
    rng = Streams.single(0)
    xt = diffusion.noise(x0, torch.full((200,), 0.9), rng)
    seen = Told(denoiser, diffusion, known, "clean").see(xt)
    flags, pairs = seen.given_atoms > 0, seen.given_pairs > 0
    whole = flags.all(1)  # [S, 2]
    assert 0.2 < float(whole[:, 0].float().mean()) < 0.4 and 0.1 < float(whole[:, 1].float().mean()) < 0.3
    for name in ("atom_types", "charges"):
        assert torch.equal(seen.data[name][flags[..., 0]], x0.data[name][flags[..., 0]])
        assert torch.equal(seen.data[name][~flags[..., 0]], xt.data[name][~flags[..., 0]])
    assert torch.equal(seen.bond_types[pairs], x0.bond_types[pairs])
    assert torch.equal(seen.bond_types[~pairs], xt.bond_types[~pairs])
    assert torch.equal(seen.positions[~flags[..., 1]], xt.positions[~flags[..., 1]])
    row = int(torch.where(flags[..., 1].any(1) & ~whole[:, 1] & (flags[..., 1].sum(1) > 2))[0][0])
    place = flags[row, :, 1]
    shape = torch.cdist(seen.positions[row, place], seen.positions[row, place])
    clean = diffusion.processes["positions"].known(x0, x0)[row, place]
    assert torch.allclose(shape, torch.cdist(clean, clean), atol=1e-4)  # the part has its own shape, wherever it lies
    assert torch.allclose(seen.positions.mean(1), torch.zeros(200, 3), atol=1e-4)


def test_a_warm_start_begins_as_the_model_that_was_told_nothing(tiny_model) -> None:
    old_config, new_config = tiny_config(network=NETWORK), tiny_config(network={**NETWORK, "given": True})
    torch.manual_seed(2)
    old, new = build_denoiser(old_config), build_denoiser(new_config)
    weights = warm_weights(new_config, old_config, old.state_dict())
    assert new_weights(new_config, old_config, list(weights)) == ["network.given_atoms", "network.given_pairs"]
    new.load_state_dict(weights)
    x0 = decane(3)
    told = Told(new, new.diffusion, random_known(x0, new.diffusion.processes, Shares(1.0), None), "clean")
    seen = told.see(new.diffusion.noise(x0, torch.full((3,), 0.5), Streams.single(1)))
    t = torch.full((3,), 0.5)
    with torch.no_grad():
        assert all(torch.equal(new(seen, t).data[k], old(seen, t).data[k]) for k in ("positions", "bond_types"))
        new.network.given_pairs.normal_()
        assert not torch.equal(new(seen, t).positions, old(seen, t).positions)
    # and back: a model without such weights is made of one with them
    back = warm_weights(old_config, new_config, new.state_dict())
    assert sorted(back) == sorted(old.state_dict())


def test_a_network_that_is_told_keeps_its_symmetries() -> None:
    config = tiny_config(network={**NETWORK, "given": True}, fields=FIELDS)
    denoiser = build_denoiser(config)
    with torch.no_grad():
        denoiser.network.given_atoms.normal_()
        denoiser.network.given_pairs.normal_()
    check_denoiser(denoiser.network, denoiser.network.signature, raw=True)
    x0 = decane(2)
    known = random_known(x0, denoiser.diffusion.processes, Shares(0.0, 0.0, 1.0), torch.Generator().manual_seed(4))
    told = Told(denoiser, denoiser.diffusion, known, "clean")
    seen, t = told.see(denoiser.diffusion.noise(x0, torch.full((2,), 0.6), Streams.single(1))), torch.full((2,), 0.6)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    with torch.no_grad():
        a = denoiser(seen, t).positions @ turn
        b = denoiser(seen.replace(positions=seen.positions @ turn), t).positions
    assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))


def test_training_with_known_entries_steps_and_wrong_shares_are_refused(tiny_data) -> None:
    config = tiny_config(network={**NETWORK, "given": True})
    store = Store(tiny_data)
    columns = {name: store.tensor(name) for name in store.names}
    batches = BucketBatches(columns, build_vocabulary(config), 8, 0, fields=list(config.fields))
    options = TrainOptions(given_graph=0.4, given_parts=0.4, given_places=0.1, max_steps=3)
    module = DiffusionModule(build_denoiser(config), batches, options)
    total = module.total(module.losses(batches.batch(0), Streams.single(3)))
    total.backward()
    assert torch.isfinite(total) and float(module.denoiser.network.given_pairs.grad.abs().sum()) > 0
    shares = {"given_graph": 0.5}
    with pytest.raises(BadRequest, match=r"network\.given"):
        check_shares(tiny_config(training=shares, network=NETWORK))
    with pytest.raises(BadRequest, match="at most 1"):
        check_shares(tiny_config(training={"given_graph": 0.7, "given_parts": 0.7}, network={**NETWORK, "given": True}))


def test_a_model_told_what_is_known_keeps_without_the_warning(tmp_path) -> None:
    config = tiny_config(network={**NETWORK, "given": True})
    model = random_model(config, tmp_path / "told")
    generator = Generator.from_pretrained(model, device="cpu")
    from test_inpaint import ETHANOL

    path = tmp_path / "ethanol.sdf"
    path.write_text(ETHANOL)
    spec = keep_from(path)
    assert isinstance(spec, Keep) and spec.cautions(generator.info) == []
    for s in generator.sample(3, steps=4, controls=[spec]):
        assert s.positions[:3].tobytes() == spec.fragment.positions.tobytes()


def test_bfloat16_is_float32_where_the_processor_would_emulate_it(monkeypatch) -> None:
    import moldiff.core.precision as precision

    cpu = torch.device("cpu")
    assert product_dtype("float32", cpu) == torch.float32 and product_dtype("bfloat16", torch.device("meta")) == torch.bfloat16
    assert product_dtype("bfloat16", cpu) == (torch.bfloat16 if cpu_has_bfloat16() else torch.float32)
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    assert precision.product_dtype("bfloat16", cpu) == torch.float32
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    assert precision.product_dtype("bfloat16", cpu) == torch.bfloat16


def test_freed_memory_is_kept_under_glibc() -> None:
    import platform

    from moldiff.core.memory import keep_freed_memory

    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
