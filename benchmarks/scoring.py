"""What scoring samples costs beside the two networks that look at them: Canny F1 (exact, 1 px), Inception
features and a Fréchet distance, CLIP scores.

The networks are random, of the true architectures (Inception of 2015, CLIP ViT-B/16). Both sides see the same
pictures in alternating rounds: `networks` are the bare passes over prepared tensors, `scoring` is all that
lies between pictures and numbers.

    python benchmarks/scoring.py --images 32 --rounds 3 --out scoring.json
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

BATCH = 16
CAPTION = "a photograph of a street with red houses, people who walk their dogs and a tree in the foreground"


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32, help="of a round")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--tiny", action="store_true", help="a CLIP of some thousand weights, to try the benchmark itself"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file; nothing is written without it")
    options = parser.parse_args()

    import torch

    from benchmarks.annotate import machine
    from evaluate import alignment, extractors

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        inception, clip = make_weights(Path(folder), options.tiny)
        extractor, encoder = extractors.load("inception", inception), alignment.load(clip)
        sides = {
            "networks": networks(extractor, encoder, options.size),
            "scoring": scoring(extractor, encoder, options),
        }
        for side in sides.values():
            side(BATCH)  # the first pass of each finds its memory
        peaks = [peak()]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for turn in range(options.rounds):
            for name in list(sides)[:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                parts = sides[name](options.images)
                runs[name].append({"seconds": time.perf_counter() - start, **parts})
        peaks.append(peak())
        sides["scoring"](4 * options.images)
        peaks.append(peak())
    found = report(runs, peaks, options, machine("cpu"))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


def report(
    runs: dict[str, list[dict[str, float]]], peaks: list[float], options: argparse.Namespace, machine: str
) -> dict[str, Any]:
    """The distance is made once a set, whatever n is: it stands beside the cost of the images."""
    n = options.images
    median = {
        side: {name: statistics.median(run[name] for run in rows) for name in rows[0]}
        for side, rows in runs.items()
    }
    each = {
        name: 1000 * seconds / n
        for name, seconds in median["scoring"].items()
        if name not in ("seconds", "distance")
    }
    ratios = [
        (a["seconds"] - a["distance"]) / b["seconds"]
        for a, b in zip(runs["scoring"], runs["networks"], strict=True)
    ]
    ratio = statistics.median(ratios)
    distance = median["scoring"]["distance"]
    at_1000 = ratio + distance / (1000 * median["networks"]["seconds"] / n)
    print(
        f"{n} pictures of side {options.size}, {options.threads} threads, {options.rounds} rounds:"
        " milliseconds a picture\n"
    )
    print(f"the two networks alone {1000 * median['networks']['seconds'] / n:>10.1f}")
    for name, milliseconds in each.items():
        print(f"  scoring: {name:<14}{milliseconds:>8.1f}")
    print(
        f"scoring / networks, for each picture {ratio:.3f}; with one distance ({distance:.1f} s) for 1,000"
        f" pictures {at_1000:.3f}"
    )
    print(
        f"peak memory (MiB) after {BATCH}, {n} and {4 * n} pictures: {', '.join(f'{it:.0f}' for it in peaks)}"
    )
    return {
        "machine": machine,
        "threads": options.threads,
        "images": n,
        "size": options.size,
        "tiny": options.tiny,
        "load_before": LOAD,
        "ratio": round(ratio, 3),
        "ratio_with_distance_for_1000": round(at_1000, 3),
        "ms_per_image": {k: round(v, 2) for k, v in each.items()},
        "networks_ms_per_image": round(1000 * median["networks"]["seconds"] / n, 2),
        "distance_s": round(distance, 2),
        "peak_mib": {"pictures": [BATCH, n, 4 * n], "peak": [round(it) for it in peaks]},
        "runs": runs,
    }


def networks(extractor: Any, encoder: Any, size: int) -> Callable[[int], dict[str, float]]:
    """Their passes alone, on tensors that are ready."""
    import torch

    pictures = next(batches(BATCH, size))[0]
    seen = torch.randn(BATCH, 3, extractor.side, extractor.side)
    small = torch.randn(BATCH, 3, encoder.side, encoder.side)
    words = encoder.tokens([CAPTION] * len(pictures))

    def run(count: int) -> dict[str, float]:
        with torch.inference_mode():
            for start in range(0, count, BATCH):
                n = min(BATCH, count - start)
                extractor.forward(seen[:n])
                encoder.model.vision_model(pixel_values=small[:n])
                encoder.model.text_model(**{name: value[:n] for name, value in words.items()})
        return {}

    return run


def scoring(extractor: Any, encoder: Any, options: argparse.Namespace) -> Callable[[int], dict[str, float]]:
    """Pictures in, numbers out; only the features of all pictures are kept."""
    from evaluate.alignment import similarity
    from evaluate.edges import edge_counts, f1
    from evaluate.frechet import Moments, frechet

    reference = Moments.of(np.random.default_rng(0).normal(size=(4096, extractor.dimensions)))
    _ = reference.factor  # once for all systems

    def run(count: int) -> dict[str, float]:
        spent = {"Canny": 0.0, "F1 exact, 1 px": 0.0, "features": 0.0, "CLIP score": 0.0, "distance": 0.0}
        features, scores = [], []

        def timed(name: str, call: Callable[[], Any]) -> Any:
            start = time.perf_counter()
            found = call()
            spent[name] += time.perf_counter() - start
            return found

        for pictures, truths in batches(count, options.size):
            maps = timed(
                "Canny", lambda pictures=pictures: [cv2.Canny(picture, 100, 200) for picture in pictures]
            )
            timed(
                "F1 exact, 1 px",
                lambda maps=maps, truths=truths: scores.extend(
                    f1(edge_counts(truth, made, reach))
                    for truth, made in zip(truths, maps, strict=True)
                    for reach in (0.0, 1.0)
                ),
            )
            features.append(timed("features", lambda pictures=pictures: extractor(pictures)))
            timed(
                "CLIP score",
                lambda pictures=pictures: scores.extend(
                    similarity(encoder.images(pictures), encoder.texts([CAPTION] * len(pictures))).clip(0)
                ),
            )
        timed("distance", lambda: frechet(Moments.of(np.concatenate(features)), reference))
        assert np.isfinite(scores).all()
        return spent

    return run


def batches(count: int, size: int) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Photographs, one pixel off and noisy as a good sample would be, with the edges of the originals."""
    if not PHOTOGRAPHS:
        from benchmarks.annotate import photographs

        for number, picture in enumerate(photographs(BATCH, size)):
            noise = np.random.default_rng(number).normal(0, 3, picture.shape)
            sample = (np.roll(picture, 1, axis=1) + noise).clip(0, 255).astype(np.uint8)
            PHOTOGRAPHS.append((sample, cv2.Canny(np.ascontiguousarray(picture), 100, 200)))
    for start in range(0, count, BATCH):
        part = PHOTOGRAPHS[: min(BATCH, count - start)]
        yield [sample for sample, _ in part], [truth for _, truth in part]


PHOTOGRAPHS: list[tuple[np.ndarray, np.ndarray]] = []
LOAD = list(os.getloadavg())  # of the machine, before this


def make_weights(folder: Path, tiny: bool) -> tuple[Path, Path]:
    """The files of both networks."""
    from transformers import CLIPConfig, CLIPModel

    from benchmarks import small_networks
    from evaluate import extractors

    inception = small_networks.inception(folder)
    # as if it were the published file: no other is run
    extractors.INCEPTION_SHA256 = hashlib.sha256(inception.read_bytes()).hexdigest()
    if tiny:
        return inception, small_networks.clip(folder / "clip", positions=77)
    place = folder / "clip-vit-base-patch16"
    place.mkdir()
    text = {"eos_token_id": 53, "bos_token_id": 52, "pad_token_id": 53}
    CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 16})).save_pretrained(str(place))
    small_networks.words(place)
    small_networks.prepared(place, 224)
    return inception, place


def peak() -> float:
    """MiB that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    # Python puts this file's folder first, where this file would hide the package of the same name
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(place for place in sys.path if Path(place).resolve() != here)]
    main()
