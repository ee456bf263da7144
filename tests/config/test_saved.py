"""Configurations survive the way through ``config.json``; bad files are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fge.config import (
    DATA_NAMES,
    OOD_NAMES,
    CompareConfig,
    ConnectConfig,
    CurveEnsembleConfig,
    FGEConfig,
    TrainConfig,
    as_stored,
    check_unchanged,
    keep_settled,
    own_code,
    read_config,
    to_options,
    write_config,
)
from fge.config.base import saved_fields
from fge.errors import UserError

rates = st.floats(0, 1e6, allow_nan=False)
counts = st.none() | st.integers(1, 10**9)
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
paths = st.none() | texts.map(Path)
epoch_counts = st.none() | st.integers(1, 10**6)
refits = st.sampled_from([None, "bezier", "polychain"])
switches = st.sampled_from(["auto", "on", "off"])


@st.composite
def configs(draw: st.DrawFn) -> FGEConfig:
    half = draw(st.integers(1, 20))
    start = draw(st.none() | st.integers(0, 300))
    epochs = draw(st.integers((start or 0) + half, 10**6))
    several = epochs >= (start or 0) + 3 * half  # snapshots
    low, high = sorted([draw(rates), draw(st.floats(1e-300, 1e6))])
    pretrained = draw(paths) if start in (None, 0) else None
    own: Any = st.just("auto") if epochs >= 3 else st.none()
    return FGEConfig(
        data=draw(texts),
        data_dir=draw(paths),
        train_size=draw(counts),
        test_size=draw(counts),
        val_fraction=draw(st.floats(0, 1, exclude_max=True)),
        image_size=draw(st.none() | st.integers(1, 4096)),
        normalize=draw(st.sampled_from(["data", "imagenet"])),
        stream=draw(switches),
        workers=draw(st.none() | st.integers(0, 1024)),
        skip_unreadable=draw(st.booleans()),
        labels=draw(paths),
        crop_padding=(padding := draw(st.none() | st.integers(0, 100))),
        flip=(flip := draw(st.booleans())),
        tta=draw(st.none() | st.integers(2, 1000)) if flip or padding != 0 else None,
        model=draw(texts),
        epochs=epochs,
        batch_size=draw(st.integers(1, 10**6)),
        lr=draw(st.floats(1e-300, 1e6)),
        momentum=draw(st.floats(0, 1, exclude_max=True)),
        weight_decay=draw(st.none() | rates),
        optimizer=draw(st.sampled_from(["sgd", "adamw", "adam"])),
        warmup_epochs=draw(st.floats(0, epochs)),
        accumulate=(accumulate := draw(st.integers(1, 100))),
        clip_norm=draw(st.none() | st.floats(1e-300, 1e6)),
        backbone_lr=draw(st.none() | st.floats(1e-300, 1e6)),
        class_weights=draw(st.sampled_from(["none", "balanced"])),
        label_smoothing=draw(st.floats(0, 1, exclude_max=True)),
        mixup=draw(st.floats(0, 100)),
        augment="trivial" if flip or padding != 0 else "none",
        freeze=draw(st.none() | texts),
        seed=draw(st.integers(0, 2**100)),
        device=draw(texts),
        threads=draw(st.none() | st.integers(1, 1024)),
        eval_batch_size=draw(st.none() | st.integers(1, 10**6)),
        cuda_graphs=draw(st.sampled_from(["auto", "off"] + ["on"] * (accumulate == 1))),
        channels_last=draw(switches),
        compile=draw(switches),
        amp=draw(st.sampled_from(["auto", "off", "bf16", "fp16"])),
        figure_format=draw(st.sampled_from(["png", "svg", "pdf"])),
        ood=tuple(draw(st.lists(texts, max_size=3))),
        tensorboard=draw(st.booleans()),
        sharpness_every=draw(epoch_counts),
        start_epoch=start,
        cycle_epochs=2 * half,
        max_lr=high,
        min_lr=low,
        average=draw(st.none() | st.floats(0, 1)),
        plan=draw(st.sampled_from(["cycles"])),
        task=draw(st.sampled_from(["classification", "binary", "multilabel", "regression"])),
        target=(),
        final_factor=draw(st.floats(0, 1)),
        hold=draw(st.floats(0, 1, exclude_max=True)),
        distill_epochs=draw(st.integers(0, 50)),
        pretrained=pretrained,
        single=draw(st.booleans()) if pretrained is None else False,
        refit=(
            refit := draw(st.sampled_from([None, "bezier", "polychain"] if several else [None]))
        ),
        refit_points=draw(st.integers(1, 50)) if refit else 1,
        refit_epochs=draw(epoch_counts) if refit else None,
        baseline=draw(paths | own),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_any_valid_config_survives_the_file(config: FGEConfig, tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", "fge", config)
    read, _ = read_config(tmp_path / "config.json", "fge", FGEConfig)
    for name in saved_fields(config):  # paths alone are changed: they are absolute
        assert as_stored(name, getattr(read, name)) == as_stored(name, getattr(config, name))
    paths = [read.data_dir, read.labels, read.pretrained, read.baseline]
    assert all(path.is_absolute() for path in paths if isinstance(path, Path))
    without: dict[str, Any] = {
        "data_dir": None,
        "labels": None,
        "pretrained": None,
        "baseline": None,
    }
    without |= {"data": "", "ood": ()}
    assert replace(read, **without) == replace(config, **without)
    types = {name: type(getattr(read, name)) for name in vars(read)}
    assert types == {name: type(getattr(config, name)) for name in vars(config)}


def test_the_property_test_draws_every_saved_option() -> None:
    text = Path(__file__).read_text()
    assert [name for name in saved_fields(FGEConfig) if f"        {name}=" not in text] == []


def test_paths_are_stored_absolute_and_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "cifar10").mkdir()  # named like a data set, which comes first
    for name in (*DATA_NAMES, *OOD_NAMES, "cifar", "/a/b", "/a/c.npz"):
        assert as_stored("data", name) == name
    for path, stored in (("photos", "photos"), ("x/../a/b", "a/b"), ("c.npz", "c.npz")):
        assert as_stored("data", path) == str(tmp_path / stored)
    assert as_stored("ood", ("noise", "photos")) == ["noise", str(tmp_path / "photos")]
    assert as_stored("weights", (Path("a.pt"),)) == [str(tmp_path / "a.pt")]
    assert as_stored("model", "photos") == "photos"
    assert as_stored("lr", None) is None


def test_paths_agree_with_what_they_were_stored_as(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own: dict[str, Any] = {"data": "a/t.npz", "ood": ("b.npz",), "pretrained": Path("w.pt")}
    asked = FGEConfig(**own)
    write_config(tmp_path / "config.json", "fge", asked)
    saved, _ = read_config(tmp_path / "config.json", "fge", FGEConfig)
    for begun in (saved, asked):  # asked: as files of earlier versions have them
        check_unchanged(begun, asked)
        check_unchanged(begun, saved)
    monkeypatch.chdir(tmp_path.parent)
    check_unchanged(saved, replace(saved, data=f"{tmp_path.name}/a/t.npz"))
    with pytest.raises(UserError, match="cannot resume with data "):
        check_unchanged(saved, asked)


def test_own_code_is_given_again_whole() -> None:
    assert own_code({"model": "torchvision:resnet18", "method": "swa", "methods": ["fge"]}) == []
    assert own_code({"model": "m:n", "method": "a:b"}) == ["--model", "m:n", "--method", "a:b"]
    assert own_code({"model": None, "methods": ("fge", "a:b")}) == ["--methods", "fge", "a:b"]


def test_options_of_one_invocation_are_not_in_the_file(tmp_path: Path) -> None:
    config = FGEConfig(out=tmp_path, config=tmp_path, resume=True)
    assert not {"out", "config", "resume", "overwrite"} & set(to_options(config))


def test_file_holds_schema_command_and_facts(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", "fge", FGEConfig(), dataset={"train": 9})
    _, content = read_config(tmp_path / "config.json", "fge", FGEConfig)
    assert content["schema_version"] == 3
    assert content["command"] == "fge"
    assert content["dataset"] == {"train": 9}


def test_whole_number_for_a_float_is_taken_as_a_float(tmp_path: Path) -> None:
    config = read_changed(tmp_path, max_lr=1)
    assert config.max_lr == 1.0
    assert type(config.max_lr) is float


def test_a_run_from_before_cuda_graphs_had_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"options": {"compile": "on"}}')
    config, _ = read_config(tmp_path / "config.json", "fge", FGEConfig)
    assert config == FGEConfig(compile="on", cuda_graphs="off")


def read_first_version(folder: Path, command: str, kind: type[Any], **options: Any) -> Any:
    content = {"schema_version": 1, "command": command, "options": options}
    (folder / "config.json").write_text(json.dumps(content))
    return read_config(folder / "config.json", command, kind)[0]


@pytest.mark.parametrize(
    ("command", "kind", "old"),
    [
        ("fge", FGEConfig, {"average": 0.0, "hold": 0.0}),
        ("train", TrainConfig, {"average": 0.0, "hold": 0.0}),
        ("compare", CompareConfig, {"average": 0.0, "hold": 0.0}),
        ("curve-ensemble", CurveEnsembleConfig, {"first": "G", "second": "G"}),
    ],
)
def test_a_run_from_before_averages_goes_on_as_it_began(
    tmp_path: Path, command: str, kind: Any, old: dict[str, Any]
) -> None:
    begun = read_first_version(tmp_path, command, kind, seed=3, lr=0.1)
    assert begun == kind(seed=3, lr=0.1, **old)
    changed = {name: "F" if name in ("first", "second") else 0.5 for name in old}
    with pytest.raises(UserError, match=f"cannot resume with {next(iter(old))} "):
        check_unchanged(begun, kind(seed=3, lr=0.1, **changed))
    assert read_first_version(tmp_path, command, kind, **changed) == kind(**changed)
    write_config(tmp_path / "config.json", command, kind(seed=3, lr=0.1))
    now, _ = read_config(tmp_path / "config.json", command, kind)
    assert now == kind(seed=3, lr=0.1)
    assert now != begun


def test_a_run_from_before_held_rates_goes_on_as_it_began(tmp_path: Path) -> None:
    content = {"schema_version": 2, "command": "train", "options": {"method": "average"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    begun, _ = read_config(tmp_path / "config.json", "train", TrainConfig)
    assert begun == TrainConfig(method="average", hold=0.0)


def test_other_options_of_the_first_version_have_the_defaults_of_today(tmp_path: Path) -> None:
    assert read_first_version(tmp_path, "connect", ConnectConfig, weights=["/a", "/b"]) == (
        ConnectConfig(weights=(Path("/a"), Path("/b")))
    )
    old = FGEConfig(average=0.0, hold=0.0)
    assert (old.cycle_lrs.max_lr, old.cycle_lrs.min_lr) == (0.05, 0.001)  # the papers'


def test_option_left_out_of_the_file_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"options": {"seed": 3}}')
    config, _ = read_config(tmp_path / "config.json", "fge", FGEConfig)
    assert config == FGEConfig(seed=3)


def read_changed(folder: Path, **options: Any) -> FGEConfig:
    content = {"schema_version": 1, "command": "fge", "options": options}
    (folder / "config.json").write_text(json.dumps(content))
    return read_config(folder / "config.json", "fge", FGEConfig)[0]


def test_unknown_option_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"config\.json: unknown option 'max_lrr'; did you mean 'max_lr'\?"
    ):
        read_changed(tmp_path, max_lrr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": "ten"}, "epochs must be an? int, got 'ten'"),
        ({"epochs": 10.5}, "epochs must be an? int, got 10.5"),
        ({"epochs": True}, "epochs must be an? int, got True"),
        ({"epochs": None}, "epochs must be an? int, got None"),
        ({"max_lr": "0.1"}, "max_lr must be a float, got '0.1'"),
        ({"max_lr": True}, "max_lr must be a float, got True"),
        ({"flip": 1}, "flip must be a bool, got 1"),
        ({"data": 5}, "data must be a str, got 5"),
        ({"data_dir": 5}, "data_dir must be a Path, got 5"),
        ({"threads": [1]}, r"threads must be an? int, got \[1\]"),
        ({"amp": "fp8"}, "amp must be one of auto, off, bf16, fp16, got 'fp8'"),
        ({"compile": True}, "compile must be one of auto, on, off, got True"),
        ({"compile": ["on"]}, r"compile must be one of auto, on, off, got \['on'\]"),
    ],
)
def test_value_of_the_wrong_type_is_named(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {message}$"):
        read_changed(tmp_path, **options)


def test_value_out_of_range_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cycle_epochs must be even and >= 2, got 3"):
        read_changed(tmp_path, cycle_epochs=3)


def test_option_of_one_invocation_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown option 'overwrite'"):
        read_changed(tmp_path, overwrite=True)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config file .*config\.json"):
        read_config(tmp_path / "config.json", "fge", FGEConfig)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        "null",
        "{}",
        '{"options": 3}',
        '{"options": null}',
        '{"options": {}, "schema_version": "new"}',
        '{"options": {}, "schema_version": null}',
    ],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is not a config file"):
        read_config(tmp_path / "config.json", "fge", FGEConfig)


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not a config file"):
        read_config(tmp_path / "config.json", "fge", FGEConfig)


def test_file_of_another_command_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path / "config.json", "curve", FGEConfig())
    with pytest.raises(UserError, match="belongs to the command 'curve', not 'fge'"):
        read_config(tmp_path / "config.json", "fge", FGEConfig)


def test_file_of_a_later_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"schema_version": 4, "options": {}}')
    with pytest.raises(UserError, match="schema_version 4; this program reads up to 3"):
        read_config(tmp_path / "config.json", "fge", FGEConfig)


SAVED = FGEConfig(device="cpu", threads=2, channels_last="on", compile="off", amp="off", lr=0.05)


def test_the_same_options_may_be_resumed() -> None:
    check_unchanged(SAVED, SAVED)


@pytest.mark.parametrize("name", ["device", "channels_last", "compile", "amp"])
def test_auto_agrees_with_what_it_was_settled_to(name: str) -> None:
    check_unchanged(SAVED, replace(SAVED, **{name: "auto"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("saved", "asked", "kept"),
    [
        ("cuda:0", "cuda:1", "cuda:1"),
        ("cuda", "cuda:0", "cuda:0"),
        ("cuda:0", "cuda", "cuda"),
        ("cuda:1", "auto", "cuda:1"),
    ],
)
def test_a_run_goes_on_on_another_device_of_the_same_type(
    saved: str, asked: str, kept: str
) -> None:
    begun, now = replace(SAVED, device=saved), replace(SAVED, device=asked)
    check_unchanged(begun, now)
    assert keep_settled(begun, now).device == kept


def test_threads_left_open_agree_with_what_they_were_settled_to() -> None:
    check_unchanged(SAVED, replace(SAVED, threads=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.1}, r"lr 0\.1: the run was started with 0\.05"),
        ({"epochs": 41}, r"epochs 41: the run was started with 40"),
        ({"channels_last": "off"}, "channels_last off: the run was started with on"),
        ({"threads": 1}, "threads 1: the run was started with 2"),
        ({"device": "cuda:1"}, "device cuda: the run was started with cpu"),
        ({"seed": 1}, "seed 1: the run was started with 0"),
        ({"data": "cifar10"}, "data cifar10: the run was started with fashion-mnist-mini"),
    ],
)
def test_changed_option_is_refused_naming_both_values(
    changes: dict[str, Any], message: str
) -> None:
    saved = replace(SAVED, epochs=40)
    with pytest.raises(UserError, match=f"cannot resume with {message}; drop the option"):
        check_unchanged(saved, replace(saved, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"data_dir": Path("elsewhere")},
        {"out": Path("run")},
        {"resume": True},
        {"config": Path("config.json")},
    ],
)
def test_option_that_does_not_affect_the_result_may_change(changes: dict[str, Any]) -> None:
    check_unchanged(SAVED, replace(SAVED, **changes))


def test_resumed_config_keeps_what_auto_was_settled_to() -> None:
    asked = replace(SAVED, device="auto", channels_last="auto", amp="auto", compile="auto")
    assert keep_settled(SAVED, asked) == SAVED


def test_work_that_was_left_out_may_be_added_on_resuming() -> None:
    added = FGEConfig(refit="bezier", refit_epochs=2, ood=("noise",))
    check_unchanged(FGEConfig(), added)
    assert keep_settled(FGEConfig(lr=0.3), added) == replace(added, lr=0.3)


def test_work_that_was_done_may_not_change_on_resuming() -> None:
    saved = FGEConfig(refit="bezier", ood=("noise",))
    with pytest.raises(UserError, match="cannot resume with refit polychain"):
        check_unchanged(saved, FGEConfig(refit="polychain", ood=("noise",)))
    with pytest.raises(UserError, match="cannot resume with ood"):
        check_unchanged(saved, FGEConfig(refit="bezier", ood=("digits",)))


def test_measurements_may_be_dropped_on_resuming_and_not_changed() -> None:
    saved, dropped = FGEConfig(sharpness_every=5), FGEConfig(sharpness_every=0)
    check_unchanged(saved, dropped)
    assert keep_settled(saved, dropped) == dropped
    assert keep_settled(saved, FGEConfig()) == keep_settled(saved, saved) == saved
    for before, now in ((saved, 2), (dropped, 5), (FGEConfig(), 5)):
        with pytest.raises(UserError, match=f"cannot resume with sharpness_every {now}"):
            check_unchanged(before, FGEConfig(sharpness_every=now))


def test_resumed_config_takes_this_invocation_s_own_options() -> None:
    own = {"out": Path("run"), "resume": True, "data_dir": Path("elsewhere")}
    assert keep_settled(SAVED, replace(SAVED, **own)) == replace(SAVED, **own)
