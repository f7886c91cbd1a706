"""Data sets: sources, the on-disk store, PyG data sets, training batches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moldiff.data.dataset import MolDataset
    from moldiff.data.info import DataInfo, data_info
    from moldiff.data.store import Store

_LAZY = {
    "DataInfo": "moldiff.data.info",
    "MolDataset": "moldiff.data.dataset",
    "Store": "moldiff.data.store",
    "data_info": "moldiff.data.info",
}

__all__ = ["DataInfo", "MolDataset", "Store", "data_info"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only: PyG alone takes seconds."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'moldiff.data' has no attribute {name!r}")
