"""Arrays of what a metric is given: numpy's, lists, and tensors of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray


def as_array(values: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return values as an array, those of a tensor with a graph, on a GPU or in bfloat16 too.

    >>> import torch
    >>> as_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).tolist()
    [1.0, 1.0]
    """
    if isinstance(values, list | tuple) and any(hasattr(value, "detach") for value in values):
        return np.asarray([as_array(value) for value in values], dtype=dtype)
    return np.asarray(_of_numpy(values), dtype=dtype)


def _of_numpy(values: Any) -> Any:
    """Return a tensor as one that numpy can read, and anything else as it is."""
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    # numpy knows float16 of these, and no bfloat16
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize <= 2 else tensor
