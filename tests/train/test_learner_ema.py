"""The learner of the method ema against PyTorch's own averaged model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fge.train import EmaLearner, Learner

DECAY = 0.8


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


def make_batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(8, 4, generator=rng, dtype=torch.float64),
            torch.randint(0, 3, (8,), generator=rng),
        )
        for _ in range(count)
    ]


def make_learner(model: nn.Module) -> EmaLearner:
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return EmaLearner(model, optimizer, decay=DECAY, refresh=make_batches())


def test_the_average_is_that_of_pytorch_with_statistics_of_its_own() -> None:
    learner, plain = make_learner(make_model()), make_model()
    oracle = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    other = Learner(plain, SGD(plain.parameters(), lr=0.1, momentum=0.9))
    for batch in make_batches():
        learner.step(*batch)
        other.step(*batch)
        oracle.update_parameters(plain)
    trained = {name: value.clone() for name, value in learner.model.state_dict().items()}
    with learner.kept():
        for name, expected in oracle.module.named_parameters():
            found = learner.model.get_parameter(name)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        update_bn((x for x, _ in make_batches()), oracle)
        mean = learner.model[1].running_mean  # type: ignore[index]
        torch.testing.assert_close(mean, oracle.module[1].running_mean, rtol=0, atol=1e-12)
    after = learner.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in trained.items())


def test_training_goes_on_from_a_saved_state_bitwise() -> None:
    batches = make_batches()
    whole, first, second = (make_learner(make_model()) for _ in range(3))
    for batch in batches:
        whole.step(*batch)
    for batch in batches[:3]:
        first.step(*batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[3:]:
        second.step(*batch)
    for learner in (whole, second):
        learner.model.eval()
    with whole.kept(), second.kept():
        ours, theirs = whole.model.state_dict(), second.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
