"""The queue of runs as a person sees it: together, in their order, over several processes, one that fails,
what status tells.
"""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline import MillError
from pipeline import plan as plans
from pipeline import run as flow
from pipeline.catalog import Catalog
from pipeline.cli import main
from pipeline.cluster.jobs import Job
from pipeline.commands import requirements, status
from pipeline.commands import verify as verifier
from pipeline.dataset import changes
from pipeline.dataset.changes import Change
from pipeline.experiment import pairs
from pipeline.experiment.addresses import PairAddress, PairAddresses
from pipeline.experiment.logs import read_log
from pipeline.experiment.pairs import PlannedRun, planned_runs
from pipeline.experiment.reading import ShardPairs
from pipeline.experiment.runs import options_of, record, record_all, take_shorter
from pipeline.manifest import Run, load
from pipeline.plan import Planned
from pipeline.report import counts
from pipeline.stages import train as stage
from pipeline.stages.stage import StageContext
from pipeline.storage.workspace import Workspace
from tests.conftest import COMMAND, OPEN

CANNY = "conditions: [canny], images: 8, batch: 4, flip: 0.5, lr: 1.0e-3"
RUNS = f"""
  - {{conditions: [hough], warm_start: canny, images: 4, held_out: 2}}
  - {{{CANNY}}}
  - {{{CANNY}, gpus: 2}}
  - {{conditions: [cartoon], warm_start: broken, images: 4}}
  - {{conditions: [canny], warm_start: cartoon, images: 4}}
"""
SIZES = [(128, 128), (64, 192)]  # of the pictures: two buckets


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, address: str
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A manifest of five runs, trained once; the tests below only look."""
    from PIL import Image

    root = tmp_path_factory.mktemp("queue")
    for name in ("photos", "broken"):
        (root / name).mkdir()
    for number in range(12):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        height, width = SIZES[number % 2]
        Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(
            root / "photos" / f"{number:02d}.png"
        )
        (root / "photos" / f"{number:02d}.txt").write_text(
            "a window on the left" if number == 0 else f"picture {number}"
        )
    (root / "manifest.yaml").write_text(
        "name: queue\nworkspace: ws\nsource: {kind: folder, path: photos}\nimage: {resolution: 128, fit:"
        " bucket}\nsplit: {validation: 0.3, test: 0.0, salt: 2, near: null}\nconditions: {canny: {},"
        f" cartoon: {{}}, hough: {{min_score: 0.0, min_length: 4}}}}\ntrain:\n base: random\n runs:{RUNS}"
    )
    line = [
        *COMMAND,
        "run",
        "manifest.yaml",
        "--address",
        address,
        "--stages",
        "ingest,annotate,encode,train",
    ]
    return root, subprocess.run(line, cwd=root, env=OPEN, capture_output=True, text=True, timeout=600)


def rows(root: Path) -> dict[str, dict[str, Any]]:
    names = ("run", "conditions", "status", "images", "checkpoint", "options", "reason")
    found = Catalog(Workspace(root / "ws")).query(f"SELECT {', '.join(names)} FROM runs ORDER BY run")
    return {row[0]: dict(zip(names, row, strict=True)) for row in found}


def planned(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    monkeypatch.chdir(root)
    plan = plans.make(load(root / "manifest.yaml"))
    return planned_runs(plan, Catalog(plan.workspace))


@pytest.mark.slow
def test_a_failed_run_stops_neither_the_others_nor_passes_silently(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ran = made
    hough, canny, both, cartoon, late = (it.name for it in planned(root, monkeypatch))
    assert (
        ran.returncode == 1 and "2 of the train jobs failed" in ran.stderr and "Traceback" not in ran.stderr
    )
    found = rows(root)
    assert {name: found[name]["status"] for name in (hough, canny, both, cartoon, late)} == {
        hough: "complete",
        canny: "complete",
        both: "complete",
        cartoon: "failed",
        late: "failed",
    }
    assert "no ControlNet in the diffusers layout" in found[cartoon]["reason"]
    assert found[late]["reason"] == f"it waits for train {cartoon}, which failed"
    assert found[cartoon]["conditions"] == ["cartoon"] and found[cartoon]["images"] == 0
    assert not [path for path in (root / "ws/checkpoints").rglob("*") if path.name.startswith(".tmp-")]


@pytest.mark.slow
def test_a_run_starts_from_what_another_run_of_the_manifest_has_made(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import pretrained

    root, _ = made
    hough, canny, *_ = (it.name for it in planned(root, monkeypatch))
    found = rows(root)
    meta = json.loads((root / "ws" / found[hough]["checkpoint"] / "meta.json").read_text())
    assert meta["warm_start"] == {
        "hough": pretrained.weights_hash(root / "ws" / found[canny]["checkpoint"] / "canny")
    }


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    root, _ = made
    _, one, two, *_ = (it.name for it in planned(root, monkeypatch))
    assert one != two
    found = rows(root)
    a, b = (
        load_file(root / "ws" / found[name]["checkpoint"] / "canny/diffusion_pytorch_model.safetensors")
        for name in (one, two)
    )
    assert a.keys() == b.keys() and max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    assert any(float(a[name].abs().max()) > 1e-4 for name in a if "controlnet" in name), (
        "zero convolutions that have learned"
    )
    metas = [
        json.loads((root / "ws" / found[name]["checkpoint"] / "meta.json").read_text()) for name in (one, two)
    ]
    assert [meta["ranks"] for meta in metas] == [1, 2]


@pytest.mark.slow
def test_pairs_tell_their_sizes_unread_and_a_mirrored_pair_is_drawn_from_the_flipped_map(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from annotate import flips, maps
    from pipeline.dataset.maps import read_annotation
    from train.batches import Draw

    root, _ = made
    workspace, it = Workspace(root / "ws"), planned(root, monkeypatch)[0]
    pairs = ShardPairs(workspace, it.pairs, np.zeros((2, 2), np.float32))
    assert set(pairs.sizes) == {(16, 16), (8, 32)}
    catalog = Catalog(workspace)
    captions = dict(catalog.query("SELECT image_id, caption FROM sources"))
    for number, address in enumerate(it.pairs):
        plain, mirrored = pairs.read([Draw(number), Draw(number, mirrored=True)])
        assert (
            plain.mean.shape[1:] == pairs.sizes[number]
            and plain.hints["hough"].shape[0] == 8 * pairs.sizes[number][0]
        )
        if "left" in captions[address.image_id]:
            assert np.array_equal(plain.mean, mirrored.mean) and np.array_equal(
                plain.hints["hough"], mirrored.hints["hough"]
            )
            continue
        raw = read_annotation(workspace, address.maps["hough"], address.row, "hough").map
        assert raw is not None and np.array_equal(mirrored.hints["hough"], maps.render(flips.flip(raw)))
        assert not np.array_equal(plain.mean, mirrored.mean) and np.array_equal(plain.text, mirrored.text)


@pytest.mark.slow
def test_the_conditioning_gain_is_measured_on_the_validation_split(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = made
    hough, *_ = planned(root, monkeypatch)
    catalog = Catalog(Workspace(root / "ws"))
    validation = {
        image_id for (image_id,) in catalog.query("SELECT image_id FROM images WHERE split = 'validation'")
    }
    assert validation and {it.image_id for it in hough.held_out} == validation
    assert not validation & {it.image_id for it in hough.pairs}
    log = read_log(catalog.workspace.run(hough.name))
    assert log[-1]["held_out"]["hough"]["n"] == 2


@pytest.mark.slow
def test_a_longer_run_goes_on_from_the_shorter_one_and_ends_with_the_same_bits(
    made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from train import checkpoint

    def longer(root: Path, change: tuple[str, str]) -> tuple[Any, PlannedRun]:
        text = (made[0] / "manifest.yaml").read_text()
        (root / "manifest.yaml").write_text(
            text[: text.index(" runs:")] + f" runs: [{{{CANNY.replace(*change)}}}]\n"
        )
        monkeypatch.chdir(root)
        plan = plans.make(load(root / "manifest.yaml"))
        return plan, planned_runs(plan, Catalog(plan.workspace))[0]

    def trained(plan: Any, it: PlannedRun) -> dict[str, Any]:
        context = StageContext(plan, Catalog(plan.workspace), None)  # type: ignore[arg-type]
        args = stage._job(context, [it], 0, {it.name: it}).args
        return load_file(stage.train_run(args, (), {}, False) / "canny/diffusion_pytorch_model.safetensors")

    for name in ("on", "anew"):
        shutil.copytree(made[0], tmp_path / name)
    plan, other = longer(tmp_path / "on", ("1.0e-3", "2.0e-3"))
    assert take_shorter(plan.workspace, other) is None, "another rate is another run"
    plan, it = longer(tmp_path / "on", ("images: 8", "images: 12"))
    begun = take_shorter(plan.workspace, it)
    assert begun == plan.workspace.run(it.name_with(8)) and take_shorter(plan.workspace, it) is None, "once"
    taken = checkpoint.newest(plan.workspace.run(it.name))
    assert taken is not None and taken.images == 8 and checkpoint.newest(begun) is not None
    bits = trained(plan, it)
    rows = read_log(plan.workspace.run(it.name))
    assert [row["images"] for row in rows] == [4, 8, 12], "the log goes on too"
    plan, it = longer(tmp_path / "anew", ("images: 8", "images: 12"))
    for name, tensor in trained(plan, it).items():
        assert bool((bits[name] == tensor).all()), name


NONE = PairAddresses.of([], ["cartoon"])


class Here:
    """A cluster of this process: what the stage asks for is done at once, in order."""

    gpus, device, workers, cores_of_a_node = 0, "cpu", 2, 2

    def __init__(self) -> None:
        self.told: list[str] = []
        self.say = self.told.append
        self.stopping = lambda: False

    def run(
        self,
        function: Callable[..., Any],
        jobs: list[Job],
        done: Callable[..., None],
        *,
        watch: Callable[[], int],
        **more: Any,
    ) -> None:
        for job in jobs:
            watch()
            made = function(job.args, job.rows, {}, False)
            watch()
            done([(job, made)])


@pytest.fixture
def alone(
    made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The workspace of `made` with the run of canny alone, under a manifest with these changes; trains it,
    and gives its weights' hash.
    """
    import torch

    torch.set_num_threads(1)
    shutil.copytree(made[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    text = (made[0] / "manifest.yaml").read_text()

    def trained(change: str = "") -> SimpleNamespace:
        Path("manifest.yaml").write_text(text[: text.index(" runs:")] + f" runs: [{{{CANNY}{change}}}]\n")
        plan, here = plans.make(load(Path("manifest.yaml"))), Here()
        catalog = Catalog(plan.workspace)
        told = stage.train(StageContext(plan, catalog, here)).sentence  # type: ignore[arg-type]
        (it,) = planned_runs(plan, catalog)
        place, state = catalog.row("SELECT checkpoint, status FROM runs WHERE run = ?", [it.name])
        files = {
            name: it["sha256"]
            for name, it in json.loads((plan.workspace.root / place / "meta.json").read_text())[
                "files"
            ].items()
        }
        return SimpleNamespace(
            plan=plan,
            catalog=catalog,
            name=it.name,
            it=it,
            step=plan.workspace.root / place,
            state=state,
            files=files,
            told=told,
            said=here.told,
        )

    return trained


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x40
    path.write_bytes(bytes(data))


WEIGHTS = "canny/diffusion_pytorch_model.safetensors"


@pytest.mark.slow
def test_a_complete_run_whose_checkpoint_is_damaged_trains_the_missing_part_again(alone: Any) -> None:
    whole = alone()
    assert whole.told == f"{whole.name} is trained" and not whole.said
    flip(whole.step / WEIGHTS)
    again = alone()
    assert (again.name, again.state, again.files) == (whole.name, "complete", whole.files), "bit for bit"
    first, second = again.said
    assert (
        first
        == f"checkpoint {whole.step} is damaged: {WEIGHTS} has another sha256 than meta.json says: its run"
        " makes it again."
    )
    assert (
        second.startswith(f"{whole.name}: checkpoint {whole.step} is damaged")
        and "the run goes on from step-00000001" in second
    )
    runs = counts.workspace_counts(whole.catalog).runs
    assert [len(run.notes) for run in runs if run.run == whole.name] == [1]
    assert not alone().said, "once"


@pytest.mark.slow
def test_verify_reports_each_damaged_file_of_a_checkpoint_and_repair_has_it_made_again(alone: Any) -> None:
    whole = alone()
    for name in ("canny/optimizer.safetensors", WEIGHTS):
        flip(whole.step / name)
    log = whole.step.parent / "train.jsonl"
    log.write_bytes(b"\x00\xff\n[3]\n" + log.read_bytes())
    said: list[str] = []
    found = verifier.problems(whole.catalog, repair=False, say=said.append)
    damaged = [
        f"checkpoint {whole.step} is damaged: {name} has another sha256 than meta.json says"
        for name in sorted(whole.files)[1:]
    ]
    torn = f"checkpoints/{whole.name}/train.jsonl: lines 1, 2: damaged, and passed over by whoever reads it"
    assert sorted(found) == sorted([*damaged, torn]) and said[-1].endswith("checkpoints checked, 3 problems")
    told = CliRunner().invoke(main, ["verify", "ws"])
    assert told.exit_code == 1 and all(sentence in told.output for sentence in found)
    assert CliRunner().invoke(main, ["verify", "ws", "--repair"]).exit_code == 0
    assert not whole.step.exists() and whole.catalog.row(
        "SELECT status FROM runs WHERE run = ?", [whole.name]
    ) == ("incomplete",)
    assert not verifier.problems(whole.catalog, repair=False, say=said.append)
    again = alone()
    assert (again.step, again.state, again.files) == (whole.step, "complete", whole.files) and not again.said


def test_what_is_damaged_is_neither_converted_nor_sampled_nor_shipped_nor_started_from(
    alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.commands import roots
    from pipeline.stages import generate
    from train import integrity

    whole = alone()
    flip(whole.step / WEIGHTS)
    sentence = f"checkpoint {whole.step} is damaged: {WEIGHTS} has another sha256 than meta.json says"
    remedy = (
        "`controlmill verify WORKSPACE --repair` takes it out, and the next `controlmill run` trains what is"
        " then missing."
    )
    photo = str(next(Path("photos").glob("*.png")))
    for line in (
        ["convert", whole.step / "canny", "net.safetensors", "--to", "original"],
        [
            "sample",
            "--checkpoint",
            whole.step / "canny",
            "--image",
            photo,
            "--hint",
            "--prompt",
            "",
            "--out",
            "x.png",
            "--resolution",
            "64",
        ],
    ):
        told = CliRunner().invoke(main, list(map(str, line)))
        assert told.exit_code == 1 and told.output == f"controlmill: {sentence}: {remedy}\n", told.output
    instead = CliRunner().invoke(
        main, ["convert", str(whole.step.parent), "net.safetensors", "--to", "original"]
    )
    assert instead.exit_code == 0 and instead.output.startswith(
        f"{sentence}: step-00000001 is taken instead\n"
    ), instead.output
    with pytest.raises(
        MillError, match=f"{WEIGHTS} has another sha256 .*`controlmill verify WORKSPACE --repair`"
    ):
        generate.load_trained(str(whole.step / "canny"), "never loaded")
    shipped = SimpleNamespace(condition="canny", checkpoint=f"{whole.step}/canny")
    monkeypatch.setattr(roots, "_trained", lambda *_: [shipped])
    monkeypatch.setattr(plans, "load_saved", lambda workspace: whole.plan)
    with pytest.raises(MillError, match="is damaged"):
        roots.export_roots(whole.plan.workspace, (), Path("shipped"))
    context = StageContext(whole.plan, whole.catalog, None)  # type: ignore[arg-type]
    args = dataclasses.replace(
        stage._job(context, [whole.it], 0, {}).args,
        name="canny-other",
        run=Run(**whole.it.run.model_dump() | {"warm_start": "canny", "images": 4}),
        warm_start={"canny": str(whole.step.parent)},
    )
    with pytest.raises(MillError, match=r"^warm_start: checkpoint .* is damaged"):
        stage.train_run(args, (), {}, False)
    (whole.step / "meta.json").write_bytes(b"\xff\x00")
    # and no older one in its stead
    with pytest.raises(integrity.Damaged, match=r"meta.json is not as it was written"):
        stage.warm_folder(str(whole.step.parent), "canny")


@pytest.mark.parametrize("garbage", [b"\x00\xff garbage", b'{"images": 8}'])
@pytest.mark.slow
def test_a_damaged_meta_is_no_traceback_in_status_nor_report_nor_run(alone: Any, garbage: bytes) -> None:
    from pipeline.stages.report import write_page

    whole = alone()
    (whole.step / "meta.json").write_bytes(garbage)
    log = whole.step.parent / "train.jsonl"
    log.write_bytes(log.read_bytes() + garbage + b"\n")
    record_all(whole.plan, whole.catalog)
    (run,) = [run for run in counts.workspace_counts(whole.catalog).runs if run.run == whole.name]
    assert (run.status, run.images) == ("incomplete", 4)
    assert write_page(StageContext(whole.plan, whole.catalog, None)).is_file()  # type: ignore[arg-type]
    again = alone()
    assert again.files == whole.files and "meta.json is not as it was written" in again.said[-1]


def test_a_longer_run_goes_on_from_the_last_whole_checkpoint_of_the_shorter_one(alone: Any) -> None:
    whole = alone()
    flip(whole.step / "canny/optimizer.safetensors")
    assert alone().told == f"{whole.name} is trained", "its ControlNet is whole"
    said: list[str] = []
    longer = dataclasses.replace(
        whole.it, name="canny-longer", run=whole.it.run.model_copy(update={"images": 12})
    )
    assert take_shorter(whole.plan.workspace, longer, said.append) == whole.step.parent
    assert [path.name for path in whole.plan.workspace.run("canny-longer").glob("step-*")] == [
        "step-00000001"
    ]
    assert len(said) == 1 and f"canny-longer goes on from {whole.name}, step-00000001 instead." in said[0]


def test_names_are_those_of_the_first_release_and_keys_that_left_them_are_found_under_the_older_ones() -> (
    None
):
    """Golden names: computed by the code before checkpoint_every and micro_batch left the identity."""
    golden = {
        "canny-88a4d4f1": [
            {},
            {"watch_every": 4, "keep_every": 8, "grids": 2, "held_out": 3, "gradient_checkpointing": True},
        ],
        "canny-0a55d282": [{"ema": 20.0, "flip": 0.5}],
    }
    older = {
        "canny-92ebcf24": {"checkpoint_every": 1000},
        "canny-65fc09a4": {"micro_batch": 2},
        "canny-b1bcd2ac": {"micro_batch": 2, "checkpoint_every": 8},
    }

    def identity(run: Run) -> dict[str, Any]:
        return {
            "base": "b",
            "latents": "l",
            "run": run.identity,
            "version": 2,
            "conditions": {"canny": "f"},
        }

    ids = ["1", "2"]
    for name, options in golden.items():
        for option in options:
            assert pairs._name(identity(Run(conditions=["canny"], images=16, batch=4, **option)), ids) == name
    workspace = Workspace(Path("nowhere"))
    for name, option in older.items():
        run = Run(conditions=["canny"], images=16, batch=4, **option)
        assert pairs.name_here(workspace, identity(run), ids, run, []) == "canny-88a4d4f1", "a new run"
        assert pairs.name_here(workspace, identity(run), ids, run, [name]) == name, (
            "one that the workspace knows"
        )
        assert pairs.name_here(workspace, identity(run), ids, run, ["canny-88a4d4f1", name]) == name


@pytest.mark.slow
@pytest.mark.parametrize(("micro", "every"), [(2, 4), (None, 4), (2, None)])
def test_a_run_that_was_named_after_options_keeps_its_name_also_when_they_change(
    alone: Any, micro: int | None, every: int | None
) -> None:
    """A workspace as the code before made it: the folder's name, and what the checkpoint recorded."""
    whole = alone()
    told = whole.it.identity["run"] | {"micro_batch": micro, "checkpoint_every": every}
    older = pairs._name({**whole.it.identity, "run": told}, whole.it.pairs.ids)
    whole.step.parent.rename(whole.plan.workspace.run(older))
    for path in whole.plan.workspace.run(older).glob("step-*/meta.json"):
        meta = json.loads(path.read_text())
        meta.pop("began_with", None)
        path.write_text(
            json.dumps(
                meta
                | {
                    "options": meta["options"] | {"micro_batch": micro, "checkpoint_every": every or 4},
                    "sha256": None,
                }
            )
        )
    with whole.catalog.transaction() as connection:
        connection.execute("DELETE FROM runs WHERE run = ?", [whole.name])
    record_all(whole.plan, whole.catalog)
    asked = (f", micro_batch: {micro}" if micro else "") + (f", checkpoint_every: {every}" if every else "")
    same, other = alone(asked), alone(", micro_batch: 1, checkpoint_every: 8")
    assert same.told == other.told == f"{older} is trained" and same.files == whole.files
    if (micro, every) != (2, 4):
        return
    shutil.rmtree(same.step)
    went_on = alone(", micro_batch: 1, checkpoint_every: 8")
    assert went_on.name == older and went_on.state == "complete"
    assert alone(", micro_batch: 4").name == older, "also when it is no longer what it was begun with"


@pytest.mark.slow
def test_another_micro_batch_or_interval_of_checkpoints_goes_on_and_is_said(alone: Any) -> None:
    whole = alone()
    shutil.rmtree(whole.step)
    every = alone(", checkpoint_every: 8")
    told = f"{whole.name}: writes a checkpoint every 8 images instead of 4: no weight depends on it."
    assert (every.name, every.files, every.said) == (whole.name, whole.files, [told])
    shutil.rmtree(whole.step)
    other = alone(", micro_batch: 2")
    end = "the weights are no longer bit-identical to those of an undisturbed run"
    assert other.name == whole.name and other.said == [
        f"{whole.name}: goes on with micro_batch 2 instead of 4: {end}."
    ]


@pytest.mark.slow
def test_status_tells_of_every_run_in_words_and_as_json(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, _ = made
    counted = counts.workspace_counts(Catalog(Workspace(root / "ws")))
    text = status.text(counted)
    assert "train      3 of 5 runs complete, 2 failed" in text
    assert len(counted.runs) == 5
    for run in counted.runs:
        assert f"run        {run.run}: {run.status}" in text
        assert run.of in (4, 8) and (run.images == run.of) == (run.status == "complete")
    printed = json.loads(json.dumps(counted.as_json()))
    assert printed["runs asked for"] == 5 and printed["conditions"]["canny"]["to do"] == 0


@pytest.mark.slow
def test_an_image_that_killed_its_encoder_is_not_trained_on(
    made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = made
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    before = {
        name: {pair.image_id for pair in pairs}
        for name, pairs in splits(planned(tmp_path / "copy", monkeypatch)[1])
    }
    lost = {min(ids) for ids in before.values()}
    with Catalog(Workspace(tmp_path / "copy/ws")).transaction() as connection:
        chosen = "SELECT image FROM images WHERE image_id IN (SELECT unnest(?))"
        connection.execute(
            f"UPDATE latent_rows SET status = 'failed' WHERE image IN ({chosen})", [sorted(lost)]
        )
    after = {
        name: {pair.image_id for pair in pairs}
        for name, pairs in splits(planned(tmp_path / "copy", monkeypatch)[1])
    }
    assert after == {name: ids - lost for name, ids in before.items()}


@pytest.mark.slow
def test_a_run_whose_images_got_other_captions_is_another_run(
    made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = made
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    before = planned(tmp_path / "copy", monkeypatch)
    plan = plans.make(load(tmp_path / "copy/manifest.yaml"))
    catalog = Catalog(plan.workspace)
    address = "SELECT uri FROM sources WHERE image_id = ?"
    pair = before[1].pairs[0]
    (first,) = catalog.row("SELECT caption FROM captions WHERE image_id = ?", [pair.image_id])

    def tell(image_id: str, caption: str) -> list[str]:
        (uri,) = catalog.row(address, [image_id])
        changes.save(plan, catalog, [Change("caption", uri, image_id, captions=(caption,))])
        return [run.name for run in planned_runs(plan, catalog)]

    assert tell(before[1].held_out[0].image_id, "other words") == [run.name for run in before]
    changed = tell(before[1].pairs[0].image_id, "other words")
    assert all(one != run.name for one, run in zip(changed, before, strict=True))
    assert tell(before[1].pairs[0].image_id, "once more") != changed
    assert tell(pair.image_id, first) == [run.name for run in before], "the words are what they were"


@pytest.mark.slow
def test_a_run_whose_hints_are_drawn_otherwise_is_another_run(
    made: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned(made[0], monkeypatch)
    monkeypatch.setattr(Planned, "drawing", 2)
    after = planned(made[0], monkeypatch)
    assert all(one.name != run.name for one, run in zip(after, before, strict=True))


def splits(it: PlannedRun) -> list[tuple[str, PairAddresses]]:
    return [("train", it.pairs), ("held out", it.held_out)]


def test_an_optimizer_that_is_not_installed_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else real(name)
    )
    text = (
        "name: x\nworkspace: ws\nsource: {kind: folder, path: .}\nconditions: {canny: {}}\ntrain: {base:"
        " random, runs: [RUN]}"
    )
    (tmp_path / "m.yaml").write_text(
        text.replace("RUN", "{conditions: [canny], images: 8, optimizer: adamw8bit}")
    )
    given = load(tmp_path / "m.yaml")
    lacks = requirements.missing(plans.make(given, here=False))
    assert (
        "m.yaml:5: train.runs[0].optimizer: adamw8bit needs the package bitsandbytes: `pip install"
        " 'controlmill[lean]'`" in lacks[-1]
    )
    with pytest.raises(MillError, match="needs the package bitsandbytes"):
        flow.run(given, flow.RunOptions(), print)
    assert not (tmp_path / "ws").exists()


def test_each_condition_starts_where_its_run_says_and_waits_for_no_more_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    both = "{conditions: [canny, hough, cartoon], images: 8, warm_start: {canny: cartoon, hough: theirs}}"
    conditions = "{canny: {}, hough: {}, cartoon: {}}"
    text = (
        f"name: x\nworkspace: ws\nsource: {{kind: folder, path: .}}\nconditions: {conditions}\ntrain: {{base:"
        f" random, runs: [RUN, {both}]}}"
    )
    (tmp_path / "m.yaml").write_text(text.replace("RUN", "{conditions: [cartoon], images: 8}"))
    plan = plans.make(load(tmp_path / "m.yaml"), here=False)
    plan.workspace.create()
    catalog = Catalog(plan.workspace)
    catalog.create()
    assert plan.manifest.train and requirements.missing(plan) == []
    runs = [
        PlannedRun(name, run, "", "", NONE, NONE)
        for name, run in zip(("first", "second"), plan.manifest.train.runs, strict=True)
    ]
    assert stage.warm_starts(plan, catalog, runs, 0) == {}
    found = stage.warm_starts(plan, catalog, runs, 1)
    assert found == {
        "canny": (str(tmp_path / "ws/checkpoints/first"), "first"),
        "hough": (str(tmp_path / "theirs"), ""),
    }
    context = StageContext(plan, catalog, None)  # type: ignore[arg-type]
    job = stage._job(context, runs, 1, {it.name: it for it in runs})
    assert job.after == ("train first",) and job.args.warm_start.keys() == {"canny", "hough"}
    assert stage.warm_folder(str(tmp_path / "theirs"), "theirs") == tmp_path / "theirs"
    (tmp_path / "theirs").rmdir()
    (lack,) = requirements.missing(plan)
    assert "m.yaml:5: train.runs[1].warm_start: theirs is neither" in lack
    with pytest.raises(
        MillError,
        match=(
            r"train.runs\[1\].warm_start: 'theirs' is neither a condition that a run trains, here or before"
        ),
    ):
        stage.warm_starts(plan, catalog, runs, 1)


LOG = [
    {
        "images": 4000,
        "step": 125,
        "images_per_second": 40.0,
        "seconds": 100,
        "seconds_left": 5000.0,
        "loss": {"canny": 0.1},
    },
    {
        "images": 8000,
        "step": 250,
        "images_per_second": 38.21,
        "seconds": 200,
        "seconds_left": 4920.0,
        "alarm": {"canny": 8000},
    },
]


def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Catalog, Any]:
    """A workspace in which one run is at work and another waits."""
    monkeypatch.chdir(tmp_path)
    text = (
        "name: x\nworkspace: ws\nsource: {kind: folder, path: .}\nconditions: {canny: {}}\ntrain: {base:"
        " random, runs: [RUN, RUN]}"
    )
    given = text.replace("RUN", "{conditions: [canny], images: 200000, batch: 32}")
    (tmp_path / "m.yaml").write_text(given)
    plan = plans.make(load(tmp_path / "m.yaml"), here=False)
    plan.workspace.create()
    catalog = Catalog(plan.workspace)
    catalog.create()
    plans.save(plan)
    catalog.activate(plan.settings(), [it.record() for it in plan.conditions.values()])
    catalog.define_pairs(plan.selections(), plans.MEASURES)
    assert plan.manifest.train
    out = plan.workspace.run("canny-1")
    out.mkdir(parents=True)
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG) + '{"images": 12000, "st')
    for name, state in (("canny-1", "running"), ("canny-2", "queued")):
        it = PlannedRun(name, plan.manifest.train.runs[0], "nowhere/base", "mark", [], [])
        record(plan, catalog, name, state, planned=it)
    return catalog, plan


def test_status_shows_the_runs_at_work_and_the_convergence_step_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, plan = waiting(tmp_path, monkeypatch)
    assert catalog.query("SELECT images, steps FROM runs WHERE run = 'canny-1'") == [(8000, 250)]
    with plan.workspace.lock():
        counted = counts.workspace_counts(catalog)
    text = status.text(counted)
    assert "train      0 of 2 runs complete, 1 running, 1 queued" in text
    assert (
        "run        canny-1: running, 8,000 of 200,000 images, 38.2 images/s, 1 h 22 min left; follows canny"
        " since 8,000 images\n" in text
    )
    assert "run        canny-2: queued, 0 of 200,000 images\n" in text
    first = counted.runs[0]
    assert (first.images, first.of, first.seconds_left, first.convergence_step) == (
        8000,
        200000,
        4920.0,
        {"canny": 8000},
    )


def test_status_passes_over_the_damaged_lines_of_a_log_and_tells_what_the_run_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, plan = waiting(tmp_path, monkeypatch)
    log = plan.workspace.run("canny-1") / "train.jsonl"
    lines = [json.dumps(row) for row in LOG]
    note = json.dumps({"images": 4000, "step": 125, "note": "goes on with micro_batch 4 instead of 8"})
    for garbage in (b"\x00\xff", b"[3]", b'{"loss": 3}'):
        log.write_bytes(
            b"\n".join([lines[0].encode(), garbage, note.encode(), lines[1].encode(), garbage, b""])
        )
        with plan.workspace.lock():
            text = status.text(counts.workspace_counts(catalog))
        assert (
            "canny-1: running, 8,000 of 200,000 images" in text
            and "\n  goes on with micro_batch 4 instead of 8\n" in text
        )


def test_a_run_whose_driver_was_killed_is_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, plan = waiting(tmp_path, monkeypatch)
    (plan.workspace.root / ".lock").write_text("999999999")
    assert [run.status for run in counts.workspace_counts(catalog).runs] == ["incomplete", "incomplete"]


def test_a_run_that_goes_on_elsewhere_keeps_the_precision_that_it_began_with() -> None:
    run = Run(conditions=["canny"], images=8)
    here, there = options_of(run, "cpu", {}), options_of(run, "cuda:1", {})
    assert (here.precision, here.compile, here.grids) == ("fp32", False, 0)
    assert (there.precision, there.compile, there.grids) == ("bf16", True, 4)
    assert options_of(run, "cpu", {"precision": "bf16", "compile": True}).precision == "bf16"
    assert not options_of(run, "cuda", {"images": 8}).compile, (
        "of a checkpoint that is older than these options"
    )
    assert (
        options_of(Run(conditions=["canny"], images=8, precision="fp32", grids=0), "cuda", {}).precision
        == "fp32"
    )


def names(count: int) -> PairAddresses:
    return PairAddresses.of([PairAddress(str(i), i, "", {}, (8, 8)) for i in range(count)], [])


def test_a_run_without_validation_pairs_says_that_there_is_no_conditioning_gain(tmp_path: Path) -> None:
    run = Run(conditions=["canny"], images=8)
    assert stage._sentence(PlannedRun("canny-1", run, "b", "m", names(3), names(0))).endswith(
        "; no conditioning gain: the validation split has no pairs"
    )
    assert (
        stage._sentence(PlannedRun("canny-1", run, "b", "m", names(3), names(1)))
        == "canny-1: 8 images of 3 pairs"
    )
