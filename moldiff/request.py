"""What is asked of a model: everything that determines the samples, checked before any weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from moldiff.control import Spec
from moldiff.core.rng import stream_seed
from moldiff.errors import BadRequest
from moldiff.model_store import ModelInfo, model_info

if TYPE_CHECKING:
    from torch import Tensor

    from moldiff.diffusion.schedules import Schedule
    from moldiff.samples import Sample


#: The options of ``make_request`` beside n and controls.
REQUEST_OPTIONS = ("seed", "steps", "sampler", "options", "grid", "temperature", "settle", "size")


#: Fewer calls than this are all needed for the graph.
SETTLE_FROM = 50


@dataclass(frozen=True)
class Request:
    """Sample i of a request is a function of i and of these fields, on one kind of device; ``n`` only says where to stop.

    ``sizes`` are the admitted numbers of atoms with their weights; ``steps`` counts network calls, of which the
    last ``settle`` settle positions, with the weights ``settle_with`` where they are another model's.
    """

    model: str
    weights_sha256: str
    n: int
    seed: int
    sampler: str
    options: Mapping[str, float]
    steps: int
    grid: str
    self_conditioning: bool
    temperature: float
    size: str
    sizes: Mapping[int, int] = field(repr=False)
    settle: int = 0
    settle_with: str | None = None
    controls: tuple[Spec, ...] = ()

    def size_of(self, index: int) -> int:
        """The number of atoms of one sample: a draw from ``sizes`` by seed and index alone, unless a control decides it."""
        for spec in self.controls:
            size = spec.size_of(index)
            if size is not None:
                return size
        total = sum(self.sizes.values())
        place = stream_seed(stream_seed(self.seed, index), 0) * total >> 63
        for size, weight in sorted(self.sizes.items()):
            place -= weight
            if place < 0:
                return size
        raise AssertionError("the draw lies below the sum of the weights")

    def time_grid(self, schedule: Schedule) -> Tensor:
        """The times of the run: fewer where controls make steps several times, the last part where they begin late."""
        import torch

        from moldiff.sampling.grids import make_grid, part_below, winding_grid
        from moldiff.sampling.registry import make_sampler

        calls = make_sampler(self.sampler, self.options).calls_per_step * math.prod(spec.passes for spec in self.controls)
        begins = min((spec.begins for spec in self.controls), default=1.0)

        def down(n_calls: int) -> Tensor:
            return part_below(make_grid(self.grid, n_calls - self.settle, schedule, calls), begins)

        returns = next((spec.returns for spec in self.controls if spec.returns is not None), None)
        if returns is None:
            return down(self.steps)
        high, low = (float(schedule.time_of_ratio(torch.tensor([level]))) for level in returns[:2])
        return winding_grid(down, self.steps, calls, high, low, returns[2])

    @property
    def calls_each(self) -> int:
        """Network calls that one sample costs, those of all its rows together; guidance doubles them."""
        said = next((n for spec in self.controls if (n := spec.calls(self.steps)) is not None), None)
        if said is not None:
            return said
        rows = max((spec.rows_each for spec in self.controls), default=1)
        return rows * (self.steps + sum(spec.calls_beside for spec in self.controls))

    def refuses(self, sample: Sample, last: bool = False) -> str:
        """Why a control does not want this sample, or an empty string; at the ``last`` only those that insist are asked."""
        if sample.problem:
            return ""
        asked = [spec for spec in self.controls if spec.insists or not last]
        return next((reason for spec in asked if (reason := spec.refuses(sample))), "")

    def settings(self) -> dict[str, Any]:
        """Plain values for run.yaml: the same settings mean the same samples."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        del values["sizes"], values["controls"]  # the sizes follow from the model and ``size``
        return {**values, "options": dict(self.options), **{spec.name: spec.settings() for spec in self.controls}}

    def cautions(self, info: ModelInfo) -> list[str]:
        """Sentences to show before drawing."""
        return [sentence for spec in self.controls for sentence in spec.cautions(info)]

    def facts(self, index: int) -> dict[str, Any]:
        """What the controls say of one sample."""
        return {key: value for spec in self.controls for key, value in spec.facts(index).items()}


def make_request(
    info: ModelInfo,
    n: int,
    *,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    options: Mapping[str, Any] | None = None,
    grid: str | None = None,
    temperature: float | None = None,
    settle: int | None = None,
    size: int | str | tuple[int, int] | None = None,
    controls: Sequence[Spec] = (),
) -> Request:
    """Check a request against a model; what is None is taken from the model's own sampling settings.

    ``options`` are added to the model's own where the sampler is the model's.

    ``controls`` are checked against the model and against each other.
    ``size`` is a number of atoms, a range as ``(least, most)`` or ``"least-most"``, or None for the sizes of the training data.
    Raises ``BadRequest`` for anything that the model or the sampler can't do.
    """
    from moldiff.sampling.grids import make_grid
    from moldiff.sampling.registry import make_sampler

    default = info.config.sampling
    n = whole_number("n", n)
    if n < 1:
        raise BadRequest(f"n must be at least 1, found {n}")
    if info.config.targets:
        raise BadRequest(f"{info.name} predicts {', '.join(info.config.targets)} and makes no samples")
    seed = whole_number("seed", seed)
    if not 0 <= seed < 2**63:
        raise BadRequest(f"seed must lie in 0 to 2^63 - 1, found {seed}")
    controls = [spec.for_n(n) for spec in controls]
    chosen = sampler or next((spec.sampler for spec in controls if spec.sampler), default.sampler)
    given = {**(default.options if chosen == default.sampler else {}), **(options or {})}
    made = make_sampler(chosen, given)
    calls = default.steps if steps is None else whole_number("steps", steps)
    if calls < 2:
        raise BadRequest(f"steps must be at least 2 network calls, found {calls}")
    if calls > 100_000:
        raise BadRequest(f"steps must be at most 100,000 network calls, found {calls}")
    usual = default.temperature if calls >= SETTLE_FROM else default.temperature_few or default.temperature
    heat = usual if temperature is None else float(temperature)
    if not (math.isfinite(heat) and heat > 0):
        raise BadRequest(f"temperature must be a positive number, found {temperature}")
    name = default.grid if grid is None else grid
    make_grid(name, calls, _schedule(info), made.calls_per_step * math.prod(spec.passes for spec in controls))
    for spec in controls:
        spec.check(info)
    controls = [s for spec in controls if (s := spec.beside([other for other in controls if other is not spec])) is not None]
    for spec in controls:
        spec.check_beside([other for other in controls if other is not spec])
    untold = [name for name in info.config.given if all(name not in spec.gives for spec in controls)]
    if untold:
        asked = "give a formula or compositions" if untold == ["atom_types"] else f"these are missing: {', '.join(untold)}"
        raise BadRequest(f"{info.name} makes {info.config.kind}s of what it is told: {asked}")
    if info.config.needs_graph and all("bond_types" not in spec.gives for spec in controls):
        raise BadRequest(f"{info.name} makes positions of graphs that are given: name one with smiles")
    for spec in controls:
        n = spec.total(n)
    text, sizes = admitted_sizes(info, size)
    possible = {k: v for k, v in sizes.items() if all(spec.admits(k) for spec in controls)}
    possible = {k: w for k, v in possible.items() if (w := min((spec.weigh(k, v) for spec in controls), default=v))} or possible
    decided = {k for spec in controls for i in range(n) if (k := spec.size_of(i)) is not None}
    if size is not None and not decided <= set(range(min(sizes), max(sizes) + 1)):
        names = " and ".join(spec.name for spec in controls if spec.size_of(0) is not None)
        raise BadRequest(f"size {text} and {names} of {min(decided)} to {max(decided)} atoms contradict each other")
    if not possible and not decided:
        names = " and ".join(spec.wants() for spec in controls)
        raise BadRequest(f"no size that {info.name} can make ({min(sizes)} to {max(sizes)} atoms) satisfies {names}")
    for spec in controls:
        refused = [k for k in decided if not spec.admits(k)]
        if refused:
            raise BadRequest(f"{refused[0]} atoms, as others ask for, can't satisfy {spec.wants()}")
    settling = _settle_calls(info, calls, settle, controls)
    other = info.config.sampling.settle_with if settling else None
    return Request(
        model=info.name,
        weights_sha256=info.weights_sha256,
        n=n,
        seed=seed,
        sampler=chosen,
        options={k: float(v) for k, v in given.items()},
        steps=calls,
        grid=name,
        self_conditioning=default.self_conditioning,
        temperature=heat,
        size=text,
        sizes=possible,
        settle=settling,
        settle_with=None if other is None else settler_info(info, other).weights_sha256,
        controls=tuple(controls),
    )


def settler_info(info: ModelInfo, name: str) -> ModelInfo:
    """The model that settles what ``info`` draws; raises ``BadRequest`` where its fields or vocabulary are others."""
    found = model_info(name)
    ours, theirs = info.config, found.config
    if {**ours.vocabulary} != {**theirs.vocabulary} or set(ours.fields) != set(theirs.fields):
        raise BadRequest(f"{name} can't settle what {info.name} draws: their vocabularies or fields differ")
    return found


def _settle_calls(info: ModelInfo, calls: int, wanted: int | None, controls: Sequence[Spec]) -> int:
    """How many of the calls settle positions: as asked, or the model's own share from ``SETTLE_FROM`` calls on."""
    allowed = all(spec.settles for spec in controls)
    if wanted is None:
        return round(info.config.sampling.settle * calls) if allowed and calls >= SETTLE_FROM else 0
    wanted = whole_number("settle", wanted)
    if not 0 <= wanted <= calls - 2:
        raise BadRequest(f"settle must lie in 0 to {calls - 2}, since {calls} calls include it, found {wanted}")
    if wanted and not {"positions", "bond_types"} <= set(info.config.fields):
        raise BadRequest(f"{info.name} does not make positions and bonds, so that nothing can settle")
    if wanted and not allowed:
        names = " and ".join(spec.name for spec in controls if not spec.settles)
        raise BadRequest(f"settle moves positions and does not go together with {names}")
    return wanted


def admitted_sizes(info: ModelInfo, size: int | str | tuple[int, int] | None) -> tuple[str, dict[int, int]]:
    """The sizes that a request admits, in words and with their weights; raises ``BadRequest`` beyond the training sizes."""
    known = {k: v for k, v in info.sizes.items() if v > 0}
    least, most = min(known), max(known)
    if size is None:
        return "as trained", known
    low, high = parse_size(size)
    text = str(low) if low == high else f"{low}-{high}"
    if low < least or high > most:
        raise BadRequest(f"size {text} is outside what {info.name} was trained on ({least} to {most} atoms)")
    sizes = {k: v for k, v in known.items() if low <= k <= high}
    if not sizes:
        raise BadRequest(f"{info.name} was trained on {least} to {most} atoms, but on no system of size {text}")
    return text, sizes


def parse_size(size: int | str | tuple[int, int]) -> tuple[int, int]:
    """Read ``18``, ``"18"``, ``"9-20"`` or ``(9, 20)`` as least and most; raises ``BadRequest`` for anything else."""
    wrong = BadRequest(f"size must be a number of atoms or a range such as 9-20, found {size!r}")
    least, most = whole_range(size, wrong)
    if least < 1:
        raise wrong
    return least, most


def whole_range(value: Any, wrong: BadRequest) -> tuple[int, int]:
    """Read a whole number or a range of them as its ends; raises ``wrong`` for anything else and for ends out of order."""
    try:
        parts = value.split("-") if isinstance(value, str) else value if isinstance(value, tuple) else (value,)
        numbers = [whole_number("", int(p) if isinstance(p, str) else p) for p in parts]
    except (ValueError, TypeError, BadRequest):
        raise wrong from None
    if len(numbers) not in (1, 2) or numbers[-1] < numbers[0]:
        raise wrong
    return numbers[0], numbers[-1]


def whole_number(name: str, value: Any) -> int:
    """``value`` as an int; raises ``BadRequest`` for anything that is no whole number (true and false included)."""
    import operator

    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise BadRequest(f"{name} must be a whole number, found {value!r}")


def _schedule(info: ModelInfo) -> Any:
    from moldiff.assemble import build_vocabulary
    from moldiff.diffusion.registry import build_diffusion

    fields = {name: options.model_dump() for name, options in info.config.fields.items()}
    return build_diffusion(fields, build_vocabulary(info.config)).schedule
