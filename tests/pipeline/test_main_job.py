"""The whole flow on a dozen small pictures: latents, a trained ControlNet, samples, scores with their
baselines, a report.
"""

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluate import measures
from pipeline.catalog import Catalog
from pipeline.storage.workspace import Workspace
from tests.conftest import COMMAND, OPEN, Command

MODES = "unlock: decoder, unlock_lr: 1.0e-4, ema: 8, min_snr: 5, gradient_checkpointing: true"
TRAIN = (
    "{base: random, runs: [{conditions: [canny], images: 16, batch: 4, lr: 1.0e-3, checkpoint_every: 4,"
    f" keep_every: 8, {MODES}}}]}}"
)
BASELINES = "[no_control, shuffled_condition, vae_round_trip, real_image, earlier]"
EVALUATE = (
    "{benchmark: {split: test, samples: 4, seeds: [0, 1], num_inference_steps: 2, guidance_scale: 2.0},"
    f" baselines: {BASELINES}}}"
)
FINAL = "variant <> 'earlier'"
SPLIT = "{validation: 0.1, test: 0.3, salt: 3}"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, address: str
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished job, made once for the tests below, which only look."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("job")
    (root / "photos").mkdir()
    for number in range(14):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.NEAREST).save(
            root / "photos" / f"{number:02d}.png"
        )
        (root / "photos" / f"{number:02d}.txt").write_text(f"picture <b>{number}</b>")
    (root / "manifest.yaml").write_text(
        "name: job\nworkspace: ws\nsource: {kind: folder, path: photos}\nimage: {resolution: 64}\nsplit:"
        f" {SPLIT}\nshard_images: 8\nconditions: {{canny: {{}}, sketch: {{}}}}\ntrain: {TRAIN}\nevaluate:"
        f" {EVALUATE}\n"
    )
    line = [*COMMAND, "run", "manifest.yaml", "--address", address]
    return root, subprocess.run(line, cwd=root, env=OPEN, capture_output=True, text=True, timeout=600)


def query(root: Path, sql: str) -> list[tuple[Any, ...]]:
    return Catalog(Workspace(root / "ws")).query(sql)


def test_the_job_ends_complete_with_a_report(made: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    root, ran = made
    assert ran.returncode == 0, ran.stdout + ran.stderr
    page = (root / "ws/report/index.html").read_text()
    assert "random weights" in page and "no_control" in page and "<b>" not in page.split("picture", 1)[1][:40]
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="https' not in page


def test_a_checkpoint_on_the_way_is_shown_on_the_learning_curve_of_its_run_and_nowhere_else(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, _ = made
    ((system,),) = query(root, "SELECT DISTINCT system FROM scores WHERE variant = 'earlier'")
    assert system.endswith("/canny/earlier-8")
    page = (root / "ws/report/index.html").read_text()
    assert "canny: learning curve" in page and ">earlier" not in page
    assert "earlier" not in (root / "ws/report/leaderboard/leaderboard.md").read_text()


def test_every_pair_has_latents_and_hed_was_made_for_its_child(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, _ = made
    assert query(root, "SELECT count(*) FROM latent_rows WHERE status = 'ok'") == [(14,)]
    assert dict(query(root, "SELECT condition, count(*) FROM annotations GROUP BY ALL")) == {
        "canny": 14,
        "hed": 14,
        "sketch": 14,
    }


def test_the_checkpoint_loads_in_diffusers(made: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    from diffusers import ControlNetModel

    root, _ = made
    ((run, images, steps, random_weights, checkpoint),) = query(
        root, "SELECT run, images, steps, random_weights, checkpoint FROM runs"
    )
    assert (images, steps, random_weights) == (16, 4, True) and run.startswith("canny-")
    net, told = ControlNetModel.from_pretrained(root / "ws" / checkpoint / "canny", output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert net.controlnet_mid_block.weight.abs().max() > 0  # a zero convolution that has learned


@pytest.mark.slow
def test_one_image_can_be_drawn_from_the_checkpoint(
    made: tuple[Path, subprocess.CompletedProcess[str]],
    controlmill: Command,
    process: Command,
    tmp_path: Path,
) -> None:
    root, _ = made
    ((checkpoint,),) = query(root, "SELECT checkpoint FROM runs")
    common = [
        "--checkpoint",
        str(root / "ws" / checkpoint / "canny"),
        "--prompt",
        "a picture",
        "--num-inference-steps",
        "2",
        "--resolution",
        "64",
    ]
    drawn = process("sample", *common, "--image", str(root / "photos/03.png"), "--out", "first.png")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.split() == ["first.png", "first.hint.png"]
    again = controlmill("sample", *common, "--image", "first.hint.png", "--hint", "--out", "again.png")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "first.png").read_bytes(), (
        "the hint is all that it takes from the image"
    )
    lost = controlmill(
        "sample", *common, "--image", "first.hint.png", "--hint", "--out", "x.png", "--base", "nowhere"
    )
    assert lost.returncode == 1 and "no such folder" in lost.stderr and lost.stderr.count("\n") == 1


def test_the_modes_reach_the_loop_and_samples_come_from_averages_and_the_base_that_trained_along(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    import torch
    from safetensors.torch import load_file

    from pipeline.stages.generate import load_trained

    root, _ = made
    ((checkpoint, options),) = query(root, "SELECT checkpoint, options FROM runs")
    told = {"unlock": "decoder", "unlock_lr": 1e-4, "ema": 8, "min_snr": 5, "gradient_checkpointing": True}
    assert told.items() <= json.loads(options).items()
    folder = root / "ws" / checkpoint / "canny"
    base, net = load_trained(str(folder), str(next((root / "ws").rglob("model_index.json")).parent))
    for model, part in ((net, "ema"), (base.unet, "ema/unet")):
        saved = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_scores_stand_beside_their_baselines_and_their_ceiling(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, _ = made
    (test,) = query(root, "SELECT count(*) FROM images WHERE split = 'test' AND status = 'ok'")[0]
    prompts = min(4, test)
    rows = query(
        root,
        "SELECT variant, value, low, high, n, n_failed, prompts FROM scores WHERE metric = 'edge_f1' ORDER"
        " BY ALL",
    )
    assert [arm for arm, *_ in rows] == [
        "control",
        "earlier",
        "no_control",
        "real_image",
        "shuffled_condition",
        "vae_round_trip",
    ]
    for arm, value, low, high, n, failed, of in rows:
        assert n == prompts * (1 if arm in ("real_image", "vae_round_trip") else 2) and of == prompts
        assert low <= value <= high and not failed
    assert next(value for arm, value, *_ in rows if arm == "real_image") == 1.0, (
        "the same detector finds the same edges in the image itself"
    )
    assert query(
        root, "SELECT count(*) FROM samples WHERE variant LIKE 'shuffled%' AND image_id = hint_image_id"
    ) == [(0,)]


def test_the_leaderboard_ranks_shows_and_tells_what_each_number_depends_on(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, _ = made
    board = json.loads((root / "ws/report/leaderboard/leaderboard.json").read_text())
    (control,) = [it for it in board["scores"] if (it["arm"], it["metric"]) == ("control", "edge_f1")]
    assert control["passport"]["benchmark"] == query(root, "SELECT DISTINCT benchmark FROM scores")[0][0]
    assert "opencv-canny" in control["passport"]["read again by"]
    names = {part.split()[0] for part in control["passport"]["software"].split(", ")}
    assert {"controlmill", "torch", "diffusers", "transformers", "scipy"} <= names
    assert not {"torchmetrics", "clean-fid", "pillow"} & names, "what no number here was computed with"
    assert control["passport"]["network"] == "none"
    assert {it["which"] for it in board["evidence"]} == {"best", "median", "worst", "same"}
    shown = root / "ws/report/leaderboard"
    assert all(
        (shown / it["generated"]).is_file() and (shown / it["hint"]).is_file() for it in board["evidence"]
    )
    assert "<b>0" not in (shown / "evidence-canny.html").read_text(), "captions stay text"
    told = control["passport"]
    ((checkpoint,),) = query(root, "SELECT checkpoint FROM runs")
    written = json.loads((root / "ws" / checkpoint / "meta.json").read_text())["files"]
    average = written["canny/ema/diffusion_pytorch_model.safetensors"]["sha256"]
    assert told["weights"] == f"sha256 {average}" and told["reader"].startswith("opencv-canny no weights")
    assert told["device"] == "samples: cpu, float32, scores: cpu"
    assert re.fullmatch(r"samples committed [\d-]{10}, scores committed [\d-]{10}", told["date"])
    real = next(it["passport"] for it in board["scores"] if it["arm"] == "real_image")
    assert (real["weights"], real["device"]) == ("none", "samples: no network, scores: cpu")
    columns = [it["name"] for it in board["metrics"]]
    assert columns == sorted(columns, key=measures.place) != sorted(columns), (
        "as defined, not by the alphabet"
    )


@pytest.mark.slow
def test_what_was_trained_is_taken_out_small_with_a_card_of_what_it_does(
    made: tuple[Path, subprocess.CompletedProcess[str]], process: Command, tmp_path: Path
) -> None:
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    root, _ = made
    done = process("mini", "roots", str(root / "ws"), "--export", "roots", "--grid", "grid.png")
    assert done.returncode == 0, done.stderr
    ((checkpoint,),) = query(root, "SELECT checkpoint FROM runs")
    average = load_file(root / "ws" / checkpoint / "canny/ema/diffusion_pytorch_model.safetensors")
    shipped = load_file(tmp_path / "roots/canny/diffusion_pytorch_model.safetensors")
    assert (
        all(torch.equal(shipped[name], average[name].bfloat16()) for name in average)
        and shipped.keys() == average.keys()
    )
    note = json.loads((tmp_path / "roots/canny/controlmill.json").read_text())
    ((value, low, high),) = query(
        root, "SELECT value, low, high FROM scores WHERE variant = 'control' AND metric = 'edge_f1_bsds'"
    )
    assert note["fidelity"]["control"] == [value, low, high] and note["images"] == 16
    assert f"{value:.3f} ({low:.3f} to {high:.3f})" in (tmp_path / "roots/README.md").read_text()
    ((prompts,),) = query(root, "SELECT DISTINCT prompts FROM scores")
    assert Image.open(tmp_path / "grid.png").size == (prompts * 64, 3 * 64), "hints, samples, pictures"
    lacking = process(
        "mini", "roots", str(root / "ws"), "--condition", "canny", "--condition", "hed", "--export", "others"
    )
    assert (
        lacking.returncode == 1
        and "no run of hed is complete" in lacking.stderr
        and not (tmp_path / "others").exists()
    )


def test_a_second_run_makes_nothing_new(
    made: tuple[Path, subprocess.CompletedProcess[str]], ask: Command
) -> None:
    root, _ = made

    def made_when() -> dict[Path, int]:  # pages are written again
        files = (
            path for path in (root / "ws").rglob("*") if path.suffix in (".parquet", ".safetensors", ".jsonl")
        )
        return {
            path: path.stat().st_mtime_ns
            for path in files
            if path.name != "events.jsonl" and not path.is_relative_to(root / "ws" / "report")
        }

    before = made_when()
    again = ask(root, "run", "manifest.yaml")
    assert (
        again.returncode == 0 and "going on in" in again.stdout and again.stdout.count("nothing to do") == 4
    )
    assert made_when() == before


def test_the_catalog_is_rebuilt_with_runs_and_scores(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, _ = made
    tables = {
        "runs": "SELECT * EXCLUDE (seconds) FROM runs ORDER BY ALL",
        "scores": "SELECT * FROM scores ORDER BY ALL",
        "samples": "SELECT * FROM samples ORDER BY ALL",
        "pairs": "SELECT * FROM pairs ORDER BY ALL",
    }
    before = {name: query(root, sql) for name, sql in tables.items()}
    done = subprocess.run([*COMMAND, "catalog", "rebuild", "ws"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {name: query(root, sql) for name, sql in tables.items()} == before


@pytest.mark.slow
def test_a_run_killed_in_training_goes_on_from_its_checkpoint(
    folder: Callable[[int], Path], manifest: Callable[..., Path], tmp_path: Path, controlmill: Command
) -> None:
    folder(6)
    runs = "[{conditions: [canny], images: 80, batch: 4, checkpoint_every: 8}]"
    path = manifest(train=f"{{base: random, runs: {runs}}}", split="{validation: 0.0, test: 0.0}")
    first = subprocess.Popen(
        [*COMMAND, "run", str(path)], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("ws/checkpoints/*/step-*/meta.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    first.kill()
    first.wait()
    (run,) = [folder for folder in (tmp_path / "ws/checkpoints").iterdir() if folder.is_dir()]
    reached = max(json.loads(meta.read_text())["images"] for meta in run.glob("step-*/meta.json"))
    assert 0 < reached < 80
    left = query(tmp_path, "SELECT status, conditions FROM runs")
    assert left == [("running", ["canny"])]
    second = controlmill("run", path)
    assert second.returncode == 0, second.stderr
    log = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    seen = [row["images"] for row in log]
    assert seen == sorted(set(seen)) and seen[-1] == 80
    assert query(tmp_path, "SELECT images, status FROM runs") == [(80, "complete")]


def test_scores_follow_from_the_pictures_and_one_that_does_not_is_named(
    made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    import shutil

    from pipeline import plan as plans
    from pipeline.commands import rescore
    from pipeline.storage import shards

    root, _ = made
    # nobody can ask for those on the way then
    shutil.copytree(root / "ws", tmp_path / "ws", ignore=shutil.ignore_patterns("checkpoints"))
    workspace = Workspace(tmp_path / "ws")
    plan, catalog = plans.load_saved(workspace), Catalog(workspace)
    told: list[str] = []
    assert rescore.rescored(plan, catalog, 10_000, say=told.append) == []
    assert (
        "0 differ" in told[-1]
        and int(told[-1].split()[0]) == query(root, f"SELECT count(*) FROM samples WHERE {FINAL}")[0][0]
    )
    ((path,),) = catalog.query(
        "SELECT shard FROM shards WHERE kind = 'scores' AND name LIKE '%/control' LIMIT 1"
    )
    rows = shards.read(workspace.root / path).to_pylist()
    rows[0]["values"] = [
        (name, value + 0.01 if name == "edge_f1" else value) for name, value in rows[0]["values"]
    ]
    shards.write(
        workspace.root / path, rows, shards.SCORES, shards.metadata(workspace.root / path), replace=True
    )
    (found,) = rescore.rescored(plan, catalog, 10_000, say=told.append)
    assert "edge_f1 of" in found and "stored is" in found


@pytest.mark.slow
def test_scores_stand_beside_those_of_the_libraries(
    made: tuple[Path, subprocess.CompletedProcess[str]], controlmill: Command, tmp_path: Path
) -> None:
    import shutil

    from pipeline import plan as plans
    from pipeline.stages.report import write_page
    from pipeline.stages.stage import StageContext
    from tests.pages import HtmlPage

    root = tmp_path / "copy"
    shutil.copytree(made[0], root)
    ran = controlmill("verify", str(root / "ws"), "--rescore", "20", "--libraries")
    assert ran.returncode == 0, ran.stderr
    table = [line.split("  ") for line in ran.stdout.splitlines() if re.match(r"\S.* \d+\.\d+\.\d+ ", line)]
    found = {cells[0]: float(cells[-1]) for cells in table}
    assert {"edge_f1", "edge_f1_pooled"} <= found.keys() and max(found.values()) < 1e-4, ran.stdout
    assert "no library has this measure: " in ran.stdout
    assert controlmill("verify", str(root / "ws"), "--libraries").returncode == 1
    context = StageContext(plans.load_saved(Workspace(root / "ws")), Catalog(Workspace(root / "ws")), None)  # type: ignore[arg-type]
    shown = HtmlPage(write_page(context)).text
    assert "Scores beside those of the field's libraries" in shown and "edge_f1_pooled" in shown
    with context.catalog.transaction() as connection:
        connection.execute("UPDATE estimate_rows SET input_hash = 'other' WHERE metric = 'edge_f1'")
    hidden = [HtmlPage(write_page(context)).text]  # the scores are others now
    (root / "ws/libraries.json").write_text("{")
    hidden.append(HtmlPage(write_page(context)).text)
    assert not any("beside those of the field's" in page for page in hidden)


def test_a_workspace_with_scores_of_a_measure_that_is_gone_is_read_and_does_not_show_them(
    made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """As an earlier version left it: in the shards of scores and in the table."""
    import shutil

    from pipeline import plan as plans
    from pipeline.benchmark.estimates import estimate
    from pipeline.commands import rescore
    from pipeline.report import leaderboard_scores
    from pipeline.stages.report import write_page
    from pipeline.stages.stage import StageContext
    from pipeline.storage import shards

    root, _ = made
    shutil.copytree(root / "ws", tmp_path / "ws", ignore=shutil.ignore_patterns("checkpoints"))
    workspace = Workspace(tmp_path / "ws")
    plan, catalog = plans.load_saved(workspace), Catalog(workspace)
    for (path,) in catalog.query("SELECT shard FROM shards WHERE kind = 'scores'"):
        rows = shards.read(workspace.root / path).to_pylist()
        rows = [row | {"values": [*row["values"], ("edge_ms_ssim_uint8", 0.16)]} for row in rows]
        shards.write(
            workspace.root / path, rows, shards.SCORES, shards.metadata(workspace.root / path), replace=True
        )
    with catalog.transaction() as connection:
        connection.execute("""INSERT INTO estimate_rows SELECT * REPLACE ('edge_ms_ssim_uint8' AS metric) FROM
        estimate_rows WHERE metric = 'edge_f1'""")
    assert rescore.rescored(plan, catalog, 10_000, say=lambda _: None) == []
    context = StageContext(plan, catalog, None)  # type: ignore[arg-type]
    page = leaderboard_scores.write(plan, catalog, context.systems, tmp_path / "board")
    assert page and write_page(context)
    assert all(
        "uint8" not in page.with_suffix(it).read_text(encoding="utf-8")
        for it in (".html", ".json", ".md", ".csv")
    )
    assert estimate(plan, catalog, context.systems) > 0
    frozen = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["benchmarks"][0]
    assert (frozen["resolution"], frozen["data"]) == (
        64,
        f"folder photos: {frozen['images']} images of the test split, {len(frozen['seeds'])} samples of each",
    )


@pytest.mark.slow
def test_somebody_elses_checkpoint_is_scored_beside_the_runs(
    made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path, ask: Command
) -> None:
    """Here the run's own under another name, so its scores are those of the run; another reader of the same
    condition is told.
    """
    import shutil

    root, _ = made
    shutil.copytree(root, tmp_path / "job")
    ((checkpoint,),) = query(root, "SELECT checkpoint FROM runs")
    text = (root / "manifest.yaml").read_text()
    theirs = f"external: [{{name: theirs, condition: canny, checkpoint: 'ws/{checkpoint}/canny'}}]"
    reader = "readers: {canny: {detector: opencv-canny, low: 50}}"
    (tmp_path / "job" / "manifest.yaml").write_text(
        text.replace("evaluate: {", f"evaluate: {{{theirs}, {reader}, ")
    )
    ran = ask(tmp_path / "job", "run", "manifest.yaml", "--stages", "generate,score,report")
    assert ran.returncode == 0, ran.stderr
    workspace = Workspace(tmp_path / "job/ws")
    sql = """
        SELECT model, value, reader FROM scores
        WHERE variant = 'control' AND metric = 'edge_f1' ORDER BY model"""
    (own, value, reader), (name, again, _) = Catalog(workspace).query(sql)
    board = json.loads((workspace.root / "report/leaderboard/leaderboard.json").read_text())
    assert (own.startswith("canny-"), name) == (True, "theirs") and value == again
    assert (
        reader != query(root, "SELECT DISTINCT reader FROM scores")[0][0]
        and reader in board["benchmarks"][0]["reader"]
    )
    ranks = {
        it["model"]: it["rank"]
        for it in board["scores"]
        if (it["arm"], it["metric"]) == ("control", "edge_f1")
    }
    assert ranks == {own: [1, 2], "theirs": [1, 2]}, "equal models are tied"
    lost = (tmp_path / "job" / "manifest.yaml").read_text().replace(f"ws/{checkpoint}/canny", "nowhere")
    (tmp_path / "job" / "manifest.yaml").write_text(lost)
    told = ask(tmp_path / "job", "run", "manifest.yaml", "--stages", "generate")
    assert (
        told.returncode == 1
        and "evaluate.external[0].checkpoint: theirs: nowhere: no such ControlNet" in told.stderr
    )
