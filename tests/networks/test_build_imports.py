"""What the user names is found in the working directory, and what cannot be imported is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fge.errors import UserError
from fge.networks import build_model, import_named
from fge.train import find_method


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which Python does not look into of itself."""
    here = [path for path in sys.path if path not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", here)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_method_in_the_working_directory_is_found(folder: Path) -> None:
    (folder / "methods_in_cwd.py").write_text(
        "from fge.methods import Method, sse_stages\n"
        'mine = Method("mine", "cosine cycles", sse_stages)\n'
    )
    assert find_method("methods_in_cwd:mine").name == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":x", "':x' cannot be imported: ValueError: Empty module name"),
        (".rel:x", "'.rel:x' cannot be imported: TypeError: "),
        ("not_there:x", "'not_there:x' cannot be imported: ModuleNotFoundError: No module named"),
        ("imports_broken:x", "'imports_broken:x' cannot be imported: SyntaxError: "),
        ("imports_leaves:x", "'imports_leaves:x' cannot be imported: SystemExit: 3"),
        ("imports_empty:x", "'imports_empty:x' cannot be imported: AttributeError: module"),
        ("imports_empty:", "'imports_empty:' cannot be imported: AttributeError: module"),
    ],
)
def test_what_cannot_be_imported_is_named_in_one_line(
    folder: Path, name: str, message: str
) -> None:
    (folder / "imports_broken.py").write_text("def x(:\n")
    (folder / "imports_leaves.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "imports_empty.py").write_text("")
    for what, find in (("method", find_method), ("model", build)):
        with pytest.raises(UserError, match=re.escape(f"{what} {message}")) as caught:
            find(name)
        assert "\n" not in str(caught.value)


def build(name: str) -> object:
    return build_model(name, in_channels=1, num_classes=2, image_size=(8, 8))


def test_the_working_directory_is_added_once(folder: Path) -> None:
    (folder / "imports_twice.py").write_text("x, y = 1, 2\n")
    assert [import_named(f"imports_twice:{name}", "thing") for name in "xy"] == [1, 2]
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("torchvison:resnet18", "; did you mean 'torchvision:resnet18'?"),
        ("tim:resnet10t", "; did you mean 'timm:resnet10t'?"),
        (
            "not_there:x",
            "No module named 'not_there'; it is looked for in the working directory and among the "
            "installed packages",
        ),
        (
            "imports_missing:x",
            "No module named 'not_there_either'; install the package that has it, for example pip "
            "install not_there_either",
        ),
    ],
)
def test_a_module_that_is_missing_is_named_with_what_to_do(
    folder: Path, name: str, remedy: str
) -> None:
    (folder / "imports_missing.py").write_text("import not_there_either\n")
    with pytest.raises(UserError) as caught:
        build(name)
    assert str(caught.value).endswith(remedy)
