"""What the command line shows: progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from moldiff.sample_files import summary_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, Group
    from rich.table import Table

    from moldiff.generate import RunResult
    from moldiff.model_store import ModelInfo

#: Rows of the table of clusters.
RANKED_SHOWN = 12


@contextmanager
def progress_bars(
    console: Console, label: str, total: int
) -> Iterator[tuple[Callable[[float, int], None], Callable[[str, int, int], None]]]:
    """A bar with a count and the time left, and one more for each later stage, made when it is first told of.

    Gives two functions: of (done, total), and of (title of the stage, done, total).
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {"": bars.add_task(label, total=total, count=f"0/{total}")}

        def stage(title: str, done: float, of: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=of, count="")
            bars.update(tasks[title], completed=done, total=of, count=f"{int(done + 1e-6)}/{of}")

        yield partial(stage, ""), stage


@contextmanager
def progress_bar(console: Console, label: str, total: int) -> Iterator[Callable[[float, int], None]]:
    """A bar with a count and the time left; gives a function of (done, total)."""
    with progress_bars(console, label, total) as (tell, _):
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
    if result.ranked:
        parts.append(ranked_table(result.ranked))
    speed = f"{result.drawn:,} samples in {result.seconds:.1f} s" if result.drawn else "nothing was left to draw"
    calls = f", {result.calls_each:,} network calls each" if result.calls_each else ""
    parts.append(Text(f"{speed}{calls}; written to {result.folder}"))
    return Group(*parts)


def ranked_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The first clusters of crystals: those of the first request, or the best of each where there are several."""
    requests = list(dict.fromkeys(str(row["request"]) for row in rows))
    many = len(requests) > 1
    shown = [row for row in rows if not many or int(row["rank"]) == 1][:RANKED_SHOWN]
    energy = "relaxed_energy" in rows[0]
    head = [*(["request"] if many else ["rank"]), "formula", "space group", "samples", "%", "g/cm³"]
    body = []
    for row in shown:
        cells = [row["request"] if many else row["rank"], row["formula"], f"{row['symbol']} ({row['space_group']})", row["count"]]
        cells += [f"{100 * float(row['share']):.0f}", _number(row["density"], 2)]
        if energy:
            cells += [_number(row["relaxed_energy"], 4), _number(row["above_best"], 3)]
        body.append([*cells, row["id"]])
    by = "relaxed energy" if energy else "frequency"
    title = f"the best cluster of each request, by {by}" if many else f"clusters by {by}"
    if len(shown) < (len(requests) if many else len(rows)):
        title += f" (the first {len(shown)}; all are in ranked.csv)"
    return plain_table(title, [*head, *(["eV/atom", "above best"] if energy else []), "sample"], body, left=3)


def _number(value: Any, digits: int) -> str:
    return "–" if value in (None, "") else f"{float(value):.{digits}f}"


def models_table(models: Iterable[ModelInfo]) -> Table:
    """One row a model."""
    from moldiff.chem.formula import named_elements

    rows = []
    for info in models:
        c = info.config
        elements = named_elements(c.vocabulary["atom_types"], between=" ")
        sampling = "-" if c.targets else f"{c.sampling.sampler}, {c.sampling.steps}"
        makes = f"{', '.join(c.targets)} of {c.kind}s" if c.targets else "conformers" if c.needs_graph else f"{c.kind}s"
        sizes = f"{min(info.sizes)}-{max(info.sizes)}"
        rows.append([info.name, makes, elements, sizes, sampling, f"{info.n_parameters / 1e6:.1f} M"])
    return plain_table("", ["model", "makes", "elements", "atoms", "sampler, calls", "parameters"], rows, left=3)
