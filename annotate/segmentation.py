"""Label maps by networks of transformers: OneFormer (2211.06220), Mask2Former (2112.01527), UPerNet
(1807.10221) on ConvNeXt.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotate import inference, pretrained
from annotate.label_spaces import disagreement
from annotate.maps import RawMap
from annotate.parameters import Values
from annotate.weights import PINNED, WeightFile, WeightsError, find, find_folder

if TYPE_CHECKING:
    import torch

# one batch as the processor gives it, (height, width) of the images -> uint8 ids [n, h, w]
LabelNetwork = Callable[[dict[str, "torch.Tensor"], tuple[int, int]], np.ndarray]
# images uint8 HW3 RGB, options of the processor -> the network's inputs
Prepare = Callable[..., dict[str, "torch.Tensor"]]


@dataclass(frozen=True, kw_only=True)
class SegmentationModel:
    """One published network; the first of its files is the weights."""

    name: str
    title: str
    licence: str
    label_space: str
    network: str  # class of transformers
    processor: str  # class of transformers that makes pixels of images and labels of logits
    files: tuple[WeightFile, ...]
    prompted: bool = False  # OneFormer: the task is an input, as text


def detect(
    model: SegmentationModel,
    images: list[np.ndarray],
    params: Values,
    random_params: list[Values],
    parents: list[RawMap],
    device: str,
) -> list[RawMap]:
    """uint8 HW3 RGB images of any sizes -> label maps at image size; equal sizes run together.

    Parameter `resolution`: the short side that the network sees, both sides in multiples of 64 as in
    ControlNet; 0 = as the model's own preprocessor_config.json says, which is how the published figures were
    made.
    """
    prepare, network = load(model, params["precision"], device, params.get("weights", PINNED))
    short = params["resolution"]

    def forward(batch: np.ndarray) -> np.ndarray:
        h, w = batch.shape[1:3]
        if not short:
            return network(prepare(list(batch)), (h, w))
        size = inference.detection_size(h, w, short)
        return network(prepare([inference.resize(image, size) for image in batch], do_resize=False), (h, w))

    labels = inference.run(images, forward, device, f"{model.name} {short} {params['precision']}")
    return [RawMap("labels", ids, {"label_space": model.label_space}) for ids in labels]


@functools.cache
def load(
    model: SegmentationModel, precision: str, device: str, weights: str = PINNED
) -> tuple[Prepare, LabelNetwork]:
    """Processor and network from local files, once per process; WeightsError where a file is absent or does
    not fit.
    """
    import transformers

    folder = find_folder(model.files, weights)
    network = pretrained.load(model.network, folder, model.name, file=find(model.files[0], weights))
    problem = disagreement(network.config.id2label, model.label_space)
    if problem:
        raise WeightsError(
            f"{model.name}: {folder / 'config.json'}: {problem}; its labels would mean something else, get"
            " others"
        )
    processor = getattr(transformers, model.processor).from_pretrained(
        folder, local_files_only=True, **_local(model)
    )
    # autocast, not a network of bf16: the coordinates that deformable attention looks at stay fp32
    return _prepare(model, processor, folder, network.config), _run(
        processor, network.eval().to(device), device, precision == "bf16"
    )


def _local(model: SegmentationModel) -> dict[str, None]:
    """OneFormer's processor downloads a list of class names when it is made; only training needs the list."""
    return {"class_info_file": None} if model.prompted else {}


def _prepare(model: SegmentationModel, processor: Any, folder: Path, config: Any) -> Prepare:
    call = processor
    if model.prompted:
        import transformers

        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        call = transformers.OneFormerProcessor(processor, tokenizer, task_seq_length=config.task_seq_len)

    def prepare(images: list[np.ndarray], **options: Any) -> dict[str, "torch.Tensor"]:
        task = {"task_inputs": ["semantic"] * len(images)} if model.prompted else {}
        return dict(
            call(images=images, **task, **options, input_data_format="channels_last", return_tensors="pt")
        )

    return prepare


def _run(processor: Any, network: Any, device: str, bf16: bool) -> LabelNetwork:
    import torch

    def run(inputs: dict[str, "torch.Tensor"], size: tuple[int, int]) -> np.ndarray:
        with torch.inference_mode():
            with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=bf16):
                outputs = network(**{name: each.to(device) for name, each in inputs.items()})
            return decode(processor, without_padding(outputs, inputs.get("pixel_mask")), size)

    return run


def without_padding(outputs: Any, pixel_mask: "torch.Tensor | None") -> Any:
    """A network's outputs with masks of the image alone, where its processor padded the image to the right
    and below.

    What transformers makes labels with (5.23) takes the padding for a part of the image, so borders would
    move up and to the left; `pixel_mask` [n, h, w] is 1 on the image, whose size is one for a batch.
    """
    import torch

    if pixel_mask is None or bool(pixel_mask.all()):
        return outputs
    padded = tuple(pixel_mask.shape[-2:])
    height, width = (int(pixel_mask[0].any(dim=axis).sum()) for axis in (1, 0))
    masks = [
        # image by image: at the size of the pixels a hundred masks take half a gigabyte
        torch.nn.functional.interpolate(each[None].float(), padded, mode="bilinear")[..., :height, :width]
        for each in outputs["masks_queries_logits"]
    ]
    outputs["masks_queries_logits"] = torch.cat(masks)
    return outputs


def decode(processor: Any, outputs: Any, size: tuple[int, int]) -> np.ndarray:
    """A network's outputs for n images -> uint8 ids [n, h, w] at size = (h, w), by the library's own rule, in
    fp32.
    """
    import torch

    names = [name for name in ("logits", "class_queries_logits", "masks_queries_logits") if name in outputs]
    for name in names:
        outputs[name] = outputs[name].float()
    labels = processor.post_process_semantic_segmentation(
        outputs, target_sizes=[size] * len(outputs[names[0]])
    )
    return torch.stack(labels).to(torch.uint8).cpu().numpy()


def _files(repo: str, revision: str, sha256: dict[str, str | None]) -> tuple[WeightFile, ...]:
    also = {"pytorch_model.bin": "model.safetensors", "model.safetensors": "pytorch_model.bin"}
    return tuple(
        WeightFile(name=name, also=also.get(name, ""), sha256=each, repo=repo, revision=revision)
        for name, each in sha256.items()
    )


# sha256 as the hub's own listing gave it; None: not known here
_TOKENIZER = ("merges.txt", "vocab.json", "tokenizer_config.json", "special_tokens_map.json")
_CONFIG: dict[str, str | None] = {"config.json": None, "preprocessor_config.json": None}

_ROWS = (
    SegmentationModel(
        name="oneformer-coco", title="OneFormer (Swin-L, COCO panoptic)", licence="MIT",
        label_space="coco_panoptic_133",
        network="OneFormerForUniversalSegmentation", processor="OneFormerImageProcessor", prompted=True,
        files=_files("shi-labs/oneformer_coco_swin_large", "3a263017ca5c75adbea145f25f81b118243d4394", {
            "pytorch_model.bin": None, **_CONFIG, **dict.fromkeys(_TOKENIZER),
        }),
    ),
    SegmentationModel(
        name="oneformer-ade20k", title="OneFormer (Swin-L, ADE20K)", licence="MIT", label_space="ade20k_150",
        network="OneFormerForUniversalSegmentation", processor="OneFormerImageProcessor", prompted=True,
        files=_files("shi-labs/oneformer_ade20k_swin_large", "4a5bac8e64f82681a12db2e151a4c2f4ce6092b2", {
            "pytorch_model.bin": "c0b2fe11dfecee6f2f1f315f466946e96f4e94813f3f6d660ff3747b83c28cc9",
            "config.json": "27452b656a467dbdebdf879dc413d6f3facd2bfe3643824ae66c32c22884b4bd",
            "preprocessor_config.json": "49e2c8f207405d063cf7824f97c2814fa864f8f19ea9e02c9e20a9ff539c6d49",
            "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
            "vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
            "tokenizer_config.json": "968a6126200b3c8f68fe955d61da20f3537e641a1deb538dc39fdad142248d72",
            "special_tokens_map.json": "c4864a9376a8401918425bed71fc14fc0e81f9b59ec45c1cf96cccb2df508eac",
        }),
    ),
    SegmentationModel(
        name="mask2former-coco", title="Mask2Former (Swin-L, COCO panoptic)", licence="MIT",
        label_space="coco_panoptic_133",
        network="Mask2FormerForUniversalSegmentation", processor="Mask2FormerImageProcessor",
        files=_files("facebook/mask2former-swin-large-coco-panoptic",
        "85b535928a783691eaf27467a573b26d543336ea", {
            "model.safetensors": None, **_CONFIG,
        }),
    ),
    SegmentationModel(
        name="mask2former-ade20k", title="Mask2Former (Swin-L, ADE20K)", licence="MIT",
        label_space="ade20k_150",
        network="Mask2FormerForUniversalSegmentation", processor="Mask2FormerImageProcessor",
        files=_files("facebook/mask2former-swin-large-ade-semantic",
        "aa25c92404a40599614215e76514c79b427c7527", {
            "model.safetensors": "b143c144341c15b4f20165cc6d2c9305fb1b66792f68a6e0e06d2b20dc063b14",
            **_CONFIG,
        }),
    ),
    SegmentationModel(
        name="upernet-ade20k", title="UPerNet (ConvNeXt-S, ADE20K)", licence="MIT", label_space="ade20k_150",
        network="UperNetForSemanticSegmentation", processor="SegformerImageProcessor",
        files=_files("openmmlab/upernet-convnext-small", "main", {
            "pytorch_model.bin": "76c163aa531ab7edfb3a77bbcc039e340645aa0ffe2b0ffcfc68755f550c76ea",
            **_CONFIG,
        }),
    ),
)  # fmt: skip

MODELS: dict[str, SegmentationModel] = {row.name: row for row in _ROWS}
