"""moldiff: 3D molecules and crystals by E(3)-equivariant diffusion, steered and evaluated."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Without this, Intel's products round differently by where in memory a matrix lies, and so by a sample's place in its batch. It
# counts only before the first product of the process, and costs no time that could be measured.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

if TYPE_CHECKING:
    from moldiff.evaluation.api import evaluate
    from moldiff.generator import Generator
    from moldiff.samples import SampleSet

_LAZY = {"Generator": "moldiff.generator", "SampleSet": "moldiff.samples", "evaluate": "moldiff.evaluation.api"}

__all__ = ["Generator", "SampleSet", "__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import the heavy parts only when somebody asks for them, so that ``import moldiff`` stays light."""
    if name == "evaluate":
        importlib.import_module("moldiff.judges").register_shipped()
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'moldiff' has no attribute {name!r}")
