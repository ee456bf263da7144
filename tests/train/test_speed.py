"""Choosing memory format, precision and compilation by measurement."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fge.config import FGEConfig
from fge.errors import UserError
from fge.train import Choice, Learner, Speed, check_speed, choose_speed, is_open
from fge.train import speed as speed_module

PLAIN = Speed()
Measured = Callable[[Speed], tuple[float, float]]


@pytest.fixture(autouse=True)
def few_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_module, "_TIMED_SECONDS", 0.0)


def make_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolution, linear = nn.Conv2d(1, 4, 3), nn.Linear(4 * 16, 3)
    return nn.Sequential(
        convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), linear
    )


def choose(
    *, model: nn.Module | None = None, steps: int = 100, dtype: str = "off", **options: Any
) -> Choice:
    settings = {"channels_last": "off", "compile": "off", "amp": dtype} | options
    images = torch.linspace(-1, 1, 8 * 36).view(8, 1, 6, 6)
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    config = FGEConfig(**settings)
    return choose_speed(config, model or make_model(), images, targets, steps=steps)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_module.shutil, "which", lambda _name: None)


def with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_module.shutil, "which", lambda name: f"/usr/bin/{name}")


def measure(monkeypatch: pytest.MonkeyPatch, measured: Measured) -> list[tuple[Speed, ...]]:
    """Let trials yield (seconds a step, loss) by ``measured``; return what was tried together."""
    tried: list[tuple[Speed, ...]] = []

    def run(_trial: object, *speeds: Speed) -> list[tuple[list[float], float]]:
        tried.append(speeds)
        return [([seconds] * 5, loss) for seconds, loss in map(measured, speeds)]

    monkeypatch.setattr(speed_module._Trial, "_run", run)
    return tried


def never(_speed: Speed) -> tuple[float, float]:
    raise AssertionError("measured, though nothing was to be chosen")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"channels_last": "off", "amp": "off"}, Speed()),
        ({"channels_last": "on", "amp": "bf16"}, Speed(channels_last=True, amp="bf16")),
        ({"channels_last": "on", "compile": "on"}, Speed(channels_last=True, compile=True)),
        ({"amp": "fp16"}, Speed(amp="fp16")),
    ],
)
def test_explicit_options_are_taken_and_not_measured(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], expected: Speed
) -> None:
    with_compiler(monkeypatch)
    tried = measure(monkeypatch, never)
    assert choose(**options) == Choice(expected, [])
    assert tried == []


def test_only_what_is_left_open_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measure(monkeypatch, lambda speed: (0.5 if speed.channels_last else 1.0, 2.0))
    choice = choose(channels_last="auto", amp="bf16")
    assert tried == [(Speed(amp="bf16"), Speed(channels_last=True, amp="bf16"))]
    assert choice.speed == Speed(channels_last=True, amp="bf16")
    assert choice.reasons == ["channels_last: on, 500.0 ms per step instead of 1000.0 (2.00 x)"]


def test_measuring_leaves_the_random_state_as_it_was() -> None:
    torch.manual_seed(3)
    random.seed(3)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    choose(channels_last="auto", amp="auto")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = make_model()
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    choose(model=model, channels_last="auto", amp="auto")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert tensor.stride() == before[name].stride()
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_real_measurement_says_what_it_measured() -> None:
    choice = choose(channels_last="auto")
    assert choice.speed in (Speed(), Speed(channels_last=True))
    verdict = "on" if choice.speed.channels_last else "off"
    assert choice.reasons[0].startswith(f"channels_last: {verdict}, ")
    assert " ms per step instead of " in choice.reasons[0]


@pytest.mark.parametrize(("loss", "kept"), [(2.04, "bf16"), (2.1, "off")])
def test_reduced_precision_may_differ_by_its_rounding(
    monkeypatch: pytest.MonkeyPatch, loss: float, kept: str
) -> None:
    tried = measure(monkeypatch, lambda s: (0.5, loss) if s.amp == "bf16" else (1.0, 2.0))
    choice = choose(amp="auto")
    assert tried == [(PLAIN, Speed(amp="bf16"))]
    assert choice.speed == Speed(amp=kept)


def test_each_choice_is_measured_on_top_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with_compiler(monkeypatch)
    gains = {"channels_last": 0.8, "compile": 0.5}

    def measured(speed: Speed) -> tuple[float, float]:
        factors = [gain for name, gain in gains.items() if getattr(speed, name)]
        return math.prod(factors) * (2.0 if speed.amp == "bf16" else 1.0), 2.0

    tried = measure(monkeypatch, measured)
    choice = choose(channels_last="auto", amp="auto", compile="auto", steps=10**6)
    last = Speed(channels_last=True)
    assert tried == [
        (PLAIN, last),
        (last, Speed(channels_last=True, amp="bf16")),
        (last,),  # how much time there is to be saved
        (last, Speed(channels_last=True, compile=True)),
    ]
    assert choice.speed == Speed(channels_last=True, compile=True)
    assert [reason.split(",")[0] for reason in choice.reasons] == [
        "channels_last: on",
        "amp bf16: off",
        "compile: on",
    ]


def decide(times: dict[Speed, float], monkeypatch: pytest.MonkeyPatch) -> tuple[Speed, list[str]]:
    """Return what is chosen of graphs and precision on a GPU where steps take these times."""
    measure(monkeypatch, lambda speed: (times[speed], 2.0))
    trial = speed_module._Trial(make_model(), torch.zeros(1), torch.zeros(1))
    options = FGEConfig(channels_last="off", compile="off", amp="auto", cuda_graphs="auto")
    speed = speed_module._decide(trial, options, PLAIN, 100, graphs=True, own_model=False)
    return speed, [reason.split(",")[0] for reason in trial.reasons]


GRAPHS, BF16 = Speed(cuda_graphs=True), Speed(amp="bf16")
BOTH = Speed(amp="bf16", cuda_graphs=True)


def test_precision_is_measured_with_graphs_that_hide_no_gain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One by one, launching more kernels takes the host longer than bf16 saves the GPU."""
    times = {PLAIN: 6.6, BF16: 8.1, GRAPHS: 2.7, BOTH: 2.0}
    assert decide(times, monkeypatch) == (BOTH, ["cuda_graphs: on", "amp bf16: on"])


def test_graphs_are_tried_again_where_the_host_has_become_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = {PLAIN: 8.0, GRAPHS: 7.9, BF16: 5.0, BOTH: 3.0}
    verdicts = ["cuda_graphs: off", "amp bf16: on", "cuda_graphs: on"]
    assert decide(times, monkeypatch) == (BOTH, verdicts)
    times = {PLAIN: 8.0, GRAPHS: 7.9, BF16: 9.0, BOTH: 3.0}
    assert decide(times, monkeypatch) == (PLAIN, ["cuda_graphs: off", "amp bf16: off"])


def test_candidates_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = itertools.count(), []
    monkeypatch.setattr(speed_module.time, "perf_counter", lambda: float(next(clock)))
    times = speed_module._timed(lambda: calls.append("a"), lambda: calls.append("b"))
    assert times == [[1.0] * 5] * 2
    assert " ".join(calls) == " ".join("ab" + "abba" + "abba" + "ab")


ROUNDS: dict[str, tuple[list[float], list[float], bool, str]] = {
    "clear": ([1.0] * 5, [0.8] * 5, True, "(1.25 x)"),
    "as fast": ([1.0] * 5, [0.99] * 5, False, "(1.01 x)"),
    "faster, but not by a clear margin": ([1.0] * 5, [0.93] * 5, False, "(1.08 x)"),
    "clear in all rounds but one": ([1.0] * 5, [0.8, 0.8, 1.5, 0.8, 0.8], True, "(1.25 x)"),
    "the rounds disagree": (
        [1.0] * 5,
        [0.8, 1.5, 0.8, 1.2, 0.8],
        False,
        "(1.25 x), but faster in only 3 of 5 rounds",
    ),
    # What counts is each round, not the drift between them.
    "the machine slows down": (
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [0.5, 1.2, 2.0, 2.9, 4.0],
        True,
        "2000.0 ms per step instead of 3000.0 (1.50 x)",
    ),
    # The medians alone say 1.25 times faster.
    "other work comes and goes": (
        [1.0, 3.0, 1.0, 3.0, 1.0],
        [3.0, 0.8, 3.0, 0.8, 0.8],
        False,
        "(1.25 x), but faster in only 3 of 5 rounds",
    ),
}


@pytest.mark.parametrize(("before", "after", "chosen", "reason"), ROUNDS.values(), ids=ROUNDS)
def test_a_choice_is_clearly_faster_in_most_rounds(
    monkeypatch: pytest.MonkeyPatch,
    before: list[float],
    after: list[float],
    chosen: bool,
    reason: str,
) -> None:
    times = [(before, 2.0), (after, 2.0)]
    monkeypatch.setattr(speed_module._Trial, "_run", lambda *_: times)
    choice = choose(channels_last="auto")
    assert choice.speed.channels_last == chosen
    assert choice.reasons[0].startswith(f"channels_last: {'on' if chosen else 'off'}, ")
    assert choice.reasons[0].endswith(reason)


def test_what_compiling_may_save_is_judged_by_the_fastest_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work of others makes steps longer, and would make compilation seem to pay."""
    with_compiler(monkeypatch)
    monkeypatch.setattr(speed_module._Trial, "_run", lambda *_: [([0.9, 0.01, 0.9, 0.8, 0.7], 2.0)])
    (reason,) = choose(compile="auto", steps=1000).reasons
    assert reason.startswith("compile: off, it would save at most about 3 s of about 10 s of ")


def test_a_faster_candidate_that_agrees_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    measure(monkeypatch, lambda speed: (0.9 if speed.channels_last else 1.0, 2.0))
    assert choose(channels_last="auto").speed == Speed(channels_last=True)


@pytest.mark.parametrize("seconds", [0.95, 1.0, 1.5])
def test_a_candidate_that_gains_next_to_nothing_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    measure(monkeypatch, lambda speed: (seconds if speed.channels_last else 1.0, 2.0))
    choice = choose(channels_last="auto")
    assert choice.speed == PLAIN
    assert choice.reasons[0].startswith("channels_last: off, ")


@pytest.mark.parametrize(("loss", "agrees"), [(2.001, True), (2.01, False), (math.nan, False)])
def test_a_faster_candidate_whose_loss_disagrees_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, loss: float, agrees: bool
) -> None:
    measure(monkeypatch, lambda s: (0.5, loss) if s.channels_last else (1.0, 2.0))
    choice = choose(channels_last="auto")
    assert choice.speed.channels_last == agrees
    assert (f", but its loss is {loss:.4g} instead of 2" in choice.reasons[0]) == (not agrees)


def test_a_candidate_that_computes_something_else_is_found_out_by_its_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Learner.step

    def wrong(learner: Learner, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = step(learner, inputs, targets)
        return loss + 0.1 if learner.speed.channels_last else loss

    monkeypatch.setattr(Learner, "step", wrong)
    choice = choose(channels_last="auto")
    assert choice.speed == PLAIN
    assert "but its loss" in choice.reasons[0]


def test_a_candidate_that_raises_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Learner.step

    def failing(learner: Learner, inputs: Tensor, targets: Tensor) -> Tensor:
        if learner.speed.channels_last:
            raise RuntimeError("unsupported layout\nand a long trace")
        return step(learner, inputs, targets)

    monkeypatch.setattr(Learner, "step", failing)
    state = torch.get_rng_state()
    choice = choose(channels_last="auto")
    assert choice.speed == PLAIN
    assert choice.reasons == [
        "channels_last: off, it fails here (RuntimeError: unsupported layout)"
    ]
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_compiler_auto_does_without_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_compiler(monkeypatch)
    tried = measure(monkeypatch, never)
    choice = choose(compile="auto", steps=10**9)
    assert choice == Choice(PLAIN, ["compile: off, there is no C++ compiler"])
    assert tried == []


def test_without_a_compiler_it_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    no_compiler(monkeypatch)
    message = r"--compile on: there is no C\+\+ compiler; use --compile off or auto"
    with pytest.raises(UserError, match=message):
        choose(compile="on")


def test_compiling_is_not_tried_where_it_cannot_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    with_compiler(monkeypatch)
    tried = measure(monkeypatch, lambda _speed: (0.01, 2.0))
    choice = choose(compile="auto", steps=1000)  # 10 s of training
    assert tried == [(PLAIN,)]
    assert choice.speed == PLAIN
    assert choice.reasons[0].startswith(
        "compile: off, it would save at most about 3 s of about 10 s"
    )


@pytest.mark.parametrize(("seconds", "kept"), [(0.5, True), (0.99, False)])
def test_compiling_is_tried_where_it_may_pay(
    monkeypatch: pytest.MonkeyPatch, seconds: float, kept: bool
) -> None:
    with_compiler(monkeypatch)
    tried = measure(monkeypatch, lambda speed: (seconds if speed.compile else 1.0, 2.0))
    choice = choose(compile="auto", steps=10**6)
    assert tried == [(PLAIN,), (PLAIN, Speed(compile=True))]
    assert choice.speed.compile == kept


def test_a_gain_smaller_than_what_compiling_cost_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with_compiler(monkeypatch)
    clock = iter([0.0, 900.0])  # the trial of the compiled model took 15 minutes
    monkeypatch.setattr(speed_module.time, "perf_counter", lambda: next(clock))
    measure(monkeypatch, lambda speed: (0.8 if speed.compile else 1.0, 2.0))
    assert choose(compile="auto", steps=1000).speed == PLAIN  # saves 200 s


def test_a_model_that_cannot_be_compiled_is_trained_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_compiler(monkeypatch)

    def measured(speed: Speed) -> tuple[float, float]:
        if speed.compile:
            raise RuntimeError("graph break")
        return 1.0, 2.0

    measure(monkeypatch, measured)
    choice = choose(compile="auto", steps=10**6)
    assert choice.speed == PLAIN
    assert choice.reasons == ["compile: off, it fails here (RuntimeError: graph break)"]


def test_cuda_graphs_need_a_gpu() -> None:
    with pytest.raises(UserError, match=r"^--cuda-graphs on needs a GPU, the device is cpu; use "):
        choose(cuda_graphs="on")


def test_cuda_graphs_are_measured_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measure(monkeypatch, never)
    assert choose(cuda_graphs="auto") == Choice(PLAIN, [])
    assert tried == []


def test_cuda_graphs_need_a_single_process() -> None:
    gpu = torch.device("cuda")
    check_speed(FGEConfig(cuda_graphs="on"), gpu)
    check_speed(FGEConfig(cuda_graphs="auto"), gpu, processes=2)
    with pytest.raises(
        UserError, match=r"^--cuda-graphs on needs a single process, got 2; use --cuda-graphs off"
    ):
        check_speed(FGEConfig(cuda_graphs="on"), gpu, processes=2)


def test_cuda_graphs_are_not_measured_for_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.random, "fork_rng", lambda **_: nullcontext())
    tried = measure(monkeypatch, lambda speed: (0.5 if speed.cuda_graphs else 1.0, 2.0))
    options = FGEConfig(channels_last="auto", compile="off", amp="off", cuda_graphs="auto")
    images: Any = SimpleNamespace(device=torch.device("cuda"))
    graphs = []
    for processes in (1, 2):
        choice = choose_speed(
            options, make_model(), images, torch.zeros(2), steps=9, processes=processes
        )
        graphs.append(choice.speed.cuda_graphs)
    assert graphs == [True, False]
    assert len(tried) == 3


@pytest.mark.parametrize(("processes", "is_left"), [(1, True), (2, False)])
def test_with_several_processes_auto_graphs_alone_leave_nothing_to_measure(
    processes: int, is_left: bool
) -> None:
    options = FGEConfig(channels_last="off", compile="off", amp="off", cuda_graphs="auto")
    assert is_open(options, torch.device("cuda"), processes=processes) == is_left


@pytest.mark.parametrize(
    ("own", "on", "reason"),
    [
        (False, True, "cuda_graphs: on, 500.0 ms per step instead of 1000.0 (2.00 x)"),
        (
            True,
            False,
            "cuda_graphs: off, because a network of your own may do different work ",
        ),
    ],
)
def test_cuda_graphs_are_chosen_for_networks_known_to_repeat_their_work(
    monkeypatch: pytest.MonkeyPatch, own: bool, on: bool, reason: str
) -> None:
    measure(monkeypatch, lambda speed: (0.5 if speed.cuda_graphs else 1.0, 2.0))
    trial = speed_module._Trial(make_model(), torch.zeros(2, 1, 6, 6), torch.zeros(2))
    options = FGEConfig(channels_last="off", compile="off", amp="off", cuda_graphs="auto")
    speed = speed_module._decide(trial, options, PLAIN, 100, graphs=True, own_model=own)
    assert speed == Speed(cuda_graphs=on)
    assert trial.reasons[0].startswith(reason)


def test_a_replay_is_compared_after_it_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    class Counting(Learner):
        def step(self, *batch: Any) -> Tensor:
            steps.append(len(batch))
            return torch.tensor(1.0)

    monkeypatch.setattr(speed_module, "Learner", Counting)
    trial = speed_module._Trial(make_model(), torch.zeros(8, 1, 6, 6), torch.zeros(8).long())
    trial._prepare(Speed(cuda_graphs=True), 5)
    assert steps == [2] * 5
