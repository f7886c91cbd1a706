"""The table of an evaluation: one column a set of samples, and always one of real data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from moldiff.evaluation.bootstrap import Estimate
from moldiff.evaluation.definition import Definition
from moldiff.evaluation.definitions import definition, order

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

#: Characters that the names and each column with intervals need; a narrower terminal is shown the values alone.
NAMES_WIDTH, COLUMN_WIDTH = 39, 28
Column = tuple[str, int, Mapping[str, Estimate]]


def metric_names(columns: list[Column]) -> list[str]:
    """Return the metrics that any column has, in the order of the table."""
    return order({name for _, _, metrics in columns for name in metrics})


def cell(about: Definition, estimate: Estimate | None, interval: bool) -> str:
    """Write a number, with its interval where asked."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    text = about.show(estimate.value)
    if interval and not math.isnan(estimate.low):
        return f"{text} [dim]({about.show(estimate.low)} to {about.show(estimate.high)})[/dim]"
    return text


def full_width(n_columns: int) -> int:
    """Return the characters that a table of so many columns needs with its intervals."""
    return NAMES_WIDTH + COLUMN_WIDTH * n_columns


def rich_table(columns: list[Column], data: Column | None, notes: list[str], width: int) -> Table:
    """Lay the table out for a terminal of ``width`` characters.

    ``data`` is None only where a reference has no data row, which the column then says.
    """
    from rich.markup import escape
    from rich.table import Table

    shown = columns if data is None else [*columns, data]
    table = Table(caption="\n".join(escape(note) for note in notes) or None, caption_justify="left", title_justify="left")
    table.add_column("metric")
    for name, n, _ in columns:
        table.add_column(f"{escape(name)}\n[dim]n = {n:,}[/dim]", justify="right")
    table.add_column("data\n[dim]none known[/dim]" if data is None else f"data\n[dim]n = {data[1]:,}[/dim]", justify="right")
    interval = full_width(len(columns) + 1) <= width
    names = metric_names(columns)
    for name in names:
        about = definition(name)
        part = "/" in name
        if part and all(metrics[name].value == 1 for _, _, metrics in shown if name in metrics):
            # A single test that nothing fails would only lengthen the table; it is in metrics.json and in the report.
            continue
        inner = part and name.split("/", 1)[0] in names
        label = f"  {about.title}" if inner else about.title
        unit = f" [dim]{about.unit}[/dim]" if about.unit and not inner else ""
        cells = [cell(about, metrics.get(name), interval) for _, _, metrics in shown]
        table.add_row(label + unit, *cells, *(["–"] if data is None else []))
    return table


def frame(columns: list[Column], data: Column | None) -> pandas.DataFrame:
    """Lay the values out as a DataFrame: a row a metric, a column a set, the last one ``data`` (rates are fractions)."""
    import pandas

    shown = [*columns, ("data", 0, {}) if data is None else data]
    names = metric_names(columns)
    values = {title: [metrics[name].value if name in metrics else math.nan for name in names] for title, _, metrics in shown}
    return pandas.DataFrame(values, index=pandas.Index(names, name="metric"))
