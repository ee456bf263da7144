"""The layers and losses of ``torch.nn`` without parameters, for ``second_derivatives.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from layer_cases import S1, S2, S3, SHAPES, Layers, classes, halves, own
from torch import Tensor, nn
from torch.nn import functional as F


def thirds(layer: Any, x: Tensor) -> Any:
    """Give the three thirds of each example to a loss of three inputs."""
    return layer(*x.chunk(3, dim=1))


def near(layer: Any, x: Tensor) -> Any:
    """Return a loss of real outputs and targets of the same shape."""
    return layer(x, 0.4 * torch.arange(x.numel()).to(x).reshape(x.shape).cos())


def signs(layer: Any, x: Tensor) -> Any:
    """Return a loss of outputs and targets of -1 and 1."""
    return layer(x, torch.arange(x.numel(), device=x.device).reshape(x.shape) % 2 * 2.0 - 1)


def shares(layer: Any, x: Tensor) -> Any:
    """Return a loss of outputs and targets in [0, 1]."""
    return layer(x, (torch.arange(x.numel()).to(x).reshape(x.shape).cos() + 1) / 2)


def padded_labels(layer: Any, x: Tensor) -> Any:
    """Return a loss of scores (N, C) and lists of labels that end with -1."""
    labels = torch.full(x.shape, -1, device=x.device)
    labels[:, 0] = torch.arange(len(x)) % x.shape[1]
    return layer(x, labels)


def pair_signs(layer: Any, x: Tensor) -> Any:
    """Return a loss of two inputs (N, ...) and targets of -1 and 1 (N,)."""
    one, two = x.chunk(2, dim=1)
    one, two = (one, two) if isinstance(layer, nn.CosineEmbeddingLoss) else (one[:, 0], two[:, 0])
    return layer(one, two, torch.arange(len(x)).to(x) % 2 * 2 - 1)


def spread_of(layer: Any, x: Tensor) -> Any:
    """Return the loss of means and variances, the two halves of each example."""
    mean, log_variance = x.chunk(2, dim=1)
    return layer(mean, torch.zeros_like(mean), log_variance.exp())


def log_classes(layer: Any, x: Tensor) -> Any:
    """Return a loss of log-probabilities (N, C) and classes."""
    return classes(layer, x.log_softmax(1))


def log_maps(layer: Any, x: Tensor) -> Any:
    """Return a loss of log-probabilities (N, C, H, W) and classes (N, H, W)."""
    targets = torch.arange(x[:, 0].numel(), device=x.device).reshape(x[:, 0].shape)
    return layer(x.log_softmax(1), targets % x.shape[1])


def alignment(layer: Any, x: Tensor) -> Any:
    """Return the CTC loss of scores (N, T, C), with two labels each."""
    count, steps = x.shape[:2]
    labels = torch.tensor([[1, 2]], device=x.device).expand(count, 2)
    lengths = torch.full((count,), steps), torch.full((count,), 2)
    return layer(x.log_softmax(-1).transpose(0, 1), labels, *lengths)


def unpooled(layer: Any, x: Tensor, pool: Callable[..., Any]) -> Any:
    """Return the largest values of an input, put back where they were."""
    return layer(*pool(x, 2, return_indices=True))


ACTIVATIONS: Layers = {
    name: own(name, (6,), *args)
    for name, args in {
        **dict.fromkeys(
            ("CELU", "ELU", "SELU", "GELU", "GLU", "SiLU", "Mish", "ReLU", "ReLU6"), ()
        ),
        **dict.fromkeys(("LeakyReLU", "RReLU", "Hardsigmoid", "Hardswish", "Hardtanh"), ()),
        **dict.fromkeys(("Sigmoid", "LogSigmoid", "Tanh", "Tanhshrink", "Softplus"), ()),
        **dict.fromkeys(("Softsign", "Hardshrink", "Softshrink"), ()),
        **dict.fromkeys(("Softmax", "LogSoftmax", "Softmin"), (1,)),
        "Threshold": (0.1, 0.2),
    }.items()
} | {
    "GELU (tanh)": own("GELU", (6,), approximate="tanh"),
    "Softmax2d": own("Softmax2d", S2),
}

POOLS: Layers = {}
PADS: Layers = {}
for n, shape in SHAPES.items():
    POOLS |= {f"{kind}{n}d": own(f"{kind}{n}d", shape, 2) for kind in ("AvgPool", "MaxPool")}
    POOLS |= {
        f"Adaptive{kind}{n}d": own(f"Adaptive{kind}{n}d", shape, 2)
        for kind in ("AvgPool", "MaxPool")
    }
    POOLS[f"LPPool{n}d"] = own(f"LPPool{n}d", shape, 2, 2)
    pool = getattr(F, f"max_pool{n}d")
    POOLS[f"MaxUnpool{n}d"] = own(f"MaxUnpool{n}d", shape, 2, call=partial(unpooled, pool=pool))
    PADS |= {
        f"{kind}Pad{n}d": own(f"{kind}Pad{n}d", shape, 1)
        for kind in ("Circular", "Reflection", "Replication", "Zero")
    }
    PADS[f"ConstantPad{n}d"] = own(f"ConstantPad{n}d", shape, 1, 0.5)
for n, shape in ((2, S2), (3, S3)):
    kind = f"FractionalMaxPool{n}d"
    POOLS[kind] = own(kind, shape, 2, output_size=2, _random_samples=torch.full((4, 2, n), 0.3))

SHAPED: Layers = {
    "LocalResponseNorm": own("LocalResponseNorm", S2, 2),
    "CrossMapLRN2d": own("CrossMapLRN2d", S2, 2),
    "ChannelShuffle": own("ChannelShuffle", (4, 2), 2),
    "PixelShuffle": own("PixelShuffle", (4, 2, 2), 2),
    "PixelUnshuffle": own("PixelUnshuffle", (1, 4, 4), 2),
    "Fold": own("Fold", (4, 4), (3, 3), 2),
    "Unfold": own("Unfold", S2, 2),
    "Flatten": own("Flatten", S2),
    "Unflatten": own("Unflatten", (6,), 1, (2, 3)),
    "Identity": own("Identity", (6,)),
    "Upsample (bicubic)": own("Upsample", S2, scale_factor=2, mode="bicubic"),
    "Upsample (linear)": own("Upsample", S1, scale_factor=2, mode="linear"),
    "Upsample (trilinear)": own("Upsample", S3, scale_factor=2, mode="trilinear"),
    "UpsamplingBilinear2d": own("UpsamplingBilinear2d", S2, scale_factor=2),
    "UpsamplingNearest2d": own("UpsamplingNearest2d", S2, scale_factor=2),
    **{name: own(name, S1) for name in ("Dropout", "Dropout1d", "AlphaDropout")},
    "Dropout2d": own("Dropout2d", S2),
    **{name: own(name, S3) for name in ("Dropout3d", "FeatureAlphaDropout")},
    "CosineSimilarity": own("CosineSimilarity", (6,), call=halves),
    "PairwiseDistance": own("PairwiseDistance", (6,), call=halves),
}

LOSSES: Layers = {
    **{
        name: own(name, (6,), call=near)
        for name in ("HuberLoss", "L1Loss", "MSELoss", "PoissonNLLLoss", "SmoothL1Loss")
    },
    **{name: own(name, (6,), call=classes) for name in ("CrossEntropyLoss", "MultiMarginLoss")},
    "NLLLoss": own("NLLLoss", (6,), call=log_classes),
    "NLLLoss2d": own("NLLLoss2d", S2, call=log_maps),
    "CrossEntropyLoss (smoothed)": own("CrossEntropyLoss", (6,), label_smoothing=0.1, call=classes),
    "BCELoss": own("BCELoss", (6,), call=lambda layer, x: shares(layer, x.sigmoid())),
    "BCEWithLogitsLoss": own("BCEWithLogitsLoss", (6,), call=shares),
    "CTCLoss": own("CTCLoss", (5, 4), call=alignment),
    "CosineEmbeddingLoss": own("CosineEmbeddingLoss", (6,), call=pair_signs),
    "GaussianNLLLoss": own("GaussianNLLLoss", (6,), call=spread_of),
    "HingeEmbeddingLoss": own("HingeEmbeddingLoss", (6,), call=signs),
    "KLDivLoss": own("KLDivLoss", (6,), reduction="batchmean", call=shares),
    "MarginRankingLoss": own("MarginRankingLoss", (2,), call=pair_signs),
    "MultiLabelMarginLoss": own("MultiLabelMarginLoss", (6,), call=padded_labels),
    "MultiLabelSoftMarginLoss": own("MultiLabelSoftMarginLoss", (6,), call=shares),
    "SoftMarginLoss": own("SoftMarginLoss", (6,), call=signs),
    "TripletMarginLoss": own("TripletMarginLoss", (9,), call=thirds),
    "TripletMarginWithDistanceLoss": own("TripletMarginWithDistanceLoss", (9,), call=thirds),
}

WITHOUT_PARAMETERS: Layers = ACTIVATIONS | POOLS | PADS | SHAPED | LOSSES
NOT_LAYERS = {
    **dict.fromkeys(("Module", "Container", "RNNBase", "RNNCellBase"), "a base class"),
    **dict.fromkeys(("Sequential", "ModuleList", "ModuleDict"), "a container of layers"),
    **dict.fromkeys(("ParameterList", "ParameterDict"), "a container of parameters"),
    "DataParallel": "a wrapper",
}
"""Classes of ``torch.nn`` that compute nothing themselves."""
