"""Every kind of file that a workspace holds, damaged in every way: `verify` names it, `verify --repair` takes
it out, the next run makes it again, and no command ends with a traceback.
"""

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import blip
from tests.conftest import Command
from tests.kept import differences, kept

pytestmark = pytest.mark.slow

MANIFEST = """
name: damage
workspace: ws
source:
  - {{kind: folder, path: photos}}
  - {{kind: huggingface, path: {root}/data, streaming: true}}
image: {{resolution: 64}}
split: {{validation: 0.25, test: 0.25, salt: 3}}
shard_images: 6
captions: {{model: blip-base, weights: {root}/blip, when: missing, precision: fp32, beams: 1}}
conditions: {{canny: {{}}, sketch: {{}}}}
train:
  base: random
  runs:
    - {{conditions: [canny], images: 12, batch: 4, lr: 1.0e-4, held_out: 2, watch_every: 4,
        checkpoint_every: 4, keep_every: 4, grids: 2, ema: 8}}
evaluate:
  benchmark: {{split: test, samples: 2, seeds: [0], num_inference_steps: 2}}
  baselines: [no_control, shuffled_condition]
  features: [{{extractor: mini}}]
"""


# -- ways of damage ------------------------------------------------------------------------------------------


def flipped(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def halved(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def garbage(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(3000))


def gone(path: Path, draw: random.Random) -> None:
    path.unlink()


def folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "somebody's").write_text("file")


WAYS = [flipped, halved, emptied, garbage, gone, folder]


# -- kinds of files ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    name: str
    files: str  # a pattern of paths below the workspace
    # ways of damage that `verify` need not name, since nothing tells that something was there, or nothing is
    # made from it (docs/guarantees.md)
    unnamed: tuple[Callable[..., None], ...] = ()
    # ways that stop a command with a sentence that says what to do by hand
    refused: tuple[Callable[..., None], ...] = ()
    alone: bool = False  # whether damage of it hides what else is damaged, or is hidden by that


CUT = (halved, emptied, garbage)
KINDS = [
    Kind("manifest", r"manifest\.yaml", refused=(gone, folder)),
    Kind("images", r"shards/images/.*"),
    Kind("changes", r"shards/changes/.*"),
    Kind("captions", r"shards/captions/.*"),
    Kind("maps", r"shards/maps/(canny|sketch)/.*"),
    Kind("maps that others are made from", r"shards/maps/hed/.*"),
    Kind("texts", r"shards/texts/.*"),
    Kind("latents", r"shards/latents/.*"),
    Kind("samples", r"samples/.*"),
    Kind("scores", r"scores/.*"),
    Kind("newest weights", r"checkpoints/.*/step-00000003/canny/diffusion.*"),
    Kind("newest average", r"checkpoints/.*/step-00000003/canny/ema/.*"),
    Kind("newest optimizer", r"checkpoints/.*/step-00000003/canny/optimizer.*"),
    Kind("newest config", r"checkpoints/.*/step-00000003/canny/config.json"),
    Kind("newest record", r"checkpoints/.*/step-00000003/meta.json"),
    Kind("earlier checkpoint", r"checkpoints/.*/step-0000000[12]/.*"),
    Kind("log", r"checkpoints/.*/train\.jsonl", unnamed=(flipped,), alone=True),
    Kind("grids", r"checkpoints/.*/grids/.*", unnamed=(gone,)),
    Kind("base", r"base/random/.*/.*|base/random/model_index.json|base/random/controlmill.json"),
    Kind("sums of the base", r"base/random/SHA256SUMS", unnamed=(emptied, gone), alone=True),
    # a flip that changes no row may stay
    Kind("rows of a stream", r"spool/.*/rows-.*", unnamed=(flipped,)),
    Kind("record of a stream", r"spool/.*/stream.json", alone=True),
    Kind("pictures of the report", r"report/(leaderboard/)?pictures/.*", unnamed=(gone,)),
    Kind(
        "pages and tables",
        r"report/[^/]*|report/leaderboard/[^/]*\.(html|csv|json|md|parquet)",
        unnamed=tuple(WAYS),
    ),
    Kind("TensorBoard", r"checkpoints/.*/tensorboard/.*", unnamed=tuple(WAYS)),
    Kind("events", r"events\.jsonl", unnamed=tuple(WAYS)),
    Kind("progress", r"progress\.json", unnamed=tuple(WAYS)),
    Kind("libraries", r"libraries\.json", unnamed=tuple(WAYS)),
    Kind("lock", r"\.lock", unnamed=tuple(WAYS), refused=(folder,)),
]
CATALOG = r"catalog\.duckdb(\.wal)?"  # damaged in test_catalog.py, and below


def files_of(kind: Kind, root: Path) -> list[Path]:
    every = (path for path in root.rglob("*") if path.is_file())
    return sorted(path for path in every if re.fullmatch(kind.files, path.relative_to(root).as_posix()))


# -- a workspace that has them all ---------------------------------------------------------------------------


def picture(number: int) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 80), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ask: Command) -> Path:
    """A folder with a finished job in `pristine`, which runs again in `ws`."""
    import datasets

    root = tmp_path_factory.mktemp("damage")
    (root / "photos").mkdir()
    for number in range(12):
        picture(number).save(root / "photos" / f"{number:02d}.png")
        if number % 3:
            (root / "photos" / f"{number:02d}.txt").write_text(f"picture {number}")
    (root / "data").mkdir()
    rows = {"image": [picture(100), picture(101)], "text": ["a row", "another"]}
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(root / "data" / "train-00000.parquet"))
    blip.make(root / "blip")
    (root / "m.yaml").write_text(MANIFEST.format(root=root))
    assert ask(root, "run", "m.yaml").returncode == 0
    picture(11).rotate(180).save(root / "photos" / "11.png")  # of the test split, has changed since
    (root / "photos" / "10.txt").write_text("another caption")
    for _ in range(2):
        ran = ask(root, "run", "m.yaml")
        assert ran.returncode == 0, ran.stderr
    for name, text in (("progress.json", "{}"), ("libraries.json", '{"scores": "", "measures": []}')):
        (root / "ws" / name).write_text(text)
    (root / "ws").rename(root / "pristine")
    return root


@pytest.fixture
def root(made: Path) -> Path:
    shutil.rmtree(made / "ws", ignore_errors=True)
    shutil.copytree(made / "pristine", made / "ws")
    return made


@pytest.fixture(scope="module")
def before(made: Path) -> dict[str, Any]:
    shutil.rmtree(made / "ws", ignore_errors=True)
    shutil.copytree(made / "pristine", made / "ws")
    return kept(made / "ws")


# -- the tests -----------------------------------------------------------------------------------------------


def test_every_kind_of_file_is_known_here(root: Path) -> None:
    for path in (path for path in (root / "ws").rglob("*") if path.is_file()):
        name = path.relative_to(root / "ws").as_posix()
        patterns = [CATALOG, *(kind.files for kind in KINDS)]
        assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) == 1, name
    assert all(files_of(kind, root / "ws") for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_is_named_and_no_command_has_a_traceback(root: Path, ask: Command, kind: Kind) -> None:
    for way in WAYS:
        shutil.rmtree(root / "ws")
        shutil.copytree(root / "pristine", root / "ws")
        draw = random.Random(f"{kind.name} {way.__name__}")
        path = draw.choice(files_of(kind, root / "ws"))
        way(path, draw)
        place = f"{way.__name__} {path.relative_to(root / 'ws')}"
        told = ask(root, "verify", "ws")
        if way not in kind.unnamed:
            assert told.returncode == 1, (place, told.stdout)
            lines = (told.stdout + told.stderr).splitlines()
            assert any(path.name in line or path.parent.name in line for line in lines), (place, lines)
        if way is (garbage, folder)[KINDS.index(kind) % 2]:
            no_traceback(root, ask, place, ("status", "ws"), ("run", "m.yaml"))
        ran = ask(root, "verify", "ws", "--repair")
        assert "Traceback" not in ran.stderr, (place, ran.stderr)
        if way not in kind.refused:
            assert ran.returncode == 0, (place, ran.stdout, ran.stderr)
        if way not in kind.refused and path.exists() | (path.name != "manifest.yaml"):
            told = ask(root, "verify", "ws")
            assert told.returncode == 0, (place, told.stdout)


def no_traceback(root: Path, ask: Command, place: str, *commands: tuple[str, ...]) -> None:
    for command in commands:
        ran = ask(root, *command)
        assert "Traceback" not in ran.stdout + ran.stderr, (place, command, ran.stderr)
        assert ran.returncode == 0 or ran.stdout + ran.stderr, (place, command)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_is_damaged_everywhere_is_made_again_as_it_was(
    root: Path, ask: Command, before: dict[str, Any], way: Callable[..., None]
) -> None:
    draw = random.Random(way.__name__)
    damaged: dict[str, str] = {}
    for kind in KINDS:
        if way not in kind.refused and not kind.alone:
            path = draw.choice(files_of(kind, root / "ws"))
            way(path, draw)
            if way not in kind.unnamed:
                damaged[kind.name] = path.relative_to(root / "ws").as_posix()
    told = ask(root, "verify", "ws")
    assert told.returncode == 1
    for kind_name, place in damaged.items():
        step = re.search(r"step-\d+|random", place)  # one damaged file may hide another of the same folder
        name = step[0] if step else place
        assert any(name in line for line in told.stdout.splitlines()), (kind_name, place, told.stdout)
    export = ("export", "ws", way.__name__, "--condition", "canny", "--to", "diffusers")
    no_traceback(root, ask, way.__name__, ("status", "ws"), export, ("catalog", "rebuild", "ws"))
    assert ask(root, "verify", "ws", "--repair").returncode == 0
    if way is folder:
        for path in [path for kind in KINDS if kind.unnamed for path in (root / "ws").rglob("somebody's")]:
            if path.exists() and not path.parent.name.startswith("damaged-"):
                shutil.rmtree(path.parent)  # as the sentence says
    ran = ask(root, "run", "m.yaml")
    assert ran.returncode == 0, ran.stderr
    told = ask(root, "verify", "ws")
    assert told.returncode == 0, told.stdout
    assert differences(kept(root / "ws"), before) == []


@pytest.mark.parametrize("way", [*CUT, folder], ids=lambda way: way.__name__)
def test_a_damaged_catalog_is_made_again_as_it_was(
    root: Path, ask: Command, before: dict[str, Any], way: Callable[..., None]
) -> None:
    path = root / "ws/catalog.duckdb"
    way(path, random.Random(0))
    for command in (("verify", "ws"), ("status", "ws"), ("run", "m.yaml"), ("verify", "ws", "--repair")):
        ran = ask(root, *command)
        assert ran.returncode == 1 and "Traceback" not in ran.stderr
        assert len(ran.stderr.splitlines()) == 1 and "`controlmill catalog rebuild" in ran.stderr
    assert ask(root, "catalog", "rebuild", "ws").returncode == 0
    assert ask(root, "run", "m.yaml").returncode == 0
    assert ask(root, "verify", "ws").returncode == 0
    assert differences(kept(root / "ws"), before) == []
