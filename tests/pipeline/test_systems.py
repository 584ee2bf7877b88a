"""Who is compared: what is drawn once for several, what each condition keeps for itself, what a run started
from.
"""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import MillError
from pipeline import plan as plans
from pipeline.benchmark import networks
from pipeline.benchmark.entrants import Entrant
from pipeline.benchmark.systems import ALONE, BEFORE, EARLIER, Item, System, score_key, systems
from pipeline.benchmark.systems import _benchmark as of_benchmark
from pipeline.benchmark.tasks import protocol
from pipeline.cluster.jobs import Job
from pipeline.commands import requirements
from pipeline.dataset.changes import renewed
from pipeline.experiment.pairs import PlannedRun
from pipeline.manifest import Benchmark, load
from pipeline.plan import Plan
from pipeline.stages import generate as stage
from pipeline.stages.stage import StageContext
from pipeline.storage.workspace import Workspace, fingerprint
from train.samplers import TITLES

BASELINES = "[no_control, shuffled_condition, vae_round_trip, real_image, warm_start]"
TEXT = """
name: x
workspace: ws
source: {kind: scenes, count: 4}
image: {resolution: 64}
conditions: {canny: {}, depth_large: {}, pose_openpose: {}}
train: {base: random, runs: [{conditions: [canny], warm_start: START, images: 8},
                              {conditions: [canny], warm_start: START, images: 16}]}
evaluate: {baselines: BASELINES, benchmark: {samples: 40, seeds: [0, 1]},
           readers: {depth_large: {detector: mini}, pose_openpose: {detector: mini}}}
"""
# images of each condition's benchmark
ASKED = {"canny": range(20), "depth_large": range(20), "pose_openpose": range(3)}


class Pairs:
    """A catalog that has these pairs and nothing else."""

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()

    def query(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        if "SELECT run, conditions" in sql:
            return [("one", ["canny"], "c1")]  # so that runs are planned
        if "FROM pairs" in sql:
            return [(f"{number:064d}", "a scene", 64, 64, "maps", number) for number in ASKED[parameters[0]]]
        return []

    def row(self, sql: str, parameters: Any = ()) -> tuple[int]:
        return (0,)

    def committed(self, kind: str, key: str, name: str) -> set[int]:
        return set()


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Plan, list[System]]]:
    """Two runs of canny from one start and one of each other condition, all finished."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    made = [
        Entrant("one", "canny", "c1", "w1"),
        Entrant("two", "canny", "c2", "w2"),
        Entrant("depth", "depth_large", "c3", "w3"),
        Entrant("pose", "pose_openpose", "c4", "w4"),
    ]
    monkeypatch.setattr("pipeline.benchmark.entrants.trained", lambda complete, runs: made)
    monkeypatch.setattr("pipeline.benchmark.systems.base_spec", lambda plan: "base")
    monkeypatch.setattr("pipeline.benchmark.systems.base_fingerprint", lambda spec: "mark")

    def make(changed: str = TEXT, trained_from: str | None = None) -> tuple[Plan, list[System]]:
        from train import checkpoint, integrity, pretrained

        (tmp_path / "m.yaml").write_text(changed.replace("START", str(root)).replace("BASELINES", BASELINES))
        plan = plans.make(load(tmp_path / "m.yaml"), here=False)
        assert plan.manifest.train
        runs = [
            PlannedRun(name, run, "", "", [], [])
            for name, run in zip(("one", "two"), plan.manifest.train.runs, strict=True)
        ]
        monkeypatch.setattr("pipeline.benchmark.systems.planned_runs", lambda plan, catalog: runs)
        meta = {"warm_start": {"canny": trained_from or pretrained.weights_hash(root)}}
        monkeypatch.setattr(
            checkpoint,
            "newest",
            lambda out: (
                integrity.Checkpoint(out / "step", 8, 1, meta) if out.name in ("one", "two") else None
            ),
        )
        return plan, systems(plan, Pairs())  # type: ignore[arg-type]

    return make


def drawn(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """System -> samples that the stage would draw."""
    found: dict[str, int] = {}

    def count(context: Any, function: Any, jobs: Iterable[Job], **more: Any) -> int:
        for job in jobs:
            name = job.args.system.sample_set
            found[name] = found.get(name, 0) + len(job.rows)
        return sum(found.values())

    monkeypatch.setattr(stage, "make_missing", count)
    monkeypatch.setattr(stage, "base_spec", lambda plan: "base")
    stage.generate(StageContext(plan, Pairs(), None))  # type: ignore[arg-type]
    return found


def test_what_no_condition_changes_is_drawn_once_for_all_that_ask_for_the_same_images(
    compared: Callable[..., tuple[Plan, list[System]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = compared()
    assert drawn(plan, monkeypatch) == {
        # canny and depth share, the poses are other images
        "no_control": 2 * (20 + 3),
        "vae_round_trip": 20 + 3,
        "real_image": 20 + 3,
        "one/canny/control": 40,
        "one/canny/shuffled_condition": 40,
        "two/canny/control": 40,
        "two/canny/shuffled_condition": 40,
        "depth/depth_large/control": 40,
        "depth/depth_large/shuffled_condition": 40,
        "pose/pose_openpose/control": 6,
        "pose/pose_openpose/shuffled_condition": 6,
        "warm_start/canny": 40,  # one start of two runs
    }


def test_the_report_waits_for_no_sample_twice(
    compared: Callable[..., tuple[Plan, list[System]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.report.counts import WorkspaceCounts
    from pipeline.stages.report import _stages

    plan, made = compared()
    samples = drawn(plan, monkeypatch)
    counts = WorkspaceCounts(
        workspace="",
        images={"ok": 4},
        sources=4,
        splits={},
        conditions={},
        reasons=[],
        latents=4,
        runs_wanted=0,
        runs=[],
        samples=samples,
        scores=0,
    )
    states = {stage.name: stage.state for stage in _stages(plan, counts, (), made)}
    assert states["generate"] == "done"
    samples["no_control"] -= 1
    assert {stage.name: stage.state for stage in _stages(plan, counts, (), made)}["generate"] == "running"


def test_scores_stay_with_their_condition_where_samples_are_shared(
    compared: Callable[..., tuple[Plan, list[System]]],
) -> None:
    plan, made = compared()
    by_name = {system.name: system for system in made}
    assert len(by_name) == len(made) == 3 * 3 + 4 * 2 + 2
    for arm in ALONE:
        canny, depth, pose = (by_name[f"{arm}/{name}"] for name in ASKED)
        assert (canny.sample_set, canny.key) == (depth.sample_set, depth.key) and canny.key != pose.key
        assert score_key(plan, canny) != score_key(plan, depth) and canny.benchmark != depth.benchmark


def test_scores_stored_by_an_older_version_that_says_the_same_keep_their_identity(
    compared: Callable[..., tuple[Plan, list[System]]],
) -> None:
    """As workspaces have them: neither a measure that was taken out nor one that now thins wide lines makes a
    sample of Canny's thin ones be read again.
    """
    plan, made = compared()
    names = (
        "edge_f1_bsds",
        "edge_f1",
        "edge_f1_1px",
        "edge_f1_2px",
        "edge_precision",
        "edge_recall",
        "edge_chamfer",
        "edge_ms_ssim",
        "edge_ms_ssim_uint8",
        "edge_ssim",
        "edge_f1_bsds_pooled",
        "edge_f1_pooled",
    )
    canny = next(system for system in made if system.condition == "canny")
    assert plan.manifest.evaluate is not None
    assert score_key(plan, canny) == fingerprint(
        {
            "samples": canny.key,
            "maker": plan.conditions["canny"].fingerprint,
            "reader": plan.reader("canny").fingerprint,
            "metrics": dict.fromkeys(names, "1"),
            "networks": networks.identity(plan.manifest.evaluate),
            "version": 2,
        }
    )


@pytest.mark.parametrize(
    "change",
    [
        ("resolution: 64", "resolution: 128"),
        ("seeds: [0, 1]", "seeds: [0, 2]"),
        ("samples: 40", "samples: 10"),
    ],
)
def test_other_pictures_seeds_or_images_are_other_samples(
    change: tuple[str, str], compared: Callable[..., tuple[Plan, list[System]]]
) -> None:
    (_, before), (_, after) = compared(), compared(TEXT.replace(*change))
    few = {"pose_openpose"} if "samples" in change[0] else set()  # its three images are asked for in any case
    assert all(
        (one.key == other.key) == (one.condition in few) for one, other in zip(before, after, strict=True)
    )


def test_the_scale_of_a_controlnet_does_not_change_what_is_drawn_without_one(
    compared: Callable[..., tuple[Plan, list[System]]],
) -> None:
    (_, before), (_, after) = (
        compared(),
        compared(TEXT.replace("samples: 40", "samples: 40, controlnet_conditioning_scale: 0.5")),
    )
    same = {one.variant: one.key == other.key for one, other in zip(before, after, strict=True)}
    assert {arm for arm, kept in same.items() if kept} == set(ALONE)


@pytest.mark.parametrize("branches", ["conditional", "weighted"])
def test_a_guided_hint_is_another_benchmark_and_is_sampled_so(
    compared: Callable[..., tuple[Plan, list[System]]], monkeypatch: pytest.MonkeyPatch, branches: str
) -> None:
    (_, before), (_, said), (plan, after) = (
        compared(TEXT.replace("samples: 40", f"samples: 40{more}"))
        for more in ("", ", cfg_hint: both", f", cfg_hint: {branches}")
    )
    assert [one.key for one in before] == [one.key for one in said]
    assert {one.variant for one, other in zip(before, after, strict=True) if one.key == other.key} == set(
        ALONE
    )
    asked: list[stage.GeneratePart] = []
    monkeypatch.setattr(
        stage, "make_missing", lambda context, function, jobs, **more: asked.extend(it.args for it in jobs)
    )
    monkeypatch.setattr(stage, "base_spec", lambda plan: "base")
    stage.generate(StageContext(plan, Pairs(), None))  # type: ignore[arg-type]
    wanted = {"num_inference_steps": 20, "guidance_scale": 7.5, "cfg_hint": branches}
    assert asked and all(it.benchmark.model_dump(include=set(wanted)) == wanted for it in asked)


def test_another_sampler_is_another_benchmark_and_is_sampled_so(
    compared: Callable[..., tuple[Plan, list[System]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        compared(TEXT.replace("samples: 40", f"samples: 40{more}"))
        for more in ("", *(f", sampler: {name}" for name in TITLES))
    ]
    usual, *named = ([system.key for system in systems] for _, systems in made)
    assert usual == named[list(TITLES).index("ddim")]
    assert len({key for keys in named for key in keys}) == len(TITLES) * len(set(usual))
    asked: list[stage.GeneratePart] = []
    monkeypatch.setattr(
        stage, "make_missing", lambda context, function, jobs, **more: asked.extend(it.args for it in jobs)
    )
    monkeypatch.setattr(stage, "base_spec", lambda plan: "base")
    stage.generate(StageContext(made[-1][0], Pairs(), None))  # type: ignore[arg-type]
    assert asked and {it.benchmark.sampler for it in asked} == {list(TITLES)[-1]}


@pytest.mark.parametrize("base", ["random", "mini"])
def test_steps_that_a_sampler_can_not_take_on_the_base_are_told_before_any_work(
    base: str, tmp_path: Path
) -> None:
    frozen = "samples: 40, num_inference_steps: 1000, sampler: "
    text = TEXT.replace("base: random", f"base: {base}").replace("BASELINES", "[no_control]")
    told = {}
    for name in TITLES:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.replace("START", "mini/canny").replace("samples: 40", frozen + name))
        told[name] = requirements.missing(plans.make(load(path)))
    assert all(len(lacks) == 1 for name, lacks in told.items() if name in ("unipc", "dpm++")), told
    place, _, sentence = told["unipc"][0].partition("num_inference_steps: ")
    assert place.endswith("unipc.yaml:9: evaluate.benchmark.")
    assert sentence.startswith("the sampler unipc can't take 1000 steps on this base, which has")


@pytest.mark.parametrize(
    ("frozen", "fingerprints"),
    [
        (Benchmark(), ("57403e8d6439edcb", "e7ad695019c19772")),
        (
            Benchmark(
                split="validation", samples=7, seeds=[3, 1], num_inference_steps=9, guidance_scale=2.5,
                negative_prompt="blurry", controlnet_conditioning_scale=0.8, cfg_hint="conditional",
            ),
            ("c2bbfdf252cd1b35", "a29957784974cf23"),
        ),
        (
            Benchmark(samples=20, num_inference_steps=10, guidance_scale=3, cfg_hint="conditional"),
            ("8f5ab2b8fb2a386c", "c1674d32081a9648"),
        ),
    ],
    ids=["defaults", "everything", "demo"],
)  # fmt: skip
def test_a_benchmark_has_the_fingerprints_that_it_had_under_its_keys_first_names(
    frozen: Benchmark, fingerprints: tuple[str, str]
) -> None:
    _, *found, _ = fingerprints_of(frozen)
    assert tuple(found) == fingerprints


def fingerprints_of(frozen: Benchmark, drawing: int = 1) -> tuple[Any, ...]:
    plan: Any = SimpleNamespace(
        manifest=SimpleNamespace(evaluate=SimpleNamespace(benchmark=frozen)),
        conditions={"canny": SimpleNamespace(fingerprint="d" * 16, drawing=drawing)},
        image_key="k",
    )
    rows = [(image_id, f"caption {image_id}", 64, 64, "s", 0) for image_id in "ab"]
    catalog: Any = SimpleNamespace(query=lambda sql, given=(): rows if "pairs" in sql else [])
    return of_benchmark(plan, catalog, "canny", "b", renewed(catalog))


def test_weighted_guidance_is_a_benchmark_of_its_own_of_the_same_samples_without_a_hint() -> None:
    both, conditional, weighted = (
        fingerprints_of(Benchmark(cfg_hint=how)) for how in ("both", "conditional", "weighted")
    )
    assert len({one[1] for one in (both, conditional, weighted)}) == 3
    assert both[2] == conditional[2] == weighted[2]


def test_the_precision_of_samples_is_part_of_a_benchmark_where_it_is_not_fp32() -> None:
    said, low, chosen = (fingerprints_of(Benchmark(precision=name)) for name in ("fp32", "bf16", "auto"))
    assert said == fingerprints_of(Benchmark())
    for number in (1, 2):  # with a hint, and without
        assert len({one[number] for one in (said, low, chosen)}) == 3
    assert said[3] == low[3] == chosen[3]  # what others are asked for
    assert "precision" not in protocol(Benchmark(), "b")
    assert protocol(Benchmark(precision="bf16"), "b")["precision"] == "bf16"


def test_small_images_are_drawn_more_at_a_time_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "device", lambda: "cpu")
    sizes = {
        side: stage._together([Item("a", "", side, side, "s", 0)]) for side in (128, 256, 384, 512, 1024)
    }
    assert sizes == {128: 16, 256: 16, 384: 7, 512: 4, 1024: 4}
    assert stage._together([]) == 16


def test_submitted_pictures_answer_a_task_whatever_protocol_ours_have() -> None:
    *_, one = fingerprints_of(Benchmark())
    *_, other = fingerprints_of(Benchmark(num_inference_steps=50, guidance_scale=3, negative_prompt="blurry"))
    assert one == other
    for changed in (
        Benchmark(seeds=[1]),
        Benchmark(split="validation"),
        Benchmark(samples=1000, seeds=[0, 1]),
    ):
        assert fingerprints_of(changed)[-1] != one


def test_a_run_stands_beside_what_it_started_from(compared: Callable[..., tuple[Plan, list[System]]]) -> None:
    _, made = compared()
    before = [system for system in made if system.variant == BEFORE]
    assert [system.name for system in before] == ["one/canny/warm_start", "two/canny/warm_start"]
    control = next(system for system in made if system.name == "one/canny/control")
    for system in before:
        assert (
            system.checkpoint.endswith("/root")
            and system.items == control.items
            and system.benchmark == control.benchmark
        )
        assert system.hint_of(0) == control.hint_of(0), "its own hint, as for the run"
    _, without = compared(TEXT.replace("BASELINES", "[no_control]"))
    assert {system.variant for system in without} == {"control", "no_control"}


def test_a_run_stands_beside_the_checkpoints_that_it_kept_on_its_way(
    compared: Callable[..., tuple[Plan, list[System]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from train import checkpoint, integrity

    compared()
    monkeypatch.setattr(
        checkpoint,
        "kept",
        lambda out: [integrity.Checkpoint(out / f"step-{step}", 10 * step, step, {}) for step in (1, 2)],
    )
    made = [
        Entrant("one", "canny", "checkpoints/one/step-2/canny", "w1"),
        Entrant("theirs", "canny", "/elsewhere", "w2"),
    ]
    monkeypatch.setattr("pipeline.benchmark.entrants.trained", lambda complete, runs: made)
    _, found = compared(TEXT.replace("BASELINES", "[no_control, earlier]"))
    earlier = [system for system in found if system.variant == EARLIER]
    told = [(it.name, it.checkpoint, it.seen) for it in earlier]
    assert told == [("one/canny/earlier-10", "checkpoints/one/step-1/canny", 10)], (
        "the last is the run itself, and others keep nothing here"
    )
    control = next(system for system in found if system.name == "one/canny/control")
    assert (
        earlier[0].items == control.items
        and earlier[0].benchmark == control.benchmark
        and earlier[0].key != control.key
    )
    assert earlier[0].hint_of(0) == control.hint_of(0)


def test_a_start_that_is_no_longer_what_the_run_was_trained_from_is_told(
    compared: Callable[..., tuple[Plan, list[System]]],
) -> None:
    with pytest.raises(
        MillError,
        match=(
            r"root has other weights than those that one started from: put them back, delete .*/one to train"
            r" it again"
        ),
    ):
        compared(trained_from="0" * 16)


def test_a_start_in_the_workspace_is_named_below_it_so_that_the_workspace_can_move(
    compared: Callable[..., tuple[Plan, list[System]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = compared()
    moved = dataclasses.replace(plan, workspace=Workspace(plan.workspace.root.parent))
    assert {system.checkpoint for system in systems(moved, Pairs()) if system.variant == BEFORE} == {"root"}  # type: ignore[arg-type]


def test_hints_that_are_drawn_otherwise_are_other_benchmarks_and_other_runs(tmp_path: Path) -> None:
    """Ten classes of COCO-Stuff got colours of their own; scenes show none of them and stay as they are."""
    before, after = fingerprints_of(Benchmark()), fingerprints_of(Benchmark(), drawing=2)
    assert before[1] != after[1] and before[-1] != after[-1]
    folder = "{kind: folder, path: ., provided: {seg_coco: {path: 'a/{stem}.png', labels: CODING}}}"
    for source, detector, drawing in (
        ("{kind: scenes, count: 4, seed: 1}", "auto", 1),
        ("{kind: scenes, count: 4, seed: 1}", "mini", 1),
        (folder.replace("CODING", "coco_stuff_171"), "auto", 2),
        (folder.replace("CODING", "coco_stuff_png"), "auto", 2),
        (folder.replace("CODING", "coco_panoptic_133"), "auto", 1),
        (folder.replace("CODING", "coco_stuff_171"), "oneformer-coco", 1),  # gives panoptic labels
    ):
        (tmp_path / "m.yaml").write_text(
            f"name: d\nworkspace: {tmp_path}/ws\nsource: {source}\n"
            f"conditions: {{seg_coco: {{detector: {detector}}}}}\n"
        )
        plan = plans.make(load(tmp_path / "m.yaml"), here=False)
        assert plan.conditions["seg_coco"].drawing == drawing, (source, detector)
