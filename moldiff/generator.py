"""The facade: a trained model that draws samples."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from moldiff.assemble import build_vocabulary
from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.core.memory import keep_freed_memory
from moldiff.core.rng import Streams, stream_seed
from moldiff.device import check_batch_size, resolve_device
from moldiff.errors import BadRequest, MoldiffError
from moldiff.model_store import ModelInfo, load_model
from moldiff.request import REQUEST_OPTIONS, Request, make_request, settler_info, whole_number
from moldiff.samples import Sample, SampleSet, from_batch
from moldiff.sampling.control import Controls
from moldiff.sampling.loop import sample
from moldiff.sampling.registry import make_sampler
from moldiff.sampling.settle import settle_positions
from moldiff.sampling.sharpen import Sharpened
from moldiff.sampling.tiles import Tile, TileRule, run_tiles, tile_rule
from moldiff.sampling.watch import Watched
from moldiff.verbs import Verbs, specs_from

if TYPE_CHECKING:
    from moldiff.config import Config
    from moldiff.denoisers.base import Denoiser, NetworkDenoiser
    from moldiff.score import Score

Progress = Callable[[float, int], None]


class _Stopped(Exception):
    """Raised inside a tile whose neighbour failed."""


class Generator:
    """A model with its weights on a device.

    Sample i of a seed is the same whatever the batch size, the number of samples and the number of cores (bit by bit on the
    CPU; on a GPU up to the device's own rounding).
    """

    def __init__(self, info: ModelInfo, denoiser: NetworkDenoiser, device: str | torch.device = "auto") -> None:
        self.info = info
        self.device = resolve_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.denoiser = denoiser.to(self.device).eval()
        self.vocabulary = build_vocabulary(info.config)
        self._rule: TileRule | None = None
        self._settler: NetworkDenoiser | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path = "qm9", device: str | torch.device = "auto") -> Generator:
        """Load a shipped model by name, or any model folder by its path.

        Raises ``BadRequest`` for an unknown model or device and ``DamagedFile`` for a folder that is not as it was written.
        """
        place = resolve_device(device)
        model = load_model(name_or_folder)
        return cls(model.info, model.denoiser, place)

    def __repr__(self) -> str:
        return f"Generator({self.info.name!r}, {self.info.n_parameters:,} parameters, device={str(self.device)!r})"

    @property
    def config(self) -> Config:
        """The model's settings."""
        return self.info.config

    def request(self, n: int, *, controls: Sequence[Spec] = (), **options: Any) -> Request:
        """What ``sample`` with these options asks for, checked (see ``moldiff.request.make_request``)."""
        plain = {k: options.pop(k) for k in list(options) if k in REQUEST_OPTIONS}
        return make_request(self.info, n, controls=(*controls, *specs_from(self.info, **options)), **plain)

    def sample(
        self,
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
        batch_size: int | str = "auto",
        start: int = 0,
        progress: Progress | bool = False,
        controls: Sequence[Spec] = (),
        **verbs: Unpack[Verbs],
    ) -> SampleSet:
        """Draw ``n`` samples.

        ``steps`` counts network calls; ``sampler`` with its ``options`` and ``grid`` are named as in ``moldiff.sampling``; what
        is None is the model's own setting. The last ``settle`` of the calls lead positions to where they are likeliest
        (``moldiff.sampling.settle``). ``size`` is a number of atoms or a range. ``batch_size`` samples are in hand at
        once. The verbs of ``moldiff.verbs`` (``formula``, ``exclude`` ...) say more; ``controls`` are specifications of
        ``moldiff.control``. With ``compositions`` ``n`` samples of each are drawn. ``start`` is the index of the first sample,
        so that parts of a run can be drawn apart. ``progress`` is True for a bar or a function of (samples done, n). Raises
        ``BadRequest`` for what the model can't do.
        """
        request = self.request(
            n, seed=seed, steps=steps, sampler=sampler, options=options, grid=grid, temperature=temperature, size=size,
            settle=settle, controls=controls, **verbs,
        )  # fmt: skip
        for sentence in request.cautions(self.info):
            warnings.warn(sentence, stacklevel=2)
        start = whole_number("start", start)
        if start < 0:
            raise BadRequest(f"start must be at least 0, found {start}")
        with _shown(progress, request.n) as tell:
            drawn = [s for part in self.stream(request, batch_size, start, tell) for s in part]
        return SampleSet(drawn, request, self.info)

    def interpolate(self, first: Any, second: Any, n: int, **options: Any) -> SampleSet:
        """``n`` molecules on the way from one to another of equal size (see ``moldiff.given.Between``), ends included.

        The same as ``sample(n, between=(first, second))``: ``first`` and ``second`` are files, molecules, atoms or samples, each
        of one molecule; ``strength`` is the time that both are noised to. Raises ``BadRequest`` for molecules of unequal size or
        outside the vocabulary.
        """
        return self.sample(n, between=(first, second), **options)

    def log_likelihood(self, structures: Any, *, method: str = "bound", **options: Any) -> list[Score]:
        """What the model thinks of structures: the variational bound of log p, and with ``method`` "flow" the density of the
        positions given the rest, by the probability-flow ODE (see ``moldiff.score``).

        ``structures`` are a file, molecules, atoms or samples.
        """
        from moldiff.score import score
        from moldiff.structures import as_structures

        return score(self, as_structures(structures), method=method, **options)

    def stream(
        self,
        request: Request,
        batch_size: int | str = "auto",
        start: int = 0,
        progress: Progress | None = None,
        stop: int | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> Iterator[list[Sample]]:
        """Draw samples ``start`` to ``stop`` (default ``start + n``) of a request, batch by batch in the order of their indices.

        ``notice`` receives a sentence when memory ran out and the batch was halved.
        """
        stop = start + request.n if stop is None else stop
        batch = check_batch_size(batch_size, self.device)
        position = start
        while position < stop:
            indices = range(position, min(position + batch, stop))
            done = position - start
            tell = (lambda x, done=done: progress(done + x, stop - start)) if progress is not None else None
            yield self.draw(request, indices, tell, notice)
            position = indices.stop

    def draw(
        self,
        request: Request,
        indices: Sequence[int],
        progress: Callable[[float], None] | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> list[Sample]:
        """The samples of these indices."""
        diffusion = self.denoiser.diffusion
        denoiser: Denoiser = self.denoiser
        if request.temperature != 1:
            denoiser = Sharpened(denoiser, diffusion, request.temperature)
        settler = self.settler() if request.settle else None
        grid = request.time_grid(diffusion.schedule)
        rows_each = max((spec.rows_each for spec in request.controls), default=1)
        gradients = any(spec.needs_gradients for spec in request.controls)
        no_grad = torch.no_grad if gradients else torch.inference_mode  # the latter is a twentieth faster
        results: dict[int, Sample] = {}
        share: dict[int, float] = {}
        lock = threading.Lock()

        def draw(tile: Tile, stopped: threading.Event, seed: int = request.seed) -> None:
            def on_step(k: int, of: int) -> None:
                if stopped.is_set():
                    raise _Stopped
                with lock:
                    share.update(dict.fromkeys(tile.indices, k / (of + 1)))
                    if progress is not None:
                        progress(sum(share.values()))

            like = self._blank(tile.filled, tile.size)
            watched = Watched(denoiser, tile.rows, self.device)
            sampler = make_sampler(request.sampler, request.options)
            streams = Streams.of(seed, tile.streams)
            rule = self.rule()
            place = Place(
                tile.filled, tile.size, self.info, self.vocabulary, diffusion, self.device, seed, rows_each,
                rule.least if rule.least < rule.most else None,
            )  # fmt: skip
            control = Controls([spec.control(place) for spec in request.controls])
            try:
                with no_grad():
                    drawn = sample(
                        watched, diffusion, like, streams, sampler, grid, request.self_conditioning, on_step, None, control
                    )
                    if settler is not None:
                        watched.denoiser = settler if settler is not self.denoiser else denoiser
                        drawn = settle_positions(watched, settler.diffusion, drawn, request.settle, streams)
                    drawn = control.choose(drawn, diffusion)
            except _Stopped:
                return
            kept = slice(0, len(tile.indices) * rows_each, rows_each)
            physical = self.vocabulary.decode(drawn[kept].to("cpu"))
            found = from_batch(physical, tile.indices, self.info.config.bonds, watched.spoilt[kept].tolist())
            with lock:
                for k, s in enumerate(found):
                    facts = {**request.facts(s.index), **control.facts(k * rows_each)}
                    results[s.index] = replace(s, info={**s.info, **facts})

        def halved(rule: TileRule) -> None:
            if notice is not None:
                notice(f"out of memory: going on with {rule.most} systems a call, {rule.workers} at once")

        sizes = [(i, request.size_of(i)) for i in indices]
        try:
            self._rule = run_tiles(draw, sizes, self.rule(), self.device, halved, rows_each)
            for attempt in range(max((spec.redraws for spec in request.controls), default=0)):
                again = [(i, size) for i, size in sizes if request.refuses(results[i])]
                if again:
                    anew = partial(draw, seed=stream_seed(request.seed, -2 - attempt))
                    self._rule = run_tiles(anew, again, self._rule, self.device, halved, rows_each)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MoldiffError(f"one system at a time does not fit into the memory of {self.device}: {error}") from None
        for spec in request.controls:
            for sentence in spec.notices():
                if notice is not None:
                    notice(sentence)
                else:
                    warnings.warn(sentence, stacklevel=3)
        return [replace(results[i], problem=results[i].problem or request.refuses(results[i], last=True)) for i in indices]

    def settler(self) -> NetworkDenoiser:
        """The network that settles positions: the model's own, or that of the model which its ``settle_with`` names.

        Raises ``BadRequest`` where that one has other fields or another vocabulary.
        """
        if self._settler is None:
            name = self.info.config.sampling.settle_with
            self._settler = self.denoiser if name is None else settler_info(self.info, name).denoiser().to(self.device).eval()
        return self._settler

    def rule(self) -> TileRule:
        """How many systems a call may have for the same bits in any company, tried on this machine when first asked."""
        if self._rule is None:
            common = sorted(self.info.sizes, key=lambda k: self.info.sizes[k])
            probes = sorted({common[-1], min(self.info.sizes), max(self.info.sizes)})
            self._rule = tile_rule(self.denoiser, self.denoiser.diffusion, self._probe, probes, self.device)
        return self._rule

    def _probe(self, indices: Sequence[int], size: int) -> AtomBatch:
        """Blank systems with the fields that the model is told, of any classes."""
        blank = self._blank(indices, size)
        atoms = torch.arange(size, device=self.device)
        told = {}
        for name in self.info.config.given:
            f = field(name)
            if f.categorical and f.scope == "atom":
                rows = [(atoms * (i + 1)) % self.vocabulary.size(name) for i in indices]
                told[name] = torch.stack(rows)
        return blank.replace(**told)

    def _blank(self, indices: Sequence[int], size: int) -> AtomBatch:
        return AtomBatch(torch.ones(len(indices), size, dtype=torch.bool, device=self.device))


class _shown:
    """A progress function for ``progress`` = False, True (a bar on the terminal) or a function."""

    def __init__(self, progress: Progress | bool, n: int) -> None:
        self.progress, self.n = progress, n
        self.close: Callable[[], None] = _nothing

    def __enter__(self) -> Progress | None:
        if callable(self.progress):
            return self.progress
        if not self.progress:
            return None
        from rich.progress import Progress as Bar

        bar = Bar(transient=True)
        bar.start()
        self.close = bar.stop
        task = bar.add_task("sampling", total=self.n)
        return lambda done, _: bar.update(task, completed=done)

    def __exit__(self, *_: object) -> None:
        self.close()


def _nothing() -> None:
    return
