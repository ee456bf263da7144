"""Public functions take a path as text too, and say in one line that there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fge
from fge.data import list_images, load_dataset, load_table, read_table
from fge.errors import UserError
from fge.networks import encode_weights, read_state, read_weights, write_state


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (read_weights, "no weights file none; check the path"),
        (read_table, "no table none; check the path"),
        (lambda path: load_table(path, ("a",), "regression"), "no table none; check the path"),
        (read_state, "no file none; check the path"),
        (lambda path: load_dataset(f"{path}.npz"), "no data file none.npz; check the path"),
        (lambda path: fge.Ensemble.load(path, nn.Linear(1, 1)), "no ensemble file none; check"),
        (lambda path: fge.Curve.load(path), "no curve file none; check"),
    ],
)
def test_a_path_to_nothing_is_one_line_with_what_to_do(
    call: Callable[[Any], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("none", Path("none")):
        with pytest.raises(UserError) as caught:
            call(path)
        assert str(caught.value).startswith(message)


def test_text_is_as_good_as_a_path(tmp_path: Path) -> None:
    weights = {"weight": torch.arange(3.0)}
    (tmp_path / "w.safetensors").write_bytes(encode_weights(weights))
    assert torch.equal(read_weights(f"{tmp_path}/w.safetensors")["weight"], weights["weight"])
    write_state(f"{tmp_path}/state.safetensors", {"step": 3})
    assert read_state(f"{tmp_path}/state.safetensors") == {"step": 3}
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{k % 7},{k * k}\n" for k in range(20)))
    assert len(read_table(f"{tmp_path}/t.csv")) == 20
    assert load_table(f"{tmp_path}/t.csv", ("b",), "regression").name == "t"
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    assert list_images(str(tmp_path)) == [tmp_path / "a.png"]
