"""Whether a published number was got as this leaderboard's were: else the two stand apart, and what differs
is said.
"""

from collections.abc import Iterable, Iterator

from annotate.annotator import PROVIDED
from pipeline.report.leaderboard_data import PROTOCOL, FrozenBenchmark, Published

KNOWN_AS = {  # what this project calls a thing -> what published.json calls it
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "Stable Diffusion 1.5",
    "mask2former-ade20k": "Mask2Former Swin-L (ADE20K)",
    "controlnet-hed": "ControlNetHED",
    "clip-vit-base-patch16": "CLIP ViT-B/16",
    "kornia-canny": "kornia's Canny (0.1, 0.2)",
    "dpt-large": "DPT-Large",
    "inception": "Inception (clean-fid)",
    # what manifests/paper/controlnet_plus_plus ask for
    **{
        f"limingcv/{name} validation, squashed: {count} images of the train split, 4 samples of each": (
            f"{there} validation, {count} images, 4 samples of each"
        )
        for name, there, count in (
            ("MultiGen-20M_canny_eval", "MultiGen-20M", "5,000"),
            ("MultiGen-20M_depth_eval", "MultiGen-20M", "5,000"),
            ("Captioned_ADE20K", "ADE20K", "2,000"),
            ("Captioned_COCOStuff", "COCO-Stuff", "5,000"),
        )
    },
}


def differences(row: Published, benchmark: FrozenBenchmark) -> tuple[str, ...]:
    """Empty where the numbers may be compared: what is not known, there or here, counts as another."""
    if row.beside:
        return tuple(_differing(row, benchmark, PROTOCOL))
    others = [name for name in PROTOCOL if name != "reader"]  # it says nothing where measures differ
    return ("measure: none here has its definition", *_differing(row, benchmark, others))


def sampling(benchmark: FrozenBenchmark) -> str:
    """Sampler, steps, guidance and negative prompt, as published.json has them."""
    guidance = f"guidance {benchmark.guidance:g}{benchmark.guided}"
    scale = [f"scale {benchmark.scale:g}"] * (benchmark.scale != 1)
    negative = f"negative prompt “{benchmark.negative}”" if benchmark.negative else "no negative prompt"
    return ", ".join([benchmark.sampler, f"{benchmark.steps} steps", guidance, *scale, negative])


def _differing(row: Published, benchmark: FrozenBenchmark, names: Iterable[str]) -> Iterator[str]:
    # a map that the data brought was made by nobody's detector
    maker, reader = (named.split(" ")[0] for named in (benchmark.detector, benchmark.reader))
    read = reader if maker in (reader, PROVIDED) or not reader else f"{reader}, of maps by {maker}"
    ours = {
        "base": benchmark.base,
        "resolution": benchmark.resolution,
        "data": benchmark.data,
        # a score by a network names it; a map was read by the benchmark's reader, whose fingerprint follows
        # its name
        "reader": row.beside.partition("(")[2].rstrip(")") or read or None,
        "sampler": sampling(benchmark),
    }
    for name in names:
        there, here = getattr(row, name), ours[name]
        if there is None or here is None or str(there) != KNOWN_AS.get(str(here), str(here)):
            said = ("not known" if setting is None else str(setting) for setting in (there, here))
            yield "{}: {} (here: {})".format(name, *said)
