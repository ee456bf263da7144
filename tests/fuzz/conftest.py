"""Commands draw no pictures here, as in the tests of the commands."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _fixed_pictures(fixed_pictures: None) -> None:
    """Write fixed bytes for the pictures of reports."""
