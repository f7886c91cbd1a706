"""What holding valences does: molecules of the same seed with it and without, by number of network calls.

    python benchmarks/valences.py --n 512 --steps 20,50 --seed 77 --out benchmarks/results/valences.json

``read`` is the share whose graph was right (every valence in the table, one piece) as each atom and bond was read by itself, and
``made`` after they were read together; the metrics are those of the finished samples, none left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from moldiff import Generator
from moldiff.chem.valence import VALENCES
from moldiff.core.batch import AtomBatch
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.joint_graph import Graph, JointGraph

SHOWN = ("molecule_stability", "valid_connected", "uniqueness", "novelty", "edm_molecule_stability")
COUNTS = {"systems": 0, "read": 0, "made": 0, "seconds": 0.0}


def right(batch: AtomBatch, vocabulary: object) -> int:
    """How many systems have a right graph; all have the batch's largest size."""
    physical = vocabulary.decode(batch)  # type: ignore[attr-defined]
    rows = zip(physical.atom_types.numpy(), physical.charges.numpy(), physical.bond_types.numpy(), strict=True)
    return sum(Graph(z, q, b).right(VALENCES) for z, q, b in rows)


class Counted(JointGraph):
    """Counts what is right before and after, and the time that reading together takes."""

    def read(self, prediction: AtomBatch, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        begun = time.perf_counter()
        made = super().read(prediction, x0, diffusion)
        COUNTS["seconds"] += time.perf_counter() - begun
        COUNTS["systems"] += x0.n_systems
        COUNTS["read"] += right(x0, self.vocabulary)
        COUNTS["made"] += right(made, self.vocabulary)
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--steps", default="20,50")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--asked", default="{}", help="JSON of other options, such as {\"exclude\": \"N\"}")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import moldiff.sampling.joint_graph as module

    module.JointGraph = Counted  # type: ignore[misc]
    generator = Generator.from_pretrained(args.model)
    asked = json.loads(args.asked)
    rows = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else []
    for steps in map(int, args.steps.split(",")):
        for valences in ("free", "held"):
            COUNTS.update(systems=0, read=0, made=0, seconds=0.0)
            begun = time.perf_counter()
            metrics = generator.sample(args.n, seed=args.seed, steps=steps, valences=valences, **asked).metrics()
            row = {"model": args.model, "steps": steps, "n": args.n, "seed": args.seed, **asked, "valences": valences}
            row |= {name: metrics[name] for name in SHOWN} | {"wall_s": round(time.perf_counter() - begun, 1)}
            if COUNTS["systems"]:
                row |= {"read": COUNTS["read"] / COUNTS["systems"], "made": COUNTS["made"] / COUNTS["systems"]}
                row["seconds_read_together"] = round(COUNTS["seconds"], 2)
            rows.append(row)
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(row, flush=True)


if __name__ == "__main__":
    main()
