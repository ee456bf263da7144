"""Architectures of other libraries by name: ``torchvision:NAME`` and ``timm:NAME``."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import Tensor, nn

from fge.config import LIBRARIES
from fge.errors import UserError, missing_package, nearest, unknown

TORCHVISION, TIMM = LIBRARIES
_AUXILIARY = ("googlenet", "inception_v3")
"""Models of torchvision whose auxiliary heads are left out: they give several outputs in training.

Their pretrained weights are for inputs of mean and standard deviation 0.5, which the models make of
inputs normalised as ImageNet's (``transform_input``).
"""


def from_library(
    name: str, in_channels: int, num_classes: int, image_size: tuple[int, int]
) -> nn.Module | None:
    """Return the model of a name with the prefix of a library, untrained; None for other names.

    Raises:
        UserError: the library is not installed, has no such classifier, or cannot build it so.
    """
    if name.startswith(TORCHVISION):
        return _torchvision(name.removeprefix(TORCHVISION), in_channels, num_classes)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), in_channels, num_classes, image_size)
    return None


def library_weights(
    name: str, *, in_channels: int, image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the pretrained weights of a library's model, by name; the head is for its own classes.

    They are adapted to images of other than three channels, as timm does: the first layer's weights
    are summed over the channels for one, and otherwise repeated and scaled by 3 / channels. Then it
    sees a grey image as it would in three equal channels.

    Raises:
        UserError: there are none, or they cannot be had: without a network, only those that the
            library has kept from before.
    """
    try:
        if name.startswith(TORCHVISION):
            from torchvision import models

            if name.removeprefix(TORCHVISION) in _AUXILIARY and in_channels != 3:
                raise UserError(
                    f"the pretrained weights of {name} are for images of 3 channels, and these "
                    f"have {in_channels}; take another model"
                )
            weights = models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
            state = dict(weights.get_state_dict(progress=False, check_hash=True))
            return _with_channels(state, in_channels)
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix(TIMM))
        if config is None or not config.has_weights:
            raise UserError(f"timm has no pretrained weights of {name}; give --pretrained FILE")
        classes = config.num_classes
        model = _timm(name.removeprefix(TIMM), in_channels, classes, image_size, pretrained=True)
        return model.state_dict()
    except UserError:
        raise
    except Exception as error:  # each library has its own errors of files and networks
        raise UserError(
            f"the pretrained weights of {name} cannot be had ({type(error).__name__}: "
            f"{str(error).strip()}".split("\n")[0]
            + "); without a network give a file of them, --pretrained FILE"
        ) from error


def input_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, from 0 to 1, of what pretrained weights were trained on.

    Args:
        name: of a library's model; the values are those of the channels red, green and blue.

    Raises:
        UserError: it is no model of a library, or the library does not say.
    """
    known: Any = None
    if name.startswith(TORCHVISION):
        models = _torchvision_with(name.removeprefix(TORCHVISION))
        known = models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT.transforms()
    elif name.startswith(TIMM):
        known = _timm_with(name.removeprefix(TIMM)).get_pretrained_cfg(name.removeprefix(TIMM))
    if known is None:
        raise UserError(
            f"--normalize model is for models of a library, timm:NAME or torchvision:NAME, with "
            f"pretrained weights, got {name}; use --normalize data or imagenet"
        )
    return tuple(known.mean), tuple(known.std)


def _with_channels(state: dict[str, Tensor], in_channels: int) -> dict[str, Tensor]:
    """Adapt the first convolution for 3 channels to other images."""
    stem = next((n for n, t in state.items() if t.ndim == 4 and t.shape[1] == 3), None)
    if stem is None or in_channels == 3:
        return state
    weight = state[stem]
    if in_channels == 1:
        return {**state, stem: weight.sum(dim=1, keepdim=True)}
    channels = [channel % 3 for channel in range(in_channels)]
    return {**state, stem: weight[:, channels] * (3 / in_channels)}


def with_prefix(name: str) -> str | None:
    """Return what was meant by a library's name without its prefix, or None.

    >>> with_prefix("ResNet18"), with_prefix("convnext")
    ('torchvision:resnet18', 'torchvision:convnext_base')
    """
    known = _torchvision_names()
    if name not in known and importlib.util.find_spec("timm") is not None:
        import timm

        if timm.is_model(name):
            return f"{TIMM}{name}"
    begun = sorted((n for n in known if n.startswith(name.lower())), key=len)
    near = name.lower() if name.lower() in known else next(iter(begun), nearest(name, known))
    return None if near is None else f"{TORCHVISION}{near}"


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _torchvision(name: str, in_channels: int, num_classes: int) -> nn.Module:
    models = _torchvision_with(name)
    options: dict[str, Any] = {}
    if name in _AUXILIARY:
        options = {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    if in_channels != 3:
        _replace_stem(model, in_channels, name)
    return model


def _torchvision_with(name: str) -> Any:
    """Return torchvision's module of models, which has one of this name."""
    from torchvision import models

    if name not in _torchvision_names():
        raise unknown("torchvision model", name, _torchvision_names())
    return models


def _timm_with(name: str) -> Any:
    """Return timm, which has a model of this name."""
    try:
        import timm
    except ImportError as error:
        raise missing_package(f"--model {TIMM}{name}", "timm", error, extra="timm") from None
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models())
    return timm


def _replace_stem(model: nn.Module, in_channels: int, name: str) -> None:
    """Replace the first convolution, made for 3 channels, by one for ``in_channels``."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            new = nn.Conv2d(
                in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                module.dilation,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
            return
    raise UserError(f"torchvision:{name} has no first layer that could take {in_channels} channels")


def _timm(
    name: str,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    *,
    pretrained: bool = False,
) -> nn.Module:
    timm = _timm_with(name)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:  # such as of a vision transformer
        options["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # constructors differ, and some have limits of their own
        if pretrained:
            raise
        raise UserError(
            f"timm:{name} cannot be built for images of {in_channels} x {image_size[0]} x "
            f"{image_size[1]}: {type(error).__name__}: {str(error).strip()}".split("\n")[0]
        ) from error
    return model
