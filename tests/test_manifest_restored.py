"""Interrupted writes: damage at that moment is not forgotten, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from fge.manifest import Content, Entry, Manifest
from fge.runs import open_run_folder

OLD, NEW, OTHER = (Content.of(data) for data in (b"old", b"new", b"damaged"))


@pytest.mark.parametrize("before", [OLD, None])
def test_damage_during_a_write_is_not_the_end_of_the_entry(before: Content | None) -> None:
    kept = Entry(before, NEW).settled(OTHER)
    assert kept is not None
    assert not kept.allows(OTHER)
    assert kept.allows(NEW)
    assert before is None or kept.allows(before)
    assert kept.settled(NEW) == Entry(NEW)


def test_the_rest_of_a_first_write_is_removed(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, "fge")
    manifest.files["state/start.safetensors"] = Entry(None, NEW)
    manifest.save()
    rest = tmp_path / "state" / ".start.safetensors.a1b2c3d4.tmp"
    mine = tmp_path / "state" / ".notes.a1b2c3d4.tmp"
    rest.parent.mkdir()
    for path in (rest, mine):
        path.write_bytes(b"half")
    open_run_folder(tmp_path, "fge", resume=True, overwrite=False).close()
    assert not rest.exists()
    assert mine.exists()
