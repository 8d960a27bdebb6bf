"""Output paths are checked before any work is done."""

import os
from pathlib import Path

import pytest

from glprune.errors import UsageError
from glprune.runtime.output_folder import open_output_folder


@pytest.mark.parametrize("place", ["{}", "{}/out", "out"])
def test_a_path_that_is_not_utf8_is_refused_before_anything_is_written(place, tmp_path, monkeypatch):
    odd = tmp_path / os.fsdecode(b"odd\xff")
    odd.mkdir()
    monkeypatch.chdir(odd if place == "out" else tmp_path)
    out = Path(place.format(odd.name))
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(UsageError, match="the path is not UTF-8; choose another --out"),
        open_output_folder(out, overwrite=True, resume=False),
    ):
        raise AssertionError
    assert sorted(tmp_path.rglob("*")) == before


def test_letters_beyond_ascii_are_allowed(tmp_path):
    with open_output_folder(tmp_path / "größe", overwrite=False, resume=False) as output:
        (output.stage / "file").write_text("1")
    assert (tmp_path / "größe" / "file").exists()
