"""Buffers that no state dict holds, of networks that are used as a model with their states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fge.curves import Chain, evaluate_curve, fit_curve, straight_curve
from fge.ensemble import Ensemble, fold
from fge.errors import UserError
from fge.landscape import Line, Plane
from fge.networks import check_unsaved, flatten

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.arange(12) % 3)]


class Scaled(nn.Module):
    """Multiplies by a number that is not saved."""

    k: Tensor

    def __init__(self, k: Any, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(4, 3)
        value = k if k is None or isinstance(k, Tensor) else torch.tensor(k)
        self.register_buffer("k", value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x) * self.k
        return outputs


MODEL, ALIKE, OTHER = Scaled(2.0, 1), Scaled(2.0, 2), Scaled(5.0, 3)


@pytest.mark.parametrize(
    ("use", "source"),
    [
        (lambda given: Ensemble(MODEL, [MODEL, ALIKE, given]), "member 2"),
        (lambda given: fold(MODEL, [ALIKE, given], DATA, refresh=DATA), "member 1"),
        (lambda given: straight_curve(MODEL, ALIKE, given), "the weights"),
        (lambda given: straight_curve(MODEL, given, ALIKE), "the weights"),
        (lambda given: fit_curve(MODEL, ALIKE, given, DATA, epochs=1), "the weights"),
        (lambda given: Chain.through([MODEL, ALIKE, given]), "the weights"),
        (lambda given: Line.through(MODEL, given), "the weights"),
        (lambda given: Plane.through(MODEL, ALIKE, given), "the weights"),
        (lambda given: Plane.through(MODEL, flatten(ALIKE, MODEL), given), "the weights"),
    ],
)
def test_a_network_with_another_value_is_refused(use: Callable[[Any], object], source: str) -> None:
    message = (
        rf"^{source}: the buffer 'k' is not in the state dict \(persistent=False\) and differs "
        r"from the model's; register it with persistent=True, or give the state_dict\(\) "
        r"if the model's is right$"
    )
    with pytest.raises(UserError, match=message):
        use(OTHER)
    use(OTHER.state_dict())  # whose number is the model's
    use(Scaled(2.0, 3))


def test_with_equal_values_predictions_are_those_of_the_networks() -> None:
    networks = [MODEL, ALIKE, torch.compile(Scaled(2.0, 3), backend="eager")]
    found = Ensemble(MODEL, networks).predict([X])
    expected = torch.stack([network(X).softmax(1) for network in networks]).mean(0)  # type: ignore[operator]
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-6)
    loss = evaluate_curve(MODEL, straight_curve(MODEL, ALIKE, MODEL), DATA, ts=[0.0])[0]["loss"]
    wanted = nn.functional.cross_entropy(ALIKE(X), DATA[0][1]).detach()
    assert loss == pytest.approx(float(wanted), rel=1e-6)


def test_an_ensemble_of_points_takes_the_models_caches_as_they_are() -> None:
    """Estimating statistics writes to a cache, which is then another in each network."""

    class Caching(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(4, 3), nn.BatchNorm1d(3))
            self.register_buffer("last", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = super().forward(x)
            self.last = outputs.detach().mean()
            return outputs

    first, second = Caching().eval(), Caching().eval()
    curve = straight_curve(first, first, second)
    ensemble = curve.ensemble(first, [0.25, 0.75], refresh=[X])
    members = [curve.module(first, t, refresh=[X])(X).softmax(1) for t in (0.25, 0.75)]
    torch.testing.assert_close(ensemble(X), torch.stack(members).mean(0))


THIRD = torch.tensor([1 / 3, 1e-6, -torch.inf, torch.nan], dtype=torch.float64)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (THIRD, THIRD.clone(), True),
        (THIRD, THIRD.bfloat16(), True),
        (THIRD.float(), THIRD, True),
        (THIRD[:2], THIRD[:2] * (1 + 5e-16), True),
        (THIRD[:2], THIRD[:2] + torch.tensor([0, 4e-6]), False),
        (THIRD[:2], THIRD[:2] * 1.001, False),
        (torch.tensor([5.0]).bfloat16(), torch.tensor([5.03125]).bfloat16(), False),
        (torch.tensor([5.0]).bfloat16(), torch.tensor([5.01]), True),
        (THIRD, THIRD.clone().nan_to_num(nan=0, neginf=-torch.inf), False),
        (THIRD[:3], -THIRD[:3], False),
        (THIRD[:1], THIRD[:1].expand(2), False),
        (torch.tensor([3, 2**40]), torch.tensor([3, 2**40]), True),
        (torch.tensor([3, 2**40]), torch.tensor([3, 2**40 + 1]), False),
        (torch.tensor([1j, 2]), torch.tensor([1j, 2]), True),
        (torch.tensor([1j, 2]), torch.tensor([1j, 3]), False),
        (torch.tensor([True, False]), torch.tensor([True, True]), False),
        (torch.zeros(0), torch.zeros(0), True),
        (torch.zeros(2, device="meta"), torch.ones(2), True),
        (None, torch.ones(2), True),
        (torch.ones(2), None, True),
    ],
)
def test_values_are_compared_to_rounding(
    one: Tensor | None, other: Tensor | None, *, alike: bool
) -> None:
    for model, network in ((Scaled(one), Scaled(other)), (Scaled(other), Scaled(one))):
        if alike:
            check_unsaved(model, network, "the network")
        else:
            with pytest.raises(UserError, match=r"^the network: the buffer 'k' is not in"):
                check_unsaved(model, network, "the network")
