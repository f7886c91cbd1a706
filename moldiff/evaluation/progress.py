"""Progress bars of an evaluation, one for each of its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: Called with a stage's name, how much of it is done and how much there is.
StageProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """One bar's progress as the plain function of two numbers that cheaper stages want."""

    bars: StageProgress
    title: str

    def __call__(self, done: int, total: int) -> None:
        self.bars(self.title, done, total)


def stage(bars: StageProgress | None, title: str) -> Stage | None:
    """Return the progress of one stage, None where nothing is shown."""
    return None if bars is None else Stage(bars, title)


@contextmanager
def stage_bars(progress: bool | None) -> Iterator[StageProgress | None]:
    """Show one bar a stage on stderr while the block runs; None where there is no terminal and none is asked for."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal if progress is None else progress):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as shown:
        tasks: dict[str, Any] = {}

        def update(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = shown.add_task(title, total=total)
            shown.update(tasks[title], completed=done, total=total)

        yield update
