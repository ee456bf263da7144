"""The comparison with other libraries: what is counted, how runs are paired, that they are equal.

TorchEnsemble belongs to the extra ``benchmarks``; without it, what needs it is skipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import nn

sys.path.append(str(ROOT / "benchmarks"))

import peer_faults
import peer_methods
import peer_tables
import peers

from fge.config import MethodConfig
from fge.ensemble import Ensemble
from fge.errors import UserError

needs_torchensemble = pytest.mark.skipif(
    not peers.has_torchensemble(), reason="torchensemble is not installed"
)

pytestmark = pytest.mark.slow  # whole trainings
MACHINE = {
    "hardware": "a processor",
    "device": "cpu",
    "threads": 1,
    "python": "3.11",
    "torch": "2.5",
    "torchvision": "0.20",
    "torchensemble": "0.2.0",
}


def config_for(data: Path, **options: Any) -> MethodConfig:
    # In 7 epochs: a start of 4 and two snapshots, or 7 cosine cycles.
    values = {"epochs": 7, "sse_cycles": 7, "batch_size": 32, "device": "cpu", "seed": 1}
    fixed = {"channels_last": "on", "compile": "off", "amp": "off", "average": 0.0}
    return MethodConfig(data=str(data), **{**values, **fixed, **options})


def made_up(method: str, seed: int, **changes: Any) -> dict[str, Any]:
    figures = {key: 1.0 for key, _, _ in peer_tables.COLUMNS}
    facts = {"method": method, "seed": seed, "environment": MACHINE, "process": 1}
    return {**facts, **figures, **changes}


def test_methods_take_turns_and_each_begins() -> None:
    order = list(peers.turns(["a", "b", "c"], [5, 6]))
    assert order == [("a", 5), ("b", 5), ("c", 5), ("b", 6), ("c", 6), ("a", 6)]


def test_the_counter_tells_what_a_pass_is_for_in_copies_too() -> None:
    model, counter = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), peers.PassCounter()
    counter.watch(model)
    twin = copy.deepcopy(model)
    model(torch.zeros(3, 2))
    twin(torch.zeros(4, 2))
    with torch.no_grad():
        twin(torch.zeros(5, 2))
        model.eval()[1].train()  # as batch norm alone is refreshed
        model(torch.zeros(6, 2))
        twin.eval()(torch.zeros(7, 2))
        counter.phase = "test"
        twin(torch.zeros(8, 2))
    assert counter.images == {"train": 7, "refresh": 11, "validation": 7, "test": 8}


def test_each_pass_of_the_loader_is_the_next_epoch(tiny_npz: Path, tmp_path: Path) -> None:
    task, _ = peers.new_task(config_for(tiny_npz), tmp_path / "a")
    loader, batches = task.loader, task.loader.batches
    assert len(loader) == len(batches) == 3
    assert loader.dataset.classes == task.dataset.classes
    for epoch in range(3):
        batches.set_epoch(epoch)
        for (ours, labels), (theirs, others) in zip(batches, loader, strict=True):
            assert torch.equal(ours, theirs)
            assert torch.equal(labels, others)


def test_the_start_of_the_peers_has_the_rates_of_ours(tiny_npz: Path, tmp_path: Path) -> None:
    task, _ = peers.new_task(config_for(tiny_npz, epochs=10), tmp_path / "a")
    factors = [task.start_factor(epoch) for epoch in (0, 4, 5, 8, 9)]
    assert factors == pytest.approx([1, 1, 0.7525, 0.01, 0.01], abs=1e-12)
    assert task.cycle_members == 1 + (task.config.last_cycle_epoch - 7) // 2


EXPECTED = {  # members, passes over validation images, over test images, images for batch norm
    "fge": (2, 2, 2, 0),
    "torchensemble-fge": (2, 3, 2, 0),
    "sse": (7, 7, 7, 0),
    "torchensemble-sse": (7, 28, 7, 0),
    "swa": (1, 2, 1, 86),
    "torch-swa": (1, 0, 1, 86),
}


@pytest.mark.parametrize("method", peer_methods.CONTENDERS)
def test_a_run_counts_what_it_costs(method: str, tiny_npz: Path) -> None:
    if method in peers.TORCHENSEMBLE and not peers.has_torchensemble():
        pytest.skip("torchensemble is not installed")
    run = peers.measure(method, config_for(tiny_npz))
    found = [run[k] for k in ("members", "validation_passes", "test_passes", "refresh_images")]
    assert tuple(found) == EXPECTED[method]
    assert run["train_epochs"] == 7
    assert 0 <= run["error"] <= 100
    assert run["train_seconds"] > 0
    assert run["peak_mib"] >= run["more_mib"] >= 0


def test_the_peak_of_memory_is_that_since_it_was_forgotten() -> None:
    cpu = torch.device("cpu")
    peers.forget_peak(cpu)
    before = peers.memory_mib(cpu, peak=False)
    if before is None:
        pytest.skip("this system does not let a process forget its peak")
    block = torch.ones(64 * 2**18)  # 64 MiB, touched
    del block
    most = peers.memory_mib(cpu, peak=True)
    peers.forget_peak(cpu)
    again = peers.memory_mib(cpu, peak=True)
    assert most is not None
    assert again is not None
    assert most > before + 60
    assert again < before + 32


def test_where_no_peak_can_be_forgotten_none_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "CLEAR_REFS", tmp_path / "none")
    peers.forget_peak(torch.device("cpu"))
    assert peers.memory_mib(torch.device("cpu"), peak=True) is None
    runs = [made_up("fge", 0, peak_mib=None, more_mib=None)]
    assert peer_tables.method_rows(runs)[2].endswith("| - | - |")


def test_a_run_does_not_depend_on_what_ran_before(tiny_npz: Path) -> None:
    config = config_for(tiny_npz)
    peers.warm_up(config)
    first = peers.measure("fge", config)
    peers.measure("torch-swa", config)
    again = peers.measure("fge", config)
    assert (first["error"], first["nll"]) == (again["error"], again["nll"])


def probabilities(method: str, config: MethodConfig, folder: Path) -> tuple[Any, torch.Tensor]:
    task, _ = peers.new_task(config, folder)
    folder.mkdir()
    trained = peer_methods.CONTENDERS[method](task)
    batches = task.setup.eval_batches(task.dataset.test)
    return trained, trained.predict(batches)


@needs_torchensemble
def test_the_snapshot_ensembles_are_the_same(tiny_npz: Path, tmp_path: Path) -> None:
    # Five steps at .02: far too few for rounding to grow.
    config = config_for(tiny_npz, epochs=2, sse_cycles=2, lr=0.02)
    _, ours = probabilities("sse", config, tmp_path / "ours")
    _, theirs = probabilities("torchensemble-sse", config, tmp_path / "theirs")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@needs_torchensemble
@pytest.mark.parametrize(("momentum", "same"), [(0.0, True), (0.9, False)])
def test_fge_differs_by_momentum_and_logits_alone(
    momentum: float, same: bool, tiny_npz: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_npz, momentum=momentum, lr=0.02, max_lr=0.01)
    trained, ours = probabilities("fge", config, tmp_path / "ours")
    _, theirs = probabilities("torchensemble-fge", config, tmp_path / "theirs")
    ensemble = trained.predict.__self__
    task, _ = peers.new_task(config, tmp_path / "again")
    logits = Ensemble(ensemble.model, ensemble.members, combine="logits")
    averaged = logits.predict_proba(task.setup.eval_batches(task.dataset.test))
    assert float((ours - averaged).abs().max()) > 1e-4
    assert bool((averaged - theirs).abs().max() < 1e-5) is same


def test_pytorchs_average_is_that_of_the_epochs_after_the_start(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, rates = [], []
    update = peer_methods.AveragedModel.update_parameters

    def watched(self: Any, model: nn.Module) -> None:
        taken.append([p.detach().clone().double() for p in model.parameters()])
        update(self, model)

    class WatchedSGD(torch.optim.SGD):
        def step(self, *arguments: Any, **options: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **options)

    monkeypatch.setattr(peer_methods.AveragedModel, "update_parameters", watched)
    monkeypatch.setattr(torch.optim, "SGD", WatchedSGD)
    trained, _ = probabilities("torch-swa", config_for(tiny_npz, max_lr=0.03), tmp_path / "a")
    averaged = trained.predict.args[0]
    assert len(taken) == 3
    for mean, *values in zip(averaged.parameters(), *taken, strict=True):
        torch.testing.assert_close(mean.double(), sum(values) / 3, atol=1e-6, rtol=0)
    base = 0.2 * torch.tensor([1, 1, 1, 1 - (4 / 7 - 0.5) / 0.4 * 0.99]).double()
    assert rates[: 4 * 3 : 3] == pytest.approx(base.tolist(), rel=1e-6)
    # SWALR goes from the rate it finds to its own in 10 epochs, along a cosine.
    found = 0.2 * (1 - (5 / 7 - 0.5) / 0.4 * 0.99)
    shares = [(1 - math.cos(math.pi * k / 10)) / 2 for k in range(3)]
    expected = [found + (0.03 - found) * share for share in shares]
    assert rates[4 * 3 :: 3] == pytest.approx(expected, rel=1e-6)


def test_spreads_and_intervals() -> None:
    assert peer_tables.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    assert peer_tables.spread([3.0, 3.0], 0) == peer_tables.spread([3.0], 0) == "3"
    mean, half = peer_tables.interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302652729911275 / 3**0.5), abs=1e-9)
    assert peer_tables.interval([1.5]) == (1.5, float("inf"))
    # Of the logarithms 0 and ln 4: mean ln 2, standard error ln 2, t(.975, 1) = 12.7062.
    found = peer_tables.ratio([1.0, 4.0])
    expected = [2.0, 2 ** (1 - 12.706204736), 2 ** (1 + 12.706204736)]
    assert found == pytest.approx(expected, rel=1e-8)
    assert peer_tables.ratio([0.5]) == (0.5, 0.0, float("inf"))


def test_differences_are_of_the_seeds_that_both_have() -> None:
    runs = [
        made_up("fge", 1, error=9.0, nll=0.5, train_seconds=8.0),
        made_up("fge", 0, error=10.0, nll=0.25, train_seconds=6.0),
        made_up("torchensemble-fge", 0, error=12.0, nll=0.25, train_seconds=4.0),
        made_up("torchensemble-fge", 1, error=10.0, nll=0.5, train_seconds=6.4),
        made_up("torchensemble-fge", 2, error=99.0),
        made_up("swa", 0),
    ]
    (row,) = peer_tables.pair_rows(runs)[2:]
    # Differences -2 and -1: standard error 1/2, t(.975, 1) = 12.7062; ratios 1.5 and 1.25, whose
    # logarithms are .27893 on average, with a standard error of .09116.
    cells = "2 | -1.50 ± 6.35 | +0.0000 ± 0.0000 | 1.37 x [0.43, 4.36]"
    assert row == f"| fge - torchensemble-fge | {cells} |"
    one = [run for run in runs if run["seed"] == 0]
    assert peer_tables.pair_rows(one)[2].endswith("| 1 | -2.00 | +0.0000 | 1.50 x |")
    table = peer_tables.method_rows(runs)
    assert table[2].startswith("| fge | 2 | 1 | 1.0 | 9.50 ± 0.71 | 0.3750 ± 0.1768 | 7.0 ± 1.4 |")
    assert len(table) == 5


def test_the_page_says_where_it_was_measured_and_what_was_seen() -> None:
    faults = [{"claim": "a | b", "seen": False, "evidence": "none"}]
    results = {
        "settings": {"model": "convnet", "data": "mini", "epochs": 4, "train_size": None},
        "runs": [made_up("fge", 0)],
        "faults": {"torchensemble": "0.2.0", "faults": faults},
    }
    page = peer_tables.page(results)
    runs = "Runs: 1 (model convnet, data mini, epochs 4), one after the other in one process."
    assert f"{runs} Hardware and versions: a proc" in page
    assert "| a / b | no | none |" in page
    assert "difference" not in page
    other = {**MACHINE, "hardware": "another"}
    results["runs"] = [made_up("fge", 0), made_up("fge", 1, environment=other, process=2)]
    results["faults"] = None
    page = peer_tables.page(results)
    assert "differ, so times are not comparable: a processor (cpu" in page
    assert "What was seen" not in page
    assert "one after the other in 2 processes, since some were added later" in page
    for run in results["runs"]:
        del run["process"]
    assert "each in a process of its own" in peer_tables.page(results)


@needs_torchensemble
def test_what_is_looked_for_is_seen_in_the_version_that_was_looked_at() -> None:
    found = peer_faults.look_for_faults()
    assert found["torchensemble"] == version("torchensemble")
    if version("torchensemble") != "0.2.0":
        pytest.skip("what a later version does is for the benchmark to say")
    assert [fault["claim"] for fault in found["faults"] if not fault["seen"]] == []
    assert "21 passes over the evaluation images for 6 members" in str(found)


def options_for(path: Path, **changes: Any) -> argparse.Namespace:
    values = {"methods": ["fge", "swa"], "seeds": [0, 1], "results": path, "data_dir": None}
    config = MethodConfig(epochs=10, sse_cycles=5)
    options = {name: getattr(config, name) for name in (*peers.SETTINGS, "device", "threads")}
    return argparse.Namespace(**{**options, **values, **changes})


def test_only_what_is_missing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []

    def fake(method: str, config: MethodConfig) -> dict[str, Any]:
        done.append((method, config.seed))
        return made_up(method, config.seed)

    warmed: list[int] = []
    monkeypatch.setattr(peers, "measure", fake)
    monkeypatch.setattr(peers, "warm_up", lambda config: warmed.append(config.seed))
    monkeypatch.setattr(peers, "has_torchensemble", lambda: False)
    path = tmp_path / "results" / "peers.json"
    peers.run(options_for(path, seeds=[0]))
    assert done == [("fge", 0), ("swa", 0)]
    peers.run(options_for(path))
    assert done[2:] == [("swa", 1), ("fge", 1)]
    runs = json.loads(path.read_text())["runs"]
    assert [run["process"] for run in runs] == [1, 1, 2, 2]
    peers.run(options_for(path))
    assert (len(done), len(warmed)) == (4, 2)
    assert path.with_suffix(".md").read_text().startswith("# convnet on fashion-mnist-mini")
    with pytest.raises(UserError, match="has runs with epochs 10, not 20; give another --results"):
        peers.run(options_for(path, epochs=20))
    old = json.loads(path.read_text())
    del old["runs"][0]["process"]
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match="runs that each had their own process, so their peak"):
        peers.run(options_for(path))


def test_options_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "has_torchensemble", lambda: False)
    with pytest.raises(UserError, match="unknown method 'fgee'; did you mean 'fge'"):
        peers.run(options_for(tmp_path / "a.json", methods=["fgee"]))
    with pytest.raises(UserError, match="torchensemble-sse needs torchensemble: pip install"):
        peers.run(options_for(tmp_path / "a.json", methods=["torchensemble-sse"]))
    with pytest.raises(UserError, match="epochs must be >= 1, got 0"):
        peers.run(options_for(tmp_path / "a.json", epochs=0))
    assert not (tmp_path / "a.json").exists()


@needs_torchensemble
def test_budgets_that_torchensemble_cannot_use(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of its 2 cycles, got 3"):
        probabilities(
            "torchensemble-sse", config_for(tiny_npz, epochs=3, sse_cycles=2), tmp_path / "a"
        )
    with pytest.raises(UserError, match="needs an epoch before the cycles, got epochs 1"):
        probabilities("torchensemble-fge", config_for(tiny_npz, epochs=1), tmp_path / "b")
