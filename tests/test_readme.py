"""The README is true: its commands and examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_CLASSES, tiny_arrays, write_tiny_npz
from PIL import Image

from fge.commands import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.startswith("python cli.py")
]
PLAIN = "--batch-size 16 --compile off --amp off --channels-last off"
SHORT = {
    "fge": f"--epochs 3 --start-epoch 0 --cycle-epochs 2 {PLAIN}",
    "train": f"--epochs 5 {PLAIN}",
    "compare": f"--epochs 4 --start-epoch 0 --cycle-epochs 2 --sse-cycles 2 --seeds 2 {PLAIN}",
    "curve-ensemble": f"--epochs 1 --curve-epochs 1 --eval-points 3 {PLAIN}",
    "connect": f"--epochs 1 --eval-points 3 {PLAIN}",
    "plane": f"--resolution 2 --line-points 3 --eval-images 16 {PLAIN}",
    "sharpness": f"--k 1 --examples 16 --trace-samples 2 --spectrum-steps 2 {PLAIN}",
    "predict": "",
    "report": "",
}
TRAINING = ("fge", "train", "compare", "curve-ensemble", "connect")
SIDE = 32  # what every architecture named in the README can take

MY_MODELS = """
from torch import nn

def build(in_channels, num_classes):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folders and files that the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    arrays = tiny_arrays()
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        for number, (image, label) in enumerate(zip(images[:48], labels, strict=False)):
            path = folder / "photos" / part / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.kron(image, np.ones((4, 4), np.uint8))).save(path)
    new = folder / "new-photos"
    new.mkdir()
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(new / "black.png")
    write_tiny_npz(folder / "photos.npz")
    (folder / "my_models.py").write_text(MY_MODELS)
    return folder


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [block for language, block in BLOCKS if language == "python"]
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_commands_run_on_short_jobs_and_leave_a_page(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(workplace)
    import my_models  # type: ignore[import-not-found]

    for name in ("weights", "a", "b", "c"):
        torch.save(my_models.build(1, TINY_CLASSES).state_dict(), f"{name}.pt")
    assert {shlex.split(command)[2] for command in COMMANDS} == set(cli.COMMANDS)
    for command in COMMANDS:
        arguments = shlex.split(command)[2:]
        short = SHORT[arguments[0]]
        if arguments[0] in TRAINING and "--data" not in arguments:
            short += " --train-size 120 --test-size 60"
        capsys.readouterr()
        assert cli.main([*arguments, *shlex.split(short)]) == 0, command
        page = Path(re.findall(r"report: (.*)\n", capsys.readouterr().out)[-1])
        assert page.name == "report.html"
        assert "<h1>" in page.read_text(encoding="utf-8")
    assert (workplace / "runs/photos/predict-new-photos/predictions.csv").is_file()


def test_the_command_for_several_processes_runs(workplace: Path) -> None:
    [command] = [line for _, block in BLOCKS for line in block.splitlines() if "torchrun" in line]
    words = shlex.split(command)
    assert words[:5] == ["torchrun", "--standalone", "--nproc-per-node", "2", "cli.py"]
    launch = [sys.executable, "-m", "torch.distributed.run", *words[1:4]]
    short = f"--train-size 120 --test-size 60 --threads 1 {SHORT['fge']}"
    arguments = [str(ROOT / "cli.py"), *words[5:], *shlex.split(short)]
    done = subprocess.run([*launch, *arguments], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert (workplace / "runs/parallel/report.html").is_file()


def test_the_two_commands_are_the_ones_that_ci_runs() -> None:
    both = [block.strip() for language, block in BLOCKS if language == "sh"][:2]
    assert both == ["pip install -e . && python cli.py fge", "pip install -e '.[test]' && pytest"]
    assert f"\n{both[1]}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
