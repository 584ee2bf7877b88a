"""Marigold (2312.02145, 2505.09358): depth or normals drawn by Stable Diffusion, tuned to do so; by the
pipelines of diffusers.
"""

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from annotate import inference, pretrained
from annotate.maps import RawMap, depth_map
from annotate.normals import unit
from annotate.parameters import Number, Parameter, Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, find_folder, tensors

if TYPE_CHECKING:
    import torch

LICENCE = "Apache-2.0 (code), CreativeML Open RAIL++-M (weights)"
STEPS, SIDE = 4, 768  # as the published model_index.json says
LATENT = 8  # pixels of the picture to one of the autoencoder's
# names of a layer of attention before diffusers 0.12, which Stable Diffusion 2's autoencoder still has
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

PARAMETERS: dict[str, Parameter] = {
    # of the picture that the network sees: its long side in pixels; 0 = as the image is
    "resolution": Number(default=SIDE, least=0, most=2048, whole=True),
    "steps": Number(default=STEPS, least=1, most=50, whole=True),
    # how many drawings, each from noise of its own, are fitted to each other and joined
    "ensemble": Number(default=1, least=1, most=20, whole=True),
    "precision": inference.PRECISION,
}
DEPTH_PARAMETERS: dict[str, Parameter] = {
    **PARAMETERS,
    # ratio of the farthest to the nearest distance, which the network does not know
    "far": Number(default=10.0, least=1.01, most=1000.0),
}

# uint8 [n, h, w, 3] RGB, a seed for each, steps, ensemble, resolution -> float32 [n, h, w, 1 or 3]
DrawingNetwork = Callable[[np.ndarray, list[int], int, int, int], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class MarigoldModel:
    """One published network; the first of its files says what it draws."""

    name: str
    title: str
    pipeline: str  # class of diffusers
    draws: Literal["depth", "normals"]
    files: tuple[WeightFile, ...]


def check(params: Values) -> None:
    """ValueError: a resolution that the autoencoder can't halve as often as it does."""
    if params["resolution"] % LATENT:
        raise ValueError(f"resolution: {params['resolution']} is no multiple of {LATENT}")


def draw_params(params: Values, rng: random.Random) -> Values:
    """The seed of an image's noise, so that its map does not depend on its batch."""
    return {"seed": rng.getrandbits(31)}


def detect(
    model: MarigoldModel,
    images: list[np.ndarray],
    params: Values,
    random_params: list[Values],
    parents: list[RawMap],
    device: str,
) -> list[RawMap]:
    """uint8 HW3 RGB images -> inverse depth up to an unknown scale, or normals, at image size."""
    network = load(model, params["precision"], device, params.get("weights", PINNED))
    steps, ensemble, side = params["steps"], params["ensemble"], params["resolution"]
    drawn = inference.run(
        images,
        lambda batch, seeds: network(batch, seeds, steps, ensemble, side),
        device,
        f"{model.name} {steps} {ensemble} {side} {params['precision']}",
        [each["seed"] for each in random_params],
    )
    if model.draws == "normals":
        return [RawMap("normals", unit(each)) for each in drawn]  # x right, y up, z to the viewer, as ours
    return [depth_map(inverse_depth(each[..., 0], params["far"])) for each in drawn]


def inverse_depth(depth: np.ndarray, far: float) -> np.ndarray:
    """Depth from 0, the nearest, to 1, the farthest -> inverse depth from 1 to 1 / far.

    The network knows depth up to scale and shift, and the inverse of that needs the shift: `far` is assumed.
    Near 1 it gives 1 - depth but for scale and shift, as diffusers' page draws hints for a ControlNet.
    """
    return (1 / (1 + (far - 1) * depth)).astype(np.float32)


@functools.cache
def load(model: MarigoldModel, precision: str, device: str, weights: str = PINNED) -> DrawingNetwork:
    """diffusers' pipeline with the networks of local files, once per process. In bf16 the denoiser alone
    computes so: what the autoencoder draws in eight bits has terraces.

    WeightsError: a file is absent or does not fit, or the network draws something else.
    """
    import torch
    from PIL import Image

    pipe = _pipeline(model, find_folder(model.files, weights), weights).to(device)
    pipe.set_progress_bar_config(disable=True)
    if precision == "bf16":
        _run_in_bf16(pipe.unet, device.partition(":")[0])

    def run(images: np.ndarray, seeds: list[int], steps: int, ensemble: int, side: int) -> np.ndarray:
        # on the CPU, so that a seed means the same noise on every device
        noise = [torch.Generator().manual_seed(seed + i) for seed in seeds for i in range(ensemble)]
        with torch.inference_mode():
            found = pipe(
                [Image.fromarray(image) for image in images],
                num_inference_steps=steps,
                ensemble_size=ensemble,
                processing_resolution=side,
                # one by one where drawings are fitted to each other: the steps of that enlarge the rounding
                # of another batch
                batch_size=len(noise) if ensemble == 1 else 1,
                generator=noise,
            )
        return np.asarray(found.prediction)

    return run


def _run_in_bf16(network: "torch.nn.Module", kind: str) -> None:
    import torch

    plain = network.forward

    def forward(*given: Any, **named: Any) -> tuple["torch.Tensor", ...]:
        with torch.autocast(kind, torch.bfloat16):
            return tuple(each.float() for each in plain(*given, **named))

    network.forward = forward


def _pipeline(model: MarigoldModel, folder: Path, weights: str) -> Any:
    import diffusers
    import torch
    import transformers

    said = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    other = {"depth": "Normals", "normals": "Depth"}[model.draws]
    if said.get("prediction_type") not in (None, model.draws) or other in said["_class_name"]:
        what = said.get("prediction_type") or said["_class_name"]
        raise WeightsError(
            f"{model.name}: {folder / 'model_index.json'}: it draws {what}, not {model.draws}; get"
            f" {model.files[0].repo}"
        )
    paths = {weight.name.partition("/")[0]: find(weight, weights) for weight in model.files[-3:]}
    text = pretrained.load("CLIPTextModel", folder / "text_encoder", model.name, file=paths["text_encoder"])
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    kinds = {each.__name__: each for each in (diffusers.DDIMScheduler, diffusers.LCMScheduler)}
    pipe = getattr(diffusers, model.pipeline)(
        unet=_filled(diffusers.UNet2DConditionModel, folder / "unet", paths["unet"], model.name),
        vae=_filled(diffusers.AutoencoderKL, folder / "vae", paths["vae"], model.name),
        scheduler=kinds[scheduler["_class_name"]].from_config(scheduler),
        text_encoder=None,
        tokenizer=None,
        prediction_type=model.draws,
    )
    # every picture has the same empty text: it is read once, and its network need not stay
    with torch.inference_mode():
        pipe.empty_text_embedding = text(tokenizer("", return_tensors="pt").input_ids)[0]
    return pipe


def _filled(kind: Any, folder: Path, path: Path, owner: str) -> Any:
    """A network of diffusers with the tensors of a file, in fp32; WeightsError as by `pretrained.load`."""
    import torch

    with torch.device("meta"):  # nothing is drawn at random that the file replaces anyway
        network = kind.from_config(kind.load_config(folder, local_files_only=True))
    wanted = network.state_dict()
    stored = {_new(name): each.float() for name, each in tensors(path).items()}
    absent = sorted(wanted.keys() - stored.keys())
    shapes = sorted(name for name in wanted.keys() & stored if stored[name].shape != wanted[name].shape)
    pretrained.judge(owner, folder, absent, shapes)
    network.load_state_dict({name: stored[name] for name in wanted}, assign=True)
    return network.eval()


def _new(name: str) -> str:
    """A tensor's name as it is today."""
    *place, layer, last = name.split(".")
    return ".".join((*place, OLD.get(layer, layer), last)) if "attentions" in place else name


def _files(repo: str, unet: str | None = None) -> tuple[WeightFile, ...]:
    plain = (
        "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json",
        "vae/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
        "tokenizer/special_tokens_map.json",
    )  # fmt: skip
    heavy = {"text_encoder/model": None, "vae/diffusion_pytorch_model": None,
    "unet/diffusion_pytorch_model": unet}  # fmt: skip
    return (
        *(WeightFile(name=name, repo=repo) for name in plain),
        *(
            WeightFile(name=f"{name}.safetensors", also=f"{name}.fp16.safetensors", sha256=sha256, repo=repo)
            for name, sha256 in heavy.items()
        ),
    )


_ROWS = (
    MarigoldModel(
        name="marigold-depth", title="Marigold depth v1.1", pipeline="MarigoldDepthPipeline", draws="depth",
        # sha256 as the hub's page of the file gives it
        files=_files(
            "prs-eth/marigold-depth-v1-1",
            "ad9342d79bb5773bb3fae5e55cbe5aa7f9c9433ba30dc1ace18998d4fb5dd9a2",
        ),
    ),
    MarigoldModel(
        name="marigold-normals", title="Marigold normals v1.1", pipeline="MarigoldNormalsPipeline",
        draws="normals", files=_files("prs-eth/marigold-normals-v1-1"),
    ),
)  # fmt: skip

MODELS: dict[str, MarigoldModel] = {row.name: row for row in _ROWS}
