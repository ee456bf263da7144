"""Tasks: losses, predictions and figures, against PyTorch and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm

from fge import metrics
from fge.ensemble import MemberPredictions, PredictionFile
from fge.networks import OutputKind
from fge.tasks import (
    Averaged,
    Binary,
    BinaryCrossEntropy,
    Classification,
    Multilabel,
    Regression,
    Task,
    label_cross_entropy,
    make_task,
)
from fge.train import WeightedCrossEntropy, balanced_weights

CPU = torch.device("cpu")
RNG = torch.Generator().manual_seed(0)
LOGITS = torch.randn(50, 3, generator=RNG)
CLASSES = torch.arange(50) % 3
LABELS = (torch.rand(50, 3, generator=RNG) < 0.4).long()
NUMBERS = torch.randn(50, 2, generator=RNG).double() * torch.tensor([3.0, 20.0]) + 7
SCALED = Regression(("a", "b"), (7.0, 6.0), (3.0, 20.0))


def predicted(task: Task, outputs: torch.Tensor) -> np.ndarray:
    return OutputKind(task.output).predictions(outputs).numpy()


def test_one_logit_is_the_difference_of_two() -> None:
    logit, y = LOGITS[:, :1], (CLASSES == 0).long()
    two = torch.cat([torch.zeros_like(logit), logit], dim=1)
    task = Binary(("no", "yes"))
    torch.testing.assert_close(task.loss(CPU)(logit, y), F.cross_entropy(two, y))
    np.testing.assert_allclose(predicted(task, logit), two.double().softmax(1).numpy())
    np.testing.assert_allclose(predicted(task, logit[:, 0]), predicted(task, logit))
    smoothed = BinaryCrossEntropy(smoothing=0.2)(logit, y)
    torch.testing.assert_close(smoothed, F.cross_entropy(two, y, label_smoothing=0.2))
    weights = balanced_weights(y, 2)
    for smoothing in (0.0, 0.1):
        found = BinaryCrossEntropy(weights, smoothing)(logit, y)
        torch.testing.assert_close(found, WeightedCrossEntropy(weights, smoothing)(two, y))
    assert task.forward_fn is not None
    both = task.forward_fn(torch.nn.Identity(), (logit, y))
    torch.testing.assert_close(F.cross_entropy(both, y), task.loss(CPU)(logit, y))
    soft = F.one_hot(y, 2) * 0.5 + 0.25
    torch.testing.assert_close(task.loss(CPU)(logit, soft), F.cross_entropy(two, soft))


def test_the_loss_of_labels_is_summed_over_them() -> None:
    each = [
        F.binary_cross_entropy_with_logits(LOGITS[:, k], LABELS[:, k].float()) for k in (0, 1, 2)
    ]
    torch.testing.assert_close(label_cross_entropy(LOGITS, LABELS), sum(each))
    found = Multilabel(("a", "b", "c")).scores(LOGITS.double().sigmoid(), LABELS)[1]
    assert found == pytest.approx(float(sum(each)))


def test_numbers_are_standardised_and_restored() -> None:
    outputs = LOGITS[:, :2]
    wanted = (NUMBERS - torch.tensor([7.0, 6.0])) / torch.tensor([3.0, 20.0])
    torch.testing.assert_close(
        SCALED.loss(CPU)(outputs, NUMBERS), F.mse_loss(outputs, wanted.float())
    )
    np.testing.assert_allclose(
        predicted(SCALED, outputs), outputs.double().numpy() * [3, 20] + [7, 6]
    )
    one = Regression(("a",), (7.0,), (3.0,))
    torch.testing.assert_close(
        one.loss(CPU)(outputs[:, 0], NUMBERS[:, :1]), one.loss(CPU)(outputs[:, :1], NUMBERS[:, :1])
    )


CASES: list[tuple[Task, Any, Any]] = [
    (Classification(("a", "b", "c")), LOGITS, CLASSES),
    (Binary(("a", "b")), LOGITS[:, :1], CLASSES % 2),
    (Multilabel(("a", "b", "c")), LOGITS, LABELS),
    (SCALED, LOGITS[:, :2], NUMBERS),
]


@pytest.mark.parametrize(
    ("task", "outputs", "targets"), CASES, ids=lambda x: getattr(x, "name", "")
)
def test_values_of_examples_have_the_figures_as_means(
    task: Task, outputs: Any, targets: Any
) -> None:
    mean, y = predicted(task, outputs), targets.numpy()
    found = {**task.figures(mean, y), **task.extra(mean, y)}
    values = task.per_example(mean, y)
    assert values.compared.mean() == pytest.approx(found[task.compared.key])
    assert values.nll.mean() == pytest.approx(found["nll"])
    if "calibrated_nll" in found:
        assert values.calibrated.mean() == pytest.approx(found["calibrated_nll"])
    first, nll = task.scores(mean, y)
    assert first == pytest.approx(found[task.measure.key])
    assert nll == pytest.approx(found["nll"])
    assert task.tempered(mean, y).mean() <= nll + 1e-9
    assert {key for key, _, _ in task.columns} <= found.keys()
    assert {key for key, _, _ in task.more} <= found.keys()
    members = [mean, mean[::-1].copy()]
    differ = task.diversity(members, y)
    assert all(np.isfinite(value) for value in differ.values())


def test_the_brier_score_of_two_classes_is_that_of_one() -> None:
    mean, y = predicted(Binary(("a", "b")), LOGITS[:, :1]), (CLASSES % 2).numpy()
    found = Binary(("a", "b")).figures(mean, y)
    assert found["brier"] == pytest.approx(np.mean((mean[:, 1] - y) ** 2))
    balanced = np.mean([np.mean((mean[:, 1] > 0.5)[y == c] != c) for c in (0, 1)])
    assert Binary(("a", "b")).extra(mean, y)["balanced_error"] == pytest.approx(100 * balanced)


def test_the_gain_of_averaging_numbers_is_their_variance() -> None:
    one, two = predicted(SCALED, LOGITS[:, :2]), predicted(SCALED, LOGITS[:, 1:])
    found = SCALED.diversity([one, two], NUMBERS)
    ensemble = metrics.squared_residuals((one + two) / 2, NUMBERS).mean()
    assert found["mean_member_mse"] - ensemble == pytest.approx(found["spread"] ** 2)


class _Batches:
    """What a file of predictions takes of batches."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.split = type("Split", (), {"labels": targets})()


@pytest.mark.parametrize("held_out", [True, False])
def test_the_noise_is_that_of_validation_or_training_data(tmp_path: Any, held_out: bool) -> None:
    task = Regression(("y",), (0.0,), (1.0,))
    draw = np.random.default_rng(1)
    test, known = draw.normal(size=(30, 1)), draw.normal(size=(40, 1))
    members = {name: (draw.normal(size=(30, 1)), draw.normal(size=(40, 1))) for name in "ab"}
    val, fitted = _Batches(torch.from_numpy(known)), _Batches(torch.from_numpy(known))
    files = MemberPredictions(
        tmp_path,
        _Batches(torch.from_numpy(test)),  # type: ignore[arg-type]
        task=task,
        held_out=val if held_out else None,  # type: ignore[arg-type]
        fitted=fitted,  # type: ignore[arg-type]
    )
    name = "val.npz" if held_out else "train.npz"
    other = PredictionFile(tmp_path / name, val.split.labels, task) if held_out else files.train
    assert other is not None
    assert [file.path.name for file, _ in files.parts] == [
        "test.npz",
        *([] if held_out else [name]),
    ]
    for member, (on_test, on_known) in members.items():
        files.test.add(member, member, torch.from_numpy(on_test))
        other.add(member, member, torch.from_numpy(on_known))
    found = files.test.figures(["a", "b"])
    pair = [np.stack([members[m][k] for m in "ab"]) for k in (0, 1)]
    noise = metrics.fit_noise(pair[1].mean(0), known, pair[1].var(0))
    expected = -norm.logpdf(test, pair[0].mean(0), np.sqrt(noise + pair[0].var(0)))
    assert found["nll"] == pytest.approx(expected.mean())
    with np.load(tmp_path / "test.npz") as stored:
        assert set(stored) == {"targets", "members", "sha256", "predictions"}
        np.testing.assert_array_equal(stored["predictions"], pair[0])  # not rounded


def test_tasks_are_made_by_name() -> None:
    assert make_task("binary", ["a", "b"]).outputs == 1
    assert make_task("multilabel", ["a", "b"]).outputs == 2
    assert make_task("regression", ["a"], mean=[1.0], std=[2.0]) == Regression(
        ("a",), (1.0,), (2.0,)
    )
    assert make_task("classification", ["a", "b"]).output == "softmax"


def test_what_is_wrong_and_the_nll_of_each_example() -> None:
    probs = predicted(Classification(("a", "b", "c")), LOGITS)
    classes = Classification(("a", "b", "c"))
    assert np.array_equal(classes.wrong(probs, CLASSES), probs.argmax(axis=1) != CLASSES.numpy())
    labels, said = Multilabel(("a", "b", "c")), predicted(Multilabel(("a", "b", "c")), LOGITS)
    # One wrong label makes an example wrong.
    expected = ((said > 0.5) != LABELS.numpy()).any(axis=1)
    assert 0 < expected.sum() < len(expected)
    assert np.array_equal(labels.wrong(said, LABELS), expected)
    for task, values, targets in (
        (classes, probs, CLASSES),
        (labels, said, LABELS),
        (SCALED, predicted(SCALED, LOGITS[:, :2]), NUMBERS),
    ):
        each = task.nll_per_example(values, targets)
        assert each.shape == (50,)
        assert each.mean() == pytest.approx(task.scores(values, targets)[1], rel=1e-12)


def test_what_a_planner_compares() -> None:
    """NLL of classes and labels; of numbers the training loss, which has no unit."""
    classes, labels = Classification(("a", "b", "c")), Multilabel(("a", "b", "c"))
    for task, targets in ((classes, CLASSES), (labels, LABELS)):
        values = predicted(task, LOGITS)
        assert np.array_equal(task.plan_losses(values, targets), task.tempered(values, targets))
        assert task.fitted_loss(values, targets) == task.scores(values, targets)[1]
        assert task.decisive(values, targets) == task.wrong(values, targets).sum()
        assert task.plan.val == "val_tempered_nll"
    outputs = LOGITS[:, :2]
    values = predicted(SCALED, outputs)
    losses = SCALED.plan_losses(values, NUMBERS)
    assert losses.shape == (50,)
    trained = SCALED.loss(torch.device("cpu"))(outputs.double(), NUMBERS.double()).item()
    assert losses.mean() == pytest.approx(trained, rel=1e-12)
    assert SCALED.fitted_loss(values, NUMBERS) == losses.mean()
    assert SCALED.decisive(values, NUMBERS) == 50
    assert SCALED.plan.val == "val_scaled_mse"
    with pytest.raises(TypeError, match="of a regression are neither right nor wrong"):
        SCALED.wrong(NUMBERS, NUMBERS)


def test_ood_inputs_are_told_by_the_doubt_of_the_task() -> None:
    classes, labels = Classification(("a", "b")), Multilabel(("a", "b"))
    inside, outside = [[0.9, 0.1], [0.6, 0.4]], [[0.5, 0.5], [0.7, 0.3]]
    assert classes.detection(Averaged(inside), Averaged(outside)) == metrics.ood_auroc(
        inside, outside
    )
    # Of labels by their entropy: 0.9 and 0.9 is the surest, then 0.7 and 0.9, 0.6 and 0.9.
    found = labels.detection(Averaged([[0.9, 0.9], [0.1, 0.6]]), Averaged([[0.3, 0.9], [0.5, 0.5]]))
    assert found == {"entropy": 3 / 4}

    def of_numbers(spread: Any, other: Any) -> dict[str, float]:
        inside, outside = Averaged(NUMBERS[:2], spread), Averaged(NUMBERS[2:4], other)
        return SCALED.detection(inside, outside)

    # Of numbers by the variance over members, in parts of that of the targets, 9 and 400.
    spread, other = np.array([[9.0, 40.0], [1.0, 80.0]]), np.array([[0.9, 600.0], [9.0, 400.0]])
    assert (spread / [9.0, 400.0]).mean(axis=1) == pytest.approx([0.55, 0.1 + 1 / 18])
    assert of_numbers(spread, other) == {"variance": 1.0}
    other = np.array([[4.5, 0.0], [9.0, 400.0]])  # 0.25 and 1
    assert of_numbers(spread, other) == {"variance": 3 / 4}
    alone = np.zeros((2, 2))
    assert of_numbers(alone, alone) == {}
    assert of_numbers(None, None) == {}
