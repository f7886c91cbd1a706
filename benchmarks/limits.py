"""Are asked elements and formulas kept? Atoms counted in the files that ``moldiff generate`` writes, without moldiff's readers.

    python benchmarks/limits.py --folder runs/limits --out benchmarks/results/limits.json

Element limits: molecules and crystals with ``--elements``, ``--exclude`` and ``--require``, few network calls, for the network
has no say in it: whatever it predicts, a forbidden element must not come, and few calls make its predictions worse. A leak is a
sample that has an element which was not allowed or lacks a required one. Formulas: those of random validation molecules, many
samples of each; exact means every element as often as asked and none besides. Samples that are no molecule count all the same,
and one without atoms in the file is wrong. ``--folder`` keeps the runs; those that are whole there are not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O"}
#: (name, model, what is asked, elements allowed or None, elements forbidden, elements required)
CASES: list[tuple[str, str, list[str], set[str] | None, set[str], set[str]]] = [
    ("molecules of C, H, O", "qm9", ["--elements", "C,H,O"], {"C", "H", "O"}, set(), set()),
    ("molecules without O", "qm9", ["--exclude", "O"], None, {"O"}, set()),
    ("molecules without C", "qm9", ["--exclude", "C"], None, {"C"}, set()),
    ("molecules without N, with O", "qm9", ["--exclude", "N", "--require", "O"], None, {"N"}, {"O"}),
    ("crystals of Li, Fe, O with Li", "mp20", ["--elements", "Li,Fe,O", "--require", "Li"], {"Li", "Fe", "O"}, set(), {"Li"}),
    ("crystals without O, F", "mp20", ["--exclude", "O,F"], None, {"O", "F"}, set()),
]


def sdf_counts(path: Path) -> list[Counter[str]]:
    """The elements of each record of a V2000 SDF, read off the columns of the atom block."""
    found = []
    for record in path.read_text(encoding="utf-8").split("$$$$\n")[:-1]:
        lines = record.split("\n")
        n = int(lines[3][:3])
        found.append(Counter(line[31:34].strip() for line in lines[4 : 4 + n]))
    return found


def extxyz_counts(path: Path) -> list[Counter[str]]:
    """The elements of each frame of an extxyz file, whose first column is the symbol."""
    lines, found, k = path.read_text(encoding="utf-8").split("\n"), [], 0
    while k < len(lines) and lines[k].strip():
        n = int(lines[k])
        found.append(Counter(line.split()[0] for line in lines[k + 2 : k + 2 + n]))
        k += n + 2
    return found


def run(folder: Path, n: int, steps: int, model: str, seed: int, asked: list[str]) -> list[Counter[str]]:
    """The elements of the samples of a run of ``moldiff generate``, made unless its folder is whole."""
    crystal = model.startswith("mp")
    if not (folder / "metrics.json").is_file():
        command = [sys.executable, "-c", "from moldiff.cli import main; main()", "generate", "--model", model, "-n", str(n)]
        command += ["--steps", str(steps), "--seed", str(seed), "--out", str(folder), *asked]
        command += ["--no-clusters"] if crystal else []
        command += ["--resume"] if folder.exists() else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return extxyz_counts(folder / "samples.extxyz") if crystal else sdf_counts(folder / "samples.sdf")


def leaks(counts: list[Counter[str]], allowed: set[str] | None, forbidden: set[str], required: set[str]) -> int:
    """How many samples have an element that they must not, lack one that they must have, or are empty."""
    return sum(
        not c or bool(set(c) & forbidden) or (allowed is not None and not set(c) <= allowed) or not required <= set(c)
        for c in counts
    )


def formulas(model: str, n: int, seed: int) -> list[Counter[str]]:
    """The elements of random validation molecules, n different formulas."""
    from moldiff.data.location import find_data
    from moldiff.data.store import Store
    from moldiff.model_store import model_info

    store = Store(find_data(model_info(model).config.data.name), "val")
    found: list[Counter[str]] = []
    for i in np.random.default_rng(seed).permutation(len(store)).tolist():
        one = Counter(SYMBOLS[int(z)] for z in store.system(i)["atom_types"])
        if one not in found:
            found.append(one)
        if len(found) == n:
            break
    return found


def main() -> None:
    """Generate, read, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=10_000, help="samples in all, a quarter a case")
    parser.add_argument("--crystals", type=int, default=10_000, help="samples in all, half a case")
    parser.add_argument("--steps", type=int, default=5, help="network calls a sample of the element limits")
    parser.add_argument("--formulas", type=int, default=20)
    parser.add_argument("--each", type=int, default=50, help="samples a formula")
    parser.add_argument("--formula-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="limits,formulas")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    kept: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    kept |= {"seed": args.seed}

    def write(part: str, name: str, values: dict[str, Any]) -> None:
        kept.setdefault(part, {})[name] = values
        print(name, values, flush=True)
        args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    if "formulas" in args.only:
        asked = formulas("qm9", args.formulas, args.seed)
        names = ["".join(f"{e}{c[e] if c[e] > 1 else ''}" for e in sorted(c)) for c in asked]
        args.folder.mkdir(parents=True, exist_ok=True)
        table = args.folder / "formulas.csv"
        table.write_text("formula\n" + "".join(f"{name}\n" for name in names), encoding="utf-8")
        made = run(args.folder / "formulas", args.each, args.formula_steps, "qm9", args.seed, ["--compositions", str(table)])
        exact = [c == asked[i % len(asked)] for i, c in enumerate(made)]  # sample i belongs to row i modulo their number
        metrics = json.loads((args.folder / "formulas" / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        values = {"n": len(made), "exact": sum(exact), "steps": args.formula_steps, "formulas": names}
        write("formulas", "qm9", {**values, "valid_connected": round(metrics["valid_connected"], 4)})
    for name, model, words, allowed, forbidden, required in CASES if "limits" in args.only else []:
        share = args.crystals // 2 if model == "mp20" else args.molecules // 4
        folder = args.folder / name.replace(" ", "_").replace(",", "")
        if share:
            made = run(folder, share, args.steps, model, args.seed, words)
            found = {"n": len(made), "leaks": leaks(made, allowed, forbidden, required), "steps": args.steps}
            write("limits", name, {**found, "command": " ".join(words), "atoms": dict(sum(made, Counter[str]()).most_common(12))})


if __name__ == "__main__":
    main()
