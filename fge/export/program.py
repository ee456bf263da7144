"""The forward pass of a deployable ensemble as a graph, for batches of any size."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fge.ensemble import DeployedNetworks
from fge.errors import UserError

BATCH = "batch"
"""The name of the dimension of the examples."""
_EXAMPLES = 2
"""Examples in the batch that is traced: a size of 1 would be taken for a constant."""
_LEAST = 1
_WITHOUT = "; without an export, Ensemble.save and load need the model's code"
_FIXED = re.compile(r"specialized it to be a constant \((\d+)\)")
_TRACES = ("stack_trace", "from_node")
"""What nodes of a graph know of the machine that traced it: paths and lines of code."""


def exported_program(deployed: DeployedNetworks, example: Tensor) -> ExportedProgram:
    """Return the graph of a deployable ensemble, which takes batches of any size.

    Args:
        deployed: from :meth:`fge.Ensemble.deployable`.
        example: inputs (N, ...) of at least two examples, of the shape and dtype that the graph
            shall take.

    Raises:
        UserError: the model is scripted, or its forward pass cannot be traced for batches of any
            size; the message has the reason.
    """
    if len(example) < _EXAMPLES:
        raise UserError(f"an export needs at least {_EXAMPLES} examples, got {len(example)}")
    name = type(deployed.members[0]).__name__
    if any(isinstance(module, torch.jit.ScriptModule) for module in deployed.modules()):
        raise UserError(
            f"the model, a {name}, cannot be exported: it is scripted (torch.jit); give the module "
            "that was scripted"
        )
    batch = torch.export.Dim(BATCH, min=_LEAST)
    try:
        with quiet():
            program = torch.export.export(
                deployed, (example[:_EXAMPLES],), dynamic_shapes=({0: batch},)
            )
    except UserError:
        raise
    except Exception as error:  # of many kinds, PyTorch's and the model's
        reason = f"{_reason(error)}{_WITHOUT}"
        raise UserError(f"the model, a {name}, cannot be exported: {reason}") from error
    _forget_the_machine(program)
    return program


def _reason(error: Exception) -> str:
    """Return the first line of an error, or plain words for one that is known."""
    text = str(error).strip()
    fixed = _FIXED.search(text)
    if fixed:
        return f"its forward fixes the batch size to {fixed[1]}"
    if "data-dependent" in text:
        return "its forward branches on values that it computes"
    return f"{type(error).__name__}: {text}".split("\n")[0]


def _forget_the_machine(program: ExportedProgram) -> None:
    """Remove from a graph what it knows of the files that it was made of."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in _TRACES:
                node.meta.pop(key, None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch from printing graphs and warnings about its own parts."""
    nowhere = io.StringIO()
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
