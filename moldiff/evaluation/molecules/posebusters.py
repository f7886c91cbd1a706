"""PoseBusters' plausibility tests of single molecules, where that package is installed.

Source: Buttenschoen, Morris and Deane, Chem. Sci. 15, 3130 (2024).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from moldiff.errors import MoldiffError

if TYPE_CHECKING:
    from rdkit.Chem import Mol

#: Seconds a molecule may take; the energy check embeds 100 conformers.
TIME_LIMIT = 120.0


def require_posebusters() -> str:
    """Return the version of PoseBusters; raises MoldiffError, with the command that helps, when it is not installed."""
    try:
        import posebusters  # noqa: F401
    except ImportError as error:
        raise MoldiffError("PoseBusters is not installed: pip install posebusters") from error
    return version("posebusters")


@cache
def _busters(energy: bool) -> Any:
    from posebusters import PoseBusters

    return PoseBusters(config="mol" if energy else "mol_fast")


def bust(mol: Mol, *, energy: bool = True) -> dict[str, bool]:
    """Return the verdict of each test by its name; the molecule passes when all are true.

    ``energy`` runs the energy check too (UFF against an ensemble of conformers), as PoseBusters' mode ``mol`` does; without it
    the tests are those of ``mol_fast``. A test that could not be run has failed.
    """
    table = _busters(energy).bust([mol], None, None, full_report=False)
    # A test that could not be run is None, NaN or pandas' own NA, and its column may hold numpy's booleans, which JSON refuses.
    return {str(name): bool(value) for name, value in table.iloc[0].fillna(False).items()}
