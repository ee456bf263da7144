"""All checks of a model, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fge.checks import running, weights
from fge.checks.findings import Finding, Findings, Subject, outcome
from fge.networks import ForwardFn, LossFn, Output, TargetFn, canonical_state
from fge.seeds import same_random_state

Check = Callable[[Subject], str]
CHECKS: dict[str, Check] = {
    "outputs": running.outputs,
    "trains": running.gradients,
    "repeats": running.repeats,
    "snapshots": weights.snapshots,
    "deep-copies": weights.copies,
    "batch norm": weights.statistics,
    "averages": weights.averages,
    "ensembles": weights.ensembles,
    "curve ends": weights.curve_ends,
    "second derivatives": weights.second_derivatives,
    "mixed precision": running.mixed_precision,
    "exports": running.exports,
    "compiles": running.compiles,
}
"""Name and function of each check, in order; a function returns what it found to be well."""
NEED_OUTPUTS = (
    *("snapshots", "deep-copies", "ensembles", "curve ends", "second derivatives"),
    *("mixed precision", "exports", "compiles"),
)
"""Checks that compare outputs, and say nothing where these are not right by themselves."""
NEED_TRAINING = ("repeats", "averages", "curve ends", "second derivatives")
"""Checks that take training steps or gradients, and say nothing where one step is not right."""


def check(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss_fn: LossFn = F.cross_entropy,
    forward_fn: ForwardFn | None = None,
    target_fn: TargetFn | None = None,
    output: Output = "softmax",
    compilation: bool = True,
    on_finding: Callable[[Finding], None] | None = None,
) -> Findings:
    """Check that what this package does to a network works on this model.

    Each check uses at most 32 examples of the first three batches. The model is left as it was,
    PyTorch's random state too.

    >>> import torch
    >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> findings = check(torch.nn.Linear(4, 3), batches, compilation=False)
    >>> findings.ok, [finding.name for finding in findings][:3]
    (True, ['outputs', 'trains', 'repeats'])

    Args:
        model: any module.
        batches: re-iterable of ``(x, y)``, or of what ``forward_fn`` and ``loss_fn`` take.
        loss_fn: of outputs and targets, averaged over the batch.
        forward_fn: ``forward_fn(model, batch) -> outputs`` for models that are not called as
            ``model(x)``.
        target_fn: ``target_fn(batch) -> targets`` where they are not the second of two parts.
        output: what the outputs are, as of :class:`fge.Ensemble`: ``"softmax"``, ``"sigmoid"``,
            ``"identity"`` or a function.
        compilation: also check ``torch.compile``, which may take half a minute.
        on_finding: called after each check.

    Returns:
        A finding per check: ``ok``, ``failed`` with what to use instead, or ``skipped``.

    Raises:
        UserError: ``batches`` can be iterated only once, or yields nothing; or a parameter has no
            shape yet.
    """
    subject = Subject.of(model, batches, loss_fn, forward_fn, target_fn, output)
    found: list[Finding] = []
    for name, work in CHECKS.items():
        if name == "compiles" and not compilation:
            continue
        failed = {finding.name for finding in found if finding.status == "failed"}
        if name in NEED_OUTPUTS and "outputs" in failed:
            found.append(Finding(name, "skipped", "it compares outputs, which failed above"))
        elif name in NEED_TRAINING and "trains" in failed:
            found.append(Finding(name, "skipped", "it needs a training step, which failed above"))
        else:
            found.append(_run(name, work, subject))
        if on_finding:
            on_finding(found[-1])
    return Findings(tuple(found))


def _run(name: str, work: Check, subject: Subject) -> Finding:
    """Return the finding of one check, after which the model is as it was before."""
    before = canonical_state(subject.model)
    try:
        with same_random_state(), subject.untouched():
            detail = work(subject)
    except Exception as error:  # a model may raise anything
        return outcome(name, error)
    for key, value in canonical_state(subject.model).items():
        if not torch.equal(value, before[key]) and not bool(torch.isnan(value).any()):
            return Finding(name, "failed", f"{key!r} is not as before", "assign no new buffers")
    return Finding(name, "ok", detail)
