"""Compositional validity: whether oxidation states can balance, by SMACT.

Source: Davies et al., Chem 1, 617 (2016); Davies et al., J. Open Source Softw. 4, 1361 (2019). As a metric of generated crystals:
Xie et al., CDVAE, ICLR 2022, with the oxidation states that SMACT had then (its set ``smact14``), the Pauling test, and alloys
and single elements counted as valid.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from moldiff.errors import MoldiffError
from moldiff.evaluation.crystals.matching import TooLate, within
from moldiff.evaluation.parallel import Progress, map_items

OXIDATION_STATES = "smact14"
#: Seconds that a composition may take: the combinations of states grow with the power of the number of elements.
LIMIT = 20.0


def has_smact() -> bool:
    """Tell whether SMACT is installed."""
    from importlib.util import find_spec

    return find_spec("smact") is not None


def require_smact() -> str:
    """Return SMACT's version; raises MoldiffError, with the command that helps, when it is not installed."""
    from importlib.metadata import version

    if not has_smact():
        raise MoldiffError("compositional validity needs SMACT: pip install smact")
    return version("smact")


def smact_valid(formulas: Sequence[str], *, n_processes: int | None = None, progress: Progress | None = None) -> list[bool]:
    """Tell for each reduced formula whether it is compositionally valid; each different one is computed once.

    Raises MoldiffError when SMACT is not installed.
    """
    require_smact()
    different = sorted(set(formulas))
    found = map_items(_valid, different, _invalid, n_processes=n_processes, progress=progress)
    table = dict(zip(different, found, strict=True))
    return [table[formula] for formula in formulas]


def _valid(formula: str) -> bool:
    from smact.screening import smact_validity

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(within(LIMIT, smact_validity, formula, oxidation_states_set=OXIDATION_STATES))
        except TooLate:
            return False


def _invalid(formula: str, reason: str) -> bool:
    # An element that SMACT does not know has no states that could balance.
    return False
