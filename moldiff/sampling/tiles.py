"""Tiles: groups of equally large systems that go through the network together, chosen so that a sample never depends on
which others are drawn beside it.

Matrix products may round differently for few rows, and for padded ones. So every system meets the network in its exact size,
and a call never has fewer rows than a small number, filled up with copies. Whether that many rows and more give the same bits is
tried on the machine at hand; where they don't, every call gets one fixed number of rows. On a CPU each tile has one thread
(products on several threads are cut up by their size) and tiles run side by side.
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

#: Least and most rows of a call by the kind of device.
ROWS = {"cpu": (6, 64)}
ROWS_ELSEWHERE = (32, 256)
#: Rows of every call on a CPU whose products round differently for different numbers of rows.
FIXED_ROWS = {"cpu": 16}
#: Tiles are not cut below this many rows to occupy more cores.
WORTH_A_CORE = 16


@dataclass(frozen=True)
class TileRule:
    """How many rows a call may have, and how many calls run side by side."""

    least: int
    most: int
    workers: int = 1

    def halved(self) -> TileRule | None:
        """The rule for half of the memory: one call at a time first, then half of the rows; None at one row.

        Down to the least number of rows of the first rule the results stay the same bit by bit, below it up to rounding.
        """
        if self.workers > 1:
            return replace(self, workers=1)
        half = self.most // 2
        return replace(self, least=min(self.least, half), most=half) if half else None


@dataclass(frozen=True)
class Tile:
    """Sample indices of one size, the number of rows that the call has, and how many of them each sample takes."""

    size: int
    indices: tuple[int, ...]
    rows: int
    rows_each: int = 1

    @property
    def filled(self) -> list[int]:
        """The sample index of each row, the last sample repeated until all rows are taken."""
        samples = [*self.indices, *[self.indices[-1]] * (self.rows // self.rows_each - len(self.indices))]
        return [i for i in samples for _ in range(self.rows_each)]

    @property
    def streams(self) -> list[int]:
        """The index of each row's random stream: row k of sample i has stream i ``rows_each`` + k."""
        return [i * self.rows_each + k % self.rows_each for k, i in enumerate(self.filled)]


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_tiles(sizes: Iterable[tuple[int, int]], rule: TileRule, rows_each: int = 1) -> list[Tile]:
    """Group (index, size) pairs into tiles, the largest systems first so that the last calls are short.

    All ``rows_each`` rows of a sample lie in one tile, however few rows the rule allows.
    """
    pairs = list(sizes)
    fair = -(-len(pairs) * rows_each // rule.workers)
    most = max(1, max(rule.least, min(rule.most, max(fair, WORTH_A_CORE))) // rows_each)
    least = -(-rule.least // rows_each)
    groups: dict[int, list[int]] = {}
    for index, size in pairs:
        groups.setdefault(size, []).append(index)
    tiles = []
    for size, members in sorted(groups.items(), reverse=True):
        n_parts = -(-len(members) // most)
        length = -(-len(members) // n_parts)
        for k in range(0, len(members), length):
            part = tuple(members[k : k + length])
            tiles.append(Tile(size, part, max(len(part), least) * rows_each, rows_each))
    return tiles


def tile_rule(
    denoiser: Denoiser,
    diffusion: Diffusion,
    like: Callable[[Sequence[int], int], AtomBatch],
    sizes: Sequence[int],
    device: torch.device,
) -> TileRule:
    """The rule for this network on this machine.

    ``like(indices, size)`` gives blank systems. For each of ``sizes`` a small and a larger call are compared bit by bit, rows in
    other places; where they differ, every call gets one fixed number of rows.
    """
    least, most = ROWS.get(device.type, ROWS_ELSEWHERE)
    fixed = FIXED_ROWS.get(device.type, most)
    workers = n_cores() if device.type == "cpu" else 1
    with one_thread(device):
        same = all(_same_bits(denoiser, diffusion, like, n, least, fixed, device) for n in sizes)
    return TileRule(least, most, workers) if same else TileRule(fixed, fixed, workers)


@torch.no_grad()
def _same_bits(
    denoiser: Denoiser,
    diffusion: Diffusion,
    like: Callable[[Sequence[int], int], AtomBatch],
    n: int,
    small: int,
    large: int,
    device: torch.device,
) -> bool:
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
    rows_each: int = 1,
) -> TileRule:
    """Call ``draw`` on tiles that cover all (index, size) pairs, several side by side, and return the rule that worked.

    ``draw`` should give up when the event that it is handed is set: another tile has failed. A call that runs out of memory is
    made again by a halved rule, which also holds for what follows; ``on_halved`` is told. Any other error ends the run. A sample
    takes ``rows_each`` rows.
    """
    todo = list(sizes)
    while todo:
        with one_thread(device):
            failed = _run(draw, make_tiles(todo, rule, rows_each), rule.workers, device)
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
