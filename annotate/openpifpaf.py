"""OpenPifPaf (Kreiss et al. 2021, composite fields): many people's 17 COCO keypoints, by the networks and the
decoder of `openpifpaf-vita`.
"""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from annotate import inference
from annotate.drawing import scale_points
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.people import keep_inside
from annotate.weights import PINNED, WeightFile, WeightsError, find, tensors

if TYPE_CHECKING:
    import torch

RELEASE = "https://github.com/openpifpaf/torchhub/releases/download/v0.13"
CHECKPOINT = "shufflenetv2k16-210820-232500-cocokp-slurm726069-edge513-o10s-7189450a.pkl"
CONVERTED = "shufflenetv2k16-cocokp.pt"
# The official file pickles a whole network: loading it runs what it says. So it is turned into plain tensors
# once, where that does no harm.
CONVERT = (
    f"import torch; from annotate.openpifpaf import package; package(); torch.save(torch.load('{CHECKPOINT}',"
    f" map_location='cpu', weights_only=False)['model'].state_dict(), '{CONVERTED}')"
)
RECIPE = (
    f"curl -LO {RELEASE}/{CHECKPOINT}; then once, in a sandbox, because a pickle runs what it says: python -c"
    f' "{CONVERT}"'
)
WEIGHTS = WeightFile(name=CONVERTED, install=RECIPE)  # no hash: what torch.save writes depends on its version
GET = (
    'pip install "setuptools<81" wheel ninja; pip install --no-build-isolation --no-deps openpifpaf-vita'
    " pysparkling (AGPL-3.0; compiles its decoder, which takes minutes)"
)
LAYOUT = "coco_17"
# the width of the last layer tells the networks apart whose weights are published for these keypoints
NETWORKS = {1392: "shufflenetv2k16", 2048: "shufflenetv2k30"}
# the network sees sides of one more than a multiple of this, so that cells lie on the first and the last
# pixel
MULTIPLE = 16
GREY = (124, 116, 104)  # fills them up
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1

# float32 [17, 5, h, w] of the keypoints, [19, 8, h, w] of their connections
Fields = tuple["torch.Tensor", "torch.Tensor"]


def detect(
    images: list[np.ndarray], params: Values, random_params: list[Values], parents: list[RawMap], device: str
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> people [P, 17, 3], the surest first; a keypoint that lies outside
    the image is missing.
    """
    forward, stride = load(params["precision"], device, params.get("weights", PINNED))
    seen = [shrink(image, params["long_edge"]) for image in images]
    fields = inference.run(
        [pad(image) for image in seen], forward, device, f"openpifpaf {params['precision']}"
    )
    people = []
    for image, smaller, each in zip(images, seen, fields, strict=True):
        keypoints = decode(each, stride, params)
        left, top = margins(*smaller.shape[:2])
        moved = scale_points(keypoints[..., :2] - (left, top), smaller.shape[:2], image.shape[:2])
        people.append(keep_inside(np.concatenate([moved, keypoints[..., 2:]], axis=-1), image.shape[:2]))
    return [
        RawMap("people", keypoints, {"size": list(image.shape[:2]), "layout": LAYOUT})
        for keypoints, image in zip(people, images, strict=True)
    ]


def check(params: Values) -> None:
    """A seed below the keypoints' threshold would be a person without its own seed.

    ValueError: `seed_threshold` is below `keypoint_threshold`.
    """
    if params["seed_threshold"] < params["keypoint_threshold"]:
        raise ValueError(
            f"openpifpaf: seed_threshold {params['seed_threshold']} is below keypoint_threshold"
            f" {params['keypoint_threshold']}; set it to at least as much"
        )


@functools.cache
def load(
    precision: str, device: str, weights: str = PINNED
) -> tuple[Callable[[np.ndarray], Sequence[Fields]], int]:
    """The network, once per process: uint8 [n, h, w, 3] RGB -> the fields of each image; and the pixels per
    cell of a field.

    bf16 only in the convolutions below the heads: the fields hold positions, which bf16 would round to whole
    cells.
    """
    import torch

    network = build(find(WEIGHTS, weights)).to(device)
    mean, deviation = (torch.tensor(each, device=device) for each in (MEAN, DEVIATION))

    def forward(images: np.ndarray) -> list[Fields]:
        with torch.inference_mode():
            x = ((torch.from_numpy(images).to(device).float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
                features = network.base_net(x)
            fields = [head(features.float()).float().cpu() for head in network.head_nets]
        return list(zip(*fields, strict=True))

    return forward, network.head_nets[0].meta.stride


def build(place: Path) -> Any:
    """The package's network in fp32 with the state dict at `place`, whose shapes tell which network;
    WeightsError where none fits.
    """

    try:
        stored = tensors(place)
        width, head = len(stored["base_net.conv5.0.weight"]), len(stored["head_nets.0.conv.weight"])
    except (WeightsError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{place} is no state dict of an OpenPifPaf network; make one: {RECIPE}"
        ) from error
    package()
    from openpifpaf.network import basenetworks, factory, heads, nets
    from openpifpaf.plugins.coco.cocokp import CocoKp

    metas = CocoKp().head_metas[:2]
    for meta in metas:
        # a head whose cells are finer than the network's has that many more channels
        meta.upsample_stride = round((head / (5 * len(metas[0].keypoints))) ** 0.5)
    try:
        base: basenetworks.BaseNetwork = factory.BASE_FACTORIES[NETWORKS[width]]()
        network = nets.Shell(base, [heads.CompositeField4(meta, base.out_features) for meta in metas])
        # a third head connects keypoints that are far apart; the decoder doesn't ask for it
        network.load_state_dict(
            {name: value for name, value in stored.items() if not name.startswith("head_nets.2.")}
        )
    except (KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{place} fits neither {' nor '.join(NETWORKS.values())}: {' '.join(str(error).split())}"
        ) from error
    nets.model_defaults(network)
    return network.eval()


def shrink(image: np.ndarray, long_edge: int) -> np.ndarray:
    """uint8 HW3 with its long side at `long_edge`, bilinearly; 0 = as it is."""
    import cv2

    height, width = image.shape[:2]
    if not long_edge or long_edge == max(height, width):
        return image
    size = [max(int(side * long_edge / max(height, width)), 1) for side in (width, height)]
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def margins(height: int, width: int) -> tuple[int, int]:
    """Pixels left of and above the image where it is centred in the network's input."""
    return -(width - 1) % MULTIPLE // 2, -(height - 1) % MULTIPLE // 2


def pad(image: np.ndarray) -> np.ndarray:
    """The image in the middle of grey, sides one more than a multiple of MULTIPLE."""
    height, width = image.shape[:2]
    left, top = margins(height, width)
    full = np.empty((height + -(height - 1) % MULTIPLE, width + -(width - 1) % MULTIPLE, 3), np.uint8)
    full[:] = GREY
    full[top : top + height, left : left + width] = image
    return full


def decode(fields: Fields, stride: int, params: Values) -> np.ndarray:
    """Fields -> people float32 [P, 17, 3] in pixels of the network's input, the surest first; ValueError
    where one is not finite.

    The package's C++ decoder, a new one for each image: its map of accumulated confidence keeps a count of
    the images before in the same floats, so that an old decoder gives other bytes than a new one.
    """
    import torch

    if not all(bool(field.isfinite().all()) for field in fields):
        raise ValueError("the network's fields have values that are not finite")
    package()
    from openpifpaf.plugins.coco.constants import COCO_KEYPOINTS, COCO_PERSON_SKELETON

    utils, decoder = torch.classes.openpifpaf_decoder_utils, torch.classes.openpifpaf_decoder.CifCaf
    utils.CifSeeds.set_threshold(params["seed_threshold"])
    utils.NMSKeypoints.set_keypoint_threshold(params["keypoint_threshold"])
    utils.NMSKeypoints.set_instance_threshold(params["instance_threshold"])
    decoder.set_keypoint_threshold(params["keypoint_threshold"])
    cif, caf = (field.contiguous() for field in fields)
    annotations, _ = decoder(len(COCO_KEYPOINTS), torch.tensor(COCO_PERSON_SKELETON) - 1).call(
        cif, stride, caf, stride
    )
    people = annotations.numpy()[..., [1, 2, 0]]  # from confidence, x, y, scale
    return np.where(people[..., 2:] > 0, people, np.float32(0))


@functools.cache
def package() -> None:
    """Import openpifpaf, once per process and silently: its drawing half asks matplotlib for a function of
    old.
    """
    import matplotlib
    import matplotlib.cm

    old = getattr(matplotlib.cm, "get_cmap", matplotlib.colormaps.__getitem__)
    with _quiet(), mock.patch.object(matplotlib.cm, "get_cmap", old, create=True):
        import openpifpaf  # noqa: F401
        import torch

        torch.ops.openpifpaf.set_quiet(True)
    logging.getLogger("openpifpaf").setLevel(logging.ERROR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
