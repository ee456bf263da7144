"""Memory format, precision, compilation and CUDA graphs, chosen by a short measurement."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fge.config import SpeedOptions
from fge.errors import UserError
from fge.train.graphed import WARM_UP
from fge.train.learner import Learner, Speed

_TIMED_SECONDS = 1.0
_MIN_TIMED, _MAX_TIMED = 3, 20
_MIN_GAIN = 1.03
"""The speed-up that a choice needs: timings of a few steps vary by some percent."""
_HOPED_COMPILE_GAIN = 1.4
_COMPILE_SECONDS_BASE, _COMPILE_SECONDS_PER_LAYER = 25.0, 0.5
"""Estimated compile time, from convnet and preresnet20 on two cores."""
_OWN_MODEL = (
    "cuda_graphs: off, because a network of your own may do different work in each step; if it "
    "does not, try --cuda-graphs on"
)
_LOSS_TOLERANCE = {"off": 1e-3, "bf16": 3e-2, "fp16": 3e-2}
"""The largest relative difference of losses that agree, by precision."""


@dataclass(frozen=True)
class Choice:
    """The choice, and a sentence for each option that says why."""

    speed: Speed
    reasons: list[str]


def choose_speed(
    options: SpeedOptions,
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    steps: int,
    own_model: bool = False,
    processes: int = 1,
) -> Choice:
    """Choose ``channels_last``, ``amp``, ``compile`` and ``cuda_graphs``; ``auto`` is measured.

    Candidates train copies of the model for a few steps on one batch; the model and the random
    state are not changed. A candidate is chosen if it is faster and its loss agrees with that of
    the plain model.

    Args:
        options: the four, each ``auto`` or fixed.
        model: on its device, ready for training.
        inputs: one full batch (N, C, H, W).
        targets: its labels (N,).
        steps: remaining training steps, to decide whether compiling pays.
        own_model: the network is the user's own, which may do other work at each step.
        processes: that train the model together; the steps of several replay no CUDA graphs.

    Raises:
        UserError: a fixed option is not possible here.
    """
    check_speed(options, inputs.device, processes=processes)
    speed = Speed(
        channels_last=options.channels_last == "on",
        compile=options.compile == "on",
        amp="off" if options.amp == "auto" else options.amp,
        cuda_graphs=options.cuda_graphs == "on",
    )
    if not is_open(options, inputs.device, processes=processes):
        return Choice(speed, [])
    trial = _Trial(model, inputs, targets)
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    graphs = options.cuda_graphs == "auto" and bool(devices) and processes == 1
    with torch.random.fork_rng(devices=devices):
        speed = _decide(trial, options, speed, steps, graphs=graphs, own_model=own_model)
    return Choice(speed, trial.reasons)


def _decide(
    trial: _Trial,
    options: SpeedOptions,
    speed: Speed,
    steps: int,
    *,
    graphs: bool,
    own_model: bool,
) -> Speed:
    """Return the fastest of what is open, each on top of what was chosen before.

    CUDA graphs come first: without them the host may be the limit, and hide what a faster kernel
    gains. They come again if they gained nothing for what was slower.
    """
    if graphs and own_model:
        trial.reasons.append(_OWN_MODEL)
        graphs = False
    if graphs:
        speed = trial.consider("cuda_graphs", replace(speed, cuda_graphs=True), speed)
    before = speed
    if options.channels_last == "auto":
        speed = trial.consider("channels_last", replace(speed, channels_last=True), speed)
    if options.amp == "auto":
        speed = trial.consider("amp bf16", replace(speed, amp="bf16"), speed)
    if options.compile == "auto":
        speed = _consider_compile(trial, speed, steps)
    if graphs and not speed.cuda_graphs and speed != before:
        speed = trial.consider("cuda_graphs", replace(speed, cuda_graphs=True), speed)
    return speed


def is_open(options: SpeedOptions, device: torch.device, *, processes: int = 1) -> bool:
    """Return whether an option is ``auto``, for this device and number of processes."""
    graphs = options.cuda_graphs if device.type == "cuda" and processes == 1 else "off"
    return "auto" in (options.channels_last, options.compile, options.amp, graphs)


def _consider_compile(trial: _Trial, speed: Speed, steps: int) -> Speed:
    obstacle = _compile_obstacle(trial.inputs.device)
    if obstacle:
        trial.reasons.append(f"compile: off, {obstacle}")
        return speed
    layers = sum(1 for m in trial.model.modules() if not list(m.children()))
    cost = _COMPILE_SECONDS_BASE + _COMPILE_SECONDS_PER_LAYER * layers
    work = trial.seconds(speed) * steps
    hoped = work * (1 - 1 / _HOPED_COMPILE_GAIN)
    if hoped < cost:
        trial.reasons.append(
            f"compile: off, it would save at most about {hoped:.0f} s of the {work:.0f} s of "
            f"training and take about {cost:.0f} s"
        )
        return speed
    return trial.consider("compile", replace(speed, compile=True), speed, steps=steps)


def check_speed(options: SpeedOptions, device: torch.device, *, processes: int = 1) -> None:
    """Check that compilation and CUDA graphs are possible if they are on.

    Raises:
        UserError: one is on, but not possible with this device or number of processes.
    """
    if options.cuda_graphs == "on" and device.type != "cuda":
        raise UserError(
            f"--cuda-graphs on needs a GPU, the device is {device}; use --cuda-graphs off or auto"
        )
    if options.cuda_graphs == "on" and processes > 1:
        raise UserError(
            f"--cuda-graphs on needs a single process, got {processes}; use --cuda-graphs off or "
            "auto"
        )
    if options.compile == "on" and (obstacle := _compile_obstacle(device)):
        raise UserError(f"--compile on: {obstacle}; use --compile off or auto")


def _compile_obstacle(device: torch.device) -> str | None:
    """Return a known reason why ``torch.compile`` cannot work here, or None."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return "there is no C++ compiler"
    if device.type == "cuda" and not (
        importlib.util.find_spec("triton") and any(shutil.which(name) for name in ("cc", "gcc"))
    ):
        return "it needs Triton and a C compiler on a GPU"
    return None


class _Trial:
    """Times a few training steps of each candidate on copies of the model."""

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self.model = model
        self.inputs = inputs
        self.targets = targets
        self.reasons: list[str] = []

    def seconds(self, speed: Speed) -> float:
        """Return the median time of a training step."""
        return self._run(speed)[0][0]

    def consider(self, name: str, candidate: Speed, present: Speed, steps: int = 0) -> Speed:
        """Return the candidate if it is faster and its loss agrees, else ``present``; note why."""
        started = time.perf_counter()
        try:
            (before, loss), (after, new_loss) = self._run(present, candidate)
        except Exception as error:  # compilers and back ends raise many types
            reason = str(error).strip().split("\n")[0][:120]
            self.reasons.append(f"{name}: off, it fails here ({type(error).__name__}: {reason})")
            return present
        spent = time.perf_counter() - started
        gain = before / after
        agrees = abs(new_loss - loss) <= _LOSS_TOLERANCE[candidate.amp] * max(abs(loss), 1.0)
        # Compiling the model itself costs about as much again, less what the compiler's cache
        # saves; the gain has to outweigh that.
        worth = gain >= _MIN_GAIN and (steps == 0 or (before - after) * steps > spent / 2)
        verdict = "on" if worth and agrees else "off"
        note = "" if agrees else f", but its loss is {new_loss:.4g} instead of {loss:.4g}"
        self.reasons.append(
            f"{name}: {verdict}, {1e3 * after:.1f} ms per step instead of {1e3 * before:.1f} "
            f"({gain:.2f} x){note}"
        )
        return candidate if verdict == "on" else present

    def _run(self, *speeds: Speed) -> list[tuple[float, float]]:
        """Return the median seconds per step and the loss after the first steps, for each speed."""
        steps, losses = [], []
        first = WARM_UP + 2 if any(speed.cuda_graphs for speed in speeds) else 1
        for speed in speeds:
            step, loss = self._prepare(speed, first)
            steps.append(step)
            losses.append(loss)
        return list(zip(_median_seconds(*steps), losses, strict=True))

    def _prepare(self, speed: Speed, first: int) -> tuple[Callable[[], None], float]:
        """Return a training step of a copy of the model, and the last loss of ``first`` steps."""
        model = _without_dropout(copy.deepcopy(self.model).train())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        learner = Learner(
            model, optimizer, speed, batch_size=len(self.inputs), loss_fn=F.cross_entropy
        )
        image_format = torch.channels_last if speed.channels_last else torch.contiguous_format
        inputs = self.inputs.contiguous(memory_format=image_format)
        torch.manual_seed(0)
        losses = [learner.step(inputs, self.targets) for _ in range(first)]
        return lambda: self._step(learner, inputs), float(losses[-1])

    def _step(self, learner: Learner, inputs: Tensor) -> None:
        learner.step(inputs, self.targets)
        if inputs.is_cuda:
            torch.cuda.synchronize()


def _without_dropout(model: nn.Module) -> nn.Module:
    """Switch dropout off: its masks depend on the memory format, so that losses would differ."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    return model


def _median_seconds(*calls: Callable[[], None]) -> list[float]:
    """Return the median time of each call after a warm-up, from about a second of each.

    The calls take turns, so a machine that slows down slows all of them.
    """
    for call in calls:
        call()
    rounds: list[list[float]] = []
    spent, enough = 0.0, _TIMED_SECONDS * len(calls)
    while len(rounds) < _MIN_TIMED or (spent < enough and len(rounds) < _MAX_TIMED):
        rounds.append([_seconds(call) for call in calls])
        spent += sum(rounds[-1])
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
