"""Writes the fixtures beside it: run it with the transformers whose layout they are to have, `python make.py
NAME …`. That is 4.46.3, and the first version with the network for those that came later (LATER).

A fixture is what that version writes of a network: its config, the names and shapes of its tensors, the
settings of its image processor, and what it computes with the weights of `weights` from `inputs`. The weights
themselves are made anew where they are needed.
"""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SWIN = {
    "model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 2, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
TRANSFORMER = {"num_queries": 10, "hidden_dim": 32, "num_attention_heads": 4, "dim_feedforward": 32,
"encoder_feedforward_dim": 32,
               "encoder_layers": 1, "decoder_layers": 2}  # fmt: skip
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 16,
}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
ENCODER = {
    "model_type": "dinov2", "image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "use_mask_token": False,
}  # fmt: skip
LATER = {"depth_pro": "4.49.0", "eomt": "4.54.1"}
# name -> class, image processor, settings that make it small
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "oneformer": ("OneFormerForUniversalSegmentation", "OneFormerImageProcessor", {
        "backbone_config": SWIN, "num_labels": 133, "conv_dim": 32, "mask_dim": 32, "text_encoder_width": 32,
        "text_encoder_num_layers": 1, "text_encoder_vocab_size": 600, "text_encoder_n_ctx": 4, **TRANSFORMER,
    }),
    "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessor", {
        "backbone_config": SWIN, "num_labels": 133, "feature_size": 32, "mask_feature_size": 32,
        **TRANSFORMER,
    }),
    "upernet": ("UperNetForSemanticSegmentation", "SegformerImageProcessor", {
        "backbone_config": {"model_type": "convnext", "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
        "out_features": STAGES},
        "num_labels": 150, "hidden_size": 16, "auxiliary_in_channels": 16, "auxiliary_channels": 8,
    }),
    "depth_anything": ("DepthAnythingForDepthEstimation", "DPTImageProcessor", {
        "backbone_config": {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 2, "image_size": 56,
                            "patch_size": 14, "reshape_hidden_states": False, "out_features": STAGES},
        "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8,
        "head_hidden_size": 8,
    }),
    "blip": ("BlipForConditionalGeneration", "BlipImageProcessor", {
        "text_config": {**SMALL, "vocab_size": 100, "encoder_hidden_size": 32, "bos_token_id": 98,
        "sep_token_id": 2},
        "vision_config": {**SMALL, "image_size": 32}, "projection_dim": 16, "image_text_hidden_size": 16,
    }),
    "depth_pro": ("DepthProForDepthEstimation", "DepthProImageProcessor", {
        "patch_size": 16, "fusion_hidden_size": 16, "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [16, 16], "scaled_images_feature_dims": [16, 16, 16],
        "merge_padding_value": 1, "use_fov_model": True, "num_fov_head_layers": 1,
        "image_model_config": ENCODER, "patch_model_config": ENCODER, "fov_model_config": ENCODER,
    }),
    "eomt": ("EomtForUniversalSegmentation", "EomtImageProcessor", {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "num_queries": 10, "num_blocks": 2, "num_upscale_blocks": 1, "num_labels": 133,
    }),
}  # fmt: skip
# buffers that files of transformers before 4.31 hold, of BLIP too
POSITIONS = {
    "text_decoder.bert.embeddings.position_ids": [1, 512],
    "vision_model.embeddings.position_ids": [1, 5],
}
# or else it downloads a list for training
CLASSES = {"oneformer": {"class_info_file": "classes.json", "repo_path": str(HERE)}}


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Name -> float32 values that depend on the name alone, of a size at which signals neither die nor
    explode; indices are zeros.
    """
    made = {}
    for name, shape in shapes.items():
        drawn = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
        if name.endswith(("_index", "position_ids", "num_batches_tracked")):
            made[name] = np.zeros(shape, np.int64)
        elif name == "attn_mask_probs":  # of EoMT: the masks are annealed away in training
            made[name] = np.zeros(shape, np.float32)
        elif len(shape) > 1:
            made[name] = (drawn * (3 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        else:  # norms and running variances around one
            centre = (
                1.0
                if name.endswith(
                    (".weight", "running_var", "lambda1", "layer_scale_parameter", "logit_scale")
                )
                else 0.0
            )
            made[name] = np.asarray(centre + 0.2 * drawn, np.float32)
    return made


def inputs(name: str) -> dict[str, np.ndarray]:
    """What the network gets; pixels as after the usual normalisation."""
    draw = np.random.RandomState(0)
    sides = {"blip": (32, 32), "depth_anything": (56, 70)}.get(name, (64, 64))
    given = {"pixel_values": draw.uniform(-2, 2, (1, 3, *sides)).astype(np.float32)}
    if name == "oneformer":
        given["task_inputs"] = draw.randint(0, 600, (1, 77)).astype(np.float32)
    if name == "blip":
        given["input_ids"] = np.array([[98, 5, 6]])
    return given


def outputs(network: Any, name: str) -> dict[str, np.ndarray]:
    """What a detector reads of the network; of many values every eighth pixel alone, to keep files small."""
    import torch

    with torch.inference_mode():
        found = network(**{key: torch.from_numpy(each) for key, each in inputs(name).items()})
    keys = ("logits", "class_queries_logits", "masks_queries_logits", "predicted_depth", "field_of_view")
    step = 8 if name in ("upernet", "depth_pro") else 1
    told = {key: found[key].numpy() for key in keys if key in found}
    return {key: each[..., ::step, ::step] if each.ndim > 1 else each for key, each in told.items()}


def main() -> None:
    import torch
    import transformers

    (HERE / "classes.json").write_text('{"0": {"name": "person", "isthing": 1}}')
    asked = sys.argv[1:] or [name for name in NETWORKS if name not in LATER]
    for name, (network, processor, settings) in ((name, NETWORKS[name]) for name in asked):
        kind = getattr(transformers, network)
        model = kind(kind.config_class(**settings)).eval()
        shapes = {key: list(each.shape) for key, each in model.state_dict().items()} | (
            POSITIONS if name == "blip" else {}
        )
        values = {
            key: torch.from_numpy(each) for key, each in weights(shapes).items() if each.dtype == np.float32
        }
        left = model.load_state_dict(values, strict=False)
        assert not left.unexpected_keys and not [
            key for key in left.missing_keys if model.state_dict()[key].is_floating_point()
        ]
        told = json.loads(model.config.to_json_string())
        # of no meaning; the test writes those of the detector's label space
        for labels in ("id2label", "label2id"):
            told.pop(labels, None)
        beside = json.loads(getattr(transformers, processor)(**CLASSES.get(name, {})).to_json_string())
        beside |= {
            "image_processor_type": processor,
            **({"repo_path": "shi-labs/oneformer_demo"} if name in CLASSES else {}),
        }
        text = {"config": told, "preprocessor": beside, "shapes": shapes}
        (HERE / f"{name}.json").write_text(json.dumps(text, sort_keys=True) + "\n")
        np.savez_compressed(HERE / f"{name}.npz", **outputs(model, name))
    (HERE / "classes.json").unlink()


if __name__ == "__main__":
    main()
