"""Which device computes, and how many samples are in hand at once."""

from __future__ import annotations

import torch

from moldiff.errors import BadRequest, unknown
from moldiff.request import whole_number

#: Samples in hand at once where the batch size is ``auto``: enough to fill tiles of equal size.
AUTO_BATCH = {"cpu": 512}
AUTO_BATCH_ELSEWHERE = 4096


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is a CUDA GPU where there is one, else the CPU; raises ``BadRequest`` for a device that is not there."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = ["auto", "cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    known += ["cuda"] if torch.cuda.is_available() else []
    known += ["mps"] if torch.backends.mps.is_available() else []
    if str(device) not in known:
        raise unknown("device", str(device), known)
    return torch.device(device)


def check_batch_size(batch_size: int | str, device: torch.device) -> int:
    """The number of samples in hand at once; raises ``BadRequest`` for anything but ``auto`` and whole numbers above 0."""
    if batch_size == "auto":
        return AUTO_BATCH.get(device.type, AUTO_BATCH_ELSEWHERE)
    try:
        size = int(batch_size) if isinstance(batch_size, str) else whole_number("batch_size", batch_size)
    except (ValueError, BadRequest):
        raise BadRequest(f"batch size must be 'auto' or a whole number, found {batch_size!r}") from None
    if size < 1:
        raise BadRequest(f"batch size must be at least 1, found {size}")
    return size
