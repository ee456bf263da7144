"""``--ood`` from the option to the report: AUROCs of the stored predictions, resuming, errors."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_tiny_npz
from curve_runs import (
    assert_same,
    curve_job,
    done,
    flags,
    job,
    kill_server,
    killed_and_resumed,
    methods,
    report,
    run,
)
from numpy.typing import NDArray
from promised import promised
from torch import nn

from fge.commands.build import Setup
from fge.commands.loading import load_data
from fge.config import CurveEnsembleConfig, read_config
from fge.curves import Curve
from fge.data import Dataset, EvalBatches, Normaliser, OODImages, Split, load_dataset, load_ood
from fge.ensemble import MemberPredictions
from fge.metrics import ood_auroc
from fge.networks import build_model, refresh_batch_norm
from fge.report import MethodResult, ood_tables, with_ood
from fge.report.methods import OOD_TITLE
from fge.train import Learner

pytestmark = pytest.mark.usefixtures("fixed_pictures")

PAIR = "average-1--average-2"
Array = NDArray[np.float64]


# ------------------------------------------------------------------------------------- by hand

TEST = [[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]]
NOISE = [[0.5, 0.5], [0.625, 0.375]]
CERTAIN = [[1.0, 0.0], [0.0, 1.0]]


def split(count: int) -> Split:
    return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.zeros(count).long())


def by_hand(folder: Path, *, ood: bool = True) -> MemberPredictions:
    normaliser = Normaliser([0.0], [1.0], torch.device("cpu"))
    batches = {count: EvalBatches(split(count), normaliser, 4) for count in (2, 3)}
    found = MemberPredictions(folder, batches[3], {"noise": batches[2]} if ood else {})
    for name, outside in (("a", NOISE), ("b", CERTAIN)):
        rows = {3: TEST, 2: outside}
        found.predict(name, "sha", lambda b, rows=rows: torch.tensor(rows[len(b.split)]))
    return found


def line(name: str, *members: str) -> MethodResult:
    size = len(members)
    return MethodResult(name, size, 1, size, 8, 0.0, 0.0, 0.0, 0.0, member_names=members)


def data_by_hand() -> Dataset:
    ood = {"noise": OODImages(split(2), "abc")}
    return Dataset("own", ("0",), split(1), split(0), split(3), (0.0,), (1.0,), "def", ood)


def test_aurocs_are_those_of_the_averaged_predictions(tmp_path: Path) -> None:
    found = with_ood([line("one", "a"), line("both", "a", "b")], by_hand(tmp_path))
    # Largest probabilities: test 3/4, 1/2, 7/8; of a on noise 1/2, 5/8. Of the six pairs the noise
    # is less certain in four, and alike in one.
    assert found[0].ood == {"noise": {"max_probability": 4.5 / 6, "entropy": 4.5 / 6}}
    # The mean of both is (3/4, 1/4) and (5/16, 11/16) on noise: 11/16 lies below 3/4 and 7/8.
    assert found[1].ood == {"noise": {"max_probability": 3.5 / 6, "entropy": 3.5 / 6}}


def test_the_table_has_both_scores_of_each_kind(tmp_path: Path) -> None:
    found = with_ood([line("one", "a"), line("both", "a", "b")], by_hand(tmp_path))
    (table,) = ood_tables(found, data_by_hand())
    assert table.title == OOD_TITLE
    assert table.headings == ["method", "members", "noise: max probability", "entropy"]
    assert table.rows == [["one", "1", "0.7500", "0.7500"], ["both", "2", "0.5833", "0.5833"]]
    assert "(noise, 2 images; in the size and channels of the data)" in table.note
    assert "3 test images" in table.note
    assert "the costs above do not count them" in table.note


def test_of_numbers_the_variance_over_the_members_is_shown() -> None:
    lines = [line("one", "a"), line("both", "a", "b")]
    found = [
        replace(lines[0], ood={"noise": {}}),
        replace(lines[1], ood={"noise": {"variance": 0.75}}),
    ]
    (table,) = ood_tables(found, data_by_hand())
    assert table.headings == ["method", "members", "noise: variance over members"]
    assert table.rows == [["one", "1", "-"], ["both", "2", "0.7500"]]
    assert "is the less certain one, by the variance over the members: 0.5 is chance" in table.note
    assert ood_tables(found[:1], data_by_hand()) == []


def test_without_ood_images_nothing_is_said(tmp_path: Path) -> None:
    lines = [line("one", "a")]
    assert with_ood(lines, by_hand(tmp_path, ood=False)) == lines
    assert ood_tables(lines, Dataset(**{**vars(data_by_hand()), "ood": {}})) == []


# ------------------------------------------------------------------------------------------- fge


def write_other(path: Path, seed: int) -> Path:
    """Write 20 OOD images in colour and of another size."""
    images = np.random.default_rng(seed).integers(0, 256, (20, 5, 6, 3)).astype(np.uint8)
    labels = np.zeros(20, np.int64)
    return write_tiny_npz(
        path,
        train_images=images[:1],
        train_labels=labels[:1],
        test_images=images,
        test_labels=labels,
    )


@pytest.fixture(scope="module")
def ood(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["noise", str(write_other(tmp_path_factory.mktemp("ood") / "other.npz", 0))]


def fge_job(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Two snapshots, after epochs 1 and 3."""
    return job(data, out, **{"epochs": 3, "start_epoch": 0, "cycle_epochs": 2, **more})


def refit_job(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    return fge_job(data, out, **{"refit": "polychain", **more})


def pair_job(data: Path, out: Path, **more: Any) -> dict[str, Any]:
    small = {"epochs": 1, "curve_epochs": 1, "eval_points": 2, "ensemble_points": 3}
    return curve_job(data, out, **{**small, **more})


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory, data: Path, ood: list[str]) -> Path:
    return done("fge", refit_job(data, tmp_path_factory.mktemp("a") / "run", ood=ood))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, data: Path, ood: list[str]) -> Path:
    return done("curve-ensemble", pair_job(data, tmp_path_factory.mktemp("b") / "run", ood=ood))


@pytest.fixture(scope="module")
def plain_refitted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return done("fge", refit_job(data, tmp_path_factory.mktemp("c") / "run"))


@pytest.fixture(scope="module")
def plain_ended(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return done("curve-ensemble", pair_job(data, tmp_path_factory.mktemp("d") / "run"))


def stored(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    with np.load(folder / "predictions" / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def mean_of(folder: Path, name: str, members: list[str]) -> Array:
    arrays = stored(folder, name)
    rows = [list(arrays["members"]).index(member) for member in members]
    return np.asarray(arrays["probabilities"][rows].astype(float).mean(axis=0))


@pytest.mark.parametrize("kind", ["refitted", "ended"])
def test_the_report_holds_the_aurocs_of_the_files(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    found = methods(folder)
    assert {"refitted": "fge+refit 3", "ended": "curve 3"}[kind] in found
    for method in found.values():
        inside = mean_of(folder, "test", method["member_names"])
        assert set(method["ood"]) == {"noise", "other"}
        for name, figures in method["ood"].items():
            expected = ood_auroc(inside, mean_of(folder, f"ood-{name}", method["member_names"]))
            assert figures == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("kind", ["refitted", "ended"])
def test_all_members_are_predicted_on_all_images(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    test = stored(folder, "test")
    for name, count in (("noise", 48), ("other", 20)):
        other = stored(folder, f"ood-{name}")
        # Points on paths are predicted when their path is done, a file at a time.
        assert dict(zip(other["members"], other["sha256"], strict=True)) == dict(
            zip(test["members"], test["sha256"], strict=True)
        )
        assert other["targets"].tolist() == [0] * count


@pytest.mark.parametrize("kind", ["refitted", "ended"])
def test_the_page_shows_them_in_a_table(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    for page in ("report.md", "report.html"):
        assert OOD_TITLE in (folder / page).read_text()
    text = (folder / "report.md").read_text()
    last = list(methods(folder).values())[-1]
    cells = [f"{v:.4f}" for figures in last["ood"].values() for v in figures.values()]
    assert f"| {last['name']} | {last['members']} | {' | '.join(cells)} |" in text
    kinds = {name: facts["images"] for name, facts in report(folder)["dataset"]["ood"].items()}
    assert kinds == {"noise": 48, "other": 20}


def network(state: dict[str, torch.Tensor]) -> nn.Module:
    model = build_model("convnet", in_channels=1, num_classes=3, image_size=(8, 8))
    model.load_state_dict(state)
    return model


def outputs(model: nn.Module, images: torch.Tensor, splits: Dataset) -> Array:
    """Return the probabilities of a model in evaluation mode on uint8 images."""
    model.eval()
    with torch.no_grad():
        logits = model((images - splits.mean[0]) / splits.std[0])
    return np.asarray(logits.double().softmax(1))


def test_predictions_are_those_of_the_networks_and_the_runs_normalisation(
    ended: Path, data: Path
) -> None:
    from safetensors.torch import load_file

    splits = load_dataset(str(data))
    images = load_ood(["noise"], splits, data=str(data))["noise"].split.images
    path = ended / "networks" / "average-1" / "network" / "0001.safetensors"
    # float32 arithmetic, and batches of another size in the run.
    np.testing.assert_allclose(
        mean_of(ended, "ood-noise", ["average-1"]),
        outputs(network(load_file(path)), images, splits),
        atol=1e-5,
    )


def test_points_on_curves_have_statistics_of_their_own(ended: Path, data: Path) -> None:
    from safetensors.torch import load_file

    splits = load_dataset(str(data))
    images = load_ood(["noise"], splits, data=str(data))["noise"].split.images
    path = ended / "networks" / "average-1" / "network" / "0001.safetensors"
    curve = Curve.load(ended / "curves" / PAIR / "curve.safetensors")
    model = network({**load_file(path), **curve.parameters(0.5)})
    config = read_config(ended / "config.json", "curve-ensemble", CurveEnsembleConfig)[0]
    setup = Setup.of(config, load_data(config))
    refresh_batch_norm(model, setup.refresh_batches(setup.dataset.train), num_images=None)
    np.testing.assert_allclose(
        mean_of(ended, "ood-noise", [f"{PAIR}/curve/0.5000"]),
        outputs(model, images, splits),
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", ["refitted", "ended"])
def test_ood_images_change_nothing_else(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    plain: Path = request.getfixturevalue(f"plain_{kind}")
    ours, theirs = promised(folder), promised(plain)
    extra = {f"predictions/ood-{name}.npz" for name in ("noise", "other")}
    assert set(ours) - set(theirs) == extra
    for name in theirs:
        if name.split(".")[0] not in ("report", "page", "config", "manifest"):
            assert ours[name] == theirs[name], name
    bare = [
        {key: value for key, value in method.items() if key != "ood"}
        for method in report(folder)["methods"]
    ]
    assert bare == report(plain)["methods"]


def test_each_snapshot_is_predicted_once_on_each_kind_of_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    predict = Learner.predict

    def counting(self: Learner, batches: Any) -> torch.Tensor:
        calls.append(len(batches.split))
        return predict(self, batches)

    monkeypatch.setattr(Learner, "predict", counting)
    more = {"epochs": 1, "test_size": 24, "val_fraction": 0}
    options = fge_job(data, tmp_path / "run", ood=["noise", "digits"], **more)
    done("fge", options)
    assert calls == [24, 24, 1797]  # there are as many images of noise as of the test set
    done("fge", {**options, "resume": True})
    assert len(calls) == 3


# -------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize(("command", "kind"), [("fge", "refitted"), ("curve-ensemble", "ended")])
def test_a_finished_run_may_be_given_ood_images(
    command: str, kind: str, ood: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(request.getfixturevalue(f"plain_{kind}"), folder)
    result = run([command, "--out", str(folder), "--resume", "--ood", *ood])
    assert (result.code, result.err) == (0, "")
    assert_same(folder, request.getfixturevalue(kind))


def test_what_was_not_reached_is_made_up_for(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended, tmp_path / "run")
    (tmp_path / "run" / "predictions" / "ood-other.npz").unlink()
    assert run(["curve-ensemble", "--out", str(tmp_path / "run"), "--resume"]).code == 0
    assert_same(tmp_path / "run", ended)


@pytest.mark.slow
def test_killed_while_predicting_and_resumed_ends_as_if_uninterrupted(
    data: Path, ood: list[str], tmp_path: Path
) -> None:
    options = refit_job(data, tmp_path / "reference", ood=ood)
    finished = kill_server().run("fge", options)
    assert finished["code"] == 0
    last = range(finished["calls"] // 2, finished["calls"] + 1)
    for point in random.Random(0).sample(last, 2):
        folder = killed_and_resumed("fge", options, tmp_path / f"killed-{point}", point)
        assert_same(folder, tmp_path / "reference")


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("ood", "message"),
    [
        (["nois"], "unknown --ood 'nois'; give noise, digits, "),
        (["noise", "noise"], "--ood has 'noise' twice; leave one out"),
    ],
)
@pytest.mark.parametrize("command", ["fge", "curve-ensemble"])
def test_bad_names_cost_nothing(
    data: Path, tmp_path: Path, command: str, ood: list[str], message: str
) -> None:
    result = run(flags(command, job(data, tmp_path / "run", ood=ood)))
    assert result.code == 2
    assert result.message.startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_ood_images_that_it_has(refitted: Path, tmp_path: Path) -> None:
    shutil.copytree(refitted, tmp_path / "run")
    result = run(["fge", "--out", str(tmp_path / "run"), "--resume", "--ood", "noise"])
    assert result.code == 2
    assert result.message.startswith("cannot resume with ood ")
    assert_same(tmp_path / "run", refitted)


def test_other_images_under_the_same_name_are_refused(data: Path, tmp_path: Path) -> None:
    other = write_other(tmp_path / "other.npz", 0)
    folder = done("fge", fge_job(data, tmp_path / "run", epochs=1, ood=[str(other)]))
    before = promised(folder)
    write_other(other, 1)
    result = run(["fge", "--out", str(folder), "--resume"])
    assert result.code == 2
    assert (
        result.message
        == "cannot resume: the images of --ood other are not those of the run; restore them"
    )
    assert promised(folder) == before
