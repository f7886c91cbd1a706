"""Time the evaluation of molecules on all cores, without xTB: training molecules with noise, bonds as they are known.

    python benchmarks/evaluate_speed_molecules.py --data qm9 --n 10000 --out benchmarks/results/evaluate_speed_molecules.json

Seconds are of the wall, from the file to the table, without a cache of earlier results; the machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

from moldiff import evaluate
from moldiff.data.location import find_data
from moldiff.data.store import Store

ORDERS = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


def written(store: Store, n: int, spread: float, path: Path) -> int:
    """Write n random systems as an SDF, their positions moved by ``spread`` (Å); returns how many there are."""
    rng = np.random.default_rng(0)
    with Chem.SDWriter(str(path)) as writer:
        for i in rng.choice(len(store), size=n, replace=False).tolist():
            system = store.system(i)
            mol = Chem.RWMol()
            for z, charge in zip(system["atom_types"].tolist(), system["charges"].tolist(), strict=True):
                atom = Chem.Atom(int(z))
                atom.SetFormalCharge(int(charge))
                mol.AddAtom(atom)
            bonds = system["bond_types"].numpy()
            for a, b in np.argwhere(np.triu(bonds) > 0).tolist():
                mol.AddBond(a, b, ORDERS[int(bonds[a, b])])
            conformer = Chem.Conformer(mol.GetNumAtoms())
            for k, x in enumerate(system["positions"].numpy() + rng.normal(0, spread, (mol.GetNumAtoms(), 3))):
                conformer.SetAtomPosition(k, Point3D(*x.tolist()))
            mol.AddConformer(conformer)
            writer.write(mol.GetMol())
    return n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="qm9")
    parser.add_argument("--n", type=int, default=10000)
    parser.add_argument("--spread", type=float, default=0.02)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "molecules.sdf"
        written(Store(find_data(args.data), "train"), args.n, args.spread, path)
        began = time.monotonic()
        result = evaluate(path, reference="qm9", cache=False)
        seconds = round(time.monotonic() - began, 1)
        began = time.monotonic()
        result.report(Path(folder) / "report.html")
        report = round(time.monotonic() - began, 1)
    sets = json.loads(result.to_json())["sets"]
    metrics = next(iter(sets.values()))["metrics"]
    found = {
        "n": args.n, "seconds": seconds, "seconds_of_report": report, "cores": os.cpu_count(),
        "validity": metrics["validity"]["value"], "edm_molecule_stability": metrics["edm_molecule_stability"]["value"],
    }  # fmt: skip
    print(found)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
