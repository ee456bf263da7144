"""Predictions on disk: what comes back, in which order, and which files are refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fge.data import EvalBatches, Normaliser, Split
from fge.ensemble import MemberPredictions, PredictionFile
from fge.errors import UserError
from fge.tasks import Multilabel

TARGETS = torch.tensor([2, 0, 1, 1])


def probs_of(seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(4, 3, generator=rng, dtype=torch.float64).softmax(1)


def file_with(folder: Path, *members: str) -> PredictionFile:
    """Return a file whose member number i has the probabilities ``probs_of(i)`` and key "sha-i"."""
    file = PredictionFile(folder / "test.npz", TARGETS)
    for seed, name in enumerate(members):
        file.add(name, f"sha-{seed}", probs_of(seed))
    return file


def reread(file: PredictionFile) -> PredictionFile:
    return PredictionFile(file.path, TARGETS)


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def rewrite(path: Path, changes: Mapping[str, Any]) -> None:
    """Write the arrays of a file anew, some of them changed, or left out where that is None."""
    changed = {k: v for k, v in {**arrays(path), **changes}.items() if v is not None}
    np.savez(path, **changed)


def fail(*_: object) -> None:
    raise OSError("no space left")


def test_the_mean_is_of_the_members_named(tmp_path: Path) -> None:
    file = file_with(tmp_path, "a", "b", "c")
    mean = file.mean(["a", "c"])
    assert mean.dtype == torch.float64
    # Stored in float32: six digits.
    torch.testing.assert_close(mean, (probs_of(0) + probs_of(2)) / 2, atol=1e-7, rtol=0)
    assert torch.equal(file.mean(["b"]), file.probabilities("b"))


def test_the_file_holds_the_documented_arrays(tmp_path: Path) -> None:
    file = file_with(tmp_path, "fge-0001", "fge-0002")
    stored = arrays(file.path)
    assert list(stored["targets"]) == TARGETS.tolist()
    assert list(stored["members"]) == ["fge-0001", "fge-0002"]
    assert list(stored["sha256"]) == ["sha-0", "sha-1"]
    assert stored["probabilities"].dtype == np.float32
    expected = torch.stack([probs_of(0), probs_of(1)]).float().numpy()
    np.testing.assert_array_equal(stored["probabilities"], expected)


def test_a_label_that_is_certain_and_wrong_costs_as_much_on_either_side(tmp_path: Path) -> None:
    logits = torch.tensor([[20.0], [-20.0], [16.6]], dtype=torch.float64)
    targets, task = torch.tensor([[0], [1], [0]]), Multilabel(("a",))
    PredictionFile(tmp_path / "test.npz", targets, task).add("a", "sha", logits.sigmoid())
    stored = PredictionFile(tmp_path / "test.npz", targets, task)
    # In float32 the first probability is 1, and the loss would be that of certainty, 87 nats.
    nll = task.nll_per_example(stored.mean(["a"]), stored.targets)
    np.testing.assert_allclose(nll, [20, 20, 16.6], rtol=1e-6)


def test_what_is_read_again_is_what_was_returned_rounded_to_float32(tmp_path: Path) -> None:
    file = PredictionFile(tmp_path / "test.npz", TARGETS)
    returned = file.add("a", "sha", probs_of(0))
    assert returned.dtype == torch.float64
    assert torch.equal(returned, probs_of(0).float().double())
    assert not torch.equal(returned, probs_of(0))
    for source in (file, reread(file)):
        stored = source.get("a", "sha")
        assert stored is not None
        assert torch.equal(stored, returned)
        assert torch.equal(source.probabilities("a"), returned)
        assert source.probabilities("a").dtype == torch.float64


def test_only_a_member_with_the_same_weights_is_found(tmp_path: Path) -> None:
    for file in (file_with(tmp_path, "a"), reread(file_with(tmp_path, "a"))):
        assert file.get("a", "sha-0") is not None
        assert file.get("a", "sha-1") is None
        assert file.get("b", "sha-0") is None
        assert file.get("b", "") is None
        assert "a" in file
        assert "b" not in file


def test_adding_a_member_again_replaces_it_in_its_place(tmp_path: Path) -> None:
    file = file_with(tmp_path, "a", "b")
    file.add("a", "new", probs_of(7))
    assert list(arrays(file.path)["members"]) == ["a", "b"]
    again = reread(file)
    assert again.get("a", "sha-0") is None
    assert torch.equal(again.probabilities("a"), probs_of(7).float().double())
    assert torch.equal(again.probabilities("b"), probs_of(1).float().double())


def test_what_is_returned_may_be_changed_without_harm(tmp_path: Path) -> None:
    given = probs_of(0)
    file = PredictionFile(tmp_path / "test.npz", TARGETS)
    file.add("a", "sha", given).zero_()
    file.probabilities("a").zero_()
    given.zero_()
    assert torch.equal(file.probabilities("a"), probs_of(0).float().double())


def test_float32_probabilities_may_be_changed_without_harm(tmp_path: Path) -> None:
    given = probs_of(0).float()
    file = PredictionFile(tmp_path / "test.npz", TARGETS)
    file.add("a", "sha", given)
    given.zero_()
    assert torch.equal(file.probabilities("a"), probs_of(0).float().double())


def test_members_are_kept_in_the_order_asked_for_and_the_others_dropped(tmp_path: Path) -> None:
    file = file_with(tmp_path, "a", "b", "c")
    file.keep(name for name in ("c", "unknown", "a"))
    for source in (file, reread(file)):
        assert source.members == ["c", "a"]
        assert "b" not in source
        assert torch.equal(source.probabilities("c"), probs_of(2).float().double())
        assert torch.equal(source.probabilities("a"), probs_of(0).float().double())
    stored = arrays(file.path)
    assert list(stored["members"]) == ["c", "a"]
    assert list(stored["sha256"]) == ["sha-2", "sha-0"]


def test_the_same_members_in_another_order_are_put_in_that_order(tmp_path: Path) -> None:
    file = file_with(tmp_path, "a", "b")
    file.keep(["b", "a"])
    assert list(arrays(file.path)["members"]) == ["b", "a"]


def test_keeping_what_is_there_does_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_with(tmp_path, "a", "b")
    monkeypatch.setattr(os, "replace", fail)
    file.keep(["a", "b"])
    with pytest.raises(OSError, match="no space left"):
        file.keep(["b"])


def test_a_file_of_nobody_can_be_read_and_added_to(tmp_path: Path) -> None:
    file = file_with(tmp_path, "a")
    file.keep([])
    again = reread(file)
    assert "a" not in again
    again.add("b", "sha", probs_of(1))
    assert list(arrays(file.path)["members"]) == ["b"]


def test_the_order_of_adding_leaves_no_trace_in_the_bytes(tmp_path: Path) -> None:
    one, other = (file_with(tmp_path / name, "a", "b") for name in ("one", "other"))
    other.keep(["b"])
    other.add("a", "sha-0", probs_of(0))
    assert one.path.read_bytes() != other.path.read_bytes()
    other.keep(["a", "b"])
    assert one.path.read_bytes() == other.path.read_bytes()


def test_an_interrupted_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_with(tmp_path, "a")
    before = file.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            file.add("b", "sha-1", probs_of(1))
    assert file.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["test.npz"]
    assert "b" not in reread(file)


@pytest.mark.parametrize("targets", [[2, 0, 1, 0], [2, 0, 1], [2, 0, 1, 1, 1]])
def test_predictions_of_other_labels_are_refused(tmp_path: Path, targets: list[int]) -> None:
    file = file_with(tmp_path, "a")
    message = r"test\.npz was made for other labels than the data has now; restore the data, or use"
    with pytest.raises(UserError, match=message):
        PredictionFile(file.path, torch.tensor(targets))


def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    file = file_with(tmp_path, "a")
    data = file.path.read_bytes()
    for length in (0, 1, 4, 30, len(data) // 2, len(data) - 22, len(data) - 1):
        file.path.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"test\.npz cannot be read") as raised:
            reread(file)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["targets", "members", "sha256", "probabilities"])
def test_a_missing_array_is_named(tmp_path: Path, name: str) -> None:
    file = file_with(tmp_path, "a")
    rewrite(file.path, {name: None})
    with pytest.raises(UserError, match=rf"test\.npz has no array '{name}'"):
        reread(file)


def test_pickled_members_are_refused_and_not_loaded(tmp_path: Path) -> None:
    file = file_with(tmp_path, "a")
    rewrite(file.path, {"members": np.array(["a"], dtype=object)})
    with pytest.raises(UserError, match=r"test\.npz cannot be read"):
        reread(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: {"sha256": stored["sha256"][:1]},
        lambda stored: {"probabilities": stored["probabilities"][:1]},
        lambda stored: {"members": stored["members"][0]},
        lambda stored: {"probabilities": stored["probabilities"][:, :2]},
    ],
    ids=["a key too few", "a member too few", "no list of members", "images too few"],
)
def test_arrays_that_do_not_belong_together_are_refused(
    tmp_path: Path, change: Callable[[dict[str, NDArray[Any]]], dict[str, Any]]
) -> None:
    file = file_with(tmp_path, "a", "b")
    rewrite(file.path, change(arrays(file.path)))
    refused = None
    try:
        reread(file)
    except UserError as error:
        refused = error
    assert refused is not None


def test_no_file_is_made_before_there_is_a_prediction(tmp_path: Path) -> None:
    PredictionFile(tmp_path / "new" / "test.npz", TARGETS)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_a_plain_npz(tmp_path: Path) -> None:
    data = file_with(tmp_path, "a").path.read_bytes()
    assert set(np.load(io.BytesIO(data), allow_pickle=False).files) == {
        "targets",
        "members",
        "sha256",
        "probabilities",
    }


# ---------------------------------------------------------------------------- test and OOD images


def batches_of(count: int) -> EvalBatches:
    split = Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.zeros(count).long())
    return EvalBatches(split, Normaliser([0.0], [1.0], torch.device("cpu")), 4)


BATCHES = {count: batches_of(count) for count in (4, 2, 3)}


def members_in(folder: Path) -> MemberPredictions:
    """Return predictions of 4 test images, 2 of noise and 3 of digits."""
    return MemberPredictions(folder, BATCHES[4], {"noise": BATCHES[2], "digits": BATCHES[3]})


class Predictor:
    """Predicts the first rows of ``probs_of(seed)``; remembers what it was asked for."""

    def __init__(self, seed: int) -> None:
        self.probs = probs_of(seed).float().double()
        self.asked: list[EvalBatches] = []

    def __call__(self, batches: EvalBatches) -> Tensor:
        self.asked.append(batches)
        return self.probs[: len(batches.split)]


def test_a_member_is_predicted_on_all_images_under_one_name_and_key(tmp_path: Path) -> None:
    predictions, predictor = members_in(tmp_path), Predictor(0)
    assert not predictions.complete("a", "sha-a")
    assert torch.equal(predictions.predict("a", "sha-a", predictor), predictor.probs)
    assert predictor.asked == [BATCHES[4], BATCHES[2], BATCHES[3]]
    assert predictions.complete("a", "sha-a")
    assert not predictions.complete("a", "sha-b")
    names = {"test.npz": 4, "ood-noise.npz": 2, "ood-digits.npz": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name, count in names.items():
        stored = arrays(tmp_path / name)
        assert (list(stored["members"]), list(stored["sha256"])) == (["a"], ["sha-a"])
        assert stored["targets"].tolist() == [0] * count
        np.testing.assert_array_equal(stored["probabilities"][0], predictor.probs[:count])


def test_only_what_is_missing_is_predicted(tmp_path: Path) -> None:
    members_in(tmp_path).predict("a", "sha", Predictor(0))
    (tmp_path / "ood-digits.npz").unlink()
    predictions, predictor = members_in(tmp_path), Predictor(0)
    assert not predictions.complete("a", "sha")
    assert torch.equal(predictions.predict("a", "sha", predictor), predictor.probs)
    assert predictor.asked == [BATCHES[3]]
    predictions.predict("a", "sha", predictor)
    assert predictor.asked == [BATCHES[3]]


def test_other_weights_are_predicted_anew_on_all_images(tmp_path: Path) -> None:
    predictions, predictor = members_in(tmp_path), Predictor(1)
    predictions.predict("a", "old", Predictor(0))
    assert torch.equal(predictions.predict("a", "new", predictor), predictor.probs)
    assert len(predictor.asked) == 3
    stored = predictions.ood["digits"].get("a", "new")
    assert stored is not None
    assert torch.equal(stored, predictor.probs[:3])


def test_members_are_kept_in_all_files_in_one_order(tmp_path: Path) -> None:
    predictions = members_in(tmp_path)
    for seed, name in enumerate("abc"):
        predictions.predict(name, "sha", Predictor(seed))
    predictions.keep(name for name in "ca")
    for file, batches in members_in(tmp_path).parts:
        assert file.members == ["c", "a"]
        assert torch.equal(file.probabilities("c"), Predictor(2)(batches))


def test_without_ood_images_there_is_one_file(tmp_path: Path) -> None:
    predictions = MemberPredictions(tmp_path, BATCHES[4])
    predictions.predict("a", "sha", Predictor(0))
    assert predictions.complete("a", "sha")
    assert (predictions.ood, [path.name for path in tmp_path.iterdir()]) == ({}, ["test.npz"])


def test_ood_predictions_of_another_number_of_images_are_refused(tmp_path: Path) -> None:
    members_in(tmp_path).predict("a", "sha", Predictor(0))
    message = (
        r"ood-noise\.npz was made for other labels than the data has now; restore the data, or use"
    )
    with pytest.raises(UserError, match=message):
        MemberPredictions(tmp_path, BATCHES[4], {"noise": BATCHES[3]})


# ----------------------------------------------------------------------- test-time augmentation

VIEWS = [batches_of(4), batches_of(4)]


def viewed_in(folder: Path) -> MemberPredictions:
    return MemberPredictions(folder, BATCHES[4], {"noise": BATCHES[2]}, VIEWS)


class ViewPredictor(Predictor):
    """Predicts ``probs_of(10 + view)`` for a further view."""

    def __call__(self, batches: EvalBatches) -> Tensor:
        probs = super().__call__(batches)
        views = [number for number, view in enumerate(VIEWS, start=1) if view is batches]
        return probs_of(10 + views[0]) if views else probs


def test_with_views_the_mean_over_all_of_them_is_stored_beside_the_plain_one(
    tmp_path: Path,
) -> None:
    predictions, predictor = viewed_in(tmp_path), ViewPredictor(0)
    assert torch.equal(predictions.predict("a", "sha", predictor), predictor.probs)
    assert predictor.asked == [BATCHES[4], BATCHES[2], *VIEWS]
    assert predictions.tta is not None
    mean = (predictor.probs + probs_of(11) + probs_of(12)) / 3
    # Stored in float32: six digits.
    torch.testing.assert_close(predictions.tta.probabilities("a"), mean, atol=1e-7, rtol=0)
    stored = arrays(tmp_path / "test-tta.npz")
    assert (list(stored["members"]), list(stored["sha256"])) == (["a"], ["sha"])
    assert torch.equal(predictions.test.probabilities("a"), predictor.probs)


def test_views_are_added_without_predicting_the_image_itself_again(tmp_path: Path) -> None:
    viewed_in(tmp_path).plain.predict("a", "sha", ViewPredictor(0))
    assert not (tmp_path / "test-tta.npz").exists()
    predictions, predictor = viewed_in(tmp_path), ViewPredictor(1)
    assert predictions.plain.complete("a", "sha")
    assert not predictions.complete("a", "sha")
    predictions.predict("a", "sha", predictor)
    assert predictor.asked == VIEWS
    predictions.predict("a", "sha", predictor)
    assert predictor.asked == VIEWS
    assert predictions.complete("a", "sha")
    assert predictions.tta is not None
    mean = (ViewPredictor(0).probs + probs_of(11) + probs_of(12)) / 3
    torch.testing.assert_close(predictions.tta.probabilities("a"), mean, atol=1e-7, rtol=0)


def test_the_same_weights_are_copied_under_another_name(tmp_path: Path) -> None:
    predictions, predictor = viewed_in(tmp_path), ViewPredictor(1)
    predictions.predict("a", "sha", ViewPredictor(0))
    predictions.predict("b", "sha", predictor, same=["x", "a"])
    assert predictor.asked == []
    for file in predictions.files:
        assert torch.equal(file.probabilities("b"), file.probabilities("a"))
    predictions.keep(["b"])
    assert [file.members for file in viewed_in(tmp_path).files] == [["b"]] * 3
