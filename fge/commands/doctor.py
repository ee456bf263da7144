"""The command ``doctor``: whether everything that is done to networks works on a model."""

from __future__ import annotations

import torch

from fge.checks import Finding, Findings, check
from fge.commands.loading import read_dataset
from fge.config import DoctorConfig, suited
from fge.data import EvalBatches, Normaliser
from fge.devices import choose_device, enough_memory, set_threads
from fge.errors import UserError
from fge.networks import build_model
from fge.observer import counted
from fge.parallel import check_command
from fge.report import ConsoleObserver
from fge.seeds import derive_seed
from fge.tasks import task_of

_IMAGES, _BATCH = 96, 32


def doctor(config: DoctorConfig) -> Findings:
    """Check a model on some training images; print a table of what was found, row by row.

    Raises:
        UserError: data or model cannot be made, or a check failed, after the whole table.
    """
    check_command("doctor")
    device = choose_device(config.device)
    set_threads(config.threads)
    observer = ConsoleObserver()
    config = suited(config)
    dataset = read_dataset(config)
    torch.manual_seed(derive_seed(config.seed, "initialisation"))
    model = build_model(
        config.model,
        in_channels=dataset.in_channels,
        num_classes=dataset.outputs,
        image_size=dataset.model_size,
        task=dataset.target.task,
    )
    images = dataset.train.first(_IMAGES).to(device)
    batches = EvalBatches(images, Normaliser(dataset.mean, dataset.std, device), _BATCH)
    if dataset.skipped:
        observer.note(dataset.skipped)
    count = counted(len(images), dataset.example)
    observer.note(f"checking {config.model} on {count} of {dataset.name}")
    task = task_of(dataset)
    with enough_memory(device, "use --device cpu"):
        found = check(
            model.to(device),
            batches,
            loss_fn=task.loss(torch.device(device)),
            output=task.output,
            compilation=config.compile,
            on_finding=lambda finding: observer.note(_row(finding)),
        )
    if not found.ok:
        names = ", ".join(finding.name for finding in found.failed)
        raise UserError(f"{len(found.failed)} of {len(found)} checks failed: {names}")
    observer.note(f"{counted(len(found), 'check')}, none failed")
    return found


def _row(finding: Finding) -> str:
    """Return a row of the table, which is printed as it grows."""
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"  {finding.name:20}{finding.status:9}{finding.detail}{remedy}"
