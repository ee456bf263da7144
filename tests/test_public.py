"""What the package shows of itself: its names, and what its objects say that they hold."""

from __future__ import annotations

import rlcompleter
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT
from torch import nn

import fge
from fge.curves import Chain
from fge.landscape import Line, PlaneGrid
from fge.networks import Layout


def linear() -> nn.Module:
    return nn.Linear(3, 2)


def test_all_public_names_are_listed_and_completed() -> None:
    shown = dir(fge)
    assert set(fge.__all__) <= set(shown)
    assert {name for name in shown if not name.startswith("__")} == {*fge.__all__} - {"__version__"}
    completer = rlcompleter.Completer({"fge": fge})
    found = {completer.complete("fge.E", k) for k in range(9)} - {None}
    names = {f"fge.{name}" for name in fge.__all__ if name.startswith("E")}
    assert {str(name).rstrip("()") for name in found} >= names


def test_names_are_listed_before_torch_is_loaded() -> None:
    script = "import fge, sys; assert 'Ensemble' in dir(fge); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_stores_say_how_many_snapshots_they_hold_and_where(tmp_path: Path) -> None:
    store = fge.SnapshotStore(tmp_path / "a b")
    store.append(linear())
    assert repr(store) == f"SnapshotStore(1 snapshot in '{tmp_path}/a b')"
    store.append(linear())
    assert repr(store) == f"SnapshotStore(2 snapshots in '{tmp_path}/a b')"


def test_ensembles_say_what_they_average() -> None:
    ensemble = fge.Ensemble(linear(), [linear().state_dict()] * 3)
    assert repr(ensemble) == (
        "Ensemble(3 members of Linear, 8 parameters each, output='softmax', combine='probs')"
    )
    tokens = fge.Ensemble(linear(), [linear()], output_dim=-1, combine="logits")
    assert repr(tokens) == (
        "Ensemble(1 member of Linear, 8 parameters each, output='softmax' over dimension -1, "
        "combine='logits')"
    )
    assert "output=exp, " in repr(fge.Ensemble(linear(), [linear()], output=torch.exp))


def test_fge_says_where_it_is_in_its_cycles(tmp_path: Path) -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cycle = fge.FGE(model, optimizer, cycle_steps=4, max_lr=0.1, min_lr=0.01, out=tmp_path)
    for _ in range(3):
        optimizer.step()
        cycle.step()
    assert repr(cycle) == (
        "FGE(step 3 in cycles of 4 steps, next snapshot after step 6, average=0.3, "
        f"SnapshotStore(1 snapshot in '{tmp_path}'))"
    )


def test_curves_say_their_family_size_and_length() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    curve = fge.Curve(fge.PolyChain(3), points)
    assert (
        repr(curve) == "Curve(polychain, 3 points, 2 parameters, length 7, no buffers of its ends)"
    )
    assert repr(Chain([curve])) == "Chain(1 curve, 2 parameters, length 7, no buffers of its ends)"


def test_planes_lines_and_grids_are_short() -> None:
    w0, w1, w2 = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [4.0, 0.0, 0.0]])
    plane = fge.Plane.through(w0, w1, w2)
    assert repr(plane) == "Plane(3 parameters, 3 anchors, x 0 to 4, y 0 to 2)"
    assert repr(Line.through(w0, w2)) == "Line(3 parameters, length 4)"
    layout = Layout(("w",), ((1, 3),))
    assert repr(fge.Plane.random(w1, layout)).startswith("Plane(3 parameters, 1 anchor, x -1 to 1")
    grid = PlaneGrid(
        np.arange(3.0), np.arange(2.0), {"loss": np.ones((2, 3))}, np.zeros((1, 2)), np.eye(2)
    )
    assert repr(grid) == "PlaneGrid(3 x 2 points, loss)"
