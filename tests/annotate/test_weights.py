"""Weights are pinned by content, found in a settled order, and never guessed or downloaded."""

import hashlib
from pathlib import Path

import pytest

from annotate.annotator import identity, resolve
from annotate.weights import FOLDER_VARIABLE, PINNED, WeightFile, WeightsError, find, find_folder, lacking
from annotate.weights import identity as identity_of

DATA = b"weights"
SHA = hashlib.sha256(DATA).hexdigest()
PACKAGED = WeightFile(
    name="w.bin", sha256=SHA, package="no_such_package", inside="w.bin", install="pip install it"
)
REVISION = "0123456789012345678901234567890123456789"
HUB = WeightFile(name="w.bin", sha256=SHA, repo="someone/model", revision=REVISION)


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("inner", ["w.bin", "someone/model/w.bin"])
def test_the_environment_names_a_folder_that_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    put(tmp_path / f"cache/models--someone--model/snapshots/{REVISION}/w.bin")
    local = put(tmp_path / "local" / inner)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "local"))
    assert find(HUB) == local and lacking((HUB,)) is None


def test_the_hubs_cache_is_where_the_hubs_own_library_looks(tmp_path: Path) -> None:
    import huggingface_hub

    place = put(tmp_path / f"cache/models--someone--model/snapshots/{REVISION}/w.bin")
    assert huggingface_hub.try_to_load_from_cache(
        "someone/model", "w.bin", cache_dir=tmp_path / "cache", revision=REVISION
    ) == str(place)
    assert find(HUB) == place


def test_a_branch_means_its_newest_commit(tmp_path: Path) -> None:
    put(tmp_path / "cache/models--someone--model/refs/main", REVISION.encode())
    place = put(tmp_path / f"cache/models--someone--model/snapshots/{REVISION}/w.bin")
    assert find(WeightFile(name="w.bin", repo="someone/model")) == place


def test_an_absent_file_says_what_to_type_and_where_it_may_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        WeightsError,
        match=(
            rf"w\.bin not found\. Get it: hf download someone/model w\.bin --revision {REVISION} \(which"
            r" fills"
        ),
    ):
        find(HUB)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert f"or put it into {tmp_path}/someone/model/w.bin" in str(lacking((HUB,)))
    assert "pip install it" in str(lacking((PACKAGED,)))


def test_other_bytes_under_the_same_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "w.bin", b"something else")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(WeightsError, match="is not the pinned"):
        find(PACKAGED)


def test_weights_that_a_manifest_names_are_taken_as_they_are_and_identified_by_content(
    tmp_path: Path,
) -> None:
    mine = put(tmp_path / "mine.bin", b"mine")
    assert (
        find(HUB, str(mine)) == mine
        and find(HUB, str(put(tmp_path / "f/w.bin").parent)) == tmp_path / "f/w.bin"
    )
    assert (
        identity_of((HUB,), str(mine))
        == hashlib.sha256(b"mine").hexdigest()
        != identity_of((HUB,), PINNED)
        == SHA
    )
    with pytest.raises(WeightsError, match=r"there is no file .*other\.bin"):
        find(HUB, str(tmp_path / "other.bin"))


def test_a_model_of_several_files_is_one_folder_and_one_identity(tmp_path: Path) -> None:
    files = (WeightFile(name="config.json", repo="a/b"), WeightFile(name="model.safetensors", repo="a/b"))
    put(tmp_path / "model/config.json", b"{}")
    weights = put(tmp_path / "model/model.safetensors")
    assert find_folder(files, str(tmp_path / "model")) == tmp_path / "model"
    before = identity_of(files, str(tmp_path / "model"))
    weights.write_bytes(b"other weights")
    assert identity_of(files, str(tmp_path / "model")) != before
    assert "needs config.json, model.safetensors" in str(lacking(files)) and identity_of(files) is None


def test_where_weights_lie_says_nothing_about_a_map(tmp_path: Path, needs_hed: None) -> None:
    from annotate.hed import WEIGHTS

    copy = put(tmp_path / "copy.h5", find(WEIGHTS).read_bytes())
    step = resolve("hed", params={"weights": str(copy)})
    assert step.params["weights"] == str(copy) and identity(step) == identity(resolve("hed"))
    with pytest.raises(ValueError, match="does not exist; name a file or a folder"):
        resolve("hed", params={"weights": str(tmp_path / "nowhere")})
