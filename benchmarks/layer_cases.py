"""The layers of ``torch.nn`` that have parameters, for ``benchmarks/second_derivatives.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

EXAMPLES = 4
"""In a batch: fewer than a measurement takes to check itself, so nothing is cut."""
Call = Callable[[Any, Tensor], Any]
Layers = dict[str, "Case"]


@dataclass(frozen=True)
class Case:
    """A layer: what makes it, the shape of one example, and how it is called."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Call = lambda layer, x: layer(x)
    indices: int = 0
    """Inputs are integers below this, if it is not 0."""
    batch_statistics: bool = False
    cls: str | None = None
    """Its class in ``torch.nn``."""


def own(cls: str, shape: tuple[int, ...], *args: Any, call: Call | None = None, **kw: Any) -> Case:
    """Return the case of a class of ``torch.nn``, by name: older PyTorch lacks some."""
    indices, batch = kw.pop("indices", 0), kw.pop("batch_statistics", False)
    make = partial(_made, cls, *args, **kw)
    return Case(make, shape, call or Case.call, indices, batch, cls)


def _made(cls: str, *args: Any, **options: Any) -> nn.Module:
    layer: nn.Module = getattr(nn, cls)(*args, **options)
    return layer


def normed(norm: Callable[..., nn.Module], **options: Any) -> Case:
    """Return the case of a linear layer whose weight is computed from others."""
    return Case(lambda: norm(nn.Linear(4, 3), **options), (4,))


def first(layer: Any, x: Tensor) -> Any:
    """Return the first output of a recurrent layer, or of attention."""
    return layer(x)[0]


def of_itself(layer: Any, x: Tensor, **options: Any) -> Any:
    """Return self-attention of (N, T, E)."""
    return layer(x, x, x, **options)[0]


def other_embeddings(layer: Any, x: Tensor) -> Any:
    """Return attention of (N, T, 4) to keys of size 3 and values of size 2."""
    return layer(x, x[..., :3], x[..., 2:])[0]


def halves(layer: Any, x: Tensor) -> Any:
    """Give the two halves of each example to a layer of two inputs."""
    return layer(*x.chunk(2, dim=1))


def classes(layer: Any, x: Tensor) -> Any:
    """Return a loss of scores (N, C) and classes."""
    return layer(x, torch.arange(len(x), device=x.device) % x.shape[1])


S1, S2, S3 = (2, 6), (2, 5, 4), (2, 4, 4, 4)
"""Examples of two channels in one, two and three dimensions."""
SHAPES = {1: S1, 2: S2, 3: S3}
SEQUENCE = (3, 4)
"""Three steps of four features."""

CONVOLUTIONS: Layers = {}
for n, shape in SHAPES.items():
    for prefix in ("Conv", "ConvTranspose"):
        CONVOLUTIONS[f"{prefix}{n}d"] = own(f"{prefix}{n}d", shape, 2, 3, 2)
        CONVOLUTIONS[f"{prefix}{n}d (stride, groups, dilation)"] = own(
            f"{prefix}{n}d", shape, 2, 2, 2, stride=2, padding=1, groups=2, dilation=2
        )
        CONVOLUTIONS[f"Lazy{prefix}{n}d"] = own(f"Lazy{prefix}{n}d", shape, 3, 2)
    CONVOLUTIONS[f"Conv{n}d (circular)"] = own(
        f"Conv{n}d", shape, 2, 2, 3, padding=1, padding_mode="circular"
    )

NORMS: Layers = {}
for n, shape in SHAPES.items():
    for name, args in ((f"BatchNorm{n}d", (2,)), (f"LazyBatchNorm{n}d", ())):
        NORMS[name] = own(name, shape, *args)
    NORMS[f"BatchNorm{n}d (batch statistics)"] = own(
        f"BatchNorm{n}d", shape, 2, batch_statistics=True
    )
    for name, args in ((f"InstanceNorm{n}d", (2,)), (f"LazyInstanceNorm{n}d", ())):
        NORMS[name] = own(name, shape, *args, affine=True)
    NORMS[f"InstanceNorm{n}d (running statistics)"] = own(
        f"InstanceNorm{n}d", shape, 2, affine=True, track_running_stats=True
    )
NORMS |= {
    "SyncBatchNorm": own("SyncBatchNorm", S2, 2),
    "GroupNorm": own("GroupNorm", (4, 3), 2, 4),
    "LayerNorm": own("LayerNorm", (5,), 5),
    "LayerNorm (two dimensions)": own("LayerNorm", (2, 3), (2, 3)),
    "RMSNorm": own("RMSNorm", (5,), 5),
}

WEIGHTS: Layers = {
    "weight_norm (parametrization)": normed(parametrizations.weight_norm),
    "weight_norm (parametrization, dim=1)": normed(parametrizations.weight_norm, dim=1),
    "weight_norm (nn.utils)": normed(nn.utils.weight_norm),
    "weight_norm (nn.utils, dim=None)": normed(nn.utils.weight_norm, dim=None),
    "spectral_norm (parametrization)": normed(parametrizations.spectral_norm),
    "spectral_norm (nn.utils)": normed(nn.utils.spectral_norm),
    **{
        f"orthogonal ({kind})": normed(parametrizations.orthogonal, orthogonal_map=kind)
        for kind in ("matrix_exp", "cayley", "householder")
    },
}

DENSE: Layers = {
    "Linear": own("Linear", (4,), 4, 3),
    "LazyLinear": own("LazyLinear", (4,), 3),
    "Bilinear": own("Bilinear", (5,), 3, 2, 2, call=halves),
    "PReLU": own("PReLU", (4,)),
    "PReLU (per channel)": own("PReLU", S1, 2),
    "Embedding": own("Embedding", (3,), 5, 3, indices=5),
    "Embedding (max_norm)": own("Embedding", (3,), 5, 3, indices=5, max_norm=0.5),
    "Embedding (padding_idx)": own("Embedding", (3,), 5, 3, indices=5, padding_idx=1),
    "Embedding (scale_grad_by_freq)": own(
        "Embedding", (3,), 5, 3, indices=5, scale_grad_by_freq=True
    ),
    "Embedding (sparse)": own("Embedding", (3,), 5, 3, indices=5, sparse=True),
    **{
        f"EmbeddingBag ({mode})": own("EmbeddingBag", (3,), 5, 3, indices=5, mode=mode)
        for mode in ("mean", "sum", "max")
    },
    "EmbeddingBag (max_norm)": own("EmbeddingBag", (3,), 5, 3, indices=5, max_norm=0.5),
    "EmbeddingBag (sparse)": own("EmbeddingBag", (3,), 5, 3, indices=5, sparse=True),
    "AdaptiveLogSoftmaxWithLoss": own(
        "AdaptiveLogSoftmaxWithLoss",
        (6,),
        *(6, 5, [2, 3]),
        div_value=2.0,
        call=lambda layer, x: classes(layer, x).output,
    ),
    "LinearCrossEntropyLoss": own("LinearCrossEntropyLoss", (4,), 4, 4, call=classes),
}

RECURRENT: Layers = {
    **{
        name: own(name, SEQUENCE, 4, 2, batch_first=True, call=first)
        for name in ("RNN", "LSTM", "GRU")
    },
    "RNN (ReLU)": own("RNN", SEQUENCE, 4, 2, batch_first=True, nonlinearity="relu", call=first),
    **{
        f"{name} (two layers, bidirectional)": own(
            name, SEQUENCE, 4, 2, 2, batch_first=True, bidirectional=True, call=first
        )
        for name in ("LSTM", "GRU")
    },
    "LSTM (projection)": own("LSTM", SEQUENCE, 4, 3, proj_size=2, batch_first=True, call=first),
    "RNNCell": own("RNNCell", (4,), 4, 2),
    "LSTMCell": own("LSTMCell", (4,), 4, 2, call=first),
    "GRUCell": own("GRUCell", (4,), 4, 2),
}

_SMALL: dict[str, Any] = {"dim_feedforward": 5, "batch_first": True}


def encoder(**options: Any) -> nn.Module:
    """Return an encoder of two small layers."""
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def decoder() -> nn.Module:
    """Return a decoder of two small layers."""
    layer = nn.TransformerDecoderLayer(4, 2, dim_feedforward=5, batch_first=True)
    return nn.TransformerDecoder(layer, 2)


def sequences(layer: Any, x: Tensor) -> Any:
    """Give a sequence, and itself backwards, to a layer of two."""
    return layer(x, x.flip(1))


ATTENTION: Layers = {
    "MultiheadAttention": own(
        "MultiheadAttention", SEQUENCE, 4, 2, batch_first=True, call=of_itself
    ),
    "MultiheadAttention (need_weights=False)": own(
        "MultiheadAttention",
        SEQUENCE,
        *(4, 2),
        batch_first=True,
        call=partial(of_itself, need_weights=False),
    ),
    "MultiheadAttention (kdim, vdim, bias_kv)": own(
        "MultiheadAttention",
        SEQUENCE,
        *(4, 2),
        kdim=3,
        vdim=2,
        add_bias_kv=True,
        batch_first=True,
        call=other_embeddings,
    ),
    "TransformerEncoderLayer": own("TransformerEncoderLayer", SEQUENCE, 4, 2, **_SMALL),
    "TransformerEncoderLayer (GELU, norm_first)": own(
        "TransformerEncoderLayer", SEQUENCE, 4, 2, activation="gelu", norm_first=True, **_SMALL
    ),
    "TransformerDecoderLayer": own(
        "TransformerDecoderLayer", SEQUENCE, 4, 2, call=sequences, **_SMALL
    ),
    "TransformerEncoder": Case(encoder, SEQUENCE, cls="TransformerEncoder"),
    "TransformerDecoder": Case(decoder, SEQUENCE, sequences, cls="TransformerDecoder"),
    "Transformer": own("Transformer", SEQUENCE, 4, 2, 1, 1, call=sequences, **_SMALL),
}

WITH_PARAMETERS: Layers = DENSE | CONVOLUTIONS | NORMS | RECURRENT | ATTENTION | WEIGHTS
