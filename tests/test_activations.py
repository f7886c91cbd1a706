"""An activation gives a number the same bits wherever it stands."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moldiff.denoisers.layers.activations import silu


@pytest.mark.parametrize("width", [3, 8, 12, 16, 48])
def test_the_bits_of_a_row_do_not_depend_on_its_place(width):
    x = torch.randn(37, 5, width, generator=torch.Generator().manual_seed(0))
    whole = silu(x)
    assert torch.allclose(whole, F.silu(x), atol=1e-6)
    for n in (1, 2, 5):
        for i in range(37 - n):
            assert torch.equal(silu(x[i : i + n]), whole[i : i + n])
