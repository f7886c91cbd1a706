"""Fine-tuning on 1,000 molecules with a property that the model never saw: its error before and after, and validity.

    python benchmarks/fine_tune.py --model qm9 --property MolLogP --work runs/fine-tune --out benchmarks/results/fine_tune.json

The molecules are random ones of the validation part, the property an RDKit descriptor, which is judged exactly. It does what a
user would: ``moldiff train --from MODEL --data FOLDER --condition NAME``, with its defaults. Targets are those of other
validation molecules, with their sizes. With ``--judge`` a regressor is trained further on the same molecules and chooses among
candidates. "Before" is the model that began, with the same sizes, compared with the same targets.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moldiff import Generator
from moldiff.control import Place, Spec
from moldiff.data.location import find_data
from moldiff.data.store import Store, select, write_store
from moldiff.label import compute_rdkit
from moldiff.samples import SampleSet
from moldiff.sampling.control import Control


class Sizes(Spec):
    """Sample i has the i-th of these sizes."""

    name = "sizes"

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def settings(self) -> Any:
        return self.sizes

    def size_of(self, index: int) -> int:
        return self.sizes[index]

    def control(self, place: Place) -> Control:
        return Control()


def descriptor(store: Store, index: int, name: str) -> float:
    """The descriptor of one molecule of a store."""
    system = {key: value.numpy() for key, value in store.system(index).items() if isinstance(value, torch.Tensor)}
    return float(compute_rdkit((name,), system)[name])


def of_samples(samples: SampleSet, name: str) -> np.ndarray:
    """The descriptor of each valid, connected sample; NaN for the others."""
    from rdkit.Chem import Descriptors

    function = dict(Descriptors.descList)[name]
    found = []
    for mol, verdict in zip(samples.to_rdkit(), samples.verdicts, strict=True):
        found.append(float(function(mol)) if mol is not None and verdict.valid and verdict.connected else np.nan)
    return np.array(found)


def row(samples: SampleSet, wanted: np.ndarray, name: str) -> dict[str, float]:
    """Error against what was wanted, and validity."""
    error = np.abs(of_samples(samples, name) - wanted)
    good = error[np.isfinite(error)]
    return {
        "mae": round(float(good.mean()), 4), "stderr": round(float(good.std(ddof=1) / np.sqrt(len(good))), 4),
        "valid_connected": round(len(good) / len(error), 4), "n": len(error),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--property", default="MolLogP", help="an RDKit descriptor")
    parser.add_argument("--molecules", type=int, default=1000)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", default="1.0,1.5")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--judge", default="", help="a regressor that learns the property too, and chooses of 8 (qm9-regressor)")
    parser.add_argument("--judge-minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data set and the run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    name = args.property
    base = Generator.from_pretrained(args.model)
    store = Store(find_data(base.config.data.name), "val")
    order = np.random.default_rng(args.seed).permutation(len(store)).tolist()
    mine, others = order[: args.molecules], order[args.molecules : args.molecules + 2000]
    columns = {key: store.tensor(key) for key in store.names if not key.startswith("property.")}
    chosen = select(columns, torch.tensor(mine))
    values = np.array([descriptor(store, i, name) for i in mine])
    data = {key: value.numpy() for key, value in chosen.items()} | {f"property.{name}": values.astype(np.float32)}
    write_store(args.work / "mine", {"train": data}, {"name": "mine", "kind": "molecule"})
    real = np.array([descriptor(store, i, name) for i in others])
    sizes = [int(store.sizes[i]) for i in others]
    wanted, asked_sizes = real[: args.n], sizes[: args.n]
    alike = [np.abs(real[np.array(sizes) == n] - w).mean() for n, w in zip(asked_sizes, wanted, strict=True)]
    result: dict[str, Any] = {
        "model": args.model, "property": name, "molecules": args.molecules, "minutes": args.minutes, "steps": args.steps,
        "seed": args.seed, "size_shuffle": round(float(np.mean(alike)), 4),
        "random": round(float(np.abs(real[:, None] - wanted).mean()), 4),
        "before": row(base.sample(args.n, seed=1, steps=args.steps, controls=[Sizes(asked_sizes)]), wanted, name),
    }  # fmt: skip
    print(result, flush=True)
    from moldiff.train import train

    began = time.monotonic()
    model = train(
        None, [f"training.max_minutes={args.minutes}"], args.work / "run", data=args.work / "mine", start_from=args.model,
        conditions=[name], threads=1, accelerator="cpu",
    )  # fmt: skip
    assert model is not None
    result["training_seconds"] = round(time.monotonic() - began)
    tuned = Generator.from_pretrained(model.folder)
    targets = [{name: float(w), "n_atoms": n} for w, n in zip(wanted, asked_sizes, strict=True)]
    for guidance in (float(word) for word in args.guidance.split(",")):
        samples = tuned.sample(args.n, seed=1, steps=args.steps, conditions=targets, guidance=guidance)
        result[f"after, guidance {guidance:g}"] = row(samples, wanted, name)
        print(guidance, result[f"after, guidance {guidance:g}"], flush=True)
    if args.judge:
        began = time.monotonic()
        judge = train(
            None, [f"training.max_minutes={args.judge_minutes}"], args.work / "judge", data=args.work / "mine",
            start_from=args.judge, conditions=[name], threads=1, accelerator="cpu",
        )  # fmt: skip
        assert judge is not None
        result["training_seconds_judge"] = round(time.monotonic() - began)
        for k in (4, 8):
            way = {"steps": 25, "settle": 8, "candidates": k, "judge": judge.folder}
            samples = tuned.sample(args.n, seed=1, conditions=targets, **way)
            result[f"after, nearest of {k} of 25 calls"] = row(samples, wanted, name)
            print(k, result[f"after, nearest of {k} of 25 calls"], flush=True)
    result["after, not conditioned"] = row(
        tuned.sample(args.n, seed=1, steps=args.steps, controls=[Sizes(asked_sizes)]), wanted, name
    )
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(result, flush=True)


if __name__ == "__main__":
    main()
