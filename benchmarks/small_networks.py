"""Folders of transformers and files of Inception at random, as their libraries write them: the true layout,
the smallest sizes.
"""

import json
from pathlib import Path


def words(folder: Path) -> None:
    """A CLIP tokenizer that knows single letters; every letter ends a word."""
    vocabulary = [
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    from transformers import CLIPTokenizer

    CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(
        str(folder)
    )


def prepared(folder: Path, side: int) -> None:
    told = {
        "image_mean": [0.48, 0.45, 0.4],
        "image_std": [0.26, 0.25, 0.27],
        "crop_size": {"height": side, "width": side},
    }
    size = {
        "size": {"shortest_edge": side},
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told | size))


def clip(folder: Path, side: int = 32, positions: int = 12, seed: int = 5) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **common,
        "vocab_size": 54,
        "max_position_embeddings": positions,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    vision = {**common, "image_size": side, "patch_size": 8}
    folder.mkdir(parents=True)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=8, initializer_factor=20.0)
    ).save_pretrained(str(folder))
    words(folder)
    prepared(folder, side)
    return folder


def dinov2(folder: Path) -> Path:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(str(folder))
    prepared(folder, 28)
    return folder


def inception(folder: Path) -> Path:
    """The published file's name and form, a TorchScript program with `layers`: torchvision's Inception v3 at
    random, which differs from that of 2015 in three poolings; the scale of each layer is kept, so that the
    last one still sees the image. Returns the file: its sha256 is not the pin.
    """
    import torch
    from torchvision.models import Inception3

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inception = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
            inception.fc = torch.nn.Identity()
            self.layers = inception

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    draw, program = torch.Generator().manual_seed(0), Program().eval()
    for layer in program.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, generator=draw)
    path = folder / "inception-2015-12-05.pt"
    with torch.inference_mode():
        torch.jit.trace(program, torch.zeros(1, 3, 299, 299)).save(str(path))
    return path
