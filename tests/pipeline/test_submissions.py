"""Pictures that others made for a frozen benchmark: what may enter it, and what is refused, in one sentence
each.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline import MillError
from pipeline.benchmark import artifact, resemblance
from pipeline.benchmark.admission import Taken
from pipeline.benchmark.artifact import PublishedTask
from pipeline.benchmark.resemblance import Code, Codes
from pipeline.benchmark.systems import Item
from pipeline.benchmark.tasks import Asked, FrozenTask
from pipeline.commands.benchmark import check
from pipeline.report import stored
from pipeline.storage import codec
from pipeline.storage.workspace import sha256_file
from tests.conftest import OPEN, Command

SIDE, PROMPTS, SEEDS = 96, 6, (0, 1)
TASK = FrozenTask(
    condition="canny",
    split="test",
    maker="opencv-canny 0123456789abcdef",
    seeds=SEEDS,
    items=tuple(
        Asked(f"{number:064d}"[::-1], f"prompt {number}", SIDE, SIDE, "0" * 64) for number in range(PROMPTS)
    ),
)
TOLD = {
    "task": TASK.identity, "model": "theirs", "url": "", "base": "FLUX.1", "licence": "CC0",
    "protocol": "20 steps", "who": "they", "date": "2026-11-30",
}  # fmt: skip


def textured(number: int, side: int = SIDE) -> np.ndarray:  # uint8 HW3
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


PHOTOGRAPHS = {item.image_id: textured(number) for number, item in enumerate(TASK.items)}
ITEM = Item("0", "", SIDE, SIDE, "maps", 0)
NAMES = [sample.file for sample in TASK.samples()]


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmark"
    folder.mkdir()
    (folder / "prompts.csv").write_text("file\n")
    published = PublishedTask(
        name="small",
        title="Canny edges",
        kind="edges",
        task=TASK,
        reader="opencv-canny 0123456789abcdef",
        protocol={},
        licence="CC0",
        made_by="controlmill",
        held_out={image_id: resemblance.code(pixels) for image_id, pixels in PHOTOGRAPHS.items()},
        files={"prompts.csv": sha256_file(folder / "prompts.csv")},
    )
    (folder / "benchmark.json").write_text(json.dumps(published.as_json()))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A submission that may enter."""
    folder = tmp_path / "pictures"
    for place, first in (("", 100), ("shuffled", 200), ("plain", 300)):
        (folder / place).mkdir()
        for number, name in enumerate(NAMES):
            save(folder / place / name, textured(first + number))
    (folder / "submission.json").write_text(json.dumps(TOLD))
    return folder


def faults(benchmark: Path, pictures: Path) -> list[str]:
    said: list[str] = []
    count = check(benchmark, pictures, said.append)
    told = [line.removeprefix(f"{pictures}: ") for line in said if "may enter the benchmark" not in line]
    assert count == len(told)
    return told


def test_what_was_asked_for_may_enter(benchmark: Path, pictures: Path) -> None:
    assert faults(benchmark, pictures) == []
    (pictures / "README.md").write_text("about us")
    (pictures / ".DS_Store").write_bytes(b"\0")
    assert faults(benchmark, pictures) == []


def tell(folder: Path, **facts: Any) -> None:
    (folder / "submission.json").write_text(json.dumps(TOLD | facts))


def copied(folder: Path, change: Callable[[np.ndarray], np.ndarray], *, of: int = 0, at: int = 0) -> None:
    save(folder / NAMES[at], np.ascontiguousarray(change(PHOTOGRAPHS[TASK.items[of].image_id])))


def recoded(pixels: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 30])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def cropped(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels[5:-5, 5:-5], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def deep(folder: Path) -> None:
    cv2.imwrite(str(folder / NAMES[0]), textured(100).astype(np.uint16) * 257)


def animated(folder: Path) -> None:
    frames = [Image.fromarray(textured(number)) for number in (100, 400)]
    frames[0].save(folder / NAMES[0], save_all=True, append_images=frames[1:])


def truncated(folder: Path) -> None:
    data = (folder / NAMES[0]).read_bytes()
    (folder / NAMES[0]).write_bytes(data[: len(data) // 2])


def linked(folder: Path) -> None:
    (folder / NAMES[0]).rename(folder.parent / "elsewhere.png")
    (folder / NAMES[0]).symlink_to(folder.parent / "elsewhere.png")


def piped(folder: Path) -> None:
    (folder / NAMES[0]).unlink()
    os.mkfifo(folder / NAMES[0])


def crowded(folder: Path) -> None:
    for number in range(2000):
        (folder / f"{number}.png").touch()


CHEATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another task": (lambda at: tell(at, task="f" * 16), "made for task 'ffffffffffffffff', and this is"),
    "missing": (lambda at: (at / NAMES[3]).unlink(), f"1 of 12 pictures are missing: {NAMES[3]}."),
    "fewer than all, shuffled": (
        lambda at: (at / "shuffled" / NAMES[0]).unlink(),
        f"shuffled/: 1 of 12 pictures are missing: {NAMES[0]}.",
    ),
    "extra": (lambda at: save(at / "x.png", textured(1)), "1 files were not asked for: x.png. Take"),
    "very many": (crowded, "2,000 files were not asked for: 0.png, 1.png, 10.png and 1,997 more."),
    "wrong size": (
        lambda at: save(at / NAMES[0], textured(1, 64)),
        f"of another size than asked for (64×64 instead of 96×96): {NAMES[0]}.",
    ),
    "lossy": (
        lambda at: Image.fromarray(textured(100)).save(at / NAMES[0], "JPEG"),
        "no PNG files: every other format may lose something, or was not asked for",
    ),
    "grey": (lambda at: save(at / NAMES[0], textured(100)[..., 0]), "not of 8-bit RGB"),
    "alpha": (
        lambda at: Image.fromarray(textured(100)).convert("RGBA").save(at / NAMES[0]),
        "not of 8-bit RGB",
    ),
    "palette": (
        lambda at: Image.fromarray(textured(100)).convert("P").save(at / NAMES[0]),
        "not of 8-bit RGB",
    ),
    "16 bits": (deep, "not of 8-bit RGB"),
    "animated": (animated, "animations"),
    "empty": (lambda at: (at / NAMES[0]).write_bytes(b""), "empty files"),
    "truncated": (truncated, "broken PNG files"),
    "link": (linked, "links, folders or devices"),
    "pipe": (piped, "links, folders or devices"),
    "other case": (
        lambda at: (at / NAMES[0]).rename(at / NAMES[0].upper()),
        f"names in other cases than asked for: {NAMES[0].upper()}; the first is to be {NAMES[0]}.",
    ),
    "two equal": (
        lambda at: shutil.copy(at / NAMES[0], at / NAMES[1]),
        f"1 pictures are equal to others, such as {sorted(NAMES)[1]} to {sorted(NAMES)[0]}",
    ),
    "two equal, coded otherwise": (
        lambda at: Image.fromarray(textured(100)).save(at / NAMES[1], compress_level=0),
        "1 pictures are equal to others",
    ),
    "copy": (lambda at: copied(at, lambda it: it), "copies of held-out photographs"),
    "copy of another": (lambda at: copied(at, lambda it: it, of=4), "copies of held-out photographs"),
    "copy, shuffled": (lambda at: copied(at / "shuffled", lambda it: it), "copies of held-out photographs"),
    "copy, coded again": (lambda at: copied(at, recoded), "copies of held-out photographs"),
    "copy, mirrored": (lambda at: copied(at, lambda it: it[:, ::-1]), "copies of held-out photographs"),
    "copy of another, mirrored": (
        lambda at: copied(at, lambda it: it[:, ::-1], of=4),
        "copies of held-out photographs",
    ),
    "copy, shifted": (lambda at: copied(at, lambda it: np.roll(it, 13, 1)), "copies of held-out photographs"),
    "copy, cropped": (lambda at: copied(at, cropped), "copies of held-out photographs"),
    "copy, brighter": (lambda at: copied(at, lambda it: (it * 0.8 + 20).astype(np.uint8)), "copies of held"),
    "failed and there": (
        lambda at: (at / "failed.csv").write_text(f"file,reason\n{NAMES[0]},nudity\n"),
        f"{NAMES[0]} is there and stands in failed.csv too",
    ),
    "failed, not asked": (
        lambda at: (at / "failed.csv").write_text("file,reason\nx.png,nudity\n"),
        "failed.csv names files that were not asked for: x.png.",
    ),
    "failed twice": (
        lambda at: (at / "failed.csv").write_text(f"file,reason\n{NAMES[0]},a\n{NAMES[0]},b\n"),
        "twice: keep one of the rows",
    ),
    "failed.csv of another kind": (
        lambda at: (at / "failed.csv").write_text("x,y\n1,2\n"),
        "a row without `file` and `reason`",
    ),
    "failed.csv in another code": (
        lambda at: (at / "failed.csv").write_bytes(b"file,reason\n\xff,\n"),
        "is no CSV in UTF-8",
    ),
    "no submission.json": (lambda at: (at / "submission.json").unlink(), "submission.json is not there."),
    "submission.json is no JSON": (lambda at: (at / "submission.json").write_text("{"), "is no JSON"),
    "submission.json is deep": (lambda at: (at / "submission.json").write_text("[" * 100_000), "is no JSON"),
    "submission.json is a list": (lambda at: (at / "submission.json").write_text("[]"), "holds no object"),
    "submission.json lacks": (lambda at: tell(at, base=""), "'base' is missing or no text"),
    "submission.json, no text": (lambda at: tell(at, date=20261130), "'date' is missing or no text"),
    "submission.json, very long": (lambda at: tell(at, who="x" * 3000), "'who' has over 2,000 characters"),
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_each_cheat_is_refused_in_one_sentence(cheat: str, benchmark: Path, pictures: Path) -> None:
    cheats, sentence = CHEATS[cheat]
    cheats(pictures)
    (told,) = faults(benchmark, pictures)
    assert sentence in told and "\n" not in told


def test_equal_pictures_are_allowed_where_the_hint_is_not_used(benchmark: Path, pictures: Path) -> None:
    shutil.copy(pictures / "plain" / NAMES[0], pictures / "plain" / NAMES[1])
    copied(pictures / "plain", lambda it: it, at=2)
    assert faults(benchmark, pictures) == []


def test_what_the_model_would_not_make_is_named_and_not_missed(benchmark: Path, pictures: Path) -> None:
    (pictures / NAMES[0]).unlink()
    (pictures / "failed.csv").write_text(f"file,reason\n{NAMES[0]},nudity\n")
    assert faults(benchmark, pictures) == []
    for name in NAMES[1:]:
        (pictures / name).unlink()
    rows = "".join(f"{name},no\n" for name in NAMES)
    (pictures / "failed.csv").write_text(f"file,reason\n{rows}")
    assert faults(benchmark, pictures) == ["failed.csv names every file: nothing is left to be compared."]


BENCHMARKS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a later format": (
        lambda it: it.update(format=2),
        "is of format 2, and this version reads 1: update ControlMill.",
    ),
    "no format": (lambda it: it.update(format="x"), "is of format 'x', which was never written"),
    "changed items": (
        lambda it: it["items"][0].update(caption="easier"),
        "was changed: it is said to be task",
    ),
    "no items": (lambda it: it.pop("items"), "'items' is missing"),
    "a size of text": (
        lambda it: it["items"][0].update(width="wide"),
        "a side of 1 to 16384 pixels is expected",
    ),
    "a huge size": (lambda it: it["items"][0].update(width=10**6), "a side of 1 to 16384 pixels is expected"),
    "a file outside": (lambda it: it["files"].update({"../x": "0"}), "outside its folder"),
    "no code": (lambda it: it["held_out"].update(a="AAAA"), "a code has 776 bytes, not 3"),
}


@pytest.mark.parametrize("case", BENCHMARKS)
def test_a_benchmark_that_was_not_written_here_is_refused(case: str, benchmark: Path, pictures: Path) -> None:
    change, sentence = BENCHMARKS[case]
    path = benchmark / "benchmark.json"
    change(stored := json.loads(path.read_text()))
    path.write_text(json.dumps(stored))
    with pytest.raises(MillError) as told:
        faults(benchmark, pictures)
    assert sentence in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{" * 10**5, b"\xff\xfe", b"{}"])
def test_a_file_that_is_no_benchmark_is_one_sentence(content: bytes, benchmark: Path) -> None:
    (benchmark / "benchmark.json").write_bytes(content)
    with pytest.raises(MillError, match=r"is no benchmark\.json of this program") as told:
        artifact.read(benchmark)
    assert "\n" not in str(told.value)


def test_a_changed_file_of_the_benchmark_is_told(benchmark: Path, pictures: Path) -> None:
    (benchmark / "prompts.csv").write_text("file\nx.png\nx.png\n")
    (told,) = faults(benchmark, pictures)
    assert told == f"{benchmark / 'prompts.csv'} is not as it was exported: get the benchmark again."


def test_a_folder_of_several_conditions_is_checked_at_once(
    benchmark: Path, pictures: Path, tmp_path: Path
) -> None:
    both, theirs = tmp_path / "both", tmp_path / "theirs"
    shutil.copytree(benchmark, both / "canny")
    shutil.copytree(benchmark, both / "hed")
    shutil.copytree(pictures, theirs / "canny")
    assert faults(both, theirs) == []
    shutil.copytree(pictures, theirs / "hed")
    (theirs / "hed" / NAMES[0]).unlink()
    assert len(faults(both, theirs)) == 1
    with pytest.raises(MillError, match="has no folder of a condition of"):
        faults(both, pictures)


@pytest.mark.slow
def test_submitted_pictures_are_ranked_by_what_they_keep_with_their_ties(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    folder(40)
    sections = {
        "conditions": "{canny: {}}",
        "split": "{test: 0.5, validation: 0.1}",
        "evaluate": "{baselines: [real_image, shuffled_condition], SUBMITTED benchmark: {samples: 12,"
        " seeds: [0, 1]}}",
    }
    with_none = sections | {"evaluate": sections["evaluate"].replace("SUBMITTED", "base: mini,")}
    assert controlmill("run", manifest(**with_none), "--stages", "ingest,annotate").returncode == 0
    told = controlmill("benchmark", "export", "ws", "out", "--with-images")
    assert told.returncode == 0, told.stderr
    damage = {"a": 0, "b": 0, "c": 20, "d": 60, "e": 120}  # a and b: other noise of the same size
    for number, (name, noise) in enumerate(damage.items()):
        submit(tmp_path / "out" / "canny", tmp_path / name, noise + 4, seed=number, with_floor=name != "e")
        assert controlmill("benchmark", "check", "out/canny", name).returncode == 0
    given = ", ".join(f"{{name: {name}, condition: canny, images: {tmp_path / name}}}" for name in damage)
    path = manifest(
        **sections | {"evaluate": sections["evaluate"].replace("SUBMITTED", f"submissions: [{given}],")}
    )
    told = controlmill("run", path)
    assert told.returncode == 0, told.stdout + told.stderr
    board = json.loads((tmp_path / "ws/report/leaderboard/leaderboard.json").read_text())
    first = [it for it in board["scores"] if it["metric"] == "edge_f1_bsds" and it["arm"] == "control"]
    assert {it["model"]: it["rank"] for it in first} == {
        "a": [1, 2],
        "b": [1, 2],
        "c": [3, 3],
        "d": [4, 4],
        "e": [5, 5],
    }
    shares = {it["model"]: it["share"] for it in first}
    assert shares["e"] is None and 1 > shares["a"] > shares["c"] > shares["d"]
    assert "has no floor of its own" in next(it["share_reason"] for it in first if it["model"] == "e")
    kinds = {it["name"]: it["kind"] for it in board["models"]}
    assert all(kinds[name] == "submitted" for name in damage)
    assert {it["base"] for it in board["benchmarks"]} == {"none"} and not board["speeds"], (
        "nothing is drawn here"
    )
    again = controlmill("run", path)
    assert "generate  nothing to do" in again.stdout and "score     nothing to do" in again.stdout
    (tmp_path / "e" / sorted(path.name for path in (tmp_path / "e").glob("*.png"))[0]).unlink()
    refused = controlmill("run", path)
    assert refused.returncode == 1 and "1 of 24 pictures are missing" in refused.stderr


@pytest.mark.slow
def test_the_example_for_submitters_makes_pictures_that_may_enter(
    controlmill: Command, folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    """With diffusers' own pipeline, on a base and a ControlNet that are here."""
    import datasets

    folder(20)
    path = manifest(
        image="{resolution: 128}",
        conditions="{canny: {}}",
        split="{test: 0.5, validation: 0.1}",
        evaluate="{base: mini, benchmark: {samples: 2}}",
    )
    assert controlmill("run", path, "--stages", "ingest,annotate").returncode == 0
    assert controlmill("benchmark", "export", "ws", "out").returncode == 0
    rows = datasets.load_dataset(
        str(tmp_path / "out"), "canny", split="test", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 2 and rows[0]["hint"].size == (128, 128) and rows[0]["prompt"].startswith("picture")
    readme = (tmp_path / "out" / "README.md").read_text()
    example = readme.partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) <= 18
    for there, here in {
        "lllyasviel/control_v11p_sd15_canny": str(MINI / "roots" / "canny"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": str(MINI / "base"),
        '"cuda"': '"cpu"',
        "**size)": "**size, num_inference_steps=3)",
    }.items():
        assert there in example
        example = example.replace(there, here)
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path / "out",
        env=OPEN,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = controlmill("benchmark", "check", "out/canny", "out/pictures")
    assert told.returncode == 0 and "may enter the benchmark canny" in told.stdout, told.stdout


def submit(benchmark: Path, dest: Path, noise: float, *, seed: int, with_floor: bool) -> None:
    """Photographs in false colours, so that they are no copies, under noise."""
    draw = np.random.default_rng(seed)
    with (benchmark / "prompts.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for place, column in [("", "hint"), *[("shuffled", "shuffled_hint")] * with_floor]:
        (dest / place).mkdir()
        for row in rows:
            (source,) = (benchmark / "images").glob(f"{Path(row[column]).stem}.*")
            pixels = 255 - np.array(Image.open(source))[..., [1, 2, 0]].astype(float)
            noisy = pixels + draw.normal(0, noise, pixels.shape)
            save(dest / place / row["file"], noisy.clip(0, 255).astype(np.uint8))
    facts = TOLD | {"task": json.loads((benchmark / "benchmark.json").read_text())["task"]}
    (dest / "submission.json").write_text(json.dumps(facts))


def test_pictures_that_change_while_they_are_taken_in_are_not_taken(tmp_path: Path) -> None:
    save(path := tmp_path / "a.png", textured(1))
    taken = Taken(str(path), sha256_file(path))
    assert (taken.read(ITEM) == textured(1)).all()
    save(path, textured(2))
    with pytest.raises(MillError, match="was changed while it was taken in"):
        taken.read(ITEM)


def test_a_code_survives_its_text_and_tells_no_other_picture() -> None:
    code = resemblance.code(PHOTOGRAPHS[TASK.items[0].image_id])
    again = Code.read(code.stored())
    assert (again.cells == code.cells).all() and again.phash == code.phash
    codes = Codes({item.image_id: resemblance.code(PHOTOGRAPHS[item.image_id]) for item in TASK.items})
    others = [textured(number) for number in range(1000, 1100)]
    assert not any(codes.copied(pixels, TASK.items[0].image_id) for pixels in others)


MINI = Path(__file__).parents[2] / "train" / "mini"
SHOWCASE = Path(__file__).parents[2] / "docs" / "showcase" / "leaderboard"


def shifted(pixels: np.ndarray) -> np.ndarray:
    return np.roll(pixels, (9, -17), (0, 1))


def test_no_sample_of_the_showcase_is_refused_and_every_copy_of_its_photographs_is_known() -> None:
    """Its models follow hint and caption on a base that knows little else, so that they come near."""
    samples = [it for it in stored.read(SHOWCASE).evidence if it.source]
    photographs = {it.image_id: codec.decode(it.source or b"") for it in samples}
    codes = Codes({image_id: resemblance.code(pixels) for image_id, pixels in photographs.items()})
    assert len(samples) > 70 and len(photographs) > 30
    assert not [it for it in samples if codes.copied(codec.decode(it.generated), it.image_id)]
    for change in (recoded, shifted, lambda it: it[:, ::-1], lambda it: cv2.GaussianBlur(it, (0, 0), 1.5)):
        for image_id, pixels in photographs.items():
            assert codes.copied(np.ascontiguousarray(change(pixels)), image_id) == image_id


def test_flat_pictures_are_copies_of_flat_ones_only() -> None:
    flat = {str(level): np.full((SIDE, SIDE, 3), level, np.uint8) for level in (40, 200)}
    codes = Codes({name: resemblance.code(pixels) for name, pixels in flat.items()})
    assert codes.copied(flat["200"], "200") == "200"
    assert codes.copied(textured(3), "200") is None
