"""Weight files of the true architecture, laid out as the hub's, where the hub itself is out of reach."""

import contextlib
import functools
import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

# of the published networks
QUERIES = {
    "oneformer-coco": 150, "oneformer-ade20k": 250, "mask2former-coco": 200, "mask2former-ade20k": 100,
}  # fmt: skip


def controlnet_hed() -> dict[str, "torch.Tensor"]:
    """ControlNetHED.pth with trained layers: those of BSDS500, which have the same shapes.

    The fused sum of BSDS500 becomes five times the mean, and its BGR becomes RGB.
    """
    import torch

    from annotate import hed
    from annotate.weights import find

    layers = hed.read_layers(find(hed.WEIGHTS))
    assert layers.mean is not None
    tensors = {"norm": torch.tensor(layers.mean[::-1]).reshape(1, 3, 1, 1)}
    for n, block in enumerate(layers.blocks, 1):
        for i, (weight, bias) in enumerate(block):
            flipped = np.ascontiguousarray(weight[:, ::-1]) if (n, i) == (1, 0) else weight
            tensors |= {
                f"block{n}.convs.{i}.weight": torch.tensor(flipped),
                f"block{n}.convs.{i}.bias": torch.tensor(bias),
            }
        weight, bias = layers.sides[n - 1]
        tensors[f"block{n}.projection.weight"] = torch.tensor(5 * weight)
        tensors[f"block{n}.projection.bias"] = torch.tensor(5 * bias + layers.bias)
    return tensors


def midas(seed: int = 0) -> dict[str, "torch.Tensor"]:
    """dpt_hybrid-midas-501f0c75.pt at random, its last layer lifted so that depth is not all zero."""
    import torch
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    torch.manual_seed(seed)
    model = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    with torch.no_grad():
        model.scratch.output_conv[4].bias.fill_(1.0)
    return model.state_dict()


# -- whole files, for `benchmarks/library_loops.py`; `tiny` = of a small network of the same kind


def write_hed(folder: Path, tiny: bool) -> None:
    import torch

    torch.save(controlnet_hed(), folder / "ControlNetHED.pth")


def write_midas(folder: Path, tiny: bool) -> None:
    import torch

    torch.save(midas(), folder / "dpt_hybrid-midas-501f0c75.pt")


def write_bae(folder: Path, tiny: bool) -> None:
    import torch
    from controlnet_aux.normalbae.nets.NNET import NNET

    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        model = NNET(SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7))
    torch.save({"model": model.state_dict()}, folder / "scannet.pt")


def write_mlsd(folder: Path, tiny: bool) -> None:
    import torch
    from controlnet_aux.mlsd.models.mbv2_mlsd_large import MobileV2_MLSD_Large

    torch.manual_seed(0)
    torch.save(MobileV2_MLSD_Large().state_dict(), folder / "mlsd_large_512_fp32.pth")


def write_anime2sketch(folder: Path, tiny: bool) -> None:
    import torch
    from controlnet_aux.lineart_anime import UnetGenerator

    torch.manual_seed(0)
    norm = functools.partial(torch.nn.InstanceNorm2d, affine=False, track_running_stats=False)
    model = UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)
    torch.save(model.state_dict(), folder / "netG.pth")


def write_pidinet(folder: Path, tiny: bool) -> None:
    import torch
    from controlnet_aux.pidi.model import pidinet

    torch.manual_seed(0)
    torch.save({"state_dict": pidinet().state_dict()}, folder / "table5_pidinet.pth")


def write_teed(file: str, folder: Path, tiny: bool) -> None:
    import torch
    from controlnet_aux.teed.ted import TED

    torch.manual_seed(0)
    torch.save(TED().state_dict(), folder / file)


def write_lineart(folder: Path, tiny: bool) -> None:
    """Both files, since the library loads both whichever is asked for."""
    import torch
    from controlnet_aux.lineart import Generator

    for seed, file in enumerate(("sk_model.pth", "sk_model2.pth")):
        torch.manual_seed(seed)
        torch.save(Generator(3, 1, 3).state_dict(), folder / file)


def write_openpose(folder: Path, tiny: bool) -> None:
    """The file's names lack the stage that the program's have in front. At random no person is found."""
    import torch
    from controlnet_aux.open_pose.model import bodypose_model

    torch.manual_seed(0)
    tensors = {name.partition(".")[2]: each for name, each in bodypose_model().state_dict().items()}
    torch.save(tensors, folder / "body_pose_model.pth")


def write_depth_anything(folder: Path, tiny: bool) -> None:
    """Of the size of its Small."""
    import torch
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    width, stages = (24, [8, 8, 16, 24]) if tiny else (384, [48, 96, 192, 384])
    backbone = Dinov2Config(
        hidden_size=width, num_attention_heads=2 if tiny else 6, num_hidden_layers=4 if tiny else 12,
        image_size=518, patch_size=14, out_indices=[1, 2, 3, 4] if tiny else [3, 6, 9, 12],
        reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=width, neck_hidden_sizes=stages,
            fusion_hidden_size=16 if tiny else 64, head_hidden_size=8 if tiny else 32,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.head.conv3.bias += 1.0  # so that depth is not all zero
    model.save_pretrained(folder)
    DPTImageProcessor(
        size={"height": 518, "width": 518}, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip


def write_dpt_large(folder: Path, tiny: bool) -> None:
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    sizes = {
        "hidden_size": 32 if tiny else 1024, "num_hidden_layers": 4 if tiny else 24,
        "num_attention_heads": 2 if tiny else 16, "intermediate_size": 64 if tiny else 4096,
        "backbone_out_indices": [0, 1, 2, 3] if tiny else [5, 11, 17, 23],
        "neck_hidden_sizes": [8, 12, 16, 16] if tiny else [256, 512, 1024, 1024],
        "fusion_hidden_size": 16 if tiny else 256,
    }  # fmt: skip
    torch.manual_seed(0)
    model = DPTForDepthEstimation(DPTConfig(**sizes))
    with torch.no_grad():
        model.head.head[4].bias += 1.0
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 384, "width": 384}).save_pretrained(folder)


def write_segmentation(detector: str, folder: Path, tiny: bool) -> None:
    """Swin-L below OneFormer and Mask2Former, ConvNeXt-S below UPerNet, as published; OneFormer's words are
    letters.
    """
    import torch
    import transformers

    from annotate.label_spaces import SPACES
    from annotate.segmentation import MODELS
    from benchmarks.small_networks import words

    model = MODELS[detector]
    labels = dict(enumerate(SPACES[model.label_space].names))
    kind = getattr(transformers, model.network)
    options: dict[str, Any] = {"id2label": labels}
    if detector.startswith("upernet"):
        sizes = (
            {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
            if tiny
            else {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3]}
        )
        stages = ["stage1", "stage2", "stage3", "stage4"]
        options["backbone_config"] = transformers.ConvNextConfig(**sizes, out_features=stages)
        options |= {"hidden_size": 16, "auxiliary_in_channels": 16} if tiny else {}
    else:
        options |= {"backbone_config": _swin(tiny), "num_queries": 10 if tiny else QUERIES[detector]}
        if tiny:
            options |= {"hidden_dim": 32, "num_attention_heads": 4, "dim_feedforward": 32}
            options |= {"encoder_feedforward_dim": 32, "encoder_layers": 2, "decoder_layers": 2}
            width = {"conv_dim": 32, "mask_dim": 32, "text_encoder_width": 32, "text_encoder_num_layers": 1}
            options |= width if model.prompted else {"feature_size": 32, "mask_feature_size": 32}
    torch.manual_seed(0)
    kind(kind.config_class(**options)).save_pretrained(folder)
    size = (
        {"shortest_edge": 64, "longest_edge": 160} if tiny else {"shortest_edge": 800, "longest_edge": 1333}
    )
    square = {"height": 512, "width": 512}
    processor = getattr(transformers, model.processor)
    processor(size=square if detector.startswith("upernet") else size).save_pretrained(folder)
    if model.prompted:
        words(folder)
        (folder / "special_tokens_map.json").write_text("{}")


def _swin(tiny: bool) -> Any:
    import transformers

    sizes = (
        {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
        if tiny
        else {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12}
    )
    return transformers.SwinConfig(
        image_size=64 if tiny else 384, out_features=["stage1", "stage2", "stage3", "stage4"], **sizes
    )
