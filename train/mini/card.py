"""The card of a mini base: data, cost, scores and weaknesses, from the same facts that its note holds."""

import platform
from collections.abc import Mapping
from pathlib import Path

from train.mini.base import Parts
from train.mini.learning import Spent
from train.mini.scores import Scores

WEAKNESSES = (
    (
        "It knows rendered scenes and nothing else. Words that no caption has are spelled in letters and mean"
        " nothing to it."
    ),
    (
        "Pictures of more objects, or of smaller ones, than its training scenes had are reconstructed worse,"
        " and hardly ever drawn right."
    ),
    "Faces, hands and fine textures are a few latent pixels: they are soft or missing.",
    "It was trained at one size. Other sizes run, but were never seen.",
)


def write(
    *,
    parts: Parts,
    spent: Mapping[str, Spent],
    scores: Scores,
    data: str,  # one sentence: what the pictures were
    wanted: Mapping[str, int],  # images that the recipe asks for, by part
) -> str:  # Markdown
    """Says what is unfinished before it says what is good."""
    vae, unet, text_encoder = (
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (parts.vae, parts.unet, parts.text_encoder)
    )
    latents, side = parts.vae.config.latent_channels, 8 * parts.unet.config.sample_size
    psnr, edges = scores["reconstruction_psnr"], scores["reconstruction_edge_f1"]
    short = [
        f"the {name} has seen {spent[name].images:,} of {count:,}"
        for name, count in wanted.items()
        if spent[name].images < count
    ]
    lines = [
        "# ControlMill's mini base",
        "",
        (
            f"Stable Diffusion 1.5's topology, narrow: {side}x{side} pictures of rendered scenes, {latents}"
            " latent channels, v-prediction. For runs without a hub and without a GPU. Scores of anything"
            " drawn by it must say so."
        ),
        "",
        (
            f"**Training is {'unfinished: ' + '; '.join(short) + ' images' if short else 'complete'}.** It"
            " goes on from these weights."
        ),
        "",
        "| part | parameters, M | images seen | CPU hours |",
        "|---|---|---|---|",
        _row("VAE", vae, spent["vae"]),
        _row("its decoder, alone afterwards", vae, spent["decoder"]),
        _row("UNet and text encoder", unet + text_encoder, spent["denoiser"]),
        "",
        (
            f"**Data.** {data} No picture of anyone, no downloaded file. "
            "An image of the VAE's count is a crop of 64x64 pixels, of the UNet's one 16x16 map of latents."
        ),
        "",
        f"**Machine.** {machine()}; one thread.",
        "",
        f"**Scores** on {scores['n']} held-out pictures, means with 95 % intervals:",
        "",
        f"- reconstruction {psnr[0]:.2f} ± {psnr[1]:.2f} dB PSNR (target 28)",
        (
            f"- edges kept in reconstruction: F1 {edges[0]:.3f} ± {edges[1]:.3f} (Canny 100, 200; a pixel's"
            " tolerance)"
        ),
        (
            f"- squared error of epsilon {scores['epsilon_mse']:.4f} with the caption, "
            f"{scores['epsilon_mse_without_caption']:.4f} with the empty prompt"
        ),
        *_found(scores),
        "",
        "**Weaknesses.**",
        "",
        *(f"- {line}" for line in WEAKNESSES),
        "",
        "**Licence.** Apache-2.0. The weights were made by `manifests/mini/base.yaml` alone.",
        "",
    ]
    return "\n".join(lines)


def machine() -> str:
    """The processor as it calls itself."""
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.is_file()
        else []
    )
    return f"{names[0] if names else platform.processor() or platform.machine()}, {len(names) or 1} cores"


def _row(name: str, millions: float, cost: Spent) -> str:
    return f"| {name} | {millions:.2f} | {cost.images:,} | {cost.cpu_seconds / 3600:.2f} |"


def _found(scores: Scores) -> list[str]:
    """Where the mini detector was there to read samples."""
    if "objects_found" not in scores:
        return []
    own, true = scores["objects_found"], scores["objects_found_in_scenes"]
    return [
        f"- of the objects and people that {scores['samples']} captions name, the mini detector finds"
        f" {own[0]:.0%} ± {own[1]:.0%} in samples (25 steps, guidance 3; target 70 %), {true[0]:.0%} ±"
        f" {true[1]:.0%} in the scenes themselves"
    ]
