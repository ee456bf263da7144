"""Members folded into one network: closed forms, basins that must not be mixed, and refusals."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fge
from fge import metrics
from fge.ensemble import Candidate, Scores, fold, fold_greedily, scores_of
from fge.errors import UserError
from fge.networks import average_weights, predict_proba, refresh_batch_norm, reordered

CLASSES = 3


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=rng, dtype=torch.float64)
    return x, (x[:, :CLASSES] + 0.5 * x[:, CLASSES:]).argmax(1)


TRAIN, VAL = data(256, 0), data(200, 1)
BATCHES = [(VAL[0][:120], VAL[1][:120]), (VAL[0][120:], VAL[1][120:])]


def new_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))
    return nn.Sequential(*layers).double()


def trained() -> nn.Sequential:
    model = new_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        nn.functional.cross_entropy(model(TRAIN[0]), TRAIN[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    refresh_batch_norm(model, [TRAIN])
    return model


NETWORK = trained()


def moved(offset: float, seed: int) -> nn.Sequential:
    """Return the network moved in a random direction, with statistics of its own."""
    model = copy.deepcopy(NETWORK)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.add_(offset * step)
    refresh_batch_norm(model, [TRAIN])
    return model


def mirrored(offset: float, seed: int) -> list[nn.Sequential]:
    """Return two networks whose average is the trained one."""
    return [moved(offset, seed), moved(-offset, seed)]


def permuted(model: nn.Sequential) -> dict[str, Tensor]:
    """Return the same function in another basin: hidden units in reverse order."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name.startswith(("0.", "1.")) and tensor.ndim:
            state[name] = tensor.flip(0)
    state["3.weight"] = state["3.weight"].flip(1)
    return state


def nll_of(model: nn.Module) -> float:
    return metrics.nll(predict_proba(model, BATCHES), VAL[1])


def refreshed(states: list[Any]) -> nn.Sequential:
    model = new_network()
    model.load_state_dict(average_weights(states))
    refresh_batch_norm(model, [TRAIN])
    return model


def test_members_whose_average_is_better_are_folded() -> None:
    members = mirrored(0.25, 1)
    result = fold(new_network(), members, BATCHES, refresh=[TRAIN])
    nlls = [nll_of(member) for member in members]
    best = int(nlls[1] < nlls[0])
    assert result.folded == (best, 1 - best)
    assert result.before.nll == nlls[best]
    average = refreshed([members[best], members[1 - best]])
    assert result.after.nll == pytest.approx(nll_of(average), abs=1e-12)
    assert result.after.nll == pytest.approx(nll_of(NETWORK), abs=1e-9)  # the point between them
    assert result.after.nll < min(nlls) - 0.01
    for name, tensor in average.state_dict().items():
        assert torch.equal(result.state[name], tensor)
    assert result.trials[0].kept
    assert result.refresh_images == len(TRAIN[0])
    assert result.network.probs is not None
    assert metrics.nll(result.network.probs, VAL[1]) == result.after.nll


def test_members_of_two_basins_are_not_mixed_and_the_best_is_kept_bitwise() -> None:
    other = permuted(NETWORK)
    worse = moved(0.02, 7)
    members = [permuted(worse), NETWORK, other]
    result = fold(new_network(), members, BATCHES, refresh=[TRAIN])
    mixed = nll_of(refreshed([NETWORK, other]))
    assert mixed > nll_of(NETWORK) + 0.1, "the average of the two basins is harmful here"
    assert result.best in (1, 2)  # one function, equal but for rounding
    assert result.folded == (result.best,)
    kept = [NETWORK.state_dict(), other][result.best - 1]
    assert all(torch.equal(result.state[name], kept[name]) for name in kept)
    assert [trial.kept for trial in result.trials] == [False, False]
    assert result.trials[0].figures.nll == pytest.approx(mixed, abs=1e-9)
    assert result.after == result.before
    assert str(result).startswith(
        f"No average was safe: member {result.best} is returned unchanged"
    )


def test_a_member_of_another_basin_is_left_out_of_the_average_of_the_others() -> None:
    near = mirrored(0.25, 1)
    outsider = permuted(moved(0.25, 2))
    result = fold(new_network(), [outsider, *near], BATCHES, refresh=[TRAIN])
    kept = {trial.member: trial.kept for trial in result.trials}
    assert 0 not in result.folded or result.best == 0
    assert result.best != 0, "the outsider is not the best one here"
    assert set(result.folded) == {1, 2}
    assert kept[0] is False


def test_the_order_is_that_of_validation_nll_and_averages_grow_one_by_one() -> None:
    """Scalars: the average w is judged by |w - 1|, members are 3, 0, 1.5 and 9."""
    seen: list[float] = []

    def measure(state: dict[str, Tensor]) -> Candidate:
        seen.append(float(state["w"]))
        return Candidate(state, Scores(0.0, abs(seen[-1] - 1)), None, 10)

    values = [3.0, 0.0, 1.5, 9.0]
    members = [{"w": torch.tensor([value], dtype=torch.float64)} for value in values]
    figures = [Scores(0.0, abs(value - 1)) for value in values]
    result = fold_greedily(members, figures, Scores(0.0, 0.125), measure)
    # From 1.5: with 0 it is .75 (kept), with 3 it is 1.5 (refused), with 9 it is 3.5 (refused).
    assert seen == [0.75, 1.5, 3.5]
    assert (result.best, result.folded) == (2, (2, 1))
    assert [(t.member, t.kept) for t in result.trials] == [(1, True), (0, False), (3, False)]
    assert result.state["w"].tolist() == [0.75]
    assert (result.before.nll, result.after.nll, result.lost.nll) == (0.5, 0.25, 0.125)
    assert result.refresh_images == 30


def test_an_average_as_good_as_the_present_one_is_kept_and_ties_go_to_the_first() -> None:
    same = Scores(1.0, 0.5)
    members = [{"w": torch.zeros(1)}] * 3
    result = fold_greedily(members, [same] * 3, same, lambda state: Candidate(state, same))
    assert result.folded == (0, 1, 2)
    assert "Members 0, 1 and 2 are folded into one network: validation NLL 0.5000" in str(result)


@pytest.mark.parametrize("nll", [math.inf, math.nan])
def test_an_average_that_is_not_finite_is_refused(nll: float) -> None:
    members = [{"w": torch.zeros(1)}, {"w": torch.ones(1)}]
    figures = [Scores(1.0, 0.5), Scores(1.0, 0.75)]
    bad = Scores(math.nan, nll)
    result = fold_greedily(members, figures, bad, lambda state: Candidate(state, bad))
    assert result.folded == (0,)
    assert result.after == figures[0]


def test_the_ensembles_figures_are_those_of_averaged_probabilities() -> None:
    members = [moved(0.2, seed) for seed in range(3)]
    result = fold(NETWORK, members, BATCHES, refresh=[TRAIN])
    mean = fge.Ensemble(NETWORK, members).predict_proba(BATCHES)
    assert result.ensemble.nll == pytest.approx(metrics.nll(mean, VAL[1]), abs=1e-12)
    assert result.ensemble.error == metrics.error(mean, VAL[1])
    assert result.members == tuple(scores_of(predict_proba(m, BATCHES), VAL[1]) for m in members)


def test_one_member_is_its_own_fold(tmp_path: Path) -> None:
    store = fge.SnapshotStore(tmp_path)
    store.append(NETWORK)
    result = fge.fold(new_network(), store, BATCHES, refresh=[TRAIN])
    assert result.folded == (0,)
    assert result.after == result.before == result.ensemble
    assert all(torch.equal(result.state[n], t) for n, t in NETWORK.state_dict().items())


def test_the_model_is_not_changed_and_members_may_be_of_any_kind(tmp_path: Path) -> None:
    model = new_network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    members = mirrored(0.25, 1)
    store = fge.SnapshotStore(tmp_path)
    for member in members:
        store.append(member)
    plain = [m.state_dict() for m in members]
    wrapped = [{f"module.{name}": t for name, t in state.items()} for state in plain]
    kinds: list[Any] = [store, members, plain, wrapped, [wrapped[0], plain[1]]]
    states = [fold(model, kind, BATCHES, refresh=[TRAIN]).state for kind in kinds]
    for state in states[1:]:
        assert state.keys() == before.keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    assert model.training
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_only_so_many_images_refresh_each_average() -> None:
    result = fold(NETWORK, mirrored(0.1, 3), BATCHES, refresh=[TRAIN], num_images=64)
    assert result.refresh_images == 64
    plain = nn.Linear(6, CLASSES, dtype=torch.float64)
    assert fold(plain, [plain, plain], BATCHES, refresh=[TRAIN]).refresh_images == 0


def test_models_of_other_signatures_take_a_forward_fn() -> None:
    def forward(model: nn.Module, batch: Any) -> Tensor:
        logits: Tensor = model(batch[0]["x"])
        return logits

    members = mirrored(0.25, 1)
    wrapped = [({"x": x}, y) for x, y in BATCHES]
    result = fold(
        NETWORK, members, wrapped, refresh=[({"x": TRAIN[0]}, TRAIN[1])], forward_fn=forward
    )
    plain = fold(NETWORK, members, BATCHES, refresh=[TRAIN])
    assert result.folded == plain.folded
    assert result.after.nll == pytest.approx(plain.after.nll, abs=1e-12)


# ------------------------------------------------------------------------------------ what cannot


def test_no_members_are_refused() -> None:
    with pytest.raises(UserError, match="folding needs at least one member, got none"):
        fold(NETWORK, [], BATCHES, refresh=[TRAIN])


def test_a_member_that_does_not_fit_is_named() -> None:
    with pytest.raises(
        UserError, match=r"member 1 has no tensor '0\.weight', but the model needs it"
    ):
        fold(NETWORK, [NETWORK, nn.Linear(2, 2)], BATCHES, refresh=[TRAIN])


def test_a_member_whose_predictions_are_not_finite_is_named() -> None:
    class Overflowing(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = x[:, :CLASSES] * self.factor * 1e300
            return logits

    members = [Overflowing(1e-300), Overflowing(1e200)]
    with pytest.raises(UserError, match="member 1 gives predictions that are not finite; drop it"):
        fold(members[0], members, BATCHES, refresh=[TRAIN])


def test_batches_that_are_used_up_are_refused() -> None:
    for validation, refresh in ((iter(BATCHES), [TRAIN]), (BATCHES, iter([TRAIN]))):
        with pytest.raises(UserError, match="batches must be iterable more than once"):
            fold(NETWORK, [NETWORK], validation, refresh=refresh)


def test_validation_without_targets_is_refused() -> None:
    for batches in ([VAL[0]], [(VAL[0],)], [(VAL[0], "a note")]):
        with pytest.raises(UserError, match=r"must yield \(inputs, targets, ...\): targets are"):
            fold(NETWORK, [NETWORK], batches, refresh=[TRAIN])


def test_validation_in_another_order_is_refused() -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.passes += 1
            yield VAL[0].roll(self.passes, 0), VAL[1].roll(self.passes, 0)

    with pytest.raises(UserError, match=f"^{reordered('validation batches')}$"):
        fold(NETWORK, [NETWORK, NETWORK], Shuffled(), refresh=[TRAIN])


def test_validation_targets_may_be_anywhere_in_a_batch() -> None:
    inputs, targets = VAL
    expected = fold(NETWORK, [NETWORK], [(inputs, targets)], refresh=[TRAIN])
    batches = [{"x": inputs, "y": targets}]
    found = fold(
        NETWORK,
        [NETWORK],
        batches,
        refresh=[TRAIN],
        forward_fn=lambda model, batch: model(batch["x"] if isinstance(batch, dict) else batch),
        target_fn=lambda batch: batch["y"],
    )
    assert found.before == expected.before
    with pytest.raises(UserError, match=r"^batches of 3 parts do not say which is the target"):
        fold(NETWORK, [NETWORK], [(inputs, inputs, targets)], refresh=[TRAIN])


# ------------------------------------------------------------------------------ other losses


def slopes(*values: float) -> list[dict[str, Tensor]]:
    return [{"weight": torch.tensor([[value]])} for value in values]


LINE = [(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([[2.0], [6.0], [4.0]]))]
LINE += [(torch.tensor([[5.0]]), torch.tensor([[10.0]]))]
"""Points of y = 2x, whose mean square is 9.75, in batches of 3 and 1."""


def line() -> nn.Module:
    return nn.Linear(1, 1, bias=False)


def test_a_regression_folds_by_its_loss() -> None:
    """The loss of slope s is 9.75 (s - 2)^2."""
    members = slopes(1.0, 2.8, 7.0)
    result = fold(line(), members, LINE, refresh=LINE, loss_fn=nn.functional.mse_loss)
    losses = [9.75 * (slope - 2) ** 2 for slope in (1.0, 2.8, 7.0)]
    assert [scores.nll for scores in result.members] == pytest.approx(losses)
    assert all(math.isnan(scores.error) for scores in result.members)
    assert result.folded == (1, 0)  # 1.9 is better than 2.8, and 3.6 is worse
    assert result.state["weight"].item() == pytest.approx(1.9)
    assert result.after.nll == pytest.approx(9.75 * 0.01, rel=1e-4)
    assert result.ensemble.nll == pytest.approx(9.75 * 1.6**2)
    assert "two classes" not in str(result)
    assert re.search(
        r"folded into one network: validation loss 0\.0975 \(best member 6\.2400, ensemble 24\.9",
        str(result),
    )


def test_tokens_fold_by_their_loss_as_classes_do() -> None:
    """Tokens (N, T, C) of which each is an example fold as the examples themselves."""
    members = [moved(0.3, seed) for seed in range(3)]
    plain = fold(NETWORK, members, BATCHES, refresh=[TRAIN], num_images=None)
    tokens = [(x.view(-1, 4, 6), y.view(-1, 4)) for x, y in BATCHES]

    def forward(model: nn.Module, batch: Any) -> Tensor:
        x = batch if isinstance(batch, Tensor) else batch[0]
        return model(x.reshape(-1, 6)).view(*x.shape[:-1], CLASSES)

    result = fold(
        NETWORK,
        members,
        tokens,
        refresh=[TRAIN],
        num_images=None,
        loss_fn=lambda outputs, y: nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten()),
        forward_fn=forward,
    )
    assert result.folded == plain.folded
    assert [s.nll for s in result.members] == pytest.approx([s.nll for s in plain.members])
    assert result.after.nll == pytest.approx(plain.after.nll)


def test_a_loss_inside_the_model_folds_without_one_of_the_ensemble() -> None:
    result = fold(
        line(),
        slopes(1.0, 2.8),
        LINE,
        refresh=LINE,
        forward_fn=lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
        loss_fn=lambda loss, _: loss,
    )
    assert result.after.nll == pytest.approx(9.75 * 0.01, rel=1e-4)
    assert math.isnan(result.ensemble.nll)
    assert str(result).endswith("validation loss 0.0975 (best member 6.2400)")


def test_losses_that_cannot_be_averaged_are_refused() -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        return model(batch[0]).expand(-1, len(batch[0]))

    options: dict[str, Any] = {"refresh": LINE, "loss_fn": nn.functional.mse_loss}
    with pytest.raises(UserError, match=r"batches differ in shape, .*; pad all to one length"):
        fold(line(), slopes(1.0), LINE, forward_fn=forward, **options)
    with pytest.raises(UserError, match="must return a tensor, got a dict; give forward_fn="):
        fold(line(), slopes(1.0), LINE, forward_fn=lambda *_: {}, **options)
    with pytest.raises(UserError, match="member 1 gives predictions that are not finite"):
        fold(line(), slopes(1.0, 1e38), LINE, **options)  # whose square is infinite
