"""Learners whose snapshots are averages, against PyTorch's averaged model and means by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fge.train import EmaLearner, Learner, LinearTailLR, TailLearner, TriangularLR, train

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


def make_tail_learner(model: nn.Module) -> TailLearner:
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return TailLearner(model, optimizer, refresh=make_batches())


def weights_after_each_step(steps: int) -> list[dict[str, Tensor]]:
    """Return the parameters after each step of a plain training along the same descent."""
    model = make_model()
    learner = Learner(model, SGD(model.parameters(), lr=0.1, momentum=0.9))
    schedule = LinearTailLR(learner.optimizer, steps=steps)
    history = []
    for batch in make_batches() * (steps // 6):
        learner.step(*batch)
        schedule.step()
        history.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return history


def test_a_member_is_the_mean_of_the_weights_after_the_last_steps() -> None:
    learner = make_tail_learner(make_model())
    schedule = LinearTailLR(learner.optimizer, steps=12)
    train(learner, schedule, make_batches(), first_epoch=0, last_epoch=2, average=0.25)
    history = weights_after_each_step(12)
    assert learner.average.updates == 3  # a quarter of 12 steps
    with learner.kept() as refreshed:
        assert refreshed == 48
        for name, value in learner.model.named_parameters():
            mean = torch.stack([weights[name] for weights in history[-3:]]).mean(0)
            torch.testing.assert_close(value, mean, rtol=0, atol=1e-12)
    for name, value in learner.model.named_parameters():
        assert torch.equal(value, history[-1][name])


def test_batch_norm_gets_the_statistics_of_pytorch_s_update() -> None:
    learner = make_tail_learner(make_model())
    schedule = LinearTailLR(learner.optimizer, steps=6)
    train(learner, schedule, make_batches(), first_epoch=0, last_epoch=1, average=0.5)
    with learner.kept():
        oracle = AveragedModel(make_model())
        oracle.module.load_state_dict(learner.model.state_dict())
        update_bn((x for x, _ in make_batches()), oracle)
        mean = learner.model[1].running_mean  # type: ignore[index]
        torch.testing.assert_close(mean, oracle.module[1].running_mean, rtol=0, atol=1e-12)


def test_every_cycle_starts_a_new_mean_that_leaves_the_rise_out() -> None:
    learner, counts = make_tail_learner(make_model()), list[int]()
    schedule = TriangularLR(learner.optimizer, max_lr=0.1, min_lr=0.01, cycle_steps=8)
    train(
        learner,
        schedule,
        make_batches(),
        first_epoch=0,
        last_epoch=2,
        average=0.5,
        on_minimum=lambda _: counts.append(learner.average.updates),
    )
    assert counts == [2, 2]  # half of four falling steps, each time


def test_averaging_does_not_change_the_training() -> None:
    plain, averaged = make_tail_learner(make_model()), make_tail_learner(make_model())
    for learner, part in ((plain, 0.0), (averaged, 0.5)):
        schedule = LinearTailLR(learner.optimizer, steps=12)
        train(learner, schedule, make_batches(), first_epoch=0, last_epoch=2, average=part)
    assert plain.average.updates == 0
    for ours, theirs in zip(plain.model.parameters(), averaged.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_a_tail_the_weights_themselves_are_kept() -> None:
    learner = make_tail_learner(make_model())
    before = [p.detach().clone() for p in learner.model.parameters()]
    with learner.kept() as refreshed:
        assert refreshed == 0
        for p, b in zip(learner.model.parameters(), before, strict=True):
            assert torch.equal(p, b)


def test_a_saved_state_continues_in_mid_tail_bitwise() -> None:
    whole, first, second = (make_tail_learner(make_model()) for _ in range(3))
    schedules = [LinearTailLR(learner.optimizer, steps=12) for learner in (whole, first, second)]
    run = {"average": 0.8, "seed": 1}
    train(whole, schedules[0], make_batches(), first_epoch=0, last_epoch=2, **run)  # type: ignore[arg-type]
    train(first, schedules[1], make_batches(), first_epoch=0, last_epoch=1, **run)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    schedules[2].load_state_dict(schedules[1].state_dict())
    train(second, schedules[2], make_batches(), first_epoch=1, last_epoch=2, **run)  # type: ignore[arg-type]
    assert whole.average.updates == second.average.updates == 10
    for name, value in whole.average.averages.items():
        assert torch.equal(value, second.average.averages[name])


def test_a_restart_forgets_momentum_and_mean() -> None:
    learner, other = make_tail_learner(make_model()), make_tail_learner(make_model())
    initial = {n: v.clone() for n, v in learner.model.state_dict().items()}
    schedule = LinearTailLR(learner.optimizer, steps=6)
    train(learner, schedule, make_batches(), first_epoch=0, last_epoch=1, average=1.0)
    learner.restart(initial)
    learner.optimizer.param_groups[0]["lr"] = 0.1
    assert learner.average.updates == 0
    for batch in make_batches():
        learner.step(*batch)
        other.step(*batch)
    for name, value in learner.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
