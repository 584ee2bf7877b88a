"""Weights from a hub that may refuse, break off or send something else: the pinned bytes, or one sentence and
nothing kept.
"""

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from huggingface_hub import constants

from annotate import download
from annotate.weights import WeightFile, WeightsError, find, is_there
from tests.hub_server import COMMIT, Hub

CONTENT = np.random.default_rng(0).bytes(3_000_000)
FILE = WeightFile(
    name="net.pth", sha256=hashlib.sha256(CONTENT).hexdigest(), repo="owner/nets", revision=COMMIT
)
FILES = {"owner/nets": {"net.pth": CONTENT, "other.pth": b"never asked for"}}


@pytest.fixture
def hub(hub: Hub) -> Hub:
    hub.files = {repo: dict(files) for repo, files in FILES.items()}
    return hub


def kept(tmp_path: Path) -> list[Path]:
    """Whole files of the cache."""
    files = (path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size > 1000)
    return [path for path in files if path.suffix != ".incomplete"]


def test_the_pinned_file_is_downloaded_once_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    assert not is_there(FILE) and download.bytes_to_get(FILE) == len(CONTENT)
    assert not kept(tmp_path)
    place = download.get(FILE)
    assert place.read_bytes() == CONTENT and find(FILE) == place and is_there(FILE)
    assert hub.asked("GET", "/storage") == ["/storage/owner/nets/net.pth"]
    asked = len(hub.requests)
    assert download.get(FILE) == place and download.bytes_to_get(FILE) == 0 and len(hub.requests) == asked


def test_a_download_that_broke_off_goes_on_from_there(hub: Hub) -> None:
    hub.cut = 1
    assert download.get(FILE).read_bytes() == CONTENT
    assert hub.cut == 0 and resumed(hub)


def test_nothing_is_kept_of_a_download_that_breaks_off_for_good(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 99
    with pytest.raises(WeightsError, match=r"the download failed \(.*\): run the same command again"):
        download.get(FILE)
    assert not list((tmp_path / "hub").rglob("*.incomplete")) and not kept(tmp_path) and not is_there(FILE)
    hub.cut = 0
    assert download.get(FILE).read_bytes() == CONTENT


def resumed(hub: Hub) -> bool:
    return any(part not in ("", "bytes=0-") for *_, part in hub.requests)


def test_other_bytes_than_the_pinned_are_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.files["owner/nets"]["net.pth"] = b"<html>please log in</html>" * 1000
    with pytest.raises(WeightsError, match=r"sent another net\.pth than the pinned one: it was deleted"):
        download.get(FILE)
    assert not kept(tmp_path) and not is_there(FILE)
    hub.files["owner/nets"]["net.pth"] = CONTENT
    assert download.get(FILE).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "weight", "sentence"),
    [
        ({"gated": True}, FILE, "the repository is gated: accept its terms on its page and set HF_TOKEN"),
        ({"status": 401}, FILE, "the hub refuses (401): set HF_TOKEN to a token that may read it"),
        ({"status": 403}, FILE, "the hub refuses (403): set HF_TOKEN to a token that may read it"),
        ({"status": 429}, FILE, "the hub refuses (429): try again later, or set HF_TOKEN"),
        ({"status": 503}, FILE, "the hub refuses (503): try again later"),
        ({}, replace(FILE, repo="owner/none"), "there is no such repository, or it is private"),
        ({}, replace(FILE, revision="a" * 40), "the repository has no revision aaaaaaaaaaaa"),
        ({}, replace(FILE, name="none.pth"), "revision c0ffee000000 has no such file"),
        ({}, replace(FILE, repo="", install="pip install nets"), "is not on the hub. Get it: pip install"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    change: dict[str, int], weight: WeightFile, sentence: str, hub: Hub, tmp_path: Path
) -> None:
    vars(hub).update(change)
    with pytest.raises(WeightsError) as told:
        download.get(weight)
    assert sentence in str(told.value) and "\n" not in str(told.value) and not kept(tmp_path)


def test_without_a_network_it_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="the hub can't be reached, and the cache lacks the file"):
        download.get(FILE)
    assert not hub.requests


def test_a_cache_that_can_not_be_written_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where the cache should be")
    with pytest.raises(WeightsError, match=r"it can't be stored .*set HF_HOME to another folder"):
        download.get(FILE)


def test_a_disk_that_is_full_in_the_middle_is_one_sentence_and_nothing_is_kept(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(url: str, file: BinaryIO, **given: Any) -> None:
        file.write(CONTENT[:1_000_000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(WeightsError, match=r"it can't be stored \(No space left on device\): make room"):
            download.get(FILE)
    assert not list((tmp_path / "hub").rglob("*.incomplete")) and not kept(tmp_path)
    assert download.get(FILE).read_bytes() == CONTENT


def test_two_that_download_at_once_get_one_file(hub: Hub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        places = set(pool.map(download.get, [FILE] * 2))
    assert len(places) == 1 and places.pop().read_bytes() == CONTENT
    assert len({path.resolve() for path in kept(tmp_path)}) == 1
