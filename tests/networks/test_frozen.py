"""Frozen parameters, and the batch norm of frozen modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fge.errors import UserError
from fge.networks import copy_module, estimated_layers, freeze, refresh_batch_norm, train_mode


def network() -> nn.Sequential:
    plain = nn.BatchNorm1d(4, affine=False)
    body = nn.Sequential(nn.Linear(3, 4), plain, nn.Linear(4, 4), nn.BatchNorm1d(4))
    return nn.Sequential(body, nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_parameters_are_frozen_by_name_and_counted() -> None:
    model = network()
    assert freeze(model, r"^0\.") == (
        "frozen: 6 of 10 parameters, 44 of 62 numbers, from 0.0.weight to 0.3.bias"
    )
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, _ in model.named_parameters() if name.startswith("0.")]


def test_batch_norm_of_frozen_modules_stays_in_evaluation_mode() -> None:
    model = network()
    freeze(model, r"^0\.")
    train_mode(model)
    modes = {name: module.training for name, module in model.named_modules() if name}
    assert [name for name, training in modes.items() if not training] == ["0.1", "0.3"]
    train_mode(model, training=False)
    assert not any(module.training for module in model.modules())


def test_only_whole_modules_keep_their_statistics() -> None:
    model = network()
    freeze(model, r"^0\.0\.|^1\.weight")  # the second layer is frozen in part
    train_mode(model)
    assert all(module.training for module in model.modules())
    freeze(model, r"^0\.3\.")
    train_mode(model)
    assert [n for n, m in model.named_modules() if not m.training] == ["0.3"]


def test_refreshing_leaves_frozen_statistics_alone_in_copies_too() -> None:
    model = network()
    freeze(model, r"^0\.")
    twin = copy_module(model)
    assert len(estimated_layers(network())) == 3
    for each in (model, twin):
        assert estimated_layers(each) == [each[1]]  # type: ignore[index]
        before = {name: buffer.clone() for name, buffer in each.named_buffers()}
        refresh_batch_norm(each, [torch.randn(16, 3)])
        for name, buffer in each.named_buffers():
            assert torch.equal(buffer, before[name]) == name.startswith("0."), name


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer9", r"freeze 'layer9' matches none of the 10 parameters; their names go from '0\.0"),
        (".", r"freeze '\.' matches all of the 10 parameters, so nothing would be trained; leave"),
        ("", r"freeze '' matches all of the 10 parameters"),
        ("(", r"freeze '\(' is no regular expression: missing \), unterminated subpattern"),
    ],
)
def test_what_freezes_nothing_or_everything_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        freeze(network(), pattern)
