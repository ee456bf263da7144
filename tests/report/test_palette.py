"""A name has one colour and one marker, in every chart and on every page."""

from __future__ import annotations

import pytest
from plot_checks import luminance

from fge.config import ORDER
from fge.report import colour_of
from fge.report.palette import PAGE, SERIES, light, marker_of, variable, variables


def test_methods_have_a_colour_and_a_marker_each() -> None:
    assert len({light(name) for name in ORDER}) == len(ORDER)
    assert len({variable(name) for name in ORDER}) == len(ORDER)
    assert len({marker_of(name) for name in ORDER}) == len(ORDER)


def test_other_names_have_a_colour_that_depends_on_the_name_alone() -> None:
    names = [f"my_methods:method_{k}" for k in range(40)]
    methods = {light(name) for name in ORDER}
    assert not methods & {light(name) for name in names}
    assert len({light(name) for name in names}) > 5
    assert colour_of("my_methods:mine") == colour_of("my_methods:mine") == "series-23"
    assert marker_of("my_methods:mine") == marker_of("my_methods:mine")


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_is_seen_on_its_page(dark: bool) -> None:
    paper = luminance(PAGE["paper"][dark])
    for key, pair in SERIES.items():
        one, other = sorted([luminance(pair[dark]), paper])
        assert (other + 0.05) / (one + 0.05) >= 3, key


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_knows_every_colour(dark: bool) -> None:
    text = variables(dark=dark)
    for key, pair in {**PAGE, **SERIES}.items():
        assert f"--{key}: {pair[dark]};" in text
