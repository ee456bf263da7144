"""Data and paths that several test files share."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before PyTorch is loaded: threads only cost time on arrays as small as these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before cuBLAS is first used: without it there are no deterministic matrix products on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch

# A shell's background job ignores Ctrl-C, which tests send to themselves and to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# For `import cli`, `from conftest import ...` and `from cuda_tools import ...`.
for folder in (ROOT / "tests" / "cuda", ROOT / "tests", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

if importlib.util.find_spec("hypothesis"):  # the tests of a GPU do without
    from hypothesis import settings

    settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
    settings.load_profile("reproducible")

PLAIN = {"batch_size": 32, "threads": 1, "channels_last": "off", "compile": "off", "amp": "off"}
"""Options of runs on the tiny data: nothing is measured to choose them."""
TINY_CLASSES = 3
TINY_TRAIN, TINY_TEST = 96, 48
TINY_SIDE = 8
_numbers = itertools.count()


def tiny_split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (N, 8, 8) with a bright column band whose place is the class, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % TINY_CLASSES
    images = rng.integers(0, 100, (count, TINY_SIDE, TINY_SIDE))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 120
    return images.astype(np.uint8), labels


def tiny_arrays() -> dict[str, np.ndarray]:
    train_images, train_labels = tiny_split(TINY_TRAIN, 0)
    test_images, test_labels = tiny_split(TINY_TEST, 1)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def write_tiny_npz(path: Path, **changes: np.ndarray) -> Path:
    """Write the tiny data set, with other arrays where they are given; return the path."""
    np.savez(path, **{**tiny_arrays(), **changes})
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny data set, which the tests of a file share and do not change."""
    return write_tiny_npz(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture
def tiny_npz(tmp_path: Path) -> Path:
    return write_tiny_npz(tmp_path / "tiny.npz")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for what fixtures of modules run, instead of the user's own."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGE_CACHE", str(folder / "modules"))
        yield folder


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test, which is not there yet: no test chooses for another one."""
    folder = cache_folder / str(next(_numbers))
    monkeypatch.setenv("FGE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def forked_jobs() -> Iterator[None]:
    """Fork the jobs of comparisons that run in this process, instead of new interpreters."""
    import forked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fge.compare.runner.subprocess", forked.in_place_of_subprocess())
        patch.setattr("fge.compare.runner.POLL_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def fixed_pictures() -> Iterator[None]:
    """Write fixed bytes for the pictures of reports, for tests of everything else in a run."""
    import forked

    with pytest.MonkeyPatch.context() as patch:
        forked.write_fixed_pictures(patch.setattr)
        yield


# --------------------------------------------------------------------------------- tests of a GPU


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accelerator",
        choices=("cuda", "cpu"),
        default="cuda",
        help="where the tests marked cuda run; on the CPU they show that every line of them works",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests of a GPU first, and skip them where there is none."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and config.getoption("accelerator") == "cuda" and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
    items.sort(key=lambda item: item.get_closest_marker("cuda") is None)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def accelerator(request: pytest.FixtureRequest) -> torch.device:
    """The device that the tests marked cuda run on."""
    import torch

    on_gpu = request.config.getoption("accelerator") == "cuda"
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Have float32 mean float32 on a GPU: TF32, which keeps 11 bits, is off.

    Fixtures that compute on a GPU for a whole module need this themselves.
    """
    from torch import backends

    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, backends.cudnn.benchmark
    backends.cudnn.allow_tf32 = backends.cuda.matmul.allow_tf32 = False
    backends.cudnn.benchmark = False  # a stopwatch would choose kernels that round differently
    try:
        yield
    finally:
        backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32 = before[:2]
        backends.cudnn.benchmark = before[2]


@pytest.fixture(autouse=True)
def _full_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute in full precision in the tests of a GPU."""
    on_gpu = request.node.get_closest_marker("cuda") is not None
    with full_precision() if on_gpu else contextlib.nullcontext():
        yield


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Have PyTorch refuse kernels that round differently each time, and fill new memory with NaN.

    The memory matters: what reads it before writing cannot pass unseen.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
