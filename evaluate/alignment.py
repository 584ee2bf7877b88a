"""How well an image fits its caption, or another image, for a network that sees both; a value for each
sample.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluate.extractors import Images
from evaluate.weights import Mark, folder_sha256, pretrained

VERSION = "1"  # of what is done with pictures and captions for a CLIP of transformers


class DualEncoder(Protocol):
    """Images and texts in one space; a CLIP of transformers (below), or evaluate.mini."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def sha256(self) -> str: ...  # of the weights
    def images(self, images: Images) -> NDArray[np.float32]: ...  # RGB, of any sizes -> [n, d] of unit length
    def texts(self, texts: list[str]) -> NDArray[np.float32]: ...  # [n, d] of unit length


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP in a folder of transformers, with the preparation that it was trained with."""

    name: str  # of the folder: scores of two CLIPs are no more alike than metres and feet
    version: str
    sha256: str
    model: Any
    tokenizer: Any
    side: int
    mean: NDArray[np.float32]  # [3], of values in 0..1
    deviation: NDArray[np.float32]
    device: str

    def images(self, images: Images) -> NDArray[np.float32]:
        import torch

        pixels = np.stack([crop(image, self.side) for image in images]).astype(np.float32) / 255
        pixels = ((pixels - self.mean) / self.deviation).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            seen = self.model.vision_model(
                pixel_values=torch.from_numpy(pixels).contiguous().to(self.device)
            ).pooler_output
            return _unit(self.model.visual_projection(seen))

    def texts(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return _unit(
                self.model.text_projection(self.model.text_model(**self.tokens(texts)).pooler_output)
            )

    # input_ids and attention_mask, int64 [n, at most the positions]
    def tokens(self, texts: list[str]) -> dict[str, Any]:
        """The tokenizer cuts words and keeps the end-of-text token, where CLIP reads the text; cutting its
        output loses that token.
        """
        positions = self.model.config.text_config.max_position_embeddings
        encoded = self.tokenizer(
            texts, padding=True, truncation=True, max_length=positions, return_tensors="pt"
        )
        return {key: encoded[key].to(self.device) for key in ("input_ids", "attention_mask")}


def load(spec: str | Path, device: str = "cpu") -> DualEncoder:
    """`mini`, or the folder of a CLIP.

    ValueError: a file of the model is absent, or the weights are not those of such a model.
    """
    if str(spec) == "mini":
        import evaluate.mini

        return evaluate.mini.load(device=device)
    from transformers import CLIPTokenizer

    folder = Path(spec)
    model = pretrained("CLIPModel", folder, device)
    if lacking := [
        name
        for name in ("preprocessor_config.json", "tokenizer_config.json")
        if not (folder / name).is_file()
    ]:
        raise ValueError(f"{folder} lacks {' and '.join(lacking)}: get all the files of the model")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    mean, deviation = (np.array(settings[key], np.float32) for key in ("image_mean", "image_std"))
    return Clip(
        name=folder.name,
        version=VERSION,
        sha256=folder_sha256(folder),
        model=model,
        mean=mean,
        deviation=deviation,
        device=device,
        tokenizer=CLIPTokenizer.from_pretrained(str(folder), local_files_only=True),
        side=model.config.vision_config.image_size,
    )


def mark(spec: str | Path) -> Mark:
    """Of what `load` gives, without loading it; ValueError where there is no such model."""
    if str(spec) == "mini":
        from evaluate.mini import note

        return note.mark()
    return Mark(Path(spec).name, VERSION, folder_sha256(Path(spec)))


def crop(
    image: NDArray[np.uint8],  # [h, w, 3]
    side: int,
) -> NDArray[np.uint8]:  # [side, side, 3]
    """CLIP's own: the short side to `side`, bicubic, and the middle of it."""
    from PIL import Image

    height, width = image.shape[:2]
    short = min(height, width)
    size = (side * width // short, side * height // short)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return np.asarray(
        Image.fromarray(image)
        .resize(size, Image.Resampling.BICUBIC)
        .crop((left, top, left + side, top + side))
    )


# [n, d] of unit length, both -> [n]
def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """100 cos, row by row.

    Of an image and its caption, negative values count as 0: torchmetrics' CLIPScore, not the 2.5 cos of arXiv
    2104.08718.
    """
    return 100 * (first.astype(np.float64) * second).sum(1)


def _unit(embedded: Any) -> NDArray[np.float32]:
    return (embedded / embedded.norm(dim=-1, keepdim=True)).float().cpu().numpy()
