"""The documentation is true: the commands and examples of the README and the guides run."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_CLASSES, tiny_arrays, write_tiny_npz
from PIL import Image

from fge import commands as cli

README = ROOT / "README.md"
DOCS = ROOT / "docs"
RUN = [README, DOCS / "index.md", *sorted((DOCS / "guides").glob("*.md"))]
"""Pages whose every ``sh`` and ``python`` block is run."""
PAGES = [*RUN, DOCS / "methods.md", *sorted((DOCS / "results").glob("*.md"))]
OWN_DATA = DOCS / "guides" / "own-data.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
INCLUDED = r"(?m)^# (examples/\w+\.py)\n"
"""A line that the site replaces by a file (docs/scripts/hooks.py): the file is the block."""
NOTEBOOK = DOCS / "notebooks" / "own_loop.ipynb"
START = ["pip install -e . && python cli.py fge", "pip install -e '.[test]' && pytest"]
"""The two commands of the README, which .ci/run runs."""
LAUNCH = ["torchrun", "--standalone", "--nproc-per-node", "2", "cli.py"]
CALLS = ("python cli.py ", "python -m fge ", "fge ")
"""The three ways to write a command, which are one and the same."""
PLAIN = "--batch-size 16 --compile off --amp off --channels-last off"
SHORT = {
    "fge": f"--epochs 3 --start-epoch 0 --cycle-epochs 2 {PLAIN}",
    "train": f"--epochs 5 {PLAIN}",
    "compare": f"--epochs 3 --methods single --seeds 2 --jobs 2 {PLAIN}",
    "curve-ensemble": f"--epochs 1 --curve-epochs 1 --eval-points 3 {PLAIN}",
    "connect": f"--epochs 1 --eval-points 3 {PLAIN}",
    "plane": f"--resolution 2 --line-points 3 --eval-images 16 {PLAIN}",
    "sharpness": f"--k 1 --examples 16 --trace-samples 2 --spectrum-steps 2 {PLAIN}",
    "predict": "",
    "export": "",
    "report": "",
    "doctor": "--no-compile",
    "verify": "",
}
"""What makes each command short; an option given twice counts as it is given last."""
TRAINING = ("fge", "train", "compare", "curve-ensemble", "connect")
FEW = "--train-size 120 --test-size 60"
"""Images of the default data."""
MADE = (  # with three snapshots, as a plane needs them
    f"fge --data photos --out runs/photos {SHORT['fge']} --epochs 5",
    f"curve-ensemble --out runs/pair {FEW} {SHORT['curve-ensemble']}",
    f"compare --data photos --out runs/compare {SHORT['compare']}",
)
"""Runs that pages look at without making them, and a comparison that they find finished."""
SIDE = 32  # what every architecture named in the documentation can take

MY_MODELS = """
from torch import nn

def build(in_channels, num_classes):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return language and text of each block of code of a page, with the files it includes."""
    text = re.sub(
        INCLUDED, lambda found: (ROOT / found[1]).read_text("utf-8"), page.read_text("utf-8")
    )
    return re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)


def shell_lines(page: Path) -> list[str]:
    return [line for kind, text in blocks(page) if kind == "sh" for line in text.splitlines()]


def arguments_of(line: str) -> list[str] | None:
    """Return command and options of a line that calls this package, however it is written."""
    call = next((call for call in CALLS if line.startswith(call)), None)
    return None if call is None else shlex.split(line.removeprefix(call))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def write_other_layouts(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the same images as a table of labels, as shards, and as a data set of one's own."""
    (folder / "album").mkdir()
    (folder / "shards").mkdir()
    rows = ["file,label"]
    for number, (image, label) in enumerate(zip(images, labels, strict=False)):
        large = Image.fromarray(np.kron(image, np.ones((4, 4), np.uint8)))
        large.save(folder / "album" / f"{number}.png")
        rows.append(f"{number}.png,class{label}")
        content = {"png": (folder / "album" / f"{number}.png").read_bytes(), "cls": b"%d" % label}
        with tarfile.open(folder / "shards" / f"train-00{number % 2}.tar", "a") as shard:
            for suffix, data in content.items():
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    (folder / "album" / "labels.csv").write_text("\n".join(rows))
    [own] = [t for kind, t in blocks(OWN_DATA) if kind == "python" and "class Photos" in t]
    (folder / "my_data.py").write_text(own)


def write_houses(folder: Path) -> None:
    """Write a table with two targets, and one of the same features."""
    rng = np.random.default_rng(0)
    rows = []
    for size, age in rng.integers(1, 100, (150, 2)).tolist():
        sold = "yes" if age < 50 else "no"
        rows.append(f"{size},{age if age % 10 else ''},{'red' if size % 3 else 'blue'}")
        rows[-1] += f",{1000 * size - age},{sold}"
    (folder / "houses.csv").write_text("\n".join(["size,age,colour,price,sold", *rows]))
    features = [row.rsplit(",", 2)[0] + f",{row.rsplit(',', 1)[1]}" for row in rows[:5]]
    (folder / "new-houses.csv").write_text("\n".join(["size,age,colour,sold", *features]))


@pytest.fixture(scope="module")
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folders and files that the commands name, and the runs that they look at."""
    request.getfixturevalue("forked_jobs")
    folder = tmp_path_factory.mktemp("docs")
    arrays = tiny_arrays()
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        for number, (image, label) in enumerate(zip(images[:48], labels, strict=False)):
            path = folder / "photos" / part / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.kron(image, np.ones((4, 4), np.uint8))).save(path)
    write_other_layouts(folder, arrays["train_images"][:48], arrays["train_labels"])
    write_houses(folder)
    new = folder / "new-photos"
    new.mkdir()
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(new / "black.png")
    write_tiny_npz(folder / "photos.npz")
    (folder / "my_models.py").write_text(MY_MODELS)
    with pytest.MonkeyPatch.context() as patch:
        forked.write_fixed_pictures(patch.setattr)
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        import my_models  # type: ignore[import-not-found]

        for name in ("weights", "a", "b", "c"):
            torch.save(my_models.build(1, TINY_CLASSES).state_dict(), f"{name}.pt")
        for command in MADE:
            assert cli.main(shlex.split(command)) == 0, command
    return folder


@pytest.fixture
def workplace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of the page's own, in which to run it; configurations name paths in it."""
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    for file in folder.glob("runs/*/config.json"):
        file.write_text(file.read_text().replace(str(template), str(folder)))
        file.with_name("manifest.json").unlink()  # as in runs of before: the copies are changed
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def run_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command on a short job, and look at the page that it leaves."""
    command = arguments[0]
    short = SHORT[command]
    if command in TRAINING and not {"--data", "--config"} & set(arguments):
        short += f" {FEW}"
    if "--out" in arguments and "--resume" not in arguments and command != "compare":
        shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)
    capsys.readouterr()
    assert cli.main([*arguments, *shlex.split(short)]) == 0, arguments
    if command in ("doctor", "export", "verify"):  # they write no page
        return
    page = Path(re.findall(r"report: (.*)\n", capsys.readouterr().out)[-1])
    assert page.name == "report.html"
    assert "<h1>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", RUN, ids=name_of)
@pytest.mark.slow
def test_every_block_of_a_page_runs(
    page: Path,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks run in order and in one folder; a later example may use names of an earlier one.

    Only the README's commands draw their pictures.
    """
    if page != README:
        forked.write_fixed_pictures(monkeypatch.setattr)
    names: dict[str, Any] = {"__name__": page.stem}
    programs = {path.read_text(encoding="utf-8") for path in EXAMPLES}
    for kind, text in blocks(page):
        if kind == "python":
            own = {"__name__": "__main__"} if text in programs else names
            exec(compile(text, f"{page.name}: {text[:40]}", "exec"), own)
        for line in text.splitlines() if kind == "sh" else ():
            if (arguments := arguments_of(line)) is not None:
                run_command(arguments, capsys)
            else:
                check_other(line)
    for example in re.findall(INCLUDED, page.read_text(encoding="utf-8")):
        check_example(ROOT / example, capsys.readouterr().out)
    if any(" predict " in line and "new-photos" in line for line in shell_lines(page)):
        assert (workplace / "runs/photos/predict-new-photos/predictions.csv").is_file()


def check_example(example: Path, printed: str) -> None:
    """Check that an example has printed sensible figures of one network and of the ensemble."""
    found = re.findall(r"(last network|ensemble): error ([\d.]+) %, NLL ([\d.]+)\n", printed)
    figures = {name: (float(error), float(nll)) for name, error, nll in found}
    assert set(figures) == {"last network", "ensemble"}, example.name
    (_, alone), (error, together) = figures["last network"], figures["ensemble"]
    assert error < 40, example.name  # of ten classes
    assert together < alone, example.name


def test_every_example_is_short_and_in_a_page() -> None:
    texts = [page.read_text(encoding="utf-8") for page in RUN]
    included = [name for text in texts for name in re.findall(INCLUDED, text)]
    assert sorted(included) == [path.relative_to(ROOT).as_posix() for path in EXAMPLES]
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60, path


def check_other(line: str) -> None:
    """Run a script, or check a line that is not run: first commands, extras, processes."""
    words = shlex.split(line)
    if line in START or words[:5] == LAUNCH:
        return
    if words[0] == "python" and words[1].startswith("runs/"):  # the script beside an export
        subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
        return
    found = re.fullmatch(r"pip install -e '\.\[([a-z]+)\]'", line)
    assert found is not None, f"{line!r} is no command that these tests know how to run"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert found[1] in project["optional-dependencies"]


def test_blocks_are_run_or_only_text() -> None:
    assert {kind for page in RUN for kind, _ in blocks(page)} <= {"sh", "python", "text"}
    for page in RUN:
        assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page)), page


def test_the_methods_that_are_compared_exist() -> None:
    """The short runs of ``compare`` leave most of them out."""
    kind = cli.COMMANDS["compare"][0]
    for line in (line for page in RUN for line in shell_lines(page) if " compare " in line):
        named = line.split("--methods ")[1].split(" --")[0].split()
        assert kind(methods=tuple(named), tta=2).methods == tuple(named)  # as +tta needs it


def test_every_command_is_shown() -> None:
    lines = [line for page in RUN for line in shell_lines(page)]
    shown = {arguments[0] for line in lines if (arguments := arguments_of(line))}
    assert shown == set(cli.COMMANDS)


@pytest.mark.slow
def test_the_command_for_several_processes_runs(workplace: Path) -> None:
    lines = [line for page in RUN for line in shell_lines(page) if line.startswith("torchrun")]
    [command] = lines
    words = shlex.split(command)
    launch = [sys.executable, "-m", "torch.distributed.run", *words[1:4]]
    short = f"{FEW} --threads 1 {SHORT['fge']}"
    arguments = [str(ROOT / "cli.py"), *words[5:], *shlex.split(short)]
    done = subprocess.run([*launch, *arguments], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert (workplace / "runs/parallel/report.html").is_file()


def test_the_two_commands_are_the_ones_that_ci_runs() -> None:
    assert [text.strip() for kind, text in blocks(README) if kind == "sh"][:2] == START
    assert f"\n{START[1]}\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_links_and_pictures_of_the_readme_exist() -> None:
    """Those of the site are checked by ``mkdocs build --strict``."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text(encoding="utf-8"))
    assert len(targets) > 20
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


def mentioned(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield page and match of a pattern in code within lines of text and in tables."""
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for match in re.findall(pattern, code):
                yield name_of(page), match


def test_options_named_in_the_text_exist() -> None:
    options = {"--help", "--preset", "--standalone", "--logdir"}  # of other programs
    for kind, *_ in cli.COMMANDS.values():
        for field in dataclasses.fields(kind):
            flag = field.name.replace("_", "-")
            options |= {f"--{flag}", f"--no-{flag}"}
    for page, option in mentioned(r"--[a-z][a-z-]*"):
        assert option in options, (page, option)


def test_benchmarks_and_results_named_in_the_text_exist() -> None:
    named = list(mentioned(r"benchmarks/[\w/.-]*"))
    assert len(named) > 20
    for page, path in named:
        assert (ROOT / path).exists(), (page, path)


def test_every_table_of_results_says_how_it_was_measured() -> None:
    for page in (DOCS / "results").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        facts = ["| command |", "| raw figures |", "| seeds |", "hardware", "versions"]
        without_tables = page.name == "index.md" or "No results are recorded yet." in text
        assert without_tables or all(fact in text for fact in facts), page


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    assert NOTEBOOK.stat().st_size < 200_000
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] or cell["execution_count"], "commit the notebook executed"
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert len(names["ensemble"]) == 3
