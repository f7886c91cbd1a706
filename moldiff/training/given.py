"""Training with known entries: some systems of a batch are shown with their graph, their places or a fragment of them clean.

A network that learns so completes fragments, makes conformers and settles positions as tasks that it knows, where replacement
alone (``sampling.inpaint``) asks a network for something that it never saw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from moldiff.config import Config
from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.errors import BadRequest
from moldiff.sampling.inpaint import Known


@dataclass(frozen=True)
class Shares:
    """Shares of the systems whose graph (all classes), whose places (positions) and of which a connected part is known."""

    graph: float = 0.0
    places: float = 0.0
    parts: float = 0.0

    def any(self) -> bool:
        """Whether anything is ever known."""
        return self.graph + self.places + self.parts > 0


def check_shares(config: Config) -> None:
    """Raise ``BadRequest`` where known entries are to be shown to a network that is not told of them, or of no molecules."""
    t = config.training
    if t.given_graph + t.given_places + t.given_parts == 0:
        return
    if t.given_graph + t.given_places + t.given_parts > 1:
        raise BadRequest("training.given_graph, given_places and given_parts are shares of the systems: their sum is at most 1")
    if not getattr(config.network, "given", False):
        raise BadRequest("training.given_... needs a network that is told what is known: set network.given to true")
    missing = [name for name in ("positions", "atom_types", "bond_types") if name not in config.fields]
    if missing:
        raise BadRequest(f"training.given_... is for models of molecules that make {missing[0]}, which {config.name} does not")


def random_known(x0: AtomBatch, names: Iterable[str], shares: Shares, generator: torch.Generator | None) -> Known:
    """What is known of the fields ``names`` of the clean encoded systems [S] of a molecular batch, drawn anew for each of them.

    A part is a fragment as people keep it: heavy atoms that hang together, with all of their hydrogens or none, and for one
    half of the systems also which of its atoms have no bonds to others.
    """
    s = x0.n_systems
    coin = torch.rand(s, generator=generator).to(x0.device)
    graph = coin < shares.graph
    places = ~graph & (coin < shares.graph + shares.places)
    parts = ~graph & ~places & (coin < shares.graph + shares.places + shares.parts)
    atoms, pairs = random_parts(x0, generator)
    atoms, pairs = atoms & parts[:, None], pairs & parts[:, None, None]
    masks: dict[str, int | Tensor] = {}
    for name in names:
        scope = field(name).scope
        if scope == "pair":
            masks[name] = pairs | (x0.pair_mask & graph[:, None, None])
        elif scope == "atom":
            whole = graph if field(name).categorical else places
            masks[name] = atoms | (x0.mask & whole[:, None])
    return Known(x0, masks)


def random_parts(x0: AtomBatch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A random fragment of each system by its bonds: atoms bool [S, N], and the pairs of which the bond is known, bool [S, N, N].

    The heavy atoms nearest to a random one, where every bond has a random length; their number is uniform from 1 to all but one.
    Vocabularies that begin with hydrogen (class 0) are taken as molecules with hydrogens.
    """
    s, n = x0.mask.shape
    device = x0.device

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    bonded = (x0.bond_types > 0) & x0.pair_mask
    hydrogen = (x0.atom_types == 0) & x0.mask
    heavy = x0.mask & ~hydrogen
    length = random(s, n, n)
    length = torch.where(bonded & heavy[:, :, None] & heavy[:, None, :], 0.05 + length + length.transpose(1, 2), torch.inf)
    first = torch.where(heavy, random(s, n), -1.0).argmax(1)
    far = torch.full((s, n), torch.inf, device=device)
    far[torch.arange(s, device=device), first] = 0.0
    for _ in range(12):  # farther than this no two heavy atoms of a small molecule are; larger parts are then a little smaller
        far = torch.minimum(far, (far[:, :, None] + length).amin(1))
    count = heavy.sum(1)
    wanted = 1 + (random(s) * (count - 1).clamp_min(0)).long()
    rank = far.argsort(1).argsort(1)
    kept = heavy & (rank < wanted[:, None]) & far.isfinite()
    with_hydrogens = random(s) < 0.5
    theirs = hydrogen & (bonded & kept[:, None, :]).any(2)
    kept = kept | (theirs & with_hydrogens[:, None])
    inside = kept[:, :, None] & kept[:, None, :]
    closed = kept & ~(bonded & ~kept[:, None, :]).any(2) & (random(s) < 0.5)[:, None]
    pairs = inside | closed[:, :, None] | closed[:, None, :]
    return kept, pairs & x0.pair_mask
