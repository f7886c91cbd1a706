"""Which number format the wide products are computed in: bfloat16 where the hardware multiplies it, else float32."""

from __future__ import annotations

import functools

import torch

from moldiff.errors import BadRequest

#: What a network's option ``precision`` may be. "bfloat16" is what it was trained with, and a wish: see ``product_dtype``.
PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> str:
    """The precision if it is one of ``PRECISIONS``; raises ``BadRequest`` for another."""
    if precision not in PRECISIONS:
        raise BadRequest(f"precision must be {' or '.join(PRECISIONS)}, found {precision!r}")
    return precision


def product_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a network's wide products on a device.

    Processors without bfloat16 instructions emulate them, at a tenth of the speed of float32; there "bfloat16" means float32,
    which is no less exact. What is chosen depends on the hardware alone, so that a run repeats itself on its machine.
    """
    if precision == "bfloat16" and (device.type != "cpu" or cpu_has_bfloat16()):
        return torch.bfloat16
    return torch.float32


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (x86: AVX512-BF16 or AMX; others: as oneDNN says)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith(("AVX", "DEFAULT", "NO AVX")):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False
