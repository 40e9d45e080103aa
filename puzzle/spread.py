"""How sure a mean is."""

from __future__ import annotations

import math

import torch


def std_error(values: torch.Tensor) -> float:
    """Of the mean of independent values [N]; NaN, unknown, where there is one value."""
    if len(values) < 2:
        return math.nan
    return float(values.std() / math.sqrt(len(values)))
