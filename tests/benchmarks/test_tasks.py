"""The data of the benchmark of tasks are such as the commands read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT

from fge.config import CompareConfig, suited
from fge.data import Reading, load_dataset, load_table


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "benchmarks" / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_task_has_its_data(benchmark: ModuleType, tmp_path: Path) -> None:
    sizes = {"digits": (1797, 10), "cancer": (569, 1), "diabetes": (442, 1)}
    for name, (rows, outputs) in sizes.items():
        file, write, options = benchmark.TASKS[name]
        write(tmp_path / file)
        data = load_table(tmp_path / file, options["target"], options["task"])
        assert len(data.train) + len(data.val) + len(data.test) == rows
        assert data.outputs == outputs
    assert data.target.task == "regression"
    assert data.target.mean[0] == pytest.approx(152, abs=10)  # as scikit-learn says of the data


def test_attributes_are_those_of_the_classes(benchmark: ModuleType, tmp_path: Path) -> None:
    file, write, options = benchmark.TASKS["attributes"]
    write(tmp_path / file)
    data = load_dataset(str(tmp_path / file), reading=Reading(task=options["task"]))
    assert data.classes == tuple(benchmark.ATTRIBUTES)
    with np.load(ROOT / "fge" / "data" / "bundled" / "fashion-mnist-mini.npz") as bundled:
        share = np.isin(bundled["test_labels"], (5, 7, 9)).mean()
    assert data.test.labels[:, 0].double().mean().item() == pytest.approx(share)
    assert (data.test.labels.sum(dim=1) >= 1).all()


def test_the_methods_suit_every_task(benchmark: ModuleType, tmp_path: Path) -> None:
    for file, _, options in benchmark.TASKS.values():
        config = CompareConfig(
            data=str(tmp_path / file),
            methods=benchmark.METHODS,
            ood=(),
            **benchmark.PLAIN,
            **options,
        )
        assert suited(config).methods == benchmark.METHODS
