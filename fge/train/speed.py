"""Memory format, precision, compilation and CUDA graphs, chosen by a short measurement."""

from __future__ import annotations

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
from fge.networks import LossFn, copy_module, train_mode
from fge.train.graphed import WARM_UP
from fge.train.learner import Learner, Speed

_TIMED_SECONDS = 1.0
_MIN_TIMED, _MAX_TIMED = 5, 20
_CLEAR_GAIN = 1.1
"""The speed-up that a choice needs, as the median of rounds: steps vary by some percent, and a
choice must not hang on that."""
_MOST_ROUNDS = 0.8
"""The part of the rounds in which it has to be faster; where fewer agree, nothing is clear."""
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
    loss_fn: LossFn = F.cross_entropy,
) -> Choice:
    """Choose ``channels_last``, ``amp``, ``compile`` and ``cuda_graphs``; ``auto`` is measured.

    Candidates train copies of the model for a few steps on one batch; the model and the random
    state are not changed. A candidate is chosen if it is clearly faster (a median speed-up of 1.1
    over rounds in which candidates take turns, and faster in 80 % of them) and its loss agrees
    with that of the plain model.

    Args:
        options: the four, each ``auto`` or fixed.
        model: on its device, ready for training.
        inputs: one full batch (N, C, H, W).
        targets: its labels (N,).
        steps: remaining training steps, to decide whether compiling pays.
        own_model: the network is the user's own, which may do other work at each step.
        processes: that train the model together; the steps of several replay no CUDA graphs.
        loss_fn: of outputs and targets.

    Raises:
        UserError: a fixed option is not possible here.
    """
    check_speed(options, inputs.device, processes=processes)
    speed = speed_of(options)
    if not is_open(options, inputs.device, processes=processes):
        return Choice(speed, [])
    trial = _Trial(model, inputs, targets, loss_fn)
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


def speed_of(options: SpeedOptions) -> Speed:
    """Return what options mean; what is still ``auto`` is off."""
    return Speed(
        channels_last=options.channels_last == "on",
        compile=options.compile == "on",
        amp="off" if options.amp == "auto" else options.amp,
        cuda_graphs=options.cuda_graphs == "on",
    )


def options_of(speed: Speed) -> dict[str, str]:
    """Return the options that mean ``speed``, by name.

    >>> options_of(Speed(channels_last=True))
    {'channels_last': 'on', 'amp': 'off', 'compile': 'off', 'cuda_graphs': 'off'}
    """
    switches = {True: "on", False: "off"}
    return {
        "channels_last": switches[speed.channels_last],
        "amp": speed.amp,
        "compile": switches[speed.compile],
        "cuda_graphs": switches[speed.cuda_graphs],
    }


def considered(
    options: SpeedOptions, device: torch.device, *, own_model: bool = False, processes: int = 1
) -> SpeedOptions:
    """Return the options with ``auto`` where there is something to measure, and off elsewhere."""
    graphs = device.type == "cuda" and processes == 1 and not own_model
    if options.cuda_graphs == "auto" and not graphs:
        options = replace(options, cuda_graphs="off")
    if options.compile == "auto" and _compile_obstacle(device):
        options = replace(options, compile="off")
    return options


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
            f"compile: off, it would save at most about {hoped:.0f} s of about {work:.0f} s of "
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

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFn = F.cross_entropy
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.targets = targets
        self.loss_fn = loss_fn
        self.reasons: list[str] = []

    def seconds(self, speed: Speed) -> float:
        """Return the time of a training step: the least, since other work only adds to it."""
        ((times, _),) = self._run(speed)
        return min(times)

    def consider(self, name: str, candidate: Speed, present: Speed, steps: int = 0) -> Speed:
        """Return the candidate if it is clearly faster and its loss agrees; note why.

        Else return ``present``.
        """
        started = time.perf_counter()
        try:
            (before, loss), (after, new_loss) = self._run(present, candidate)
        except Exception as error:  # compilers and back ends raise many types
            reason = str(error).strip().split("\n")[0][:120]
            self.reasons.append(f"{name}: off, it fails here ({type(error).__name__}: {reason})")
            return present
        spent = time.perf_counter() - started
        gains = [one / other for one, other in zip(before, after, strict=True)]
        gain, faster = statistics.median(gains), sum(each > 1 for each in gains)
        old, new = statistics.median(before), statistics.median(after)
        agrees = abs(new_loss - loss) <= _LOSS_TOLERANCE[candidate.amp] * max(abs(loss), 1.0)
        clear = gain >= _CLEAR_GAIN and faster >= _MOST_ROUNDS * len(gains)
        # Compiling the model itself costs about as much again, less what the compiler's cache
        # saves; the gain has to outweigh that.
        worth = clear and (steps == 0 or (old - new) * steps > spent / 2)
        verdict = "on" if worth and agrees else "off"
        note = "" if agrees else f", but its loss is {new_loss:.4g} instead of {loss:.4g}"
        if gain >= _CLEAR_GAIN and not clear:
            note += f", but faster in only {faster} of {len(gains)} rounds"
        self.reasons.append(
            f"{name}: {verdict}, {1e3 * new:.1f} ms per step instead of {1e3 * old:.1f} "
            f"({gain:.2f} x){note}"
        )
        return candidate if verdict == "on" else present

    def _run(self, *speeds: Speed) -> list[tuple[list[float], float]]:
        """Return seconds per step by round, and the loss after the first steps, for each speed."""
        steps, losses = [], []
        first = WARM_UP + 2 if any(speed.cuda_graphs for speed in speeds) else 1
        for speed in speeds:
            step, loss = self._prepare(speed, first)
            steps.append(step)
            losses.append(loss)
        return list(zip(_timed(*steps), losses, strict=True))

    def _prepare(self, speed: Speed, first: int) -> tuple[Callable[[], None], float]:
        """Return a training step of a copy of the model, and the last loss of ``first`` steps."""
        model = copy_module(self.model)
        train_mode(model)
        model = _without_dropout(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        learner = Learner(
            model, optimizer, speed, batch_size=len(self.inputs), loss_fn=self.loss_fn
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


def _timed(*calls: Callable[[], None]) -> list[list[float]]:
    """Return the seconds of each call by round after a warm-up, about a second of each in all.

    The calls take turns, so a machine that slows down slows all of them; every other round is in
    the opposite order, so none always comes first.
    """
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    pairs = list(zip(calls, times, strict=True))
    spent, enough = 0.0, _TIMED_SECONDS * len(calls)
    while len(times[0]) < _MIN_TIMED or (spent < enough and len(times[0]) < _MAX_TIMED):
        for call, own in pairs:
            own.append(_seconds(call))
            spent += own[-1]
        pairs.reverse()
    return times


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
