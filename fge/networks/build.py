"""Architectures by name: built-in ones, those of other libraries, ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fge.config import CLASSIFICATION, TaskName, is_factory
from fge.errors import UserError, nearest, unknown
from fge.networks.accepting import InDtype, check_values, materialise, only_dtype
from fge.networks.architectures.convnet import convnet
from fge.networks.architectures.mlp import mlp
from fge.networks.architectures.preresnet import preresnet, wide_resnet
from fge.networks.architectures.vgg import vgg16
from fge.networks.copying import copy_module
from fge.networks.state import unwrap
from fge.networks.zoo import TIMM, TORCHVISION, from_library, with_prefix

MODELS: dict[str, Callable[[int, int, tuple[int, int]], nn.Module]] = {
    "convnet": convnet,
    "vgg16": vgg16,
    "vgg16-bn": partial(vgg16, batch_norm=True),
    "preresnet20": partial(preresnet, depth=20),
    "preresnet56": partial(preresnet, depth=56),
    "preresnet110": partial(preresnet, depth=110),
    "preresnet164": partial(preresnet, depth=164),
    "wrn28-10": partial(wide_resnet, depth=28, factor=10),
}
ROW_MODELS: dict[str, Callable[[int, int, tuple[int, int] | None], nn.Module]] = {"mlp": mlp}
"""Architectures of rows of a table; of images they take the pixels."""
_OTHERS = (f"{TORCHVISION}NAME", f"{TIMM}NAME", "package.module:factory")


def build_model(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    image_size: tuple[int, int] | None,
    task: TaskName = CLASSIFICATION,
) -> nn.Module:
    """Build an architecture and try it on two blank images, or rows of a table.

    Lazy layers get their shapes and weights here. A model whose weights are all of another dtype,
    and that does not take float32 images, is given images of its dtype.

    Args:
        name: a key of ``MODELS``, ``torchvision:NAME``, ``timm:NAME`` or
            ``package.module:factory``. A factory is called with the keywords ``in_channels``,
            ``num_classes`` and ``image_size``, as far as it accepts them.
        in_channels: channels of the images.
        num_classes: width of the output; of a classifier at least 2.
        image_size: height and width in pixels; None for rows of a table (N, in_channels).
        task: what is predicted.

    Raises:
        UserError: a single class, an unknown name, a library that is not installed, a factory
            that fails, or a model that cannot be copied, cannot process such images, is in float16
            or without values, or whose output is not (N, num_classes).
    """
    if num_classes < 2 and task == CLASSIFICATION:
        raise UserError(
            f"a classifier needs two classes or more, the data have {num_classes}; add examples "
            "of another class"
        )
    if name in ROW_MODELS:
        model = ROW_MODELS[name](in_channels, num_classes, image_size)
    elif name in MODELS and image_size is not None:
        model = MODELS[name](in_channels, num_classes, image_size)
    elif image_size is None and not is_factory(name):
        raise UserError(
            f"model {name!r} is for images, and the data are a table; use --model mlp, or your own "
            "as package.module:factory"
        )
    elif is_factory(name):
        model = _from_factory(name, in_channels, num_classes, image_size)
    else:
        assert image_size is not None
        found = from_library(name, in_channels, num_classes, image_size)
        if found is None:
            raise _unknown_model(name)
        model = found
    shape = (in_channels, *(image_size or ()))
    _try_out(name, model, shape, num_classes, task)
    return model


def _unknown_model(name: str) -> UserError:
    """Return the error that names the model most like it: of another library with its prefix."""
    near = [n for n in (nearest(name, MODELS), with_prefix(name)) if n is not None]
    alike = {known.rpartition(":")[2]: known for known in near}
    begun = [known for known in alike if known.startswith(name.lower()) and known != name]
    best = begun[0] if begun else nearest(name, alike)
    if best is None:
        return unknown("model", name, [*MODELS, *ROW_MODELS, *_OTHERS])
    return UserError(f"unknown model {name!r}; did you mean {alike[best]!r}?")


def _from_factory(
    name: str, in_channels: int, num_classes: int, image_size: tuple[int, int] | None
) -> nn.Module:
    factory = import_named(name, "model")
    offered = {
        "in_channels": in_channels,
        "num_classes": num_classes,
        "image_size": image_size,
    }
    try:
        model = factory(**_accepted(factory, offered))
    except Exception as error:
        raise UserError(f"model factory {name!r} failed: {reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model factory {name!r} returned a {type(model).__name__}, not a Module")
    return model


def _accepted(factory: Any, offered: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    names = {p.name for p in parameters}
    return {key: value for key, value in offered.items() if key in names}


def _try_out(
    name: str, model: nn.Module, shape: tuple[int, ...], num_classes: int, task: TaskName
) -> None:
    """Apply a copy to two blank images in both modes, without using the caller's generator."""
    images = torch.zeros(2, *shape)
    check_values(name, model)
    with _processing(name, images):
        materialise(model, images)
        _accept(name, model, images)
    for training in (False, True):
        with _processing(name, images):
            output = _applied(model, images, training=training)
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if found == (2,) and num_classes == 1:  # one output each
            continue
        if found != (2, num_classes):
            what = "logits" if task != "regression" else "outputs"
            of = f"{num_classes} classes of the data" if task == CLASSIFICATION else f"task {task}"
            raise UserError(
                f"model {name!r} must return {what} of shape (N, {num_classes}) for the {of}, got "
                f"{found} for N = 2"
            )


@contextmanager
def _processing(name: str, images: Tensor) -> Iterator[None]:
    """Turn whatever a model raises for images into an error that names both."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        size = " x ".join(map(str, images.shape[1:]))
        what = f"images of {size}" if images.ndim > 2 else f"rows of {size} features"
        raise UserError(f"model {name!r} cannot process {what}: {reason(error)}") from error


def _applied(model: nn.Module, images: Tensor, *, training: bool) -> Any:
    """Apply a copy of a model in a mode, without using the caller's generator."""
    trial = copy_module(model).train(training)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return trial(images)


def _accept(name: str, model: nn.Module, images: Tensor) -> None:
    """Give a model of another dtype images of its own, if it does not take float32 ones."""
    dtype = only_dtype(model)
    if dtype is None:
        return
    try:
        _applied(model, images, training=False)
    except Exception as error:  # of any kind: what a model raises for a wrong dtype
        if dtype == torch.float16:
            raise UserError(
                f"model {name!r} has float16 weights, in which steps of training vanish or "
                "overflow; return it in float32, and give --amp fp16"
            ) from error
        _applied(model, images.to(dtype), training=False)
        InDtype(dtype).attach_to(unwrap(model))


def import_named(name: str, what: str) -> Any:
    """Return the object called ``package.module:name``; the working directory is searched too.

    Args:
        name: of the module and of the object in it.
        what: the kind of object, for the error message.

    Raises:
        UserError: the module cannot be imported or has no such object.
    """
    module, _, attribute = name.partition(":")
    if not re.fullmatch(r"[\w.:-]*", name):
        raise UserError(
            f"{what} {name!r} is no package.module:name: it has other characters than letters, "
            "digits and . _ -"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        remedy = _remedy(module, attribute, error)
        raise UserError(f"{what} {name!r} cannot be imported: {reason(error)}{remedy}") from error


def _remedy(module: str, attribute: str, error: BaseException) -> str:
    """Return what to do about a module that is not there, after a semicolon."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    if not f"{module}.".startswith(f"{error.name}."):  # the module exists and imports it
        return f"; install the package that has it, for example pip install {error.name}"
    library = nearest(module, [prefix.rstrip(":") for prefix in (TORCHVISION, TIMM)])
    if library is not None:
        return f"; did you mean '{library}:{attribute}'?"
    return "; it is looked for in the working directory and among the installed packages"


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
