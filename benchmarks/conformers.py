"""Conformers of SMILES beside RDKit's: does one of them meet the DFT geometry of the validation molecule?

    python benchmarks/conformers.py --n 500 --ways embedding:0.55:clean:40:12 --out benchmarks/results/conformers.json

QM9 has one conformer a molecule, so K = 1 and 2K = 2 samples each. All that the methods are given is a SMILES with the stereo
marks of that geometry. A way is ``begin:strength:shown:calls:settle``: where the way begins (see ``moldiff.conformers``), how the
given classes are shown to the network, network calls of a whole way (what lies before ``strength`` is not spent), and how many of
these settle positions. Molecules are drawn by the hundred, so that those of equal size share a call.

RMSD is RDKit's GetBestRMS (equivalent atoms permuted), of heavy atoms and of all atoms (at most 4,000 permutations).
``coverage`` is the share of molecules whose least RMSD is below 0.5 Å, none counting as far; ``amr`` the mean of that least RMSD
where there is one; ``precision`` and ``amr_precision`` the same over single samples. ``first_refused`` counts first draws with
another stereo than asked for (mirror images are reflected before) or with distances of another graph, ``failed_samples`` those
that were wrong after all redraws, ``graph`` the share of samples from whose positions alone RDKit reads the asked graph.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from moldiff import Generator
from moldiff.chem.bonds import perceive_bonds
from moldiff.chem.graphs import Graph, read_graph, stereo_of
from moldiff.chem.molecules import build_molecule
from moldiff.conformers import GraphGiven
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.samples import Sample

PERMUTATIONS = 4_000


class GraphsGiven(GraphGiven):
    """``GraphGiven`` for many graphs at once: ``each`` samples of one after another, tiles across graphs of equal size."""

    graphs: list[Graph]
    each: int
    first: dict[int, str]

    def __init__(self, graphs: list[Graph], each: int, redraws: int, **options: Any) -> None:
        super().__init__(graphs[0], redraws=redraws, **options)
        for name, value in (("graphs", graphs), ("each", each), ("first", {})):
            object.__setattr__(self, name, value)

    @property
    def embeds(self) -> bool:  # type: ignore[override]
        return self.begin == "embedding"

    def of(self, index: int) -> Graph:
        return self.graphs[index // self.each]

    def admits(self, size: int) -> bool:
        return any(len(graph) == size for graph in self.graphs)

    def check(self, info: Any) -> None:
        for graph in self.graphs:
            GraphGiven(graph).check(info)

    def refuses(self, sample: Sample) -> str:
        why = super().refuses(sample)
        self.first.setdefault(sample.index, why)
        return why


def distances(sample: Any, reference: Any) -> tuple[float, float]:
    """RMSD of heavy atoms and of all atoms, the best over equivalent atoms; infinite without a sample."""
    from rdkit import Chem
    from rdkit.Chem import rdMolAlign

    if sample is None:
        return float("inf"), float("inf")
    heavy = rdMolAlign.GetBestRMS(Chem.RemoveAllHs(sample), Chem.RemoveAllHs(reference))
    every = rdMolAlign.GetBestRMS(Chem.Mol(sample), Chem.Mol(reference), maxMatches=PERMUTATIONS)
    return float(heavy), float(every)


def etkdg(graph: Graph, n: int, seed: int) -> list[Any]:
    """RDKit's conformers of a graph, from random coordinates where that fails; None where there are none."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    mol = Chem.Mol(graph.mol)
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed, settings.timeout = seed, 10
    made = list(rdDistGeom.EmbedMultipleConfs(mol, n, settings))
    if not made:
        settings.useRandomCoords, settings.maxIterations = True, 50
        made = list(rdDistGeom.EmbedMultipleConfs(mol, n, settings))
    found: list[Any] = [Chem.Mol(mol, confId=k) for k in made]
    return found + [None] * (n - len(found))


def relaxed(mol: Any) -> Any:
    """A conformer after an MMFF94 minimisation; as it was where MMFF94 lacks parameters."""
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers

    own = Chem.Mol(mol)  # MMFF leaves its own aromaticity in the molecule
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(own):
        rdForceFieldHelpers.MMFFOptimizeMolecule(own, maxIters=5000)
    made = Chem.Mol(mol)
    made.GetConformer().SetPositions(own.GetConformer().GetPositions())
    return made


def same_graph(mol: Any, graph: Graph) -> bool:
    """Whether the positions alone, with elements and total charge, give the asked graph (stereo aside)."""
    from rdkit import Chem

    numbers = [a.GetAtomicNum() for a in mol.GetAtoms()]
    x = mol.GetConformer().GetPositions()
    found = perceive_bonds(numbers, x, total_charge=int(graph.charges.sum())).bonds
    if found is None:
        return False
    read = build_molecule(np.array(numbers), x, found.matrix(), found.charges).mol
    return read is not None and Chem.MolToSmiles(read, isomericSmiles=False) == Chem.MolToSmiles(graph.mol, isomericSmiles=False)


def summary(made: list[list[Any]], references: list[Any], graphs: list[Graph], row: dict[str, Any]) -> dict[str, Any]:
    """The figures of one method, heavy atoms and all; ``made`` are its samples molecule by molecule."""
    d = np.array([[distances(m, ref) for m in mols] for mols, ref in zip(made, references, strict=True)])  # [M, k, 2]
    out: dict[str, Any] = {"n": len(made), "samples_each": d.shape[1], **row}
    for k, name in enumerate(("heavy", "all")):
        least, single = d[:, :, k].min(1), d[:, :, k].ravel()
        has = np.isfinite(least)
        out[name] = {
            "coverage": round(float((least < 0.5).mean()), 4), "amr": round(float(least[has].mean()), 4),
            "median": round(float(np.median(least)), 4), "precision": round(float((single < 0.5).mean()), 4),
            "amr_precision": round(float(single[np.isfinite(single)].mean()), 4),
        }  # fmt: skip
    out["without_any"] = int((~np.isfinite(d[:, :, 0].min(1))).sum())
    out["failed_samples"] = sum(m is None for mols in made for m in mols)
    right = [same_graph(m, g) for mols, g in zip(made, graphs, strict=True) for m in mols if m is not None]
    out["graph"] = round(float(np.mean(right)), 4)
    out["least_heavy"] = [round(float(v), 3) if np.isfinite(v) else None for v in d[:, :, 0].min(1)]
    return out


def main() -> None:
    """Sample, embed, compare."""
    from rdkit import Chem

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--ways", default="embedding:0.55:clean:40:12", help="as above, several with commas")
    parser.add_argument("--redraws", type=int, default=8, help="of samples whose stereo is wrong, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-rdkit", action="store_true", help="without ETKDG")
    parser.add_argument("--chunk", type=int, default=100, help="molecules that are drawn together")
    parser.add_argument("--folder", type=Path, default=Path("runs/conformers"), help="what was drawn there is not drawn again")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    references, graphs = [], []
    for i in np.random.default_rng(args.seed).permutation(len(store)).tolist():
        fields = (store.system(i)[k].numpy() for k in ("atom_types", "positions", "bond_types", "charges"))
        reference = build_molecule(*fields).mol
        if reference is None or len(graphs) == args.n:
            continue
        Chem.AssignStereochemistryFrom3D(reference)
        references.append(reference)
        graphs.append(read_graph(Chem.MolToSmiles(Chem.RemoveHs(reference))))
    rows: dict[str, Any] = {}
    kept = {"model": args.model, "samples": args.samples, "seed": args.seed, "redraws": args.redraws, "rows": rows}

    def write(name: str, values: dict[str, Any]) -> None:
        rows[name] = values
        print(name, {k: v for k, v in values.items() if k != "least_heavy"}, flush=True)
        args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    shares = {"graph": round(float(np.mean([same_graph(m, g) for m, g in zip(references, graphs, strict=True)])), 4)}
    shares["with_stereo"] = round(float(np.mean([bool(any(stereo_of(g.mol))) for g in graphs])), 4)
    write("DFT geometries", shares)
    if not args.no_rdkit:
        began = time.process_time()
        embedded = [etkdg(g, args.samples, args.seed + 1) for g in graphs]
        write("ETKDGv3", summary(embedded, references, graphs, {"cpu_s": round(time.process_time() - began, 1)}))
        better = [[None if m is None else relaxed(m) for m in mols] for mols in embedded]
        write("ETKDGv3 + MMFF94", summary(better, references, graphs, {"cpu_s": round(time.process_time() - began, 1)}))
    for way in args.ways.split(","):
        begin, strength, shown, calls, settle = way.split(":")
        spec = GraphsGiven(graphs, args.samples, args.redraws, begin=begin, strength=float(strength), shown=shown)
        flat: list[Any] = []
        first, spent, problems = [], 0.0, []
        for start in range(0, len(graphs), args.chunk):
            label = f"{Path(args.model).name}_{len(graphs)}_{way.replace(':', '_')}"
            file = args.folder / f"{label}_{args.redraws}_{args.samples}_{args.seed}_{start}_{args.chunk}.json"
            some = range(start * args.samples, min(start + args.chunk, len(graphs)) * args.samples)
            if not file.is_file():
                began = time.process_time()
                spec.first.clear()
                drawn = generator.sample(
                    len(some), start=some.start, seed=args.seed, steps=int(calls), settle=int(settle), batch_size=len(some),
                    controls=[spec],
                )  # fmt: skip
                part = {
                    "x": [None if s.positions is None else s.positions.tolist() for s in drawn],
                    "problems": [s.problem for s in drawn], "first": [spec.first.get(i, "") for i in some],
                    "cpu_s": time.process_time() - began,
                }  # fmt: skip
                args.folder.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(part), encoding="utf-8")
            part = json.loads(file.read_text(encoding="utf-8"))
            for i, x, problem in zip(some, part["x"], part["problems"], strict=True):
                g = spec.of(i)
                flat.append(None if problem else build_molecule(g.numbers, np.array(x), g.bonds, g.charges).mol)
            first += part["first"]
            problems += part["problems"]
            spent += part["cpu_s"]
        made = [flat[k : k + args.samples] for k in range(0, len(flat), args.samples)]
        facts = {
            "cpu_s": round(spent, 1), "first_refused": {p: first.count(p) for p in sorted(set(first)) if p},
            "failures": {p: problems.count(p) for p in sorted(set(problems)) if p},
        }  # fmt: skip
        start = f"from an embedding noised to {strength}" if begin == "embedding" else "from noise"
        name = f"moldiff {start}, classes {shown}, {calls} calls, of which {settle} settle"
        write(name, summary(made, references, graphs, facts))


if __name__ == "__main__":
    main()
