"""Captions by BLIP (Li et al. 2022), which captioned the paper's data sets; a captioner is a row, as a
detector is.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from annotate import inference, pretrained, weights
from annotate.parameters import Number, Parameter, ParameterError, Values, fill, near
from annotate.weights import PINNED, Identity, WeightFile, WeightsError, lacking

# the network was tuned with it before every caption (BLIP, configs/caption_coco.yaml); it is cut off again
PROMPT = "a picture of"
MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB in 0..1
DEVIATION = (0.26862954, 0.26130258, 0.27577711)

_pinned = functools.partial(
    WeightFile,
    repo="Salesforce/blip-image-captioning-base",
    revision="82a37760796d32b1411fe092ab5d4e227313294b",
)
WEIGHTS = (
    _pinned(name="config.json", sha256="f7846f82f4e2c4a2ccbab9ae8b0e44873540a271a76a1288effd078180c13a82"),
    _pinned(name="tokenizer.json", sha256="d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66"),
    _pinned(
        name="pytorch_model.bin",
        also="model.safetensors",
        sha256="d6638651a5526cc2ede56f2b5104d6851b0755816d220e5e046870430180c767",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Captioner:
    """Everything that identifies a captioner; bump `version` when its texts change."""

    name: str
    title: str
    version: int
    licence: str  # of code and weights
    distributions: tuple[str, ...]  # of the library that computes; its version is identity
    modules: tuple[str, ...]  # import names that must be there
    weights: tuple[WeightFile, ...]
    parameters: dict[str, Parameter]


_ROWS = (
    Captioner(
        name="blip-base", title="BLIP (ViT-B, COCO captions)", version=1,
        licence="BSD-3-Clause (code and weights)",
        distributions=("transformers",), modules=("transformers", "tokenizers", "torch"), weights=WEIGHTS,
        parameters={
            "precision": inference.PRECISION,
            "beams": Number(default=3, least=1, most=16, whole=True),  # 1 = greedy
            # Captions end by themselves after some ten; BLIP's own evaluation cuts them at 16 behind the
            # prompt.
            "max_tokens": Number(default=40, least=1, most=200, whole=True),
        },
    ),
)  # fmt: skip

CAPTIONERS: dict[str, Captioner] = {row.name: row for row in _ROWS}


def resolve(captioner: str, params: Values | None = None) -> Values:
    """All parameters, checked, `auto` settled; `weights` (the path of a folder) is among them only if given.

    ParameterError, a ValueError: an unknown captioner or parameter, or a value that is not allowed.
    """
    if captioner not in CAPTIONERS:
        raise ParameterError(
            "model",
            f"unknown captioner {captioner!r}{near(captioner, CAPTIONERS)}; known: {', '.join(CAPTIONERS)}",
        )
    given = dict(params or {})
    place = str(given.pop("weights", PINNED))
    complete = inference.settle(fill(CAPTIONERS[captioner].parameters, given, owner=captioner))
    return complete if place == PINNED else {**complete, "weights": str(Path(place).expanduser().resolve())}


def missing(captioner: str, weights: str = PINNED) -> str | None:
    """One sentence on what this captioner lacks here, with its pinned weights or those in the folder
    `weights`; None = it can run.
    """
    row = CAPTIONERS.get(captioner)
    if row is None:
        return f"{captioner} is not built yet"
    absent = [module for module in row.modules if importlib.util.find_spec(module) is None]
    if absent:
        return f"{captioner} needs {', '.join(absent)}: pip install {row.distributions[0]}"
    lack = lacking(row.weights, weights)
    return f"{captioner} {lack}" if lack else None


def identity(captioner: str, params: Values) -> Identity:
    """All that decides the text beside the image; `params` as `resolve` gives them."""
    row = CAPTIONERS[captioner]
    return weights.identity_of(row.name, row.version, row.weights, row.distributions, params)


def caption(
    images: list[np.ndarray],  # uint8 [h, w, 3] RGB, of any sizes
    *,
    # or a folder with config.json, tokenizer.json and the tensors of another BLIP captioner
    weights: str = PINNED,
    precision: str = "auto",  # fp32 | bf16
    beams: int = 3,
    max_tokens: int = 40,
    device: str = "cpu",
) -> list[str]:
    """One lower-case English sentence per image, by beam search; each depends on its image alone.

    WeightsError where files are missing.
    """
    params = resolve(
        "blip-base", {"weights": weights, "precision": precision, "beams": beams, "max_tokens": max_tokens}
    )
    network = load(params["precision"], device, params.get("weights", PINNED))
    pixels = [prepare(image, network.side) for image in images]
    name = f"blip-base {params['precision']} {beams} {max_tokens}"
    return inference.run(pixels, lambda batch: network.texts(batch, beams, max_tokens), device, name)


@dataclass(frozen=True)
class CaptionNetwork:
    """A captioner that is ready."""

    side: int  # pixels of the square that it sees
    # float32 [n, 3, side, side] of `prepare`, beams, most tokens -> n texts
    texts: Callable[[np.ndarray, int, int], list[str]]


def prepare(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 HW3 RGB -> float32 [3, side, side], squeezed to a square by Pillow's bicubic filter as BLIP's
    evaluation does.
    """
    from PIL import Image

    square = (
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    )
    return np.ascontiguousarray(
        ((square - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)).transpose(2, 0, 1)
    )


@functools.cache
def load(precision: str, device: str, place: str = PINNED) -> CaptionNetwork:
    """The network with its tokenizer, once per process; nothing is downloaded."""
    import tokenizers
    import torch

    folder = find(WEIGHTS, place)
    model = pretrained.load(
        "BlipForConditionalGeneration", folder, "blip-base", file=weights.find(WEIGHTS[-1], place)
    )
    model = model.to(device, inference.dtype(precision))
    tokens = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # the model makes its start mark of the first and takes the last, the end mark, off
    prompt = tokens.encode(PROMPT).ids

    def texts(pixels: np.ndarray, beams: int, max_tokens: int) -> list[str]:
        search = {
            "num_beams": beams,
            "max_new_tokens": max_tokens,
            "min_new_tokens": 1,
            "do_sample": False,
            "length_penalty": 1.0,
        }
        given = torch.tensor([prompt] * len(pixels), device=device)
        with torch.inference_mode():
            sequences = model.generate(
                pixel_values=torch.from_numpy(pixels).to(device, model.dtype),
                input_ids=given,
                attention_mask=torch.ones_like(given),
                **search,
            )
        lines = [
            tokens.decode(sequence[len(prompt) - 1 :], skip_special_tokens=True)
            for sequence in sequences.tolist()
        ]
        return [text.removeprefix("##").strip() for text in lines]

    return CaptionNetwork(model.config.vision_config.image_size, texts)


def find(files: tuple[WeightFile, ...], place: str) -> Path:
    """The one folder that has all these files, checked; WeightsError says what is missing."""
    lack = weights.lacking(files, place)
    if lack:
        raise WeightsError(f"BLIP {lack}")
    return weights.find_folder(files, place)
