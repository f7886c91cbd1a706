"""What a denoiser promises, each promise with the trial that it must stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field as table_field
from moldiff.denoisers.base import Denoiser, Signature
from moldiff.testing.report import Report
from moldiff.testing.symmetries import exact_rotations, pad, permute, random_order, rotate, shift_fractional


@dataclass
class Trial:
    """A denoiser, the inputs that it is tried on, and the ways to call it and to compare what it says."""

    denoiser: Denoiser
    signature: Signature
    batch: AtomBatch
    t: Tensor
    expected: tuple[str, ...]
    tolerance: float
    raw: bool
    generator: torch.Generator
    report: Report
    scales: dict[str, Tensor]
    title: str = ""
    previous: AtomBatch | None = None
    remembering: bool = False

    def __call__(self, batch: AtomBatch, t: Tensor | None = None, previous: AtomBatch | None = None) -> AtomBatch:
        with torch.no_grad():
            return self.denoiser(batch, self.t if t is None else t, previous)

    def memories(self) -> Iterator[AtomBatch | None]:
        """The previous predictions to try: none, then a random one."""
        for previous in (None, self.previous):
            self.remembering = previous is not None
            yield previous

    def _name(self, fact: str) -> str:
        return f"{self.title}: {fact}" + (", with a previous prediction" if self.remembering else "")

    def require(self, fact: str, holds: bool) -> None:
        """Record whether a fact holds."""
        self.report.require(self._name(fact), holds)

    def measure(self, what: str, error: Tensor | float) -> None:
        """Record a relative error."""
        self.report.add(self._name(what), float(error), self.tolerance)

    def same(self, got: AtomBatch, wanted: AtomBatch, what: str, modulo: bool = False) -> None:
        """Record for each field the largest difference over real entries, in units of the field's largest value.

        ``modulo`` compares fractional fields up to whole cell vectors.
        """
        for name in self.expected:
            inside = wanted.scope_mask(name)
            a, b = got.data[name][inside], wanted.data[name][inside]
            difference = a - b
            if modulo and table_field(name).transform == "fractional":
                difference = difference - difference.round()
            if not difference.numel():
                continue
            self.measure(f"{name} {what}", difference.abs().max() / self.scales[name])


def _shapes(trial: Trial) -> None:
    """Every diffused field is predicted, in its own shape, finite, with the input's dtype and device, at t = 0, 1 and between."""
    batch = trial.batch
    for previous in trial.memories():
        for t in (torch.zeros_like(trial.t), trial.t, torch.ones_like(trial.t)):
            out = trial(batch, t, previous)
            missing = [name for name in trial.expected if name not in out]
            trial.require("every field is predicted" + (f" (missing: {', '.join(missing)})" if missing else ""), not missing)
            trial.require("the mask is the input's", torch.equal(out.mask, batch.mask))
            for name in trial.expected:
                if name in out:
                    _shape_of(trial, name, out.data[name], f" at t = {float(t[0]):.2g}" if bool((t == t[0]).all()) else "")


def _shape_of(trial: Trial, name: str, value: Tensor, where: str) -> None:
    f, batch = table_field(name), trial.batch
    lead = {
        "atom": (batch.n_systems, batch.n_max),
        "pair": (batch.n_systems, batch.n_max, batch.n_max),
        "system": (batch.n_systems,),
    }
    wanted = (*lead[f.scope], *((trial.signature.classes(name),) if f.categorical else f.shape))
    dtype = next(v.dtype for v in batch.data.values() if v.is_floating_point())
    fits = tuple(value.shape) == wanted
    trial.require(f"{name} has the shape {wanted}" + ("" if fits else f" (found {tuple(value.shape)})"), fits)
    trial.require(
        f"{name} is {dtype} like the input" + ("" if value.dtype == dtype else f" (found {value.dtype})"), value.dtype == dtype
    )
    trial.require(f"{name} is on the input's device", value.device == batch.device)
    trial.require(f"{name} is finite{where}, padding included", bool(value.isfinite().all()))
    if fits and int(batch.n_atoms.max()) > 1:
        # what is zero everywhere would pass every other check without having been tried
        alive = bool(value[batch.scope_mask(name)].any())
        trial.require(f"{name} is not zero everywhere (if its last layer begins at zero, `perturb` the weights first)", alive)


def _purity(trial: Trial) -> None:
    """The same call gives the same bits, whatever was called between, and leaves inputs, weights and global randomness alone."""
    for previous in trial.memories():
        inputs = [*trial.batch.data.values(), trial.t, *(() if previous is None else previous.data.values())]
        copies = [x.clone() for x in inputs]
        state = {k: v.clone() for k, v in _state(trial.denoiser).items()}
        random = torch.get_rng_state()
        first = trial(trial.batch, None, previous)
        kept = {name: value.clone() for name, value in first.data.items()}
        trial.require("no draw from torch's global generator", torch.equal(random, torch.get_rng_state()))
        trial(trial.batch[: 1 + trial.batch.n_systems // 2], trial.t[: 1 + trial.batch.n_systems // 2], None)
        second = trial(trial.batch, None, previous)
        for name in trial.expected:
            twice = torch.equal(kept[name], second.data[name])
            trial.require(f"{name} is the same when asked again", twice)
        untouched = all(torch.equal(_numbers(a), _numbers(b)) for a, b in zip(inputs, copies, strict=True))
        trial.require("the inputs are not modified", untouched)
        after = _state(trial.denoiser)
        trial.require("no weight or buffer changes", all(torch.equal(v, after[k]) for k, v in state.items()))


def _numbers(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=12345.0) if x.is_floating_point() else x


def _state(denoiser: Denoiser) -> dict[str, Tensor]:
    if not isinstance(denoiser, nn.Module):
        return {}
    return {k: v for k, v in denoiser.state_dict().items() if isinstance(v, Tensor)}


def _turn(trial: Trial, sign: float, what: str) -> None:
    for previous in trial.memories():
        matrix = sign * exact_rotations(trial.batch.n_systems, trial.generator)
        wanted = rotate(trial(trial.batch, None, previous), matrix)
        turned = None if previous is None else rotate(previous, matrix)
        trial.same(trial(rotate(trial.batch, matrix), None, turned), wanted, what)


def _rotation(trial: Trial) -> None:
    """Turning a system turns the vectors and cells of the prediction and leaves the rest."""
    _turn(trial, 1.0, "when the system is turned")


def _reflection(trial: Trial) -> None:
    """Mirroring a system mirrors the vectors and cells of the prediction and leaves the rest."""
    _turn(trial, -1.0, "when the system is mirrored")


def _translation(trial: Trial) -> None:
    """Centred positions give centred positions; fractional coordinates may start anywhere in the cell."""
    vectors = [k for k in trial.expected if table_field(k).transform == "vector" and table_field(k).scope == "atom"]
    fractional = any(table_field(k).transform == "fractional" for k in trial.batch)
    for previous in trial.memories():
        out = trial(trial.batch, None, previous)
        for name in vectors:
            value = out.data[name] * out.mask[..., None]
            mean = value.sum(1) / out.n_atoms[:, None]
            trial.measure(f"{name} stay centred", mean.abs().max() / trial.scales[name])
        if fractional:
            shift = torch.rand(trial.batch.n_systems, 1, 3, generator=trial.generator)
            moved = trial(_wrap(shift_fractional(trial.batch, shift)), None, previous and shift_fractional(previous, shift))
            wanted = out if trial.raw else shift_fractional(out, shift)
            trial.same(moved, wanted, "when all atoms move together in the cell", modulo=not trial.raw)


def _wrap(batch: AtomBatch) -> AtomBatch:
    inside = {k: v % 1 for k, v in batch.data.items() if table_field(k).transform == "fractional"}
    return batch.replace(**inside)


def _images(trial: Trial) -> None:
    """Moving an atom by whole cell vectors changes nothing."""
    if not any(table_field(k).transform == "fractional" for k in trial.batch):
        return
    for previous in trial.memories():
        shift = torch.randint(-2, 3, (*trial.batch.mask.shape, 3), generator=trial.generator).float()
        out = trial(trial.batch, None, previous)
        moved = trial(shift_fractional(trial.batch, shift), None, previous and shift_fractional(previous, shift))
        trial.same(moved, out, "when atoms move by whole cells", modulo=not trial.raw)


def _permutation(trial: Trial) -> None:
    """Renumbering the atoms renumbers the prediction."""
    for previous in trial.memories():
        order = random_order(trial.batch, trial.generator)
        wanted = permute(trial(trial.batch, None, previous), order)
        got = trial(permute(trial.batch, order), None, None if previous is None else permute(previous, order))
        trial.same(got, wanted, "when the atoms are renumbered")


def _padding(trial: Trial) -> None:
    """Neither the amount of padding nor what stands in it changes what is said of real atoms."""
    n = trial.batch.n_max
    for previous in trial.memories():
        out = trial(trial.batch, None, previous)
        for extra, junk in ((0, trial.generator), (3, None), (3, trial.generator)):
            wider = trial(pad(trial.batch, n + extra, junk), None, None if previous is None else pad(previous, n + extra, junk))
            what = f"with {extra} more padded atoms" + (" and other numbers in the padding" if junk else "")
            trial.same(wider, pad(out, n + extra), what)
        for i, one in enumerate(trial.batch.to_list()):
            exact = trial(one, trial.t[i : i + 1], None if previous is None else previous.to_list()[i])
            trial.same(exact, out.to_list()[i], "without padding")


def _batch(trial: Trial) -> None:
    """A system's prediction does not depend on who else is in the batch, nor on its place there."""
    s = trial.batch.n_systems
    for previous in trial.memories():
        out = trial(trial.batch, None, previous)
        for i in range(s):
            alone = trial(trial.batch[i], trial.t[i : i + 1], None if previous is None else previous[i])
            trial.same(alone, out[i], "alone against among others")
        order = torch.randperm(s, generator=trial.generator).to(trial.batch.device)
        other = trial(trial.batch[order], trial.t[order], None if previous is None else previous[order])
        trial.same(other, out[order], "with the systems in another order")


def _isolation(trial: Trial) -> None:
    """A system with a number that is not finite leaves the others in its batch alone."""
    if trial.batch.n_systems < 2:
        return
    names = [k for k in trial.signature.continuous if k in trial.batch]
    for previous in trial.memories():
        out = trial(trial.batch, None, previous)
        spoilt = {}
        for name in names:
            spoilt[name] = trial.batch.data[name].clone()
            spoilt[name][0] = torch.nan
        got = trial(trial.batch.replace(**spoilt), None, previous)
        trial.same(got[1:], out[1:], "beside a system of NaN")


def _symmetry(trial: Trial) -> None:
    """A pair is the same seen from either atom."""
    for previous in trial.memories():
        out = trial(trial.batch, None, previous)
        mirrored = {k: v.transpose(1, 2) for k, v in out.data.items() if table_field(k).scope == "pair"}
        for name in set(mirrored) & set(trial.expected):
            inside = out.scope_mask(name)
            a, b = mirrored[name][inside], out.data[name][inside]
            if a.numel():
                trial.measure(f"{name} of i j and of j i", (a - b).abs().max() / trial.scales[name])


def _gradients(trial: Trial) -> None:
    """Gradients of weights and inputs are finite, also where two atoms coincide, and not all zero."""
    module = trial.denoiser if isinstance(trial.denoiser, nn.Module) else None
    weights = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    names = [k for k, v in trial.batch.data.items() if v.is_floating_point() and k != "conditions"]
    for where, batch in (("", trial.batch), (" with two atoms in one place", _coincident(trial.batch))):
        for previous in trial.memories():
            leaves = {k: batch.data[k].detach().clone().requires_grad_() for k in names}
            with torch.enable_grad():
                out = trial.denoiser(batch.replace(**leaves), trial.t, previous)
                total = sum((out.data[k][out.scope_mask(k)].square().sum() for k in trial.expected), torch.zeros(()))
            if not total.requires_grad:
                trial.require("the weights take part in the prediction", not weights)
                continue
            found = torch.autograd.grad(total, [*weights, *leaves.values()], allow_unused=True)
            known = [g for g in found if g is not None]
            finite = all(bool(g.isfinite().all()) for g in known)
            trial.require(f"gradients are finite{where}", finite)
            trial.require(f"some gradient is not zero{where}", any(bool(g.any()) for g in known))


def _coincident(batch: AtomBatch) -> AtomBatch:
    """Put the second atom of every system on its first."""
    together = {}
    for name, value in batch.data.items():
        if table_field(name).transform in ("vector", "fractional") and table_field(name).scope == "atom" and batch.n_max > 1:
            together[name] = value.clone()
            together[name][:, 1] = value[:, 0]
    return batch.replace(**together).masked()


PROMISES: dict[str, Callable[[Trial], None]] = {
    "shapes": _shapes,
    "purity": _purity,
    "rotation": _rotation,
    "reflection": _reflection,
    "translation": _translation,
    "images": _images,
    "permutation": _permutation,
    "padding": _padding,
    "batch": _batch,
    "isolation": _isolation,
    "symmetry": _symmetry,
    "gradients": _gradients,
}
