"""Tiles: groups of equally large systems that go through the network together, chosen so that a sample never depends on
which others are drawn beside it.

Matrix products may round differently for different numbers of rows. So every system meets the network in its exact size
(nothing is padded), in a tile whose number of rows is one of two fixed ones, filled up with copies; the smaller is used only
where this machine computes the same bits for both. On a CPU each tile has one thread, and tiles run side by side.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion

#: Rows of a call by the kind of device, small and large.
ROWS = {"cpu": (8, 16)}
ROWS_ELSEWHERE = (32, 256)


@dataclass(frozen=True)
class TileRule:
    """How many rows a call may have, ascending, and how many calls run side by side."""

    rows: tuple[int, ...]
    workers: int = 1

    def halved(self) -> TileRule | None:
        """The rule for half of the memory: one call at a time first, then half of the rows; None at one row.

        Down to the smallest number of rows of the original rule the results stay the same bit by bit, below it up to rounding.
        """
        half = self.rows[-1] // 2
        if self.workers > 1:
            return replace(self, workers=1)
        return replace(self, rows=(*(r for r in self.rows if r < half), half)) if half else None


@dataclass(frozen=True)
class Tile:
    """Sample indices of one size, and the number of rows that the call has."""

    size: int
    indices: tuple[int, ...]
    rows: int

    @property
    def filled(self) -> list[int]:
        """The indices with the last one repeated until all rows are taken."""
        return [*self.indices, *[self.indices[-1]] * (self.rows - len(self.indices))]


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_tiles(sizes: Iterable[tuple[int, int]], rows: Sequence[int]) -> list[Tile]:
    """Group (index, size) pairs into tiles, the largest systems first so that the last calls are short."""
    groups: dict[int, list[int]] = {}
    for index, size in sizes:
        groups.setdefault(size, []).append(index)
    tiles = []
    for size, members in sorted(groups.items(), reverse=True):
        while members:
            fitting = next((r for r in rows if r >= len(members)), rows[-1])
            tiles.append(Tile(size, tuple(members[:fitting]), fitting))
            members = members[fitting:]
    return tiles


def tile_rule(denoiser: Denoiser, diffusion: Diffusion, like: Callable[[Sequence[int], int], AtomBatch],
              sizes: Sequence[int], device: torch.device) -> TileRule:  # fmt: skip
    """The rule for this network on this machine.

    ``like(indices, size)`` gives blank systems. For each of ``sizes`` a small and a large call are compared bit by bit, rows in
    other places; where they differ, only the large number of rows is used.
    """
    small, large = ROWS.get(device.type, ROWS_ELSEWHERE)
    workers = n_cores() if device.type == "cpu" else 1
    with one_thread(device):
        same = all(_same_bits(denoiser, diffusion, like, n, small, large, device) for n in sizes)
    return TileRule((small, large) if same else (large,), workers)


@torch.no_grad()
def _same_bits(
    denoiser: Denoiser, diffusion: Diffusion, like: Callable[[Sequence[int], int], AtomBatch], n: int, small: int,
    large: int, device: torch.device,
) -> bool:  # fmt: skip
    xt = diffusion.prior(like(range(large), n), Streams.of(0, range(large)))
    part = torch.arange(large - small - 1, large - 1).flip(0).to(device)
    t = torch.full((large,), 0.5, device=device)
    wide, narrow = denoiser(xt, t), denoiser(xt[part], t[:small])
    wide, narrow = denoiser(xt, t, wide), denoiser(xt[part], t[:small], narrow)
    return all(torch.equal(wide.data[name][part], narrow.data[name]) for name in wide)


class one_thread:
    """Within this context torch computes on one thread of the CPU; elsewhere nothing changes."""

    def __init__(self, device: torch.device) -> None:
        self.active = device.type == "cpu"

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        if self.active:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self.active:
            torch.set_num_threads(self.before)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def run_tiles(
    draw: Callable[[Tile, threading.Event], None],
    sizes: Sequence[tuple[int, int]],
    rule: TileRule,
    device: torch.device,
    on_halved: Callable[[TileRule], None] | None = None,
) -> TileRule:
    """Call ``draw`` on tiles that cover all (index, size) pairs, several side by side, and return the rule that worked.

    ``draw`` should give up when the event that it is handed is set: another tile has failed. A call that runs out of memory is
    made again by a halved rule, which also holds for what follows; ``on_halved`` is told. Any other error ends the run.
    """
    todo = list(sizes)
    while todo:
        with one_thread(device):
            failed = _run(draw, make_tiles(todo, rule.rows), rule.workers, device)
        if failed is None:
            break
        error, lost = failed
        smaller = rule.halved()
        if smaller is None:
            raise error
        if device.type == "cuda":
            torch.cuda.empty_cache()
        rule = smaller
        if on_halved is not None:
            on_halved(rule)
        left = {i for tile in lost for i in tile.indices}
        todo = [pair for pair in todo if pair[0] in left]
    return rule


def _run(
    draw: Callable[[Tile, threading.Event], None], tiles: list[Tile], workers: int, device: torch.device
) -> tuple[BaseException, list[Tile]] | None:
    """Draw all tiles; on running out of memory, the error and the tiles that are still to do."""
    stop = threading.Event()
    finished: set[Tile] = set()
    trouble: list[BaseException] = []

    def work(tile: Tile) -> None:
        if stop.is_set():
            return
        try:
            draw(tile, stop)
            if not stop.is_set():
                finished.add(tile)
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            trouble.append(error)
            stop.set()

    def start() -> None:  # the number of threads of a product is a setting of each Python thread
        if device.type == "cpu":
            torch.set_num_threads(1)

    if min(workers, len(tiles)) <= 1:
        for tile in tiles:
            work(tile)
    else:
        with ThreadPoolExecutor(min(workers, len(tiles)), "moldiff", start) as pool:
            futures = [pool.submit(work, tile) for tile in tiles]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C arrives here, in the main thread
                stop.set()
                raise
    if not trouble:
        return None
    fatal = next((e for e in trouble if not out_of_memory(e)), None)
    if fatal is not None:
        raise fatal
    return trouble[0], [tile for tile in tiles if tile not in finished]
