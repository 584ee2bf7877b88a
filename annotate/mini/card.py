"""The card of a mini detector: data, cost, scores and weaknesses, from the same facts that its note holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TARGETS = {
    "depth_delta_1.25": "pixels whose depth in metres is right within 25 %, nothing aligned (target 0.95)",
    "normals_mean_angle": "mean angle of the normals, degrees (target 12)",
    "miou_coco_stuff_171": "mIoU, COCO-Stuff (target 0.75)",
    "miou_ade20k_150": "mIoU, ADE20K (target 0.75)",
    "pck_0.1": "joints in sight that are found within a tenth of the figure (target 0.85)",
    "objects_found": "named objects and persons that are found, shape and colour (target 0.90)",
    "objects_that_are_named": "found objects and persons that are named",
    "scenes_with_all_found": "scenes in which everything named is found",
}
WEAKNESSES = (
    (
        "It knows rendered scenes and what a model draws in their place. What it says of photographs means"
        " nothing, so `auto` never takes it."
    ),
    "One figure at most. Joints behind something are guesses.",
    (
        "What is everywhere was learned beside the joints in the whole picture, a task that its recipe no"
        " longer has: it told left from right in three figures of four, and the network of the figure alone"
        " does better."
    ),
    (
        "Two objects of one colour that touch in the picture count as one, and one that is cut in two by"
        " another counts as two."
    ),
    (
        "It was trained at one size; other pictures are scaled to it and the maps back, so their fine detail"
        " is lost."
    ),
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the note beside the weights says of them too."""

    parameters: int
    sha256: str
    scores: Mapping[str, Mapping[str, Any]]  # what the pictures were -> scores.measure
    spent: Mapping[str, float]  # images, cpu_seconds
    spent_on_figures: Mapping[str, float]
    machine: str


def write(
    detector: Trained,
    *,
    wanted: tuple[int, int],  # images, and figures, that the recipe asks for
    data: str,  # one sentence: what the scenes were
    returned: float | None,  # share of the pictures that had been through a VAE; None = no VAE was given
) -> str:  # Markdown
    """Says what is unfinished before it says what is good."""
    through = (
        f", and {returned:.0%} of them have been through the mini base's VAE" if returned is not None else ""
    )
    lines = [
        "# ControlMill's mini detector",
        "",
        (
            "Reads rendered scenes, and what a model draws in their place: depth, normals, labels of"
            " COCO-Stuff and of ADE20K, the joints of one figure, and each object's shape and colour. Scores"
            " that rest on it must say so."
        ),
        "",
        _training(detector, wanted),
        "",
        (
            "**Network.** A convolutional U for what is everywhere, and one for the joints of a figure that"
            f" is cut out and scaled to one size: {detector.parameters / 1e6:.2f} M parameters"
            " (`annotate/mini/network.py`, `annotate/mini/figure.py`), shipped in bfloat16; sha256"
            f" `{detector.sha256}`."
        ),
        "",
        (
            f"**Data.** {data} Their truth is the renderer's. Pictures are spoiled by blur, noise, other"
            f" light and JPEG{through}."
        ),
        "",
        *_table(detector.scores),
        "",
        "mIoU is of the pixels of all scenes together and has no interval.",
        "",
        "**Weaknesses.**",
        "",
        *(f"- {line}" for line in WEAKNESSES),
        "",
        "**Licence.** Apache-2.0. The weights were made by `manifests/mini/detector.yaml` alone.",
        "",
    ]
    return "\n".join(lines)


def _training(detector: Trained, wanted: tuple[int, int]) -> str:
    spent, figures = detector.spent, detector.spent_on_figures
    lacks = " and ".join(
        f"{seen:,} of {asked:,} {what}"
        for seen, asked, what in zip(
            (spent["images"], figures["images"]), wanted, ("images", "figures"), strict=True
        )
        if seen < asked
    )
    minutes = (spent["cpu_seconds"] + figures["cpu_seconds"]) / 60
    return (
        f"**Training is {f'unfinished: {lacks}' if lacks else 'complete'}.** {spent['images']:,} images, then"
        f" {figures['images']:,} figures, {minutes:.0f} CPU minutes of {detector.machine}, one thread,"
        " rendering apart."
    )


def _table(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first = next(iter(scores.values()))
    return [
        (
            f"**Scores** on {first['n']} held-out scenes with {first['objects']} objects and persons and"
            f" {first['joints']} joints in sight, with 95 % intervals:"
        ),
        "",
        f"| | {' | '.join(scores)} |",
        f"|---|{'---|' * len(scores)}",
        *(
            f"| {text} | {' | '.join(_shown(one[name]) for one in scores.values())} |"
            for name, text in TARGETS.items()
        ),
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value[0]:.3f} ± {value[1]:.3f}" if isinstance(value, list) else f"{value:.3f}"
