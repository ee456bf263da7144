"""Random calls in a loop of one's own: the snapshots are those of a list of weights kept beside."""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import fge
from fge.errors import UserError
from fge.train.schedules import triangular

RATES: dict[str, Any] = {"max_lr": 0.1, "min_lr": 0.01}


class Loop(RuleBasedStateMachine):
    """A model, its optimizer and cycle, and what the snapshots have to be."""

    @initialize(
        cycle=st.sampled_from([2, 4, 6]),
        average=st.sampled_from([0.0, 0.5, 1.0]),
        adam=st.booleans(),
    )
    def begin(self, cycle: int, average: float, adam: bool) -> None:
        """Start a training."""
        self.folder = Path(tempfile.mkdtemp())
        self.options = {**RATES, "cycle_steps": cycle, "average": average}
        self.model = nn.Linear(3, 2, dtype=torch.float64)
        self.optimizer: Optimizer = (
            Adam(self.model.parameters(), lr=1.0) if adam else SGD(self.model.parameters(), lr=1.0)
        )
        self.cycle = fge.FGE(
            self.model, self.optimizer, **self.options, out=self.folder / "snapshots"
        )
        self.steps, self.descent, self.kept = 0, list[Tensor](), list[Tensor]()
        self.saved: dict[str, Any] | None = None

    def teardown(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(seed=st.integers(0, 9))
    def train(self, seed: int) -> None:
        """Take a training step."""
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        self.model(inputs).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        kept = self.cycle.step()
        self.steps += 1
        half = self.options["cycle_steps"] // 2
        place = self.steps % self.options["cycle_steps"]
        if place == 1 or half == 1:
            self.descent = []
        if 1 <= place <= half:
            self.descent.append(self.model.weight.detach().clone())
        assert kept == (place == half)
        if kept:
            count = max(1, round(self.options["average"] * half))
            self.kept.append(torch.stack(self.descent[-count:]).mean(0))

    @rule()
    def save(self) -> None:
        """Keep the state of everything, as a checkpoint on disk would."""
        parts = {"model": self.model, "optimizer": self.optimizer, "cycle": self.cycle}
        states = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        mine = (self.steps, list(self.descent), list(self.kept))
        self.saved = {"states": states, "mine": mine}

    @precondition(lambda self: self.saved is not None)
    @rule(anew=st.booleans())
    def load(self, anew: bool) -> None:
        """Go back to the checkpoint, in the same objects or in new ones."""
        assert self.saved is not None
        states = copy.deepcopy(self.saved["states"])
        if anew:
            kind = type(self.optimizer)
            self.model = nn.Linear(3, 2, dtype=torch.float64)
            self.optimizer = kind(self.model.parameters(), lr=1.0)
            self.cycle = fge.FGE(
                self.model, self.optimizer, **self.options, out=self.folder / "snapshots"
            )
        self.model.load_state_dict(states["model"])
        self.optimizer.load_state_dict(states["optimizer"])
        self.cycle.load_state_dict(states["cycle"])
        steps, descent, kept = self.saved["mine"]
        self.steps, self.descent, self.kept = steps, list(descent), list(kept)

    @rule()
    def refuse_a_second_start(self) -> None:
        """Another cycle in the same folder takes no step and loses nothing."""
        if not self.kept:
            return
        model = nn.Linear(3, 2, dtype=torch.float64)
        other = fge.FGE(
            model, SGD(model.parameters(), lr=1.0), **self.options, out=self.folder / "snapshots"
        )
        with contextlib.suppress(UserError):
            other.step()
            raise AssertionError("the folder's snapshots were taken for its own")

    @rule()
    def predict(self) -> None:
        """An ensemble predicts the mean of its members, and the training is not touched."""
        before = copy.deepcopy(self.model.state_dict())
        inputs = torch.ones(1, 3, dtype=torch.float64)
        if self.kept:
            found = self.cycle.ensemble().predict_proba([inputs])
            assert found.shape == (1, 2)
            assert abs(float(found.sum()) - 1) < 1e-12
        else:
            with contextlib.suppress(UserError):
                self.cycle.ensemble()
                raise AssertionError("an ensemble of nothing")
        for name, value in self.model.state_dict().items():
            assert torch.equal(value, before[name])

    @invariant()
    def the_rate_is_that_of_the_formula(self) -> None:
        """Each group has the rate of the next step."""
        if hasattr(self, "cycle"):
            expected = triangular(self.steps, **RATES, cycle_steps=int(self.options["cycle_steps"]))
            assert abs(self.optimizer.param_groups[0]["lr"] - expected) < 1e-12

    @invariant()
    def the_snapshots_are_those_kept(self) -> None:
        """The folder holds the means, or the last weights, of each descent."""
        if hasattr(self, "kept"):
            store = fge.SnapshotStore(self.folder / "snapshots")
            assert len(store) == len(self.kept)
            for found, expected in zip(store, self.kept, strict=True):
                torch.testing.assert_close(found["weight"], expected, rtol=0, atol=1e-12)


TestLoop = Loop.TestCase
TestLoop.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
