"""A picture to judge a base by: held-out pictures above their reconstructions, then samples of held-out
captions.
"""

import textwrap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.mini import autoencoder, scores
from train.mini.pictures import Pictures

COLUMNS = 6
WORDS = 104  # pixels of height for a caption


def write(path: Path, folder: Path, held_out: Pictures, *, samples: int = 24, seed: int = 0) -> None:
    """A PNG; `folder` is a base's."""
    from diffusers import AutoencoderKL
    from PIL import Image

    vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True).float().eval()
    images = held_out.images(range(2 * COLUMNS))
    again = autoencoder.reconstruct(vae, images)
    captions = [held_out.caption(2 * COLUMNS + i) for i in range(samples)]
    drawn = scores.draw(folder, captions, seed=seed)
    rows = [
        row for i in (0, COLUMNS) for row in (_row(images[i : i + COLUMNS]), _row(again[i : i + COLUMNS]))
    ]
    for i in range(0, samples, COLUMNS):
        rows += [_row(drawn[i : i + COLUMNS]), _words(captions[i : i + COLUMNS], images.shape[1])]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def _row(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    blank = np.full_like(images[:1], 255)
    return np.concatenate([*images, *[blank[0]] * (COLUMNS - len(images))], axis=1)


def _words(captions: list[str], side: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (COLUMNS * side, WORDS), "white")
    pen = ImageDraw.Draw(sheet)
    for i, caption in enumerate(captions):
        pen.multiline_text(
            (i * side + 3, 2), textwrap.fill(caption, (side - 6) // 5), fill="black", font_size=8, spacing=1
        )
    return np.array(sheet)
