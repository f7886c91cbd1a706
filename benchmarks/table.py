"""Print metrics.json files side by side as a Markdown table, with the data column.

    python benchmarks/table.py benchmarks/results/qm9_100/metrics.json benchmarks/results/qm9_50/metrics.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROWS = (
    "atom_stability", "molecule_stability", "validity", "valid_connected", "uniqueness", "novelty", "vun",
    "edm_atom_stability", "edm_molecule_stability", "xtb_relaxation_energy", "xtb_relaxation_energy_mean", "xtb_rmsd",
    "bond_length_wasserstein", "angle_wasserstein", "torsion_wasserstein", "element_tv", "size_tv", "ring_size_tv",
    "functional_group_tv", "diversity", "mmff_strain",
)  # fmt: skip


def cell(metric: dict[str, Any] | None, unit: str) -> str:
    """A value with its 95 % interval, in the metric's unit."""
    if metric is None or metric.get("value") is None:
        return "–"
    factor, digits = (100, 2) if unit == "%" else (1, 3)
    text = f"{factor * metric['value']:.{digits}f}"
    if metric.get("low") is not None and metric.get("high") is not None:
        text += f" ({factor * metric['low']:.{digits}f}–{factor * metric['high']:.{digits}f})"
    return text


def main() -> None:
    """Read, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    found = [json.loads(path.read_text()) for path in args.files]
    columns = [(name, s["metrics"], s["n"]) for d in found for name, s in d["sets"].items()]
    columns.append((found[0]["data"]["title"] + " data", found[0]["data"]["metrics"], found[0]["data"]["n"]))
    print("| | unit | " + " | ".join(f"{name} (n = {n:,})" for name, _, n in columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    for row in ROWS:
        definition = found[0]["definitions"].get(row)
        if definition is not None and any(row in metrics for _, metrics, _ in columns):
            cells = " | ".join(cell(metrics.get(row), definition["unit"]) for _, metrics, _ in columns)
            print(f"| {definition['title']} | {definition['unit']} | {cells} |")


if __name__ == "__main__":
    main()
