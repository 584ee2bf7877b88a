"""Every measure of the leaderboard by name: condition fidelity, alignment with the caption, distance to real
images.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from evaluate import fidelity, paper
from evaluate.comparison import Metric

Features = NDArray[np.float32]  # [n, d]
Prompts = NDArray[np.int64]  # [n]: number of the prompt that a sample belongs to
Block = NDArray[np.int64]  # [prompts]: the block that a prompt is left out with
# of all samples, and without each block in turn
Distance = Callable[[Features, Prompts, Block], tuple[float, NDArray[np.float64]]]

PUBLISHED = "inception"  # the extractor of published distances
FEW = 20  # images of each side, below which nothing is said of their neighbourhoods, nor of infinitely many
_NETWORKS = {
    metric.name: metric
    for metric in (
        Metric(
            name="clip_score",
            title="CLIP score",
            definition="100 cos of image and caption by {network}, not below 0 (torchmetrics)",
            best=100.0,
        ),
        Metric(
            name="clip_image",
            title="CLIP image similarity",
            best=100.0,
            limits=(-100.0, 100.0),
            level="sample",
            definition="100 cos of the generated and the held-out image by {network}",
        ),
        Metric(
            name="fd",
            title="Fréchet distance",
            level="set",
            higher_is_better=False,
            worst=float("inf"),
            best=0.0,
            definition="Fréchet distance to the held-out images' features by {network}, clean-fid's resizing",
        ),
        Metric(
            name="fd_groups",
            title="Fréchet distance, mean of seeds",
            level="set",
            higher_is_better=False,
            worst=float("inf"),
            best=0.0,
            column="paper",
            definition=(
                "Fréchet distance of each seed's samples to the held-out images' features by {network},"
                " clean-fid's resizing, averaged over seeds"
            ),
            quirks=(
                "a group has one image a prompt; ADE20K's 2,000 are fewer than Inception's 2,048"
                " dimensions, which about doubles it. ControlNet++'s formula, network and groups;"
                f" {paper.ASKED}"
            ),
        ),
        Metric(
            name="fd_infinity",
            title="Fréchet distance at infinity",
            level="set",
            higher_is_better=False,
            worst=float("inf"),
            best=0.0,
            limits=(-float("inf"), float("inf")),
            column="diagnostic",
            definition=(
                "Fréchet distance of infinitely many prompts, features by {network}: a line in 1/n through"
                " the distance of all and of two halves, generated against held-out images (after Chong &"
                " Forsyth 2020); it may fall below 0"
            ),
        ),
        Metric(
            name="kd",
            title="Kernel distance",
            version="2",
            level="set",
            higher_is_better=False,
            worst=float("inf"),
            best=0.0,
            limits=(-float("inf"), float("inf")),
            definition=(
                "KID's cubic kernel distance to the held-out images' features by {network}, over all pairs of"
                " different prompts; unbiased, so it may fall below 0"
            ),
        ),
        Metric(
            name="cmmd",
            title="CMMD",
            level="set",
            higher_is_better=False,
            worst=float("inf"),
            best=0.0,
            column="diagnostic",
            definition=(
                "1000 times the squared discrepancy of a Gaussian kernel (sigma 10) between unit features by"
                " {network}, biased as published"
            ),
        ),
        Metric(
            name="precision",
            title="Precision",
            level="set",
            column="diagnostic",
            definition=(
                "share of generated images that lie within reach of a real one's 5th neighbour, features by"
                " {network}"
            ),
        ),
        Metric(
            name="recall",
            title="Recall",
            level="set",
            column="diagnostic",
            definition=(
                "share of real images that lie within reach of a generated one's 5th neighbour, features by"
                " {network}"
            ),
        ),
        Metric(
            name="density",
            title="Density",
            level="set",
            limits=(0.0, float("inf")),
            column="diagnostic",
            definition="real neighbourhoods that a generated image lies in, over 5, features by {network}",
        ),
        Metric(
            name="coverage",
            title="Coverage",
            level="set",
            column="diagnostic",
            definition=(
                "share of real images with a generated one in their neighbourhood, features by {network}"
            ),
        ),
    )
}


@functools.cache
def metric(name: str) -> Metric:
    """KeyError: there is no such measure."""
    if name in fidelity.METRICS:
        return fidelity.METRICS[name]
    match = re.fullmatch(r"(\w+) \((.+)\)", name)
    if not match or match[1] not in _NETWORKS:
        raise KeyError(name)
    template = _NETWORKS[match[1]]
    return dataclasses.replace(
        template,
        name=name,
        title=f"{template.title} ({match[2]})",
        definition=template.definition.format(network=match[2]),
    )


def place(name: str) -> tuple[int, str]:
    """Where a measure stands among all others, in the order of their definitions: what belongs together
    stays together. KeyError: there is no such measure.
    """
    what, _, network = metric(name).name.partition(" (")
    return [*fidelity.METRICS, *_NETWORKS].index(what), network


# what computes the measures of a kind of map, beside numpy
_OF_KIND = {
    "edges": ("opencv-python-headless", "scikit-image", "scipy"),
    "soft_edges": ("opencv-python-headless", "scikit-image", "scipy"),
    "lines": ("opencv-python-headless", "scipy"),
    "people": ("scipy",),
}
_OF_NETWORK = {
    "mini": ("torch",),
    "mini-clip": ("torch",),
    "efficientnet": ("torch",),
    "inception": ("torch", "clean-fid", "pillow"),
    "dinov2": ("torch", "transformers", "clean-fid", "pillow"),
    "clip": ("torch", "transformers", "clean-fid", "pillow"),
}
_OF_A_CLIP = ("torch", "transformers", "pillow")  # of clip_score and clip_image, named by its folder


def software(name: str) -> tuple[str, ...]:
    """The distributions that a value of this measure, and its interval, is computed with."""
    if name in fidelity.METRICS:
        own = _OF_KIND.get(fidelity.METRICS[name].kind, ())
    else:
        own = _OF_NETWORK.get(name.partition("(")[2].rstrip(")"), _OF_A_CLIP)
    return tuple(sorted({"numpy", "scipy", *own}))


def primary(kind: str) -> Metric:  # a kind of map
    """The measure that says how well a condition of this kind is kept."""
    return next(fidelity.METRICS[name] for name in fidelity.NAMES[kind] if fidelity.METRICS[name].primary)


def headline(kind: str) -> Metric:
    """The same of one sample, where the primary measure is one of the whole set."""
    best = primary(kind)
    if best.level == "sample":
        return best
    return next(
        fidelity.METRICS[name] for name in fidelity.NAMES[kind] if fidelity.METRICS[name].level == "sample"
    )


def clip(model: str) -> Metric:
    """Named after the model, since scores of two models are no more alike than metres and feet."""
    return metric(f"clip_score ({_short(model)})")


def clip_image(model: str) -> Metric:
    return metric(f"clip_image ({_short(model)})")


def distances(
    extractor: str,  # a name of evaluate.extractors
    reference: Features,  # [r, d] of the held-out images themselves
    of_reference: Prompts,
    prompts: int,  # that something was made for
    seed: NDArray[np.int64] | None = None,  # [n] number of each sample's seed; None = all have one
) -> Iterator[tuple[Metric, Distance]]:
    """How far samples lie from the real images of their prompts."""
    from evaluate import distribution, frechet
    from evaluate.features import Images

    real = Images(reference, of_reference)
    moments = frechet.Moments.of(reference)

    def named(what: str) -> Metric:
        return dataclasses.replace(metric(f"{what} ({extractor})"), dimensions=reference.shape[1])

    def left_out(distance: Callable[[Features, Features], float]) -> Distance:
        def measured(generated: Features, prompt: Prompts, block: Block) -> tuple[float, NDArray[np.float64]]:
            rest = (block != left for left in range(int(block.max()) + 1))
            return distance(generated, reference), np.array(
                [distance(generated[kept[prompt]], reference[kept[of_reference]]) for kept in rest]
            )

        return measured

    yield (
        named("fd"),
        lambda generated, prompt, block: (
            frechet.frechet(frechet.Moments.of(generated), moments),
            frechet.frechet_without(Images(generated, prompt), real, block),
        ),
    )
    groups = np.array([]) if seed is None else np.bincount(seed)
    if extractor == PUBLISHED and len(groups) > 1 and groups.min() >= FEW:
        yield (
            dataclasses.replace(named("fd_groups"), groups=len(groups)),
            lambda generated, prompt, block: _mean_of_groups(
                [
                    (
                        frechet.frechet(frechet.Moments.of(generated[seed == group]), moments),
                        frechet.frechet_without(
                            Images(generated[seed == group], prompt[seed == group]), real, block
                        ),
                    )
                    for group in range(len(groups))
                ]
            ),
        )
    yield (
        named("kd"),
        lambda generated, prompt, block: distribution.kernel_distance_without(
            Images(generated, prompt), real, block
        ),
    )
    yield named("cmmd"), left_out(distribution.cmmd)
    if min(len(reference), prompts) < FEW:
        return
    if min(len(reference), prompts) >= frechet.LINE * reference.shape[1]:
        yield (
            named("fd_infinity"),
            lambda generated, prompt, block: frechet.frechet_infinity(Images(generated, prompt), real, block),
        )
    for name in ("precision", "recall", "density", "coverage"):
        yield named(name), left_out(functools.partial(_neighbourhood, name))


def _mean_of_groups(
    measured: list[tuple[float, NDArray[np.float64]]],
) -> tuple[float, NDArray[np.float64]]:
    values, without = zip(*measured, strict=True)
    return float(np.mean(values)), np.mean(without, axis=0)


def _neighbourhood(name: str, generated: Features, known: Features) -> float:
    """Precision, recall, density or coverage; 0 where there are too few for neighbours."""
    from evaluate import distribution

    return distribution.prdc(known, generated)[name] if min(len(generated), len(known)) > 5 else 0.0


def _short(model: str) -> str:
    return "mini-clip" if model == "mini" else str(model).rstrip("/").rsplit("/", 1)[-1]
