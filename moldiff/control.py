"""What a request may carry beyond numbers: specifications of control, checked before a model is loaded, and their combination.

A ``Spec`` says what is wanted in plain values (a formula, elements to leave out, a kept fragment, a reward); for every group of
equally large systems it makes the ``sampling.control.Control`` that brings it about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moldiff.sampling.control import Control

if TYPE_CHECKING:
    import torch

    from moldiff.core.vocabulary import Vocabulary
    from moldiff.diffusion.joint import Diffusion
    from moldiff.model_store import ModelInfo
    from moldiff.samples import Sample


@dataclass(frozen=True)
class Place:
    """Where a control acts: the sample indices of the rows, in their order, the size of all of them, and the model's parts.

    Each sample has ``rows_each`` rows, one after another; after ``finish`` the first of them is the sample. Rows at the end may
    repeat the last sample, to fill up the call; they come to nothing. A call for a part of the rows needs ``fewest`` of them for
    the same bits; None where only calls for all are alike.
    """

    indices: Sequence[int]
    size: int
    info: ModelInfo
    vocabulary: Vocabulary
    diffusion: Diffusion
    device: torch.device
    seed: int
    rows_each: int = 1
    fewest: int | None = None


class Spec(ABC):
    """One thing that is asked for. ``name`` is its key in run.yaml; subclasses are frozen dataclasses of plain values.

    ``needs_gradients`` keeps autograd usable while sampling; ``rows_each`` is the number of systems that go through the network
    for every sample that comes back.
    """

    name: str
    needs_gradients: bool = False
    #: Fields that this fixes for all or some atoms. A field that a model is told must be among those of a request.
    gives: tuple[str, ...] = ()
    rows_each: int = 1
    #: Network calls that each of these rows takes beside the steps.
    calls_beside: int = 0
    #: Times that every step of the grid is made: the grid then has fewer, so that a request spends the calls that it says.
    passes: int = 1
    #: The time at which the way back begins; below 1 the control's ``start`` makes the state there, and fewer calls are spent.
    begins: float = 1.0
    #: Two levels of noise over signal, high and low, between which the way is made again, and how often; the rest of the way then
    #: has longer steps, so that a request spends the calls that it says.
    returns: tuple[float, float, int] | None = None
    #: How often a sample that ``refuses`` gives a reason for is drawn anew; after that it has failed for this reason.
    redraws: int = 0
    #: Whether one that is refused to the last has failed; else it comes back as it is.
    insists: bool = True
    #: The sampler that this is made for, where none is asked for; None for the model's.
    sampler: str | None = None
    #: Whether positions may settle after the way down (see ``sampling.settle``), which this then does not see.
    settles: bool = False
    #: Whether this holds how many elements a crystal has, in the place of the specification that does nothing else.
    holds_elements: bool = False

    @abstractmethod
    def settings(self) -> Any:
        """Plain values for run.yaml: the same settings mean the same samples."""

    def check(self, info: ModelInfo) -> None:
        """Raise ``BadRequest`` where the model can't do it; called before weights are loaded."""
        return

    def cautions(self, info: ModelInfo) -> list[str]:
        """Sentences to show before drawing: what is asked can be done, but perhaps not well."""
        return []

    def calls(self, steps: int) -> int | None:
        """Network calls that a sample costs where this decides it, else None: then all its rows take all steps."""
        return None

    def notices(self) -> list[str]:
        """Sentences to show after drawing: what went wrong since the last call."""
        return []

    def check_beside(self, others: Sequence[Spec]) -> None:
        """Raise ``BadRequest`` for a combination that makes no sense, saying why."""
        return

    def beside(self, others: Sequence[Spec]) -> Spec | None:
        """The specification as it is beside these others, before it is checked; None where it gives way to them."""
        return self

    def admits(self, size: int) -> bool:
        """Whether systems of this many atoms can satisfy it."""
        return True

    def weigh(self, size: int, weight: int) -> int:
        """How often training systems of this many atoms, of which there are ``weight``, are as it asks."""
        return weight

    def for_n(self, n: int) -> Spec:
        """The specification as it is where ``n`` samples are asked for."""
        return self

    def total(self, n: int) -> int:
        """The number of samples where ``n`` are asked for: ``n`` of each of several things, maybe."""
        return n

    def wants(self) -> str:
        """Its name with what it asks of the number of atoms, for the message that no size will do."""
        return self.name

    def size_of(self, index: int) -> int | None:
        """The number of atoms of one sample where this decides it, else None."""
        return None

    def refuses(self, sample: Sample) -> str:
        """Why a finished sample is not what was asked for, or an empty string."""
        return ""

    @abstractmethod
    def control(self, place: Place) -> Control:
        """What acts on the systems of one tile."""

    def facts(self, index: int) -> Mapping[str, Any]:
        """What a sample carries in its ``info`` and in its row of samples.csv, such as the value that was asked for."""
        return {}
