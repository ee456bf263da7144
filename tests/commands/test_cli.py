"""The command line from its arguments to its exit code, on tiny data."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_arrays, write_tiny_npz
from PIL import Image
from safetensors.torch import load_file, save_file

from fge.commands import build, cli, doctor, loading, planes, sharpness, train
from fge.config import GROUPS, FGEConfig, PlaneConfig, help_of
from fge.data import load_dataset
from fge.ensemble import SnapshotStore
from fge.networks import build_model
from fge.train import METHODS, Choice, Learner, Speed
from fge.train.schedules import triangular

PLAIN = shlex.split("--channels-last off --compile off --amp off --device cpu --threads 1")
SHORT = shlex.split("--epochs 4 --start-epoch 1 --cycle-epochs 2 --batch-size 32")
RATES = shlex.split("--lr 0.05 --max-lr 0.1 --min-lr 0.001")
STEPS_PER_EPOCH = 3  # 96 training images less 10 for validation, in batches of 32
STEPS = 4 * STEPS_PER_EPOCH


def command(data: Path | str, out: Path | str, *more: str) -> list[str]:
    return ["fge", "--data", str(data), "--out", str(out), *SHORT, *RATES, *PLAIN, *more]


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What stands behind ``error:``; there is one line and nothing else."""
        assert re.fullmatch(r"error: [^\n]+\n", self.err), self.err
        return self.err.removeprefix("error: ").rstrip("\n")


Run = Callable[[list[str]], Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(argv: list[str]) -> Result:
        capsys.readouterr()
        code = cli.main(argv)
        return Result(code, *capsys.readouterr())

    return call


@dataclass
class Finished:
    folder: Path
    data: Path
    out: str

    def copy(self, target: Path) -> Path:
        shutil.copytree(self.folder, target)
        return target


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("cli")
    data = write_tiny_npz(folder / "tiny.npz")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(command(data, folder / "run")) == 0
    return Finished(folder / "run", data, out.getvalue())


def parsed(run: Run, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> FGEConfig:
    """Return the configuration that ``argv`` comes to, without training."""
    seen: list[FGEConfig] = []
    monkeypatch.setattr(train, "fge", seen.append)
    result = run(argv)
    assert (result.code, result.err) == (0, "")
    return seen[0]


def test_the_main_job_needs_no_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(run, monkeypatch, ["fge"]) == FGEConfig()


@pytest.mark.parametrize("option", ["--out", "--config", "--model", "--epochs"])
def test_an_option_without_its_value_is_named(run: Run, option: str) -> None:
    result = run(["fge", option])
    assert result.code == 2
    assert option in result.message


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def options(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "config.json").read_text())
    saved: dict[str, Any] = content["options"]
    return saved


VOLATILE = {"timing.jsonl", "report.html", "figures/training.png", "manifest.json"}
"""Files with times in them, and the manifest, which has their checksums."""


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ------------------------------------------------------------------------------ a finished run


def test_finished_run_leaves_the_folder_of_the_contract(finished: Finished) -> None:
    assert {
        "config.json",
        "log.jsonl",
        "timing.jsonl",
        "snapshots/0001.safetensors",
        "snapshots/0002.safetensors",
        "snapshots/index.json",
        "predictions/val.npz",
        "predictions/test.npz",
        "report.json",
        "page.json",
        "report.md",
        "report.html",
        "figures/training.png",
    } <= set(contents(finished.folder))


def test_terminal_names_the_folder_the_methods_and_the_report(finished: Finished) -> None:
    assert f"run folder: {finished.folder}\n" in finished.out
    assert str(finished.folder / "report.html") in finished.out
    for method in ("last-snapshot", "best-snapshot", "fge"):
        assert re.search(rf"│ {method} +│", finished.out), method


def test_default_folder_is_the_next_free_one(run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "fge-001").mkdir(parents=True)
    argv = command(tiny_npz, "x", "--epochs", "1", "--start-epoch", "0")
    del argv[argv.index("--out") : argv.index("--out") + 2]
    assert run(argv).code == 0
    assert (tmp_path / "runs" / "fge-002" / "report.json").is_file()
    assert list((tmp_path / "runs" / "fge-001").iterdir()) == []


def test_config_of_a_finished_run_repeats_it(run: Run, finished: Finished, tmp_path: Path) -> None:
    result = run(["fge", "--config", str(finished.folder / "config.json"), "--out", "again"])
    assert (result.code, result.err) == (0, "")
    for name in ("log.jsonl", "config.json", "snapshots/index.json", "report.json"):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (finished.folder / name).read_bytes(), name


@pytest.mark.slow
def test_other_seed_gives_another_run_on_the_same_split(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    assert run([*command(finished.data, "other"), "--seed", "1"]).code == 0
    config, other = (
        json.loads((folder / "config.json").read_text())
        for folder in (finished.folder, tmp_path / "other")
    )
    assert other["dataset"] == config["dataset"]  # its SHA-256 is over the three splits
    log = (tmp_path / "other" / "log.jsonl").read_bytes()
    assert log != (finished.folder / "log.jsonl").read_bytes()


@pytest.mark.slow
def test_without_validation_there_is_no_best_snapshot(
    run: Run, finished: Finished, tiny_npz: Path
) -> None:
    result = run(command(tiny_npz, "run", "--val-fraction", "0"))
    assert result.code == 0
    names = [method["name"] for method in report(Path("run"))["methods"]]
    assert names == ["last-snapshot", "fge", "swa"]
    sentence = "<code>best-snapshot</code> is "
    assert sentence in (finished.folder / "report.html").read_text()
    assert sentence not in Path("run/report.html").read_text()
    assert "| best-snapshot" not in Path("run/report.md").read_text()
    assert "val_error" not in Path("run/log.jsonl").read_text()
    assert not Path("run/predictions/val.npz").exists()


# --------------------------------------------------------------------------- flags and config


def test_flags_override_the_config_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, finished: Finished
) -> None:
    source = finished.folder / "config.json"
    config = parsed(run, monkeypatch, ["fge", "--config", str(source), "--seed", "7", "--no-flip"])
    assert (config.seed, config.flip) == (7, False)
    assert (config.epochs, config.start_epoch, config.data) == (4, 1, str(finished.data))
    assert (config.channels_last, config.threads) == ("off", 1)


def test_flag_equal_to_the_default_overrides_the_config_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, finished: Finished
) -> None:
    source = finished.folder / "config.json"
    default = FGEConfig()
    flags = ["--epochs", str(default.epochs), "--start-epoch", "None", "--amp", "auto"]
    config = parsed(run, monkeypatch, ["fge", "--config", str(source), *flags])
    assert (config.epochs, config.start_epoch, config.amp) == (default.epochs, None, "auto")
    assert config.data == str(finished.data)


def test_flags_are_checked_together_with_the_config_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = {"options": {"epochs": 1000}}
    (tmp_path / "long.json").write_text(json.dumps(content))
    argv = ["fge", "--config", "long.json", "--start-epoch", "900"]
    config = parsed(run, monkeypatch, argv)
    assert (config.epochs, config.start_epoch) == (1000, 900)


def test_flag_that_does_not_fit_the_config_file_is_refused(run: Run, tmp_path: Path) -> None:
    content = {"options": {"epochs": 10, "start_epoch": 2}}
    (tmp_path / "short.json").write_text(json.dumps(content))
    result = run(["fge", "--config", "short.json", "--start-epoch", "20"])
    assert result.code == 2
    assert result.message == "--start-epoch must be in [0, epochs) = [0, 10), got 20"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no config file c\.json"),
        ("{", r"c\.json is not a config file"),
        ('{"options": {"epochs": "x"}}', r"c\.json: epochs must be an? int, got 'x'"),
        ('{"options": {"epoch": 5}}', r"c\.json: unknown option 'epoch'; did you mean 'epochs'"),
        ('{"options": {}, "command": "curve"}', "belongs to the command 'curve', not 'fge'"),
        ('{"options": {}, "schema_version": 9}', "has schema_version 9"),
    ],
)
def test_bad_config_file(run: Run, tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    result = run(["fge", "--config", "c.json"])
    assert result.code == 2
    assert re.search(message, result.message)


# ------------------------------------------------------------------------------- usage errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["feg"], "unknown command 'feg'; did you mean 'fge'?"),
        (["fge", "--epoch", "3"], "unknown option '--epoch'; did you mean '--epochs'?"),
        (["fge", "--max_lrr=3"], "unknown option '--max_lrr'; did you mean '--max-lr'?"),
        (["fge", "--no-flop"], "unknown option '--no-flop'; did you mean '--no-flip'?"),
        (["predict", "--image", "x"], "unknown option '--image'; did you mean '--images'?"),
        (["fge", "--model", "convnett"], "unknown model 'convnett'; did you mean 'convnet'?"),
        (["fge", "--data", "cifar"], "unknown data 'cifar'; did you mean 'cifar10'?"),
        (["fge", "--epochs", "ten"], "--epochs needs a whole number, got 'ten'$"),
        (["fge", "--train-size", "1k"], "--train-size needs a whole number, got '1k'$"),
        (["fge", "--weight-decay", "x"], "--weight-decay needs a number, got 'x'$"),
        (["fge", "--momentum", "x"], "--momentum needs a number, got 'x'$"),
        (["fge", "--lr", "fast"], "--lr needs a number, got 'fast'$"),
        (["compare", "--budgets", "1", "1.5"], "--budgets needs whole numbers, got '1', '1.5'$"),
        (["compare", "--methods"], "name at least one method in --methods$"),
        (["fge", "--epochs"], "--epochs needs a value$"),
        (["fge", "--epochs", "3", "4"], "'4' belongs to no option; leave it out$"),
        (["predict"], "predict needs --run and --images$"),
        (["verify"], "verify needs PATH$"),
        (["fge", "--amp", "bf61"], "'bf61' .*'auto', 'off', 'bf16', 'fp16'"),
        (["fge", "--channels-last", "yes"], "'yes' .*'auto', 'on', 'off'"),
        (["fge", "stray"], "stray"),
        (["predict", "--images", "x"], "--run"),
        (["fge", "--device", "gpu"], "unknown device 'gpu'; use auto, cpu, cuda or cuda:N"),
        (
            ["fge", "--device", "cuda:99"],
            r"device 'cuda:99' is not available \(\d+ found\); use --device auto",
        ),
        (["fge", "--epochs", "0"], "--epochs must be >= 1, got 0"),
        (["fge", "--cycle-epochs", "3"], "--cycle-epochs must be even and >= 2, got 3"),
        (["fge", "--cycle-epochs", "400"], "--cycle-epochs 400 is too long: .*; use"),
        (["fge", "--epochs", "9", "--start-epoch", "9"], r"--start-epoch must be in .*, got 9"),
        (["fge", "--max-lr", "-1"], "--max-lr must be finite and >= 0, got -1"),
        (["fge", "--lr=-0.1"], "--lr must be finite and >= 0, got -0.1"),
        (["fge", "--min-lr", "5"], "--min-lr must not exceed --max-lr, got --min-lr 5.0"),
        (["fge", "--out", "x", "--resume", "--overwrite"], "--resume or --overwrite, not both"),
        (["fge", "--resume"], "--resume and --overwrite need --out"),
        (["fge", "--overwrite"], "--resume and --overwrite need --out"),
        (
            ["fge", "--out", "nowhere", "--resume"],
            "no run to resume in nowhere; start it without --resume",
        ),
        (["fge", "--pretrained", "none.pt"], r"no weights file none\.pt"),
        (["fge", "--data", "none.npz"], r"no data file none\.npz"),
        (
            ["fge", "--train-size", "999999"],
            "--train-size 999999 is more than the 10000 available images",
        ),
        (["fge", "--train-size", "50"], "--batch-size 128 is larger than the 45 training images"),
        (
            ["predict", "--run", "nowhere", "--images", "x"],
            r"nowhere is not a run folder \(no",
        ),
        (["fge", "--crop-padding", "200000"], "--crop-padding 200000 is more than .* side, 28"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing_behind(
    run: Run, tmp_path: Path, argv: list[str], message: str
) -> None:
    result = run(argv)
    assert result.code == 2
    assert re.search(message.replace("?", r"\?"), result.message), result.message
    assert not re.search("---|helptext|FGEConfig|PredictConfig", result.message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("min_lr must not exceed max_lr, got 5", "--min-lr must not exceed --max-lr, got 5"),
        ("seed must be >= 0, got -1", "--seed must be >= 0, got -1"),
        ("images must be uint8, got float32", "images must be uint8, got float32"),
        ("data 'batch_size' and a/batch_size are none", None),
        ("run/config.json: batch_size must be >= 1, got 0", None),
        ("train_labels must be integers, got float64", None),
        ("--batch-size 3 is larger than the model needs", None),
    ],
)
def test_messages_name_options_as_they_are_typed(message: str, shown: str | None) -> None:
    assert cli._as_typed(message, "fge") == (shown or message)
    assert cli._as_typed("runs must be in x", "report") == "runs must be in x"
    assert cli._as_typed(message, "no-command") == message


def test_without_a_command_the_commands_are_listed(run: Run) -> None:
    result = run([])
    assert (result.code, result.err) == (2, "")
    assert "usage: python cli.py COMMAND" in result.out


def test_help_names_every_command(run: Run) -> None:
    result = run(["--help"])
    assert (result.code, result.err) == (0, "")
    assert all(re.search(rf"^  {name} ", result.out, re.MULTILINE) for name in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_a_command_names_every_option_in_a_group(run: Run, command: str) -> None:
    result = run([command, "--help"])
    assert (result.code, result.err) == (0, "")
    assert result.out == run([command, "--epochs", "-h"]).out
    assert result.out.startswith(f"usage: python cli.py {command} ")
    assert max(map(len, result.out.splitlines())) <= 80
    kind, groups = cli.COMMANDS[command][0], re.findall(r"^(\w+):$", result.out, re.MULTILINE)
    assert groups == [group for group in GROUPS if group in groups]
    shown = re.findall(r"^  (--[\w-]+)", result.out, re.MULTILINE)
    bare = {"report": "runs", "verify": "run"}.get(command, "")
    names = {f.name for f in fields(kind)} - {bare, *kind.unused}
    assert sorted(shown) == sorted(f"--{name.replace('_', '-')}" for name in names)
    if bare:
        usage, *_ = result.out.splitlines()
        assert re.fullmatch(rf".* {command} {bare.upper()}( \.\.\.)? \[OPTIONS\]", usage), usage
        assert f"\n  {bare.upper()} " in result.out
        refused = run([command, f"--{bare}", "x"])
        assert refused.message == f"{bare.upper()} is given without a flag; leave out --{bare}"
    assert "not used" not in result.out.lower()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_that_help_shows_is_taken_by_the_parser(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_one_line", pytest.fail)  # what tyro refuses
    samples = {"INT": "1", "FLOAT": "0.5", "NAME": "a", "PATH": "a"}
    kind, words, bare = cli.COMMANDS[command][0], list[str](), list[str]()
    for option in (option for group in help_of(kind).values() for option in group):
        name, _, value = option.flags.removesuffix(" ...").partition(" ")
        choices = re.findall(r"\w+", value)
        if not name.startswith("--"):
            bare.append("a")
        elif name.endswith(","):  # --flip, --no-flip
            words += [name[:-1], value]
        else:
            words += [name, *(samples.get(choice, choice) for choice in choices[:1])]
    words = [*bare, *words]
    monkeypatch.setattr(kind, "__post_init__", lambda _: None)  # together they make no sense
    assert isinstance(cli._parse(command, kind, words), kind)


def test_help_of_fge_has_its_groups(run: Run) -> None:
    text = run(["fge", "--help"]).out
    groups = [*("data", "model", "schedule", "ensemble", "measurement", "speed", "output")]
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == groups
    schedule = text.split("\nschedule:\n")[1].split("\n\n")[0]
    assert schedule.startswith("  --epochs INT            Training budget in epochs. [100]\n")
    for option in ("--lr FLOAT", "--cycle-epochs INT", "--max-lr FLOAT", "--momentum FLOAT"):
        assert f"\n  {option} " in schedule
    assert "  --flip, --no-flip       Mirror training images at random. [on]\n" in text
    assert "\n  --refit {bezier,polychain}\n                          Connect " in text


@pytest.mark.parametrize("command", ["plane", "sharpness", "connect"])
def test_help_lists_no_option_of_a_training_that_does_not_take_place(
    run: Run, command: str
) -> None:
    text, kind = run([command, "--help"]).out, cli.COMMANDS[command][0]
    assert {*kind.unused, *kind.instead}
    for name in (*kind.unused, *kind.instead):
        assert f"--{name.replace('_', '-')} " not in text


def test_an_option_of_all_data_that_a_command_does_not_use_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(doctor, "doctor", seen.append)
    monkeypatch.setattr(sharpness, "sharpness", seen.append)
    for command, reason, more in (
        ("doctor", "it uses training images only", []),
        ("sharpness", "the loss is that of training images", ["--weights", "a.pt"]),
    ):
        result = run([command, *more, "--test-size", "5"])
        assert (result.code, result.err) == (0, "")
        assert result.out == f"note: {command} does not use --test-size: {reason}\n"
    assert [config.test_size for config in seen] == [None, None]


@pytest.mark.parametrize("form", [["--epochs", "3"], ["--epochs=3"], ["--lr", "0.1"]])
def test_a_common_option_without_effect_is_told_and_passed_over(
    run: Run, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    seen: list[PlaneConfig] = []
    monkeypatch.setattr(planes, "plane", seen.append)
    result = run(["plane", "--weights", "a.pt", "b.pt", "c.pt", *form, "--margin", "0.3"])
    assert (result.code, result.err) == (0, "")
    assert seen == [PlaneConfig(weights=(Path("a.pt"), Path("b.pt"), Path("c.pt")), margin=0.3)]
    flag = form[0].split("=")[0]
    assert result.out == f"note: plane does not use {flag}: nothing is trained\n"


@pytest.mark.parametrize(
    "argv",
    [
        *(["--help"], ["fge", "--help"], ["plane", "--help"], ["compare", "--epochs", "-h"]),
        ["fge", "--cycle-epochs", "3"],
    ],
)
def test_answers_about_options_do_not_wait_for_torch(argv: list[str]) -> None:
    script = f"""
        import contextlib, sys, cli
        with contextlib.suppress(SystemExit):
            cli.main({argv})
        heavy = ("torch", "torchvision", "matplotlib", "scipy", "numpy", "PIL")
        print("LOADED", [name for name in heavy if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.rstrip().endswith("LOADED []"), done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_script_fails_with_one_line_and_code_2_in_any_encoding(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "cli.py", "fge", "--cycle-epochs", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --cycle-epochs must be even and >= 2, got 3\n"


# -------------------------------------------------------------------------------- data errors


def mixed_folder(folder: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / part / name / "1.png")
    Image.new("L", (8, 9)).save(folder / "train" / "dog" / "odd.png")


def truncated(path: Path) -> None:
    write_tiny_npz(path)
    path.write_bytes(path.read_bytes()[:3000])


def with_arrays(**changes: Any) -> Callable[[Path], None]:
    return lambda path: void(write_tiny_npz(path, **changes))


def void(_: object) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated, r"data\.npz cannot be read; it may be truncated"),
        (
            with_arrays(test_labels=np.arange(48) % 5),
            r"test_labels must be in \[0, 3\), got 0 to 4",
        ),
        (with_arrays(train_labels=np.arange(96) - 1), "from 0 on, got -1 to 94"),
        (with_arrays(train_labels=np.arange(90) % 3), "train_labels must be one per image"),
        (with_arrays(train_labels=np.array(["a", "b"] * 48)), "train_labels must be integers"),
        (with_arrays(train_images=np.zeros((96, 8, 8))), "train_images must be uint8"),
        (with_arrays(test_images=np.zeros((48, 7, 8), np.uint8)), "give images of one size"),
        (
            with_arrays(test_images=np.zeros((0, 8, 8), np.uint8), test_labels=np.zeros(0, int)),
            "the test split is empty",
        ),
        (with_arrays(train_labels=np.arange(96) % 2 * 2), "class '1' has no training image"),
    ],
)
def test_bad_npz(run: Run, tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "data.npz")
    result = run(command("data.npz", "run"))
    assert result.code == 2
    assert re.search(message, result.message)
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_images_of_mixed_size_name_the_file(run: Run, tmp_path: Path) -> None:
    mixed_folder(tmp_path / "data")
    result = run(command("data", "run", "--val-fraction", "0"))
    assert result.code == 2
    assert "odd.png is 8 x 9" in result.message
    assert not (tmp_path / "run").exists()


def test_empty_class_is_named(run: Run, tmp_path: Path) -> None:
    mixed_folder(tmp_path / "data")
    (tmp_path / "data" / "train" / "emu").mkdir()
    result = run(command("data", "run"))
    assert result.code == 2
    assert "data/train/emu holds no images" in result.message
    assert not (tmp_path / "run").exists()


def test_batch_larger_than_the_training_images(run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    result = run(command(tiny_npz, "run", "--batch-size", "87"))
    assert result.code == 2
    assert "--batch-size 87 is larger than the 86 training images" in result.message
    assert not (tmp_path / "run").exists()


def test_batch_of_all_training_images_is_allowed(run: Run, tiny_npz: Path) -> None:
    argv = command(tiny_npz, "run", "--batch-size", "86", "--epochs", "1", "--start-epoch", "0")
    assert run(argv).code == 0


# ------------------------------------------------------------------------- the folder of a run


def test_existing_folder_is_not_touched(run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    result = run(command(tiny_npz, "run"))
    assert result.code == 2
    assert "run is not empty; continue the run there with --resume, replace" in result.message
    assert contents(tmp_path / "run") == {"notes.txt": b"mine"}


def test_empty_folder_is_used(run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert run(command(tiny_npz, "run", "--epochs", "1", "--start-epoch", "0")).code == 0


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_folder_that_is_no_run_is_left_alone(
    run: Run, tiny_npz: Path, tmp_path: Path, flag: str
) -> None:
    own = tmp_path / "own"
    for name in ("state/x.txt", "snapshots/1.safetensors", "log.jsonl", ".draft.tmp"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("mine")
    before = contents(own)
    result = run(command(tiny_npz, "own", flag))
    assert result.code == 2
    assert "own" in result.message
    assert contents(own) == before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
def test_file_in_the_place_of_the_folder_is_left_alone(
    run: Run, tiny_npz: Path, tmp_path: Path, more: list[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    result = run(command(tiny_npz, "run", *more))
    assert result.code == 2
    assert "run" in result.message
    assert (tmp_path / "run").read_text() == "mine"


def test_overwrite_replaces_a_run_and_keeps_other_files(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    out = finished.copy(tmp_path / "run")
    (out / "notes.txt").write_text("mine")
    argv = command(finished.data, out, "--overwrite", "--epochs", "1", "--start-epoch", "0")
    assert run(argv).code == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert options(out)["epochs"] == 1
    assert len(SnapshotStore(out / "snapshots")) == 1
    assert not (out / "snapshots" / "0002.safetensors").exists()
    assert len((out / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_overwrite_from_the_run_s_own_config(run: Run, finished: Finished, tmp_path: Path) -> None:
    out = finished.copy(tmp_path / "run")
    result = run(["fge", "--config", str(out / "config.json"), "--out", str(out), "--overwrite"])
    assert (result.code, result.err) == (0, "")
    assert (out / "log.jsonl").read_bytes() == (finished.folder / "log.jsonl").read_bytes()


@pytest.mark.parametrize(
    "mistake",
    [["--data", "none.npz"], ["--model", "nonet"], ["--batch-size", "9999"], ["--device", "x"]],
)
def test_mistake_does_not_cost_the_run_to_overwrite(
    run: Run, finished: Finished, tmp_path: Path, mistake: list[str]
) -> None:
    out = finished.copy(tmp_path / "run")
    assert run(command(finished.data, out, "--overwrite", *mistake)).code == 2
    assert contents(out) == contents(finished.folder)


@pytest.mark.parametrize("others", ["off", "auto"])
def test_missing_compiler_is_told_before_anything_is_lost(
    run: Run, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    def no_compiler(*_: object, **__: object) -> None:
        raise AssertionError("torch.compile was called though there is no compiler")

    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(torch, "compile", no_compiler)
    out = finished.copy(tmp_path / "run")
    argv = command(finished.data, out, "--overwrite", "--compile", "on", "--amp", others)
    result = run(argv)
    assert result.code == 2
    assert "--compile on: there is no C++ compiler; use --compile off or auto" in result.message
    assert contents(out) == contents(finished.folder)


# -------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lr", "0.2"], r"cannot resume with lr 0\.2: the run was started with 0\.05"),
        (["--max-lr", "0.3"], r"cannot resume with --max-lr 0\.3: the run was started with 0\.1"),
        (["--epochs", "6"], "cannot resume with epochs 6: the run was started with 4"),
        (["--seed", "1"], "cannot resume with seed 1: the run was started with 0"),
        (["--no-flip"], "cannot resume with flip False: the run was started with True"),
        (["--single"], "cannot resume with single True: the run was started with False"),
        (["--data", "cifar10"], "cannot resume with data cifar10: the run was started with "),
    ],
)
def test_resume_with_a_changed_option_is_refused(
    run: Run, finished: Finished, tmp_path: Path, change: list[str], message: str
) -> None:
    out = finished.copy(tmp_path / "run")
    result = run(["fge", "--out", str(out), "--resume", "--lr", "0.05", *change])
    assert result.code == 2
    assert re.match(message, result.message)
    assert contents(out) == contents(finished.folder)


def test_resume_when_the_data_changed_is_refused(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    out = finished.copy(tmp_path / "run")
    images = tiny_arrays()["train_images"]
    images[5, 5, 5] ^= 1
    data = write_tiny_npz(tmp_path / "tiny.npz", train_images=images)
    config = json.loads((out / "config.json").read_text())
    config["options"]["data"] = str(data)
    (out / "manifest.json").unlink()
    (out / "config.json").write_text(json.dumps(config))
    before = contents(out)
    result = run(["fge", "--out", str(out), "--resume"])
    assert result.code == 2
    assert (
        result.message
        == f"cannot resume: the images of {data} are not those of the run; restore them"
    )
    assert contents(out) == before


def test_resume_of_a_finished_run_changes_nothing(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    out = finished.copy(tmp_path / "run")
    result = run(["fge", "--out", str(out), "--resume"])
    assert (result.code, result.err) == (0, "")
    before, after = contents(finished.folder), contents(out)
    assert set(before) == set(after)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= VOLATILE


@pytest.mark.parametrize("damage", ["bytes", "missing"])
def test_damaged_snapshot_is_named_at_resume(
    run: Run, finished: Finished, tmp_path: Path, damage: str
) -> None:
    out = finished.copy(tmp_path / "run")
    (out / "predictions" / "test.npz").unlink()
    harm(out / "snapshots" / "0002.safetensors", damage)
    result = run(["fge", "--out", str(out), "--resume"])
    assert result.code == 2
    assert "snapshots/0002.safetensors" in result.message


def harm(file: Path, damage: str) -> None:
    if damage == "missing":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)


# --------------------------------------------------------------------------------------- paths


@pytest.fixture
def begun(run: Run, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Interrupt a run whose data and folder are given relative to ``here``; return its folder."""
    (tmp_path / "here").mkdir()
    shutil.copy(finished.data, tmp_path / "here" / "tiny.npz")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.MonkeyPatch.context() as patch:
        after_steps(patch, 7, interrupt)
        assert run(command("tiny.npz", "run")).code == 130
    return tmp_path / "here" / "run"


def test_a_run_is_resumed_from_another_folder(
    run: Run, finished: Finished, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options(begun)["data"] == str(begun.parent / "tiny.npz")
    (begun.parent / "there").mkdir()
    monkeypatch.chdir(begun.parent / "there")
    refused = run(["fge", "--out", "../run", "--resume", "--data", "tiny.npz"])
    assert refused.code == 2
    assert refused.message.startswith("cannot resume with data ")
    result = run(["fge", "--out", "../run", "--resume", "--data", "../tiny.npz"])
    assert (result.code, result.err) == (0, "")
    for name in ("log.jsonl", "snapshots/index.json"):
        assert (begun / name).read_bytes() == (finished.folder / name).read_bytes()


def test_relative_paths_of_earlier_versions_hold_in_the_folder_of_the_start(
    run: Run, begun: Path
) -> None:
    config = json.loads((begun / "config.json").read_text())
    config["options"]["data"] = "tiny.npz"
    (begun / "manifest.json").unlink()
    (begun / "config.json").write_text(json.dumps(config))
    given = str(begun.parent / "tiny.npz")
    assert run(["fge", "--out", "run", "--resume", "--data", given]).code == 0
    assert options(begun)["data"] == given


@pytest.mark.slow
def test_the_commands_on_the_pages_repeat_runs_as_printed(
    run: Run, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["fge", "--out", "run", "--resume"]).code == 0
    looked = ["plane", "--run", "run", "--random", "--resolution", "2", "--out", "plane"]
    assert run([*looked, "--eval-images", "16", *PLAIN]).code == 0
    for name, data in (("run", "log.jsonl"), ("plane", "plane.npz")):
        folder = begun.parent / name
        html = (folder / "report.html").read_text()
        [printed] = re.findall(r'<pre tabindex="0">(.*)</pre>', html)
        words = shlex.split(unescape(printed))
        monkeypatch.chdir(folder)
        assert Path(words[1]).resolve() == ROOT / "cli.py"
        assert words[2:] == [looked[0] if name == "plane" else "fge", *words[3:]]
        assert run(words[2:]).code == 0
        again = (folder / "NEW_FOLDER" / data).read_bytes()
        if name == "run":
            assert again == (folder / data).read_bytes()


def test_a_config_file_beside_a_run_to_go_on_with_is_refused(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    out = finished.copy(tmp_path / "run")
    (tmp_path / "b.json").write_text('{"options": {"seed": 5}}')
    result = run(["fge", "--config", "b.json", "--out", str(out), "--resume"])
    assert result.code == 2
    assert result.message == (
        f"the run in {out} continues with its own options; leave out --config b.json"
    )
    assert contents(out) == contents(finished.folder)
    own = ["--config", str(out / "config.json")]
    assert run(["fge", *own, "--out", str(out), "--resume"]).code == 0


def test_full_memory_is_one_line(run: Run, finished: Finished) -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    with pytest.MonkeyPatch.context() as patch:
        after_steps(patch, 7, full)
        result = run(command(finished.data, "run"))
    assert result.code == 2
    assert result.message.startswith("the memory of cpu is full; use a smaller --batch-size or ")
    assert run(["fge", "--out", "run", "--resume"]).code == 0


def test_a_damaged_log_is_named(run: Run, finished: Finished, tmp_path: Path) -> None:
    out = finished.copy(tmp_path / "run")
    log = (out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join([log[0], "{\n", *log[1:]]))
    result = run(["fge", "--out", str(out), "--resume"])
    assert (result.code, result.message) == (
        2,
        "run/log.jsonl was damaged or changed after it was written; restore it, or see what can be "
        "done with: python cli.py verify run",
    )
    (out / "manifest.json").unlink()  # as in a run from before there were manifests
    result = run(["fge", "--out", str(out), "--resume"])
    assert result.code == 2
    assert result.message.startswith(f"line 2 of {out / 'log.jsonl'} is damaged: ")


def test_a_download_is_announced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    def offline(**_: object) -> None:
        raise RuntimeError("offline")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    result = run(["fge", "--data", "cifar10", *PLAIN])
    assert result.code == 2
    assert result.out.startswith("downloading cifar10 (about 170 MB) with torchvision ")
    assert "could not be downloaded" in result.message


# ------------------------------------------------------------------------------- closed pipes


def to_nobody(arguments: list[str], buffered: str) -> tuple[int, str]:
    """Run Python with an output that nobody reads; return its exit code and what it complained."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("argv", [["--help"], ["fge", "--help"]])
def test_help_that_nobody_reads_ends_as_tools_do(argv: list[str], buffered: str) -> None:
    assert to_nobody(["cli.py", *argv], buffered) == (141, "")


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_it_any_more(buffered: str) -> None:
    script = (
        "import sys; from fge.report.console import ConsoleObserver\n"
        "from fge.observer import LastingOutput\n"
        "sys.stdout = LastingOutput(sys.stdout)\n"
        "with ConsoleObserver() as console:\n"
        "    for _ in range(3): console.note('a line'); console.table('t', ['h'], [['c']])\n"
        "sys.stderr.write('went on')"
    )
    assert to_nobody(["-c", script], buffered) == (0, "went on")


# ------------------------------------------------------------------------------- interruptions


def after_steps(
    monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[Learner], None]
) -> None:
    """Make each training act before step ``count`` (from 0)."""
    step, taken = Learner.step, 0

    def acting(self: Learner, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        if taken == count:
            act(self)
        taken += 1
        return step(self, inputs, targets)

    monkeypatch.setattr(Learner, "step", acting)


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


def advice(text: str) -> list[str]:
    """Return the arguments of the command that an interrupted run gives to resume it."""
    found = re.search(r"resume with: python cli\.py (.*)", text)
    assert found is not None, text
    return shlex.split(found[1])


@pytest.mark.parametrize("step", [0, 2, 7, STEPS - 1])
def test_interrupted_run_says_how_to_resume_and_ends_the_same(
    run: Run, finished: Finished, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        after_steps(patch, step, interrupt)
        result = run(command(finished.data, out))
    assert (result.code, result.err) == (130, "")
    assert advice(result.out) == ["fge", "--out", str(out), "--resume"]
    result = run(advice(result.out))
    assert (result.code, result.err) == (0, "")
    before, after = contents(finished.folder), contents(out)
    assert set(before) == set(after)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= VOLATILE


@pytest.mark.parametrize("name", ["my run", "run[b]", "run[/b]", "it's"])
def test_advice_survives_odd_folder_names(
    run: Run, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    after_steps(monkeypatch, 0, interrupt)
    result = run(command(tiny_npz, name))
    assert result.code == 130
    assert advice(result.out) == ["fge", "--out", name, "--resume"]


@pytest.mark.slow
def test_run_interrupted_while_measuring_goes_on_with_its_options(
    run: Run, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "choose_speed", lambda *_, **__: interrupt(None))
    result = run([*command(tiny_npz, "run"), "--channels-last", "auto"])
    assert result.code == 130
    argv = advice(result.out)
    monkeypatch.setattr(build, "choose_speed", lambda *_, **__: Choice(Speed(), []))
    monkeypatch.setattr(loading, "load_dataset", only(str(tiny_npz)))
    assert run(argv).code == 0
    saved = options(Path("run"))
    assert (saved["data"], saved["epochs"], saved["start_epoch"]) == (str(tiny_npz), 4, 1)


def only(data: str) -> Callable[..., Any]:
    """Return a loader that fails at once for data other than those that were asked for."""

    def load(name: str, **options: Any) -> Any:
        assert name == data, f"resumed with data {name}"
        return load_dataset(name, **options)

    return load


def test_choices_of_auto_are_stored_and_never_measured_again(
    run: Run, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Choice(Speed(channels_last=True), ["channels_last: on, it is faster"])
    auto = ["--channels-last", "auto", "--compile", "auto", "--amp", "auto"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "choose_speed", lambda *_, **__: chosen)
        after_steps(patch, 7, interrupt)
        result = run([*command(tiny_npz, "run"), *auto])
    assert result.code == 130
    assert "channels_last: on, it is faster" in result.out
    settled = {"channels_last": "on", "compile": "off", "amp": "off"}
    assert {name: options(Path("run"))[name] for name in settled} == settled
    monkeypatch.setattr(build, "choose_speed", lambda *_, **__: pytest.fail("measured again"))
    assert run([*command(tiny_npz, "run"), *auto, "--resume"]).code == 0
    assert {name: options(Path("run"))[name] for name in settled} == settled


# ---------------------------------------------------------------------------------- divergence


def spoil(learner: Learner) -> None:
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.fill_(float("inf"))


def test_divergence_names_step_and_rate_and_keeps_earlier_snapshots(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        after_steps(patch, 8, spoil)
        result = run(command(finished.data, out))
    assert result.code == 3
    cycle = 2 * STEPS_PER_EPOCH
    rate = triangular(8 - STEPS_PER_EPOCH, max_lr=0.1, min_lr=0.001, cycle_steps=cycle)
    assert result.message == (
        f"fge: the loss is nan at step 8 with learning rate {rate:g}; lower the learning rates; "
        f"1 snapshot saved in {out}"
    )
    store, whole = (SnapshotStore(folder / "snapshots") for folder in (out, finished.folder))
    assert len(store) == 1
    assert store.facts(0) == whole.facts(0)
    images = tmp_path / "images.npz"
    np.savez(images, images=tiny_arrays()["test_images"])
    result = run(["predict", "--run", str(out), "--images", str(images), "--device", "cpu"])
    assert (result.code, result.err) == (0, "")
    result = run(["fge", "--out", str(out), "--resume"])
    assert result.code == 0
    assert (out / "log.jsonl").read_bytes() == (finished.folder / "log.jsonl").read_bytes()


@pytest.mark.parametrize("fraction", ["0.1", "0"])
@pytest.mark.parametrize("batch_size", ["32", "86"])
@pytest.mark.parametrize("max_lr", ["1e3", "1e6", "1e38"])
def test_huge_learning_rate_is_reported_as_divergence(
    run: Run, tiny_npz: Path, max_lr: str, batch_size: str, fraction: str
) -> None:
    """With batches of 86 there is one step between the start and the first snapshot."""
    argv = command(tiny_npz, "run", "--start-epoch", "0", "--max-lr", max_lr)
    result = run([*argv, "--batch-size", batch_size, "--val-fraction", fraction])
    if result.code == 0:  # batch norm can bear a lot; then all that is kept has to be sound
        assert result.err == ""
    else:
        assert result.code == 3
        assert re.search(r"step \d+.*learning rate [\d.e+-]+", result.message)
    for state in SnapshotStore("run/snapshots"):
        assert all(bool(t.isfinite().all()) for t in state.values())


@pytest.mark.parametrize("fraction", ["0.1", "0"])
@pytest.mark.parametrize("max_lr", ["1e6", "1e38"])
def test_divergence_at_the_very_last_step_ends_with_code_3(
    run: Run, tiny_npz: Path, max_lr: str, fraction: str
) -> None:
    """There is one step, and its loss is still finite: only the snapshot shows what it did."""
    argv = command(tiny_npz, "run", "--start-epoch", "0", "--epochs", "1", "--batch-size", "86")
    argv += ["--average", "0"]  # a mean has batch-norm statistics of its own, which bear a lot
    result = run([*argv, "--max-lr", max_lr, "--val-fraction", fraction])
    assert result.code == 3
    assert "learning rate" in result.message
    assert not Path("run/report.json").exists()


# ------------------------------------------------------------------------------------ full disk


def full_disk(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let every write fail but the first ``after``."""
    sync, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    patch.setattr(os, "fsync", fsync)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 12, 27, 40])
def test_full_disk_is_one_line_and_the_run_can_be_resumed(
    run: Run, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, after)
        result = run(command(finished.data, out))
    assert result.code == 2
    assert re.search(r"[Nn]o space left|disk .*is full", result.message)
    assert list(out.rglob("*.tmp")) == []
    monkeypatch.setattr(loading, "load_dataset", only(str(finished.data)))
    again = result.message.endswith("; free some space, then run the command again")
    assert again == (after == 1)
    assert run(command(finished.data, out) if again else advice(result.message)).code == 0
    assert (out / "log.jsonl").read_bytes() == (finished.folder / "log.jsonl").read_bytes()


def test_disk_full_from_the_start_leaves_nothing_to_resume(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, 0)
        result = run(command(finished.data, tmp_path / "run"))
    assert result.code == 2
    assert re.search(r"[Nn]o space left|disk .*is full", result.message)
    assert "--resume" not in result.message  # no config.json says with which options
    assert run(command(finished.data, tmp_path / "run")).code == 0


# ------------------------------------------------------------------------- the user's own model

FACTORY = """
    from pathlib import Path
    from torch import nn

    Path("imported").touch()

    def net(num_classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def factory(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a factory that leaves a file when it is imported; return its name."""
    del run  # it has changed the working directory, where the module lies
    name = f"own_{re.sub('[^a-z0-9]', '_', tmp_path.name)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:net"


def forget(factory: str) -> None:
    sys.modules.pop(factory.split(":")[0], None)
    Path("imported").unlink(missing_ok=True)


@pytest.mark.slow
def test_own_model_needs_naming_again_to_be_imported(
    run: Run, finished: Finished, factory: str
) -> None:
    assert run(command(finished.data, "run", "--model", factory)).code == 0
    assert Path("imported").exists()
    np.savez("images.npz", images=tiny_arrays()["test_images"])
    for argv in (
        ["fge", "--config", "run/config.json", "--out", "again"],
        ["fge", "--out", "run", "--resume"],
        ["predict", "--run", "run", "--images", "images.npz"],
    ):
        forget(factory)
        result = run(argv)
        assert result.code == 2
        assert result.message == (
            f"run/config.json names the model factory '{factory}', which is code to import; "
            f"if you trust it, add --model {factory}"
        )
        assert not Path("imported").exists()
        result = run([*argv, "--model", factory])
        assert (result.code, result.err) == (0, "")
        assert Path("imported").exists()


@pytest.mark.slow
def test_interrupted_run_of_an_own_model_says_how_to_resume(
    run: Run, finished: Finished, factory: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        after_steps(patch, 7, interrupt)
        result = run(command(finished.data, "run", "--model", factory))
    assert result.code == 130
    assert run(advice(result.out)).code == 0


@pytest.mark.slow
def test_interrupted_run_of_an_own_method_says_how_to_resume(
    run: Run, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("own_method_interrupted")
    module.mine = replace(METHODS["sse"], name="mine")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    name = f"{module.__name__}:mine"
    argv = ["train", "--data", str(finished.data), "--out", "run", "--method", name, *PLAIN]
    with pytest.MonkeyPatch.context() as patch:
        after_steps(patch, 4, interrupt)
        result = run([*argv, "--epochs", "2", "--sse-cycles", "2", "--batch-size", "32"])
    assert result.code == 130
    assert advice(result.out) == ["train", "--out", "run", "--resume", "--method", name]
    assert run(advice(result.out)).code == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no luck')", "failed: RuntimeError: no luck"),
        ("return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))", r"got \(2, 7\) for N = 2"),
        ("return 5", "returned a int, not a Module"),
    ],
)
def test_own_model_that_fails(
    run: Run, finished: Finished, factory: str, body: str, message: str
) -> None:
    module = Path(f"{factory.split(':')[0]}.py")
    module.write_text(f"from torch import nn\ndef net():\n    {body}\n")
    forget(factory)
    result = run(command(finished.data, "run", "--model", factory))
    assert result.code == 2
    assert re.search(message, result.message)
    assert not Path("run").exists()


# ---------------------------------------------------------------------------------- pretrained


@pytest.fixture(params=["safetensors", "pt", "nested.pt"])
def weights(request: pytest.FixtureRequest, finished: Finished, tmp_path: Path) -> Path:
    state = load_file(finished.folder / "snapshots" / "0001.safetensors")
    path = tmp_path / f"weights.{request.param}"
    if request.param == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "nested" in request.param else state, path)
    return path


STANDING_STILL = shlex.split("--min-lr 0 --max-lr 1e-30 --momentum 0 --weight-decay 0")


def test_pretrained_weights_are_started_from_at_once(
    run: Run, finished: Finished, weights: Path
) -> None:
    argv = ["fge", "--data", str(finished.data), "--out", "run", *PLAIN, *STANDING_STILL]
    argv += ["--epochs", "1", "--cycle-epochs", "2", "--batch-size", "32"]
    result = run([*argv, "--pretrained", str(weights)])
    assert (result.code, result.err) == (0, "")
    before = load_file(finished.folder / "snapshots" / "0001.safetensors")
    after = SnapshotStore("run/snapshots")[0]
    names = [name for name in before if "running" not in name and "num_batches" not in name]
    assert len(names) > 10
    assert all(torch.equal(before[name], after[name]) for name in names)
    records = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} == {"fge"}


def test_pretrained_file_of_another_model_is_named(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "w.pt")
    result = run(
        ["fge", "--data", str(finished.data), *PLAIN, "--batch-size", "32", "--pretrained", "w.pt"]
    )
    assert result.code == 2
    assert "w.pt has no tensor '0.weight', but the model needs it" in result.message
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_pretrained_file_that_holds_code_is_refused(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    torch.save({"weight": print}, tmp_path / "w.pt")
    result = run(
        ["fge", "--data", str(finished.data), *PLAIN, "--batch-size", "32", "--pretrained", "w.pt"]
    )
    assert result.code == 2
    assert "w.pt cannot be loaded as a plain state dict" in result.message


# ------------------------------------------------------------------------------------- predict


def test_predict_gives_the_mean_probability_of_the_members(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    test = load_dataset(str(finished.data)).test.images
    np.savez(tmp_path / "new.npz", images=test.permute(0, 2, 3, 1).numpy())
    argv = ["predict", "--run", str(finished.folder), "--images", "new.npz", "--out", "out"]
    result = run([*argv, "--device", "cpu", "--batch-size", "7"])
    assert (result.code, result.err) == (0, "")
    with np.load(tmp_path / "out" / "predictions.npz") as stored:
        probs, labels = stored["probabilities"], stored["labels"]
    with np.load(finished.folder / "predictions" / "test.npz") as stored:
        snapshots = [name.startswith("fge-") for name in stored["members"]]
        expected = stored["probabilities"][snapshots].astype(np.float64).mean(axis=0)
    # The run's own predictions are float32 and were made in batches of another size.
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    assert np.array_equal(labels, probs.argmax(axis=1))


def test_predict_agrees_with_each_network_applied_by_hand(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    pixels = tiny_arrays()["test_images"][:5]
    for number, array in enumerate(pixels):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    argv = ["predict", "--run", str(finished.folder), "--images", ".", "--out", "out"]
    assert run([*argv, "--device", "cpu"]).code == 0
    facts = json.loads((finished.folder / "config.json").read_text())["dataset"]
    inputs = torch.tensor((pixels[:, None] - facts["mean"][0]) / facts["std"][0]).float()
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(8, 8)).eval()
    members = []
    for state in SnapshotStore(finished.folder / "snapshots"):
        model.load_state_dict(state)
        with torch.inference_mode():
            members.append(model(inputs).double().softmax(dim=1).numpy())
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    names = "entropy,mutual_information,disagreement"
    assert lines[0] == f"image,label,class,p(0),p(1),p(2),{names},set"
    assert [line.split(",")[0] for line in lines[1:]] == [f"{n}.png" for n in range(5)]
    probs = [[float(value) for value in line.split(",")[3:6]] for line in lines[1:]]
    # Six digits in the file, and float32 arithmetic in the networks.
    np.testing.assert_allclose(probs, np.mean(members, axis=0), atol=1e-5)


def test_predictions_lie_in_the_run_folder_by_default(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    out = finished.copy(tmp_path / "run")
    np.savez(tmp_path / "new.npz", images=tiny_arrays()["test_images"])
    result = run(["predict", "--run", "run", "--images", "new.npz", "--device", "cpu"])
    assert result.code == 0
    assert "48 predictions by 2 snapshots are in run/predict-new" in result.out
    assert {p.name for p in (out / "predict-new").iterdir()} == {
        "predictions.csv",
        "predictions.npz",
        "figures",
        "manifest.json",
        "page.json",
        "report.html",
        "report.json",
        "report.md",
    }


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 8, 9), np.uint8), "are 8 x 9 x 1 .* but the network needs 8 x 8 x 1"),
        (np.zeros((2, 8, 8, 3), np.uint8), "are 8 x 8 x 3 .* but the network needs 8 x 8 x 1"),
        (np.zeros((2, 8, 8)), "images must be uint8"),
    ],
)
def test_images_that_do_not_fit_the_network(
    run: Run, finished: Finished, tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "new.npz", images=array)
    argv = ["predict", "--run", str(finished.folder), "--images", "new.npz", "--out", "out"]
    result = run([*argv, "--device", "cpu"])
    assert result.code == 2
    assert re.search(message, result.message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["bytes", "missing"])
def test_damaged_snapshot_is_named_at_prediction(
    run: Run, finished: Finished, tmp_path: Path, damage: str
) -> None:
    out = finished.copy(tmp_path / "run")
    harm(out / "snapshots" / "0002.safetensors", damage)
    np.savez(tmp_path / "new.npz", images=tiny_arrays()["test_images"])
    result = run(["predict", "--run", "run", "--images", "new.npz", "--device", "cpu"])
    assert result.code == 2
    assert "snapshots/0002.safetensors" in result.message
    assert not (out / "predict-new").exists()


def test_snapshot_with_other_tensors_is_named_at_prediction(
    run: Run, finished: Finished, tmp_path: Path
) -> None:
    out = finished.copy(tmp_path / "run")
    (out / "manifest.json").unlink()
    SnapshotStore(out / "snapshots").append({"weight": torch.zeros(3)})
    np.savez(tmp_path / "new.npz", images=tiny_arrays()["test_images"])
    result = run(["predict", "--run", "run", "--images", "new.npz", "--device", "cpu"])
    assert result.code == 2
    assert "has no tensor '0.weight'" in result.message


def test_run_without_snapshots_cannot_predict(run: Run, finished: Finished, tmp_path: Path) -> None:
    out = finished.copy(tmp_path / "run")
    shutil.rmtree(out / "snapshots")
    np.savez(tmp_path / "new.npz", images=tiny_arrays()["test_images"])
    result = run(["predict", "--run", "run", "--images", "new.npz", "--device", "cpu"])
    assert result.code == 2
    assert result.message == "run holds no snapshots; finish the run with --resume first"


def test_config_of_no_run_cannot_predict(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"options": {}}')
    np.savez(tmp_path / "new.npz", images=tiny_arrays()["test_images"])
    result = run(["predict", "--run", ".", "--images", "new.npz", "--device", "cpu"])
    assert result.code == 2
    assert "config.json" in result.message
