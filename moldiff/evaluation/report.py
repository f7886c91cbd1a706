"""``report.html``: the whole evaluation in one file that works without a network."""

from __future__ import annotations

import gzip
import json
import math
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

import moldiff
from moldiff.evaluation.bootstrap import Estimate
from moldiff.evaluation.definitions import definition
from moldiff.evaluation.molecules.distributions import by_type
from moldiff.evaluation.molecules.drawings import formula_svg, mol_block
from moldiff.evaluation.molecules.plots import sections
from moldiff.evaluation.molecules.sets import Examined, SetResult
from moldiff.evaluation.table import Column, metric_names

if TYPE_CHECKING:
    from moldiff.evaluation.result import Evaluation

#: Random samples and failures of one reason that are drawn for each set, and the reasons.
N_RANDOM, N_FAILURES, N_REASONS = 24, 4, 8
_WHERE = files("moldiff.evaluation") / "assets"


def report_html(evaluation: Evaluation) -> str:
    """Build the report: table, plots, pictures of random samples and of failures by reason, 3D view, definitions."""
    blocks: dict[str, str] = {}
    sets = evaluation.sets
    title = "Evaluation of " + ", ".join(s.name for s in sets)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="by">moldiff {moldiff.__version__} · {" · ".join(f"{escape(s.name)}: {s.n:,} samples" for s in sets)}</p>',
        _metrics(evaluation),
        *(f"<h2>{escape(name)}</h2>{html}" for name, html in sections(sets, evaluation.reference)),
        _types(evaluation),
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


def _metrics(evaluation: Evaluation) -> str:
    columns: list[Column] = [(s.name, s.n, s.metrics) for s in evaluation.sets]
    data = evaluation.data
    shown = [*columns, ("data", data.n if data else 0, data.metrics if data else {})]
    head = "".join(f"<th>{escape(name)}<br><small>{f'n = {n:,}' if n else 'none known'}</small></th>" for name, n, _ in shown)
    rows = []
    for name in metric_names(columns):
        about = definition(name)
        cells = "".join(f"<td>{_cell(name, metrics.get(name), n)}</td>" for _, n, metrics in shown)
        kind = ' class="part"' if "/" in name else ""
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


def _types(evaluation: Evaluation) -> str:
    """The Wasserstein distances type by type, for those who want to know which bond is wrong."""
    reference = evaluation.reference
    if reference is None or not reference.counts:
        return ""
    out = []
    for family, title, unit in (("bond_length", "bonds", "Å"), ("angle", "angles", "°"), ("torsion", "torsions", "°")):
        tables = [by_type(s.values, reference.counts, family) for s in evaluation.sets]
        head = "".join(f"<th>{escape(s.name)}</th>" for s in evaluation.sets)
        rows = "".join(
            f"<tr><th>{escape(label)}</th><td>{100 * share:.1f}%</td>"
            + "".join(f"<td>{'–' if math.isnan(t[label][1]) else f'{t[label][1]:.4f}'}</td>" for t in tables)
            + "</tr>"
            for label, (share, _) in tables[0].items()
            if share >= 0.001
        )
        if rows and any(not math.isnan(value) for t in tables for _, value in t.values()):
            out.append(
                f"<details><summary>Wasserstein distances of {title} by type ({unit})</summary><table><thead><tr><th>type</th>"
                f"<th>share in the data</th>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
            )
    return "".join(out)


def _random(found: SetResult, blocks: dict[str, str]) -> str:
    chosen = np.random.default_rng(0).permutation(found.n)[:N_RANDOM].tolist()
    cards = "".join(_card(found, i, blocks) for i in chosen)
    return f'<h3>{escape(found.name)}</h3><div class="cards">{cards}</div>'


def _failures(found: SetResult, blocks: dict[str, str]) -> str:
    reasons = found.failures()
    if not reasons:
        return f"<h3>{escape(found.name)}</h3><p>Every sample is valid.</p>"
    order = np.random.default_rng(0).permutation(found.n).tolist()
    out = []
    for reason, count in list(reasons.items())[:N_REASONS]:
        chosen = [i for i in order if not found.verdicts[i].valid and found.verdicts[i].reason == reason][:N_FAILURES]
        cards = "".join(_card(found, i, blocks) for i in chosen)
        share = f"{count:,} of {found.n:,} ({100 * count / found.n:.1f} %)"
        out.append(f'<p class="reason"><b>{escape(reason)}</b>: {share}</p><div class="cards">{cards}</div>')
    rest = sum(list(reasons.values())[N_REASONS:])
    more = f"<p>{rest:,} more for {len(reasons) - N_REASONS} other reasons: see per_sample.csv.</p>" if rest else ""
    return f"<h3>{escape(found.name)}</h3>{''.join(out)}{more}"


def _card(found: SetResult, index: int, blocks: dict[str, str]) -> str:
    sample: Examined = found.samples[index]
    verdict = sample.verdict
    key = f"{found.name}/{index}"
    block = mol_block(sample)
    if block:
        blocks[key] = block
    text = verdict.smiles or verdict.formula or "–"
    if not verdict.valid:
        state, kind = verdict.reason, "bad"
    elif not verdict.connected:
        state, kind = f"{verdict.n_fragments} fragments", "bad"
    elif not verdict.molecule_stable:
        state, kind = "unstable valence", "bad"
    else:
        state, kind = "valid", "good"
    link = f' data-key="{escape(key, quote=True)}" tabindex="0"' if block else ""
    picture = formula_svg(sample) or '<div class="blank">no bonds to draw</div>'
    name = escape(verdict.name)
    return (
        f'<figure class="card {kind}"{link}>{picture}<figcaption><b title="{name}">{name}</b><br>'
        f'<span title="{escape(text)}">{escape(text)}</span><br><i title="{escape(state)}">{escape(state)}</i></figcaption>'
        "</figure>"
    )


def _definitions(evaluation: Evaluation) -> str:
    names = metric_names([(s.name, s.n, s.metrics) for s in evaluation.sets])
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(definition(name).text)} <small>{escape(definition(name).source)}</small></dd>"
        for name in names
        if "/" not in name
    )
    return f"<h2>Definitions</h2><dl>{items}</dl>"
