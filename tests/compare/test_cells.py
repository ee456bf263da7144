"""Cells against the metrics themselves and figures worked out by hand; exact on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fge import metrics
from fge.compare import Cell, Cost, cells, load_cells, make_cell
from fge.errors import UserError
from fge.metrics import aurc, calibration, disagreement, error_correlation, ood_auroc

RNG = np.random.default_rng(0)
TARGETS = torch.from_numpy(RNG.integers(0, 4, 60))
MEMBERS = [torch.from_numpy(RNG.dirichlet(np.full(4, 0.5), 60)) for _ in range(3)]
OOD = [torch.from_numpy(RNG.dirichlet(np.full(4, 2.0), 30)) for _ in range(3)]
ARRAYS = ("wrong", "nll", "calibrated_nll", "bin_counts", "bin_confidence", "bin_accuracy")


def cost(members: int = 3, **changes: Any) -> Cost:
    return replace(Cost(24, 216_000, members, members, 4000 * members), **changes)


def cell(method: str = "fge", seed: int = 0, members: list[Tensor] | None = None) -> Cell:
    chosen = MEMBERS if members is None else members
    return make_cell(
        method, 1, seed, chosen, TARGETS, cost=cost(len(chosen)), ood={"noise": OOD[: len(chosen)]}
    )


def test_the_figures_are_the_metrics_of_the_mean_probabilities() -> None:
    mean, y = torch.stack(MEMBERS).mean(0).numpy(), TARGETS.numpy()
    arrays = [member.numpy() for member in MEMBERS]
    calibrated = calibration.calibrated_log_likelihood(mean, y)
    scores = ood_auroc(mean, torch.stack(OOD).mean(0).numpy())
    expected = {
        "error": metrics.error(mean, y),
        "nll": metrics.nll(mean, y),
        "brier": metrics.brier(mean, y),
        "ece": metrics.ece(mean, y),
        "adaptive_ece": calibration.adaptive_ece(mean, y),
        "calibrated_log_likelihood": calibrated,
        "calibrated_nll": -calibrated,
        "calibrated_ece": calibration.calibrated_ece(mean, y),
        "aurc": aurc(mean, y),
        "disagreement": disagreement(arrays),
        "error_correlation": error_correlation(arrays, y),
        "mean_member_error": np.mean([metrics.error(p, y) for p in arrays]),
        "mean_member_nll": np.mean([metrics.nll(p, y) for p in arrays]),
        "ood_noise_max_probability": scores["max_probability"],
        "ood_noise_entropy": scores["entropy"],
    }
    assert cell().figures == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_ensembles_of_the_first_members_are_measured_one_by_one() -> None:
    found, y = cell(), TARGETS.numpy()
    for m, values in enumerate(found.by_members, start=1):
        mean = torch.stack(MEMBERS[:m]).mean(0).numpy()
        expected = {
            "error": metrics.error(mean, y),
            "nll": metrics.nll(mean, y),
            "calibrated_nll": -calibration.calibrated_log_likelihood(mean, y),
        }
        assert values == pytest.approx(expected, rel=1e-9)
    assert len(found.by_members) == 3
    shared = {name: found.figures[name] for name in found.by_members[-1]}
    assert found.by_members[-1] == pytest.approx(shared, rel=1e-12)


def test_the_values_per_example_have_the_figures_as_their_means() -> None:
    found = cell()
    assert 100 * found.wrong.mean() == found.figures["error"]
    assert found.nll.dtype == found.calibrated_nll.dtype == np.float32
    # Rounded to float32, each to 6e-8 of itself.
    assert found.nll.mean(dtype=float) == pytest.approx(found.figures["nll"], rel=1e-7)
    calibrated = found.calibrated_nll.mean(dtype=float)
    assert calibrated == pytest.approx(found.figures["calibrated_nll"], rel=1e-7)


def test_the_bins_are_those_of_the_reliability_diagram() -> None:
    found = cell()
    counts, confidence, accuracy = metrics.reliability(
        torch.stack(MEMBERS).mean(0).numpy(), TARGETS.numpy()
    )
    np.testing.assert_array_equal(found.bin_counts, counts)
    np.testing.assert_allclose(found.bin_confidence, confidence, rtol=1e-12)
    np.testing.assert_allclose(found.bin_accuracy, accuracy, rtol=1e-12)


def test_one_member_has_no_diversity() -> None:
    found = cell(members=MEMBERS[:1])
    assert len(found.by_members) == 1
    assert not {"disagreement", "error_correlation", "mean_member_error"} & set(found.figures)


def test_two_members_by_hand() -> None:
    """Four images, the second member wrong on the last two, the mean wrong on the third."""
    first = torch.tensor([[0.8, 0.2]] * 4, dtype=torch.float64)
    second = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.4, 0.6]], dtype=torch.float64)
    found = make_cell("m", 1, 0, [first, second], torch.zeros(4, dtype=torch.int64), cost=cost(2))
    assert found.wrong.tolist() == [False, False, True, False]
    assert found.figures["error"] == 25.0
    assert found.figures["mean_member_error"] == 25.0
    assert found.figures["disagreement"] == 50.0
    assert found.figures["nll"] == pytest.approx(
        -math.fsum(map(math.log, (0.7, 0.7, 0.45, 0.6))) / 4, rel=1e-12
    )
    assert "error_correlation" not in found.figures  # the first is never wrong


def test_single_precision_members_are_averaged_in_double() -> None:
    members = [member.float() for member in MEMBERS]
    mean = torch.stack([member.double() for member in members]).mean(0).numpy()
    found = cell(members=members)
    assert found.figures["brier"] == pytest.approx(metrics.brier(mean, TARGETS), rel=1e-13)


def test_a_cell_on_disk_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    written = replace(cell("fge+refit"), note="2 + 4 points", pooled=3, cost=cost())
    written.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "fge+refit-b1-s0.json",
        "fge+refit-b1-s0.npz",
    ]
    (read,) = load_cells(tmp_path)
    for name in ("method", "budget", "seed", "cost", "figures", "by_members", "note", "pooled"):
        assert getattr(read, name) == getattr(written, name)
    for name in ARRAYS:
        values = getattr(written, name)
        assert getattr(read, name).dtype == values.dtype
        np.testing.assert_array_equal(getattr(read, name), values)


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    cell().save(tmp_path / "a")
    cell().save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_cells_come_back_by_method_budget_and_seed(tmp_path: Path) -> None:
    for method, budget, seed in (("sse", 1, 0), ("fge", 2, 0), ("fge", 1, 10), ("fge", 1, 9)):
        replace(cell(), method=method, budget=budget, seed=seed).save(tmp_path)
    found = [(c.method, c.budget, c.seed) for c in load_cells(tmp_path)]
    assert found == [("fge", 1, 9), ("fge", 1, 10), ("fge", 2, 0), ("sse", 1, 0)]
    assert load_cells(tmp_path / "none") == []


def test_a_method_of_ones_own_has_a_file_name_too(tmp_path: Path) -> None:
    written = cell("own.module:method/2")
    written.save(tmp_path)
    assert (tmp_path / "own.module%3Amethod%2F2-b1-s0.json").exists()
    assert load_cells(tmp_path)[0].method == "own.module:method/2"


def test_an_interruption_while_a_cell_is_replaced_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell().save(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        cell(members=MEMBERS[:2]).save(tmp_path)
    assert load_cells(tmp_path) == []


def test_without_its_second_file_a_cell_does_not_count(tmp_path: Path) -> None:
    cell().save(tmp_path)
    (tmp_path / "fge-b1-s0.json").unlink()
    assert load_cells(tmp_path) == []


def test_another_cells_arrays_are_refused(tmp_path: Path) -> None:
    cell("fge").save(tmp_path)
    cell("sse", members=MEMBERS[:2]).save(tmp_path)
    (tmp_path / "sse-b1-s0.npz").replace(tmp_path / "fge-b1-s0.npz")
    with pytest.raises(UserError, match=r"fge-b1-s0\.npz is not the one fge-b1-s0\.json belongs"):
        load_cells(tmp_path)
    (tmp_path / "fge-b1-s0.npz").unlink()
    with pytest.raises(UserError, match=r"fge-b1-s0\.npz is not the one"):
        load_cells(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "\udcff"])
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    cell().save(tmp_path)
    (tmp_path / "fge-b1-s0.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        UserError, match=r"fge-b1-s0\.json is damaged or is not a cell: .*; delete it"
    ):
        load_cells(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has schema_version 2, not 1"),
        ({"cost": {"train_epochs": 1}}, "is damaged or is not a cell"),
        ({"colour": "blue"}, "is damaged or is not a cell: nothing is called 'colour'"),
        ({"figures": {"error": 1}}, "is damaged or is not a cell: it has no figure 'brier'"),
        ({"by_members": []}, "is damaged or is not a cell: it has 3 members and figures of 0"),
        ({"budget": -1}, "is damaged or is not a cell: Expected `int` >= 1"),
        ({"seed": 3}, "holds the cell fge-b1-s3: rename or delete it"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    cell().save(tmp_path)
    path = tmp_path / "fge-b1-s0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_cells(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": []}, "fge: a cell needs at least one member, got none"),
        ({"cost": cost(2)}, r"fge: cost\.members is 2, but there are 3 members"),
        ({"ood": {"noise": OOD[:2]}}, r"fge: ood\['noise'\] is 2, but there are 3 members"),
        ({"targets": TARGETS[:5]}, r"probs must be \(N, C\) and targets \(N,\)"),
        ({"members": [10 * m for m in MEMBERS]}, "must be probabilities in"),
        ({"members": [m[:1] for m in MEMBERS], "targets": TARGETS[:1]}, "at least 2 examples"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"members": MEMBERS, "targets": TARGETS, "cost": cost()} | change
    with pytest.raises(UserError, match=message):
        make_cell("fge", 1, 0, **options)
