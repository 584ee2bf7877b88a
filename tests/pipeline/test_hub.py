"""Hugging Face datasets, made with their own writers: every row is read as it was written; and one run over
sources of many kinds.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from pipeline import MillError, sources
from pipeline.catalog import Catalog
from pipeline.manifest import HuggingFaceSource, Image, Provided
from pipeline.sources import RawImage
from pipeline.storage.workspace import Workspace
from tests.contents import contents

SIZE = Image(resolution=64)


def dataset(path: Path, spool: Path | None = None, **settings: Any) -> list[RawImage]:
    return sources.listing(
        [HuggingFaceSource(kind="huggingface", path=str(path), **settings)], SIZE, spool=spool
    )


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[Any]:
    """The library `datasets`, quiet."""
    import datasets

    datasets.disable_progress_bars()
    yield datasets


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Any) -> Path:
    """A cache of the test's own, and no network."""
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def four(hub: Any, start: int = 0) -> Any:
    features = hub.Features(
        {
            "image": hub.Image(),
            "text": hub.Value("string"),
            "label": hub.ClassLabel(names=["cat", "dog"]),
            "n": hub.Value("int64"),
        }
    )
    rows = range(start, start + 4)
    return hub.Dataset.from_dict(
        {
            "image": [{"bytes": png(row), "path": None} for row in rows],
            "text": [f"caption {row}" for row in rows],
            "label": [row % 2 for row in rows],
            "n": list(rows),
        },
        features=features,
    )


def test_a_row_keeps_its_stamp_whatever_slice_it_is_listed_in(home: Path, hub: Any) -> None:
    four(hub).save_to_disk(home / "data", num_shards=2)
    found = dataset(home / "data")
    assert len({raw.stamp for raw in found}) == 4
    assert dataset(home / "data", split="train[1:3]") == found[1:3]


@pytest.mark.parametrize("layout", ["save_to_disk", "dictionary", "parquet", "imagefolder", "webdataset"])
def test_a_local_dataset_of_any_layout_gives_its_stored_bytes(home: Path, hub: Any, layout: str) -> None:
    folder = home / "data"
    match layout:
        case "save_to_disk":
            four(hub).save_to_disk(folder, num_shards=2)
        case "dictionary":
            hub.DatasetDict({"train": four(hub), "test": four(hub, 4)}).save_to_disk(folder)
        case "parquet":
            folder.mkdir()
            four(hub).to_parquet(folder / "train-00000.parquet")
        case "imagefolder":
            folder.mkdir()
            for row in range(4):
                (folder / f"{row}.png").write_bytes(png(row))
            (folder / "metadata.jsonl").write_text(
                "\n".join(
                    json.dumps({"file_name": f"{row}.png", "text": f"caption {row}", "n": row})
                    for row in range(4)
                )
            )
        case "webdataset":
            folder.mkdir()
            with tarfile.open(folder / "train-0.tar", "w") as archive:
                for row in range(4):
                    for name, data in (
                        (f"{row}.image", png(row)),
                        (f"{row}.text", f"caption {row}".encode()),
                    ):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
    captions = "none" if layout == "webdataset" else {"column": "text"}
    found = dataset(folder, captions=captions)
    assert [raw.uri for raw in found] == [f"huggingface://{folder}/train/{row}" for row in range(4)]
    assert [contents(raw) for raw in found] == [
        (png(row), f"caption {row}" if captions != "none" else "") for row in range(4)
    ]
    if "n" in found[0].fields:
        assert [raw.fields["n"] for raw in found] == [0, 1, 2, 3]
    if "label" in found[0].fields:
        assert [raw.fields["label"] for raw in found] == ["cat", "dog", "cat", "dog"]
    assert dataset(folder, captions=captions) == found
    assert dataset(folder, captions=captions, count=3) == found[:3]


def test_a_split_may_be_a_slice_and_keeps_the_addresses_of_the_whole(home: Path, hub: Any) -> None:
    hub.DatasetDict({"train": four(hub), "test": four(hub, 4)}).save_to_disk(
        home / "data", num_shards={"train": 3, "test": 1}
    )
    found = dataset(home / "data", split="train[1:3]+test[50%:]")
    assert [raw.uri.partition("data/")[2] for raw in found] == ["train/1", "train/2", "test/2", "test/3"]
    assert [contents(raw) for raw in found] == [(png(row), f"caption {row}") for row in (1, 2, 6, 7)]


def test_a_choice_of_rows_is_saved_and_read_as_chosen(home: Path, hub: Any) -> None:
    four(hub).filter(lambda row: row["n"] % 2 == 1).save_to_disk(home / "data")
    assert [sources.read_captions(raw).first for raw in dataset(home / "data")] == ["caption 1", "caption 3"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"split": "validation"}, 'Unknown split "validation".*check `path`, `name`, `split` and `revision`'),
        (
            {"image_column": "img"},
            r"no column 'img': set `source\.image_column` to one of image, text, label, n",
        ),
        ({"captions": {"column": "title"}}, r"no column 'title': set `source\.captions` to one of"),
        (
            {"provided": {"seg_coco": Provided(column="seg", labels="coco_stuff_171")}},
            r"no column 'seg': set `source\.provided\.seg_coco`",
        ),
        ({"streaming": True}, "rows of a stream are kept in a workspace"),
    ],
)
def test_a_wrong_key_of_a_dataset_is_one_sentence(
    home: Path, hub: Any, settings: dict[str, Any], sentence: str
) -> None:
    four(hub).save_to_disk(home / "data")
    if settings.get("split"):
        hub.DatasetDict({"train": four(hub)}).save_to_disk(home / "data2")
        (home / "data").rename(home / "old")
        (home / "data2").rename(home / "data")
    with pytest.raises(MillError, match=sentence):
        dataset(home / "data", **settings)
    with pytest.raises(MillError, match=r"the folder .* does not exist"):
        dataset(home / "nowhere")


def test_a_dataset_of_the_hub_that_is_not_here_is_one_sentence() -> None:
    code = """from pipeline import MillError, sources
from pipeline.manifest import HuggingFaceSource, Image
try:
    sources.listing([HuggingFaceSource(kind="huggingface", path="nobody/nothing")], Image())
except MillError as error:
    print(error)"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        "'nobody/nothing' is not here, and the hub can't be reached (HF_HUB_OFFLINE is set): run once where"
        " it can, or save" in ran.stdout
    )
    assert len(ran.stdout.splitlines()) == 1 and not ran.stderr


def parquet_parts(folder: Path, hub: Any, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(count):
        four(hub, 4 * part).to_parquet(folder / f"train-{part:05d}.parquet")


def test_a_stream_is_kept_once_and_read_on_where_it_ended(
    home: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.hub.SPOOLED_ROWS", 2)
    parquet_parts(home / "data", hub, 3)
    spool = home / "ws" / "spool"
    first = dataset(home / "data", spool, streaming=True, count=5)
    assert [raw.uri for raw in first] == [f"huggingface://{home}/data/train/{row}" for row in range(5)]
    assert [contents(raw) for raw in first] == [(png(row), f"caption {row}") for row in range(5)]
    assert first[3].fields == {"label": "dog", "n": 3}
    (folder,) = spool.iterdir()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("rows-*")}
    assert [pq.read_metadata(path).num_rows for path in sorted(kept)] == [2, 2, 1]
    second = dataset(home / "data", spool, streaming=True, count=9)
    assert second[:5] == first and [sources.read(raw) for raw in second[5:]] == [
        png(row) for row in range(5, 9)
    ]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert dataset(home / "data", spool, streaming=True, count=3) == first[:3]
    everything = dataset(home / "data", spool, streaming=True)
    assert len(everything) == 12 and [sources.read_captions(raw).first for raw in everything] == [
        f"caption {row}" for row in range(12)
    ]
    (home / "data").rename(home / "gone")
    (home / "data").mkdir()  # nothing is read again of what has ended
    assert dataset(home / "data", spool, streaming=True) == everything
    assert not list(spool.rglob(".tmp-*"))


@pytest.mark.parametrize("garbage", [b"", b"\x00\xff", b"[]", b'{"commit": null}'])
@pytest.mark.parametrize("name", ["stream.json", "rows-000000000.parquet"])
def test_a_stream_whose_copy_is_damaged_says_what_to_delete(
    home: Path, hub: Any, name: str, garbage: bytes
) -> None:
    parquet_parts(home / "data", hub, 1)
    dataset(home / "data", home / "spool", streaming=True)
    (folder,) = (home / "spool").iterdir()
    (folder / name).write_bytes(garbage)
    with pytest.raises(
        MillError,
        match=(
            f"{name}, kept of a stream, is damaged: delete the folder .*{folder.name}, and the stream is read"
            " again"
        ),
    ):
        dataset(home / "data", home / "spool", streaming=True)
    shutil.rmtree(folder)
    assert len(dataset(home / "data", home / "spool", streaming=True)) == 4


def test_a_stream_that_names_files_keeps_their_bytes(home: Path, hub: Any) -> None:
    (home / "data").mkdir()
    for row in range(3):
        (home / "data" / f"{row}.png").write_bytes(png(row))
    found = dataset(home / "data", home / "spool", streaming=True, captions="none")
    for row in range(3):
        (home / "data" / f"{row}.png").unlink()
    assert [sources.read(raw) for raw in found] == [png(row) for row in range(3)]


def test_one_run_over_a_tar_a_table_and_a_dataset_gives_every_image_one_row(
    controlmill: Callable[..., Any],
    manifest: Callable[..., Path],
    photograph: Callable[..., Pillow.Image],
    home: Path,
    hub: Any,
) -> None:
    pictures = []
    for number in range(9):
        buffer = io.BytesIO()
        photograph(number).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())
    with tarfile.open(home / "a.tar", "w") as archive:
        for number in range(3):
            for name, data in (
                (f"{number}.jpg", pictures[number]),
                (f"{number}.txt", f"picture {number}".encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    pq.write_table(
        pa.table({"image": [*pictures[3:6], None], "text": [f"picture {number}" for number in range(3, 7)]}),
        home / "b.parquet",
    )
    features = hub.Features({"image": hub.Image(), "text": hub.Value("string")})
    # the last is in the tar too
    cells = [{"bytes": pictures[number], "path": None} for number in (6, 7, 8, 0)]
    hub.Dataset.from_dict(
        {"image": cells, "text": [f"picture {number}" for number in (6, 7, 8, 0)]}, features=features
    ).save_to_disk(home / "c")
    given = (
        "[{kind: webdataset, path: a.tar}, {kind: parquet, path: b.parquet}, {kind: huggingface, path: ./c}]"
    )
    path = manifest(source=given)
    first = controlmill("run", path, "--stages", "ingest,annotate")
    assert first.returncode == 3, first.stderr  # one cell is empty
    query = lambda sql: Catalog(Workspace(home / "ws")).query(sql)
    assert query(
        "SELECT count(*), count(DISTINCT image_id) FROM annotations WHERE condition = 'canny' AND status <>"
        " 'failed'"
    ) == [(9, 9)]
    assert query("SELECT count(*) FROM sources") == [(11,)]
    assert query("SELECT caption FROM pairs JOIN images USING (image_id) ORDER BY 1") == [
        (f"picture {number}",) for number in range(9)
    ]
    failed = query("SELECT uri, reason FROM sources JOIN images USING (image_id) WHERE status = 'failed'")
    assert failed == [(f"{home}/b.parquet::3", "the cell of 'image' is empty")]
    second = controlmill("run", path, "--stages", "ingest,annotate")
    assert "nothing to do" in second.stdout
