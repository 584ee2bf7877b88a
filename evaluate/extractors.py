"""Networks whose features the distances of sets are measured on: one call, one way to resize, weights from a
file with a hash.

Nothing here downloads.
"""

import functools
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluate.weights import Mark, file_sha256, folder_sha256, located, pretrained

if TYPE_CHECKING:
    import torch

# RGB, each [h, w, 3], of any sizes; or one array [n, h, w, 3]
Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Numbers = tuple[float, float, float]  # of red, green and blue

VERSION = "1"  # of the networks behind clean-fid's resizing
BATCH = 16  # images that are in memory as floats; changes no result beyond rounding


class Extractor(Protocol):
    """Any of these, or one's own: images -> a row of features for each."""

    @property
    def name(self) -> str: ...
    @property
    # part of a score's identity: how images are prepared, and which layer is read
    def version(self) -> str: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    def __call__(self, images: Images) -> NDArray[np.float32]: ...  # [n, dimensions]


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A network behind clean-fid's resizing: the whole image to a square, bicubic, in float, never rounded to
    8 bits again.
    """

    name: str
    version: str
    weights_sha256: str
    dimensions: int
    side: int  # pixels
    shift: Numbers  # taken from values in 0..255, before they are divided by `scale`
    scale: Numbers
    forward: Callable[["torch.Tensor"], "torch.Tensor"]  # float32 [n, 3, side, side] -> [n, dimensions]
    device: str = "cpu"

    def __call__(self, images: Images) -> NDArray[np.float32]:
        import torch

        features = [np.empty((0, self.dimensions), np.float32)]
        for start in range(0, len(images), BATCH):
            raw = np.stack([resize(image, self.side) for image in checked(images[start : start + BATCH])])
            pixels = ((raw - np.array(self.shift)) / np.array(self.scale)).astype(np.float32)
            with torch.inference_mode():
                batch = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).contiguous().to(self.device)
                features.append(self.forward(batch).float().cpu().numpy())
        return np.concatenate(features)


def load(
    name: str,  # a key of EXTRACTORS
    # file or folder; None = below $CONTROLMILL_WEIGHTS, or the ones that ship with the code
    weights: str | Path | None = None,
    device: str = "cpu",
) -> Extractor:
    """ValueError: no such extractor, or its weights are not there; the message says what to download and
    where to put it.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"there is no extractor '{name}': choose one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](weights, device)


def mark(name: str, weights: str | Path | None = None) -> Mark:
    """Of what `load` gives, without loading it where that can be; ValueError as there."""
    if name == "inception":
        return Mark(name, VERSION, file_sha256(_inception_file(weights)))
    if name in _FOLDERS:
        return Mark(name, VERSION, folder_sha256(_folder(name, weights)))
    if name == "mini":
        from evaluate.mini import note

        of = note.mark(Path(weights)) if weights else note.mark()
        return of._replace(name=name)
    it = load(name, weights)
    return Mark(it.name, it.version, it.weights_sha256)


def resize(
    image: NDArray[np.uint8],  # [h, w, 3]
    side: int,
) -> NDArray[np.float32]:  # [side, side, 3] in 0..255
    """clean-fid's (arXiv 2104.11222): each channel in float, since rounding and filters without antialiasing
    move FIDs by whole points.
    """
    return _resizer(side)(image)


@functools.cache
def _resizer(side: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    from cleanfid.resize import make_resizer

    return make_resizer("PIL", False, "bicubic", (side, side))


def checked(images: Images) -> Images:
    """Images in 0..1, or with the channels first, would give numbers too, and wrong ones.

    ValueError: an image that is not uint8 [height, width, 3].
    """
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"images must be uint8 [height, width, 3], image {number} is {image.dtype}"
                f" {list(image.shape)}"
            )
    return images


def together(images: Images, batch: int = BATCH) -> Iterator[NDArray[np.uint8]]:  # each [n, h, w, 3]
    """Batches for what takes arrays: a batch of images of one size, else one after the other."""
    for start in range(0, len(images), batch):
        part = checked(images[start : start + batch])
        if len({image.shape for image in part}) == 1:
            yield np.stack(list(part))
        else:
            yield from (image[None] for image in part)


# the one TorchScript program that is run: a file of this name with this sha256
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"


def inception(weights: str | Path | None = None, device: str = "cpu") -> FeatureNetwork:
    """The 2048 features of published FIDs, by clean-fid: the Inception of 2015 as a TorchScript program that
    runs what its file says, so that it is loaded only after its sha256 equals the pin.

    ValueError: the file is absent, has another sha256, or has another name than clean-fid looks for.
    """
    path = _inception_file(weights)
    from cleanfid.inception_torchscript import InceptionV3W

    return FeatureNetwork(
        name="inception",
        version=VERSION,
        weights_sha256=INCEPTION_SHA256,
        dimensions=2048,
        side=299,
        shift=(0.0, 0.0, 0.0),  # the program normalises for itself
        scale=(1.0, 1.0, 1.0),
        forward=InceptionV3W(str(path.parent), download=False).eval().to(device),
        device=device,
    )


def _inception_file(weights: str | Path | None) -> Path:
    path = located("inception", weights, (INCEPTION_FILE,), INCEPTION_URL)
    path = path / INCEPTION_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} is not there: download it ({INCEPTION_URL})")
    sha256 = file_sha256(path)
    if sha256 != INCEPTION_SHA256:
        raise ValueError(
            f"{path} is not the published Inception of 2015 (sha256 {sha256[:12]}…, not"
            f" {INCEPTION_SHA256[:12]}…), and no other program is run: download it ({INCEPTION_URL})"
        )
    if path.name != INCEPTION_FILE:
        raise ValueError(f"{path}: clean-fid looks for a file of the name {INCEPTION_FILE}: rename it")
    return path


def clip(weights: str | Path | None = None, device: str = "cpu") -> FeatureNetwork:
    """Image embeddings of a CLIP in transformers' layout, before they are brought to unit length."""
    folder = _folder("clip", weights)
    model = pretrained("CLIPModel", folder, device)
    forward = lambda batch: model.visual_projection(model.vision_model(pixel_values=batch).pooler_output)
    return _of_transformers(
        "clip", folder, device, model.config.vision_config.image_size, model.config.projection_dim, forward
    )


def dinov2(weights: str | Path | None = None, device: str = "cpu") -> FeatureNetwork:
    """The class token after the last norm, as FD-DINOv2 reads it (arXiv 2306.04675)."""
    folder = _folder("dinov2", weights)
    model = pretrained("Dinov2Model", folder, device)
    forward = lambda batch: model(pixel_values=batch).pooler_output
    return _of_transformers(
        "dinov2", folder, device, model.config.image_size, model.config.hidden_size, forward
    )


# of transformers: extractor -> repository
_FOLDERS = {"clip": "openai/clip-vit-base-patch16", "dinov2": "facebook/dinov2-large"}


def _folder(name: str, weights: str | Path | None) -> Path:
    return located(name, weights, (_FOLDERS[name],), _get(_FOLDERS[name]))


def _of_transformers(
    name: str,
    folder: Path,
    device: str,
    side: int,
    dimensions: int,
    forward: Callable[["torch.Tensor"], "torch.Tensor"],
) -> FeatureNetwork:
    """Side, mean and deviation are the folder's own; its way to resize is not, so that all extractors see
    one.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no preprocessor_config.json, which says how images are normalised: get it with the"
            " weights"
        )
    settings = json.loads(path.read_text())
    crop = settings.get("crop_size") or side
    mean, deviation = (tuple(255.0 * value for value in settings[key]) for key in ("image_mean", "image_std"))
    return FeatureNetwork(
        name=name,
        version=VERSION,
        weights_sha256=folder_sha256(folder),
        dimensions=dimensions,
        forward=forward,
        device=device,
        side=crop["height"] if isinstance(crop, dict) else crop,
        shift=mean,
        scale=deviation,  # type: ignore[arg-type]
    )


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A small network of the project's own, which resizes for itself."""

    name: str
    version: str
    weights_sha256: str
    dimensions: int
    features: Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # uint8 [n, h, w, 3] -> [n, dimensions]

    def __call__(self, images: Images) -> NDArray[np.float32]:
        return np.concatenate(
            [np.empty((0, self.dimensions), np.float32), *map(self.features, together(images))]
        )


def mini(weights: str | Path | None = None, device: str = "cpu") -> Shipped:
    """Features learned on rendered scenes, few enough for a Fréchet distance of some hundred images."""
    return _shipped("mini", weights, device)


def efficientnet(weights: str | Path | None = None, device: str = "cpu") -> Shipped:
    """Features of ImageNet that come with a package: for photographs where the hub is out of reach."""
    return _shipped("efficientnet", weights, device)


def _shipped(name: str, weights: str | Path | None, device: str) -> Shipped:
    module = importlib.import_module(f"evaluate.{name}")
    net = module.load(Path(weights), device=device) if weights else module.load(device=device)
    width = net.features(np.zeros((1, 64, 64, 3), np.uint8)).shape[1]
    return Shipped(
        name=name,
        version=str(net.version),
        weights_sha256=net.sha256,
        dimensions=width,
        features=net.features,
    )


EXTRACTORS: dict[str, Callable[[str | Path | None, str], Extractor]] = {
    "inception": inception,
    "clip": clip,
    "dinov2": dinov2,
    "mini": mini,
    "efficientnet": efficientnet,
}


def _get(repo: str) -> str:
    """The command that gets a network's files, without its weights in the formats of other libraries."""
    return f"hf download {repo} --exclude '*.h5' --exclude '*.msgpack' --local-dir {repo}"
