"""What the command line shows: progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moldiff.sample_files import summary_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, Group
    from rich.table import Table

    from moldiff.generate import RunResult
    from moldiff.model_store import ModelInfo


@contextmanager
def progress_bar(console: Console, label: str, total: int, start: int = 0) -> Iterator[Callable[[float, int], None]]:
    """A bar with a count, a rate and the time left; gives a function of (done, total)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total, completed=start, count=f"{start}/{total}")

        def tell(done: float, of: int) -> None:
            bar.update(task, completed=done, count=f"{int(done + 1e-6)}/{of}")

        yield tell


def plain_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], left: int = 1) -> Table:
    """A table whose first ``left`` columns are words and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for k, name in enumerate(columns):
        table.add_column(name, justify="left" if k < left else "right", style="bold" if k == 0 else "")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def run_table(result: RunResult, model: str) -> Group:
    """The rates of a finished run beside those of real data, the commonest failures, and the time."""
    from rich.console import Group
    from rich.text import Text

    from moldiff.evaluation.definitions import definition

    real = result.real
    rows = []
    for name, value in summary_rows(result.metrics).items():
        d = definition(name)
        beside = [d.show(real[name]) if name in real else "–"] if real else []
        rows.append([d.title, d.show(value), *beside])
    head = [f"{result.n:,} samples", f"{model}, %", *(["real data, %"] if real else [])]
    parts: list[Any] = [plain_table("", head, rows)]
    if result.failures:
        common = ", ".join(f"{reason} ({count:,})" for reason, count in list(result.failures.items())[:3])
        parts.append(Text(f"not valid: {common}"))
    speed = f"{result.drawn:,} samples in {result.seconds:.1f} s" if result.drawn else "nothing was left to draw"
    parts.append(Text(f"{speed}; written to {result.folder}"))
    return Group(*parts)


def models_table(models: Iterable[ModelInfo]) -> Table:
    """One row a model."""
    from moldiff.chem.molecules import symbols

    rows = []
    for info in models:
        c = info.config
        elements = " ".join(symbols(c.vocabulary["atom_types"]))
        sampling = f"{c.sampling.sampler}, {c.sampling.steps}"
        sizes = f"{min(info.sizes)}-{max(info.sizes)}"
        rows.append([info.name, f"{c.kind}s", elements, sizes, sampling, f"{info.n_parameters / 1e6:.1f} M"])
    return plain_table("", ["model", "makes", "elements", "atoms", "sampler, calls", "parameters"], rows, left=3)
