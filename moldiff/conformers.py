"""Conformers: the graph of a molecule given, positions made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moldiff.chem.conformers import embed_graph
from moldiff.chem.graphs import Graph, compare_stereo, same_neighbours
from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams, stream_seed
from moldiff.errors import BadRequest, unknown
from moldiff.given import GRAPH_FIELDS, check_size, checked_strength, molecules_only
from moldiff.keep import check_known, refuse_two, shown_in, told_what_is_known
from moldiff.sampling.inpaint import Inpaint, Known

if TYPE_CHECKING:
    from moldiff.diffusion.joint import Diffusion
    from moldiff.model_store import ModelInfo
    from moldiff.samples import Sample
    from moldiff.sampling.control import Control

#: Conformers begin at RDKit's embedding noised to this time (benchmarks/conformers.py).
CONFORMER_STRENGTH = 0.55
BEGINNINGS = ("embedding", "noise")


@dataclass(frozen=True, eq=False)
class GraphGiven(Spec):
    """Every sample is a conformer of ``graph``: types, charges and bonds are its own, positions are made.

    ``begin`` "embedding" begins at RDKit's ETKDG positions, another for each sample, noised to time ``strength``: a network
    that was not trained with known graphs finds the way from noise to them too seldom (docs/experiments.md). "noise" is that
    whole way, and what is taken where RDKit embeds nothing. Stereo marks of the SMILES are respected: a mirror image is
    reflected, any other wrong one drawn anew, and so are positions from which another graph is read.
    """

    graph: Graph
    shown: str | None = None  # how known classes are shown to the network: "clean", "noisy", or as suits the beginning
    redraws: int = 8
    begin: str = "embedding"
    strength: float = CONFORMER_STRENGTH
    name = "smiles"
    gives = GRAPH_FIELDS
    settles = True

    @cached_property
    def embeds(self) -> bool:
        """Whether the way begins at an embedding: asked for, and RDKit finds one."""
        return self.begin == "embedding" and embed_graph(self.graph.mol, 0) is not None

    @property
    def begins(self) -> float:  # type: ignore[override]
        """The way begins where noising ended."""
        return self.strength if self.embeds else 1.0

    def settings(self) -> Any:
        return {
            "smiles": self.graph.smiles, "shown": self.shown, "redraws": self.redraws, "begin": self.begin,
            "strength": self.strength,
        }  # fmt: skip

    def check(self, info: ModelInfo) -> None:
        molecules_only(info, "a SMILES")
        label = f"SMILES {self.graph.smiles}"
        missing = [name for name in GRAPH_FIELDS if name not in info.config.fields]
        if missing:
            raise BadRequest(f"{info.name} does not make {missing[0]}, so that no graph can be given to it")
        if self.begin not in BEGINNINGS:
            raise unknown("beginning", self.begin, BEGINNINGS)
        checked_strength(self.strength)
        check_known(info, label, self.graph.numbers, self.graph.charges, self.graph.bonds)
        check_size(info, label, len(self.graph))

    def cautions(self, info: ModelInfo) -> list[str]:
        if self.embeds or told_what_is_known(info):
            return []
        why = f"{info.name} was not trained with known graphs"
        return [f"{why}: few conformers that begin at noise may fit SMILES {self.graph.smiles}"]

    def check_beside(self, others: Sequence[Spec]) -> None:
        refuse_two(self, others)

    def admits(self, size: int) -> bool:
        return size == len(self.graph)

    def wants(self) -> str:
        return f"a SMILES of {len(self.graph)} atoms"

    def size_of(self, index: int) -> int | None:
        return len(self.of(index))

    def of(self, index: int) -> Graph:
        """The graph of one sample."""
        return self.graph

    def refuses(self, sample: Sample) -> str:
        if sample.positions is None:
            return ""
        graph = self.of(sample.index)
        if compare_stereo(graph, sample.positions) != "right":
            return "stereochemistry other than asked for"
        return "" if same_neighbours(graph, sample.positions) else "positions of another graph than asked for"

    def control(self, place: Place) -> Control:
        graphs = [self.of(i) for i in place.indices]
        rows: list[dict[str, torch.Tensor]] = []
        for i, graph in zip(place.indices, graphs, strict=True):
            values = {"atom_types": graph.numbers, "charges": graph.charges, "bond_types": graph.bonds}
            row = {name: torch.from_numpy(np.array(value)) for name, value in values.items()}
            if self.embeds:
                x = embed_graph(graph.mol, stream_seed(place.seed, i))
                x = embed_graph(graph.mol, 0) if x is None else x
                x = np.full((len(graph), 3), np.nan) if x is None else x  # the sample then fails
                row["positions"] = torch.from_numpy(x - x.mean(0)).float()
            rows.append(row)
        begun = place.vocabulary.encode(AtomBatch.from_list(rows)).to(place.device)
        known = Known(begun, dict.fromkeys(GRAPH_FIELDS, place.size))
        shown = self.shown or ("clean" if self.embeds else shown_in(place.info))
        return _Conformers(known, graphs, shown, self.strength if self.embeds else None)


class _Conformers(Inpaint):
    """Graphs given; mirror images of what they ask for are reflected at the end, which costs nothing.

    With a ``strength`` the way begins there, at the positions beside what is known.
    """

    def __init__(self, known: Known, graphs: Sequence[Graph], shown: str, strength: float | None) -> None:
        super().__init__(known, shown=shown)
        self.graphs, self.strength = graphs, strength

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        xt = super().start(xt, diffusion, rng)
        if self.strength is None:
            return xt
        return diffusion.noise(self.known.truth, torch.full((xt.n_systems,), self.strength, device=xt.device), rng)

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        made = super().finish(x0, diffusion)
        signs = [-1.0 if _mirrored(g, x) else 1.0 for g, x in zip(self.graphs, made.positions.cpu().numpy(), strict=True)]
        return made.replace(positions=made.positions * torch.tensor(signs, device=made.device)[:, None, None])


def _mirrored(graph: Graph, x: Any) -> bool:
    return bool(np.isfinite(x).all()) and compare_stereo(graph, x) == "mirror"
