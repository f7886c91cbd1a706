"""Apply a function to many samples: in this process when they are few, otherwise over the cores with a time limit each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from moldiff.data.workers import call, map_stream, n_cores

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]

#: Below this many items a process takes longer to start than the work takes.
SERIAL_BELOW = 300
#: What a cheap verdict may take (s) before the sample is given up.
PATIENCE = 60.0


def map_items(
    function: Callable[[T], R],
    items: Sequence[T],
    failed: Callable[[T, str], R],
    *,
    n_processes: int | None = None,
    time_limit: float | None = None,
    progress: Progress | None = None,
    done: Callable[[int, R], None] | None = None,
) -> list[R]:
    """Apply a function to every item and return the results in order.

    ``function`` must be importable by name (a module's function, or a ``functools.partial`` of one). Fewer than
    ``SERIAL_BELOW`` items, or one core, are worked on in this process, unless ``time_limit`` (seconds an item) asks for
    processes that can be killed. ``failed(item, reason)`` is the result of an item that raised, took too long or crashed its
    process. ``progress(n_done, n_items)`` is called as results come, ``done(index, result)`` for each one.
    """
    workers = n_cores() if n_processes is None else max(1, n_processes)
    alone = time_limit is None and (workers == 1 or len(items) < SERIAL_BELOW)
    stream = (
        (call(function, item) for item in items)
        if alone
        else map_stream(
            function,
            items,
            n_processes=min(workers, len(items)),
            time_limit=PATIENCE if time_limit is None else time_limit,
            chunk_size=32 if time_limit is None else 1,
        )
    )
    results: list[R] = []
    for index, (ok, value) in enumerate(stream if items else ()):
        result = value if ok else failed(items[index], str(value))
        results.append(result)
        if done is not None:
            done(index, result)
        if progress is not None:
            progress(index + 1, len(items))
    return results
