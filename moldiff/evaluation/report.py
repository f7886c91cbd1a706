"""``report.html``: the whole evaluation in one file that works without a network."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

import moldiff
from moldiff.evaluation.bootstrap import Estimate
from moldiff.evaluation.crystals import cards as crystals
from moldiff.evaluation.crystals.basic import CrystalVerdict
from moldiff.evaluation.crystals.sets import CrystalSetResult
from moldiff.evaluation.definitions import definition
from moldiff.evaluation.molecules import cards as molecules
from moldiff.evaluation.molecules.plots import sections
from moldiff.evaluation.molecules.sets import SetResult
from moldiff.evaluation.table import Column, metric_names

if TYPE_CHECKING:
    from moldiff.evaluation.result import Evaluation

AnySet = SetResult | CrystalSetResult
Blocks = dict[str, dict[str, Any]]

#: Random samples and failures of one reason that are drawn for each set, and the reasons.
N_RANDOM, N_FAILURES, N_REASONS = 24, 4, 8
_WHERE = files("moldiff.evaluation") / "assets"


def report_html(evaluation: Evaluation) -> str:
    """Build the report: table, plots, pictures of random samples and of failures by reason, 3D view, definitions."""
    blocks: Blocks = {}
    sets = evaluation.sets
    title = "Evaluation of " + ", ".join(s.name for s in sets)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="by">moldiff {moldiff.__version__} · {" · ".join(f"{escape(s.name)}: {s.n:,} samples" for s in sets)}</p>',
        _metrics(evaluation),
        *(f"<h2>{escape(name)}</h2>{html}" for name, html in _sections(evaluation)),
        "<h2>Samples</h2><p>Drawn at random (seed 0), not chosen. A click shows one in three dimensions.</p>",
        '<div id="view"></div>',
        *(_random(s, blocks) for s in sets),
        "<h2>Failures by reason</h2>",
        *(_failures(s, blocks) for s in sets),
        _definitions(evaluation),
    ]
    viewer = gzip.decompress((_WHERE / "3Dmol-min.js.gz").read_bytes()).decode() if blocks else ""
    # "</" inside a script would end it.
    data = json.dumps(blocks).replace("</", "<\\/")
    style, script = (_WHERE / "report.css").read_text("utf-8"), (_WHERE / "report.js").read_text("utf-8")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>{''.join(body)}\n"
        f"<script>{viewer}</script>\n<script>const BLOCKS = {data};\n{script}</script></body></html>\n"
    )


def _sections(evaluation: Evaluation) -> list[tuple[str, str]]:
    sets, reference = evaluation.sets, evaluation.reference
    solid = [s for s in sets if isinstance(s, CrystalSetResult)]
    if solid:
        return crystals.sections(solid, reference)
    return sections([s for s in sets if isinstance(s, SetResult)], reference)


def _metrics(evaluation: Evaluation) -> str:
    columns: list[Column] = [(s.name, s.n, s.metrics) for s in evaluation.sets]
    data = evaluation.data
    shown = [*columns, ("data", data.n if data else 0, data.metrics if data else {})]
    head = "".join(f"<th>{escape(name)}<br><small>{f'n = {n:,}' if n else 'none known'}</small></th>" for name, n, _ in shown)
    rows = []
    names = metric_names(columns)
    for name in names:
        about = definition(name)
        cells = "".join(f"<td>{_cell(name, metrics.get(name), n)}</td>" for _, n, metrics in shown)
        kind = ' class="part"' if "/" in name and name.split("/", 1)[0] in names else ""
        hint = escape(f"{name}: {about.text}", quote=True)
        rows.append(f'<tr{kind}><th title="{hint}">{escape(about.title)} <small>{escape(about.unit)}</small></th>{cells}</tr>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in evaluation.notes)
    return (
        f'<table class="metrics"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        '<p class="by">In brackets: 95 % intervals, and n where it is not that of the whole set.</p>'
        f'<ul class="notes">{notes}</ul>'
    )


def _cell(name: str, estimate: Estimate | None, n: int) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "–"
    about = definition(name)
    interval = "" if math.isnan(estimate.low) else f"{about.show(estimate.low)} to {about.show(estimate.high)}"
    other = f", n = {estimate.n:,}" if estimate.n != n else ""
    return f"{about.show(estimate.value)} <small>({interval}{other})</small>"


def _random(found: AnySet, blocks: Blocks) -> str:
    chosen = np.random.default_rng(0).permutation(found.n)[:N_RANDOM].tolist()
    return f'<h3>{escape(found.name)}</h3><div class="cards">{_cards(found, chosen, blocks)}</div>'


def _failures(found: AnySet, blocks: Blocks) -> str:
    reasons = found.failures()
    if not reasons:
        return f"<h3>{escape(found.name)}</h3><p>Every sample is valid.</p>"
    order = np.random.default_rng(0).permutation(found.n).tolist()
    failed = [i for i in order if not _sound(found, i)]
    out = []
    for reason, count in list(reasons.items())[:N_REASONS]:
        chosen = [i for i in failed if found.verdicts[i].reason == reason][:N_FAILURES]
        share = f"{count:,} of {found.n:,} ({100 * count / found.n:.1f} %)"
        cards = _cards(found, chosen, blocks)
        out.append(f'<p class="reason"><b>{escape(reason)}</b>: {share}</p><div class="cards">{cards}</div>')
    rest = sum(list(reasons.values())[N_REASONS:])
    more = f"<p>{rest:,} more for {len(reasons) - N_REASONS} other reasons: see per_sample.csv.</p>" if rest else ""
    return f"<h3>{escape(found.name)}</h3>{''.join(out)}{more}"


def _sound(found: AnySet, index: int) -> bool:
    verdict = found.verdicts[index]
    return verdict.structure_valid if isinstance(verdict, CrystalVerdict) else verdict.valid


def _cards(found: AnySet, chosen: Sequence[int], blocks: Blocks) -> str:
    out = []
    for i in chosen:
        key = f"{found.name}/{i}"
        one = crystals.card(found, i) if isinstance(found, CrystalSetResult) else molecules.card(found, i)
        if one.model:
            blocks[key] = one.model
        out.append(one.html(key))
    return "".join(out)


def _definitions(evaluation: Evaluation) -> str:
    names = metric_names([(s.name, s.n, s.metrics) for s in evaluation.sets])
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(definition(name).text)} <small>{escape(definition(name).source)}</small></dd>"
        for name in names
        if "/" not in name or name.split("/", 1)[0] not in names
    )
    return f"<h2>Definitions</h2><dl>{items}</dl>"
