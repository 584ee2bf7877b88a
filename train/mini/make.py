"""Makes the mini base from pictures: the VAE first, then the UNet with its text encoder on its latents.

Each part goes on from its own state in `out`, or else from the weights of an older base, and counts its
images from the very beginning.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from train.mini import autoencoder, base, denoiser, latents, learning, text
from train.mini.autoencoder import AutoencoderRecipe
from train.mini.base import Parts
from train.mini.denoiser import Denoiser, DenoiserRecipe
from train.mini.learning import Loop, Objective, ParameterGroup, Spent
from train.mini.pictures import Pictures

WATCHED = 64  # held-out pictures that the VAE is measured on as it trains
EXAMPLES = 256  # held-out pictures that the UNet is measured on as it trains


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """Everything that decides what the base becomes, but the pictures."""

    seed: int = 0
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    denoiser: DenoiserRecipe = field(default_factory=DenoiserRecipe)


@dataclass(frozen=True)
class Session:
    """One call of `train` or `polish`: what it learns from, where it saves, when it ends."""

    recipe: BaseRecipe
    pictures: Pictures
    held_out: Pictures
    out: Path
    older: Path | None  # a base's folder whose weights to go on from where `out` has none
    until: float  # time.monotonic()
    device: str


def train(
    recipe: BaseRecipe,
    pictures: Pictures,
    held_out: Pictures,
    out: Path,
    *,
    # a base's folder whose weights to go on from where `out` has none; None = from nothing
    older: Path | None = None,
    seconds: float = float("inf"),  # of this call
    device: str = "cpu",
) -> bool:  # whether all images of the recipe have been seen
    """Stops after `seconds` or at SIGTERM with everything saved; the same call goes on.

    `out/log.jsonl` says how it goes.
    """
    session = Session(recipe, pictures, held_out, out, older, time.monotonic() + seconds, device)
    if not make_vae(session):
        return False
    vae = load_vae(recipe, pictures, out).to(device)
    tokenizer = load_tokenizer(pictures, out, older)
    data, watched = (
        latents.of_pictures(vae, tokenizer, some, out / "latents", device=device)
        for some in (pictures, held_out)
    )
    net = Denoiser(*_new_denoiser(recipe, tokenizer, pictures.side))
    spent = Spent()
    if older is not None and learning.spent_of(out / "denoiser") is None:
        spent = base.load_denoiser(older, net)
    alpha_bar = denoiser.levels().to(device)
    net = net.to(device)
    objective = Objective(
        groups=[ParameterGroup(list(net.parameters()))],
        loss_at=functools.partial(
            denoiser.loss_at, data=data, recipe=recipe.denoiser, alpha_bar=alpha_bar, seed=recipe.seed
        ),
        rate=functools.partial(denoiser.rate, recipe.denoiser),
        measure=lambda mean: denoiser.held_out_error(
            mean, watched, alpha_bar, min(EXAMPLES, len(held_out.captions))
        ),
    )
    loop = Loop(
        part="denoiser",
        images=recipe.denoiser.images,
        batch=recipe.denoiser.batch,
        half_life=recipe.denoiser.half_life,
    )
    _, _, done = learning.learn(net, objective, loop, out / "denoiser", spent=spent, until=session.until)
    return done


def make_vae(session: Session) -> bool:  # whether it is there
    """A VAE that has seen the recipe's images is left alone, since its UNet knows no other latents; one that
    has not goes on.
    """
    recipe, pictures, out, older = session.recipe, session.pictures, session.out, session.older
    plan = recipe.autoencoder
    if (out / "vae" / base.VAE_FILE).is_file() and base.spent_of(out)["vae"].images >= plan.images:
        return True
    vae, before = autoencoder.build(plan, pictures.side, recipe.seed), Spent()
    if older is not None:
        base.copy_vae(older, vae)
        before = base.spent_of(older)["vae"]
        if before.images >= plan.images:
            base.save_vae(vae, out / "vae", before)
            return True
    else:
        autoencoder.start(vae, pictures)
    groups = autoencoder.parameter_groups(vae)
    mean, spent, done = _learn_pictures(session, plan, vae, groups, "vae", out / "vae", before)
    if done:
        mean = base.rounded(mean)  # as it will be shipped, so that the latents are its own
        autoencoder.settle(mean, pictures, device=session.device)
        base.save_vae(mean, out / "vae", spent)
    return done


def polish(
    recipe: BaseRecipe,
    pictures: Pictures,
    held_out: Pictures,
    out: Path,
    *,
    older: Path | None = None,
    seconds: float = float("inf"),
    device: str = "cpu",
) -> bool:  # whether all images of `recipe.autoencoder.polish` have been seen
    """Trains the decoder alone, which no UNet notices; beside `train`, in a process of its own, if there is a
    core for it.
    """
    session = Session(recipe, pictures, held_out, out, older, time.monotonic() + seconds, device)
    if not make_vae(session):
        return False
    vae = autoencoder.build(recipe.autoencoder, pictures.side, recipe.seed)
    base.copy_vae(out, vae)
    _, decoder = autoencoder.parameter_groups(vae)
    vae.requires_grad_(False)
    for parameter in decoder.parameters:
        parameter.requires_grad_(True)
    plan = replace(recipe.autoencoder, images=recipe.autoencoder.polish)
    old = base.spent_of(older) if older is not None else {}
    before = old["decoder"] if "decoder" in old and old["vae"] == base.spent_of(out)["vae"] else Spent()
    return _learn_pictures(session, plan, vae, [decoder], "decoder", _decoder_folder(vae, out), before)[2]


def _decoder_folder(vae: Any, out: Path) -> Path:
    """A decoder that was polished for another encoder is of no use."""
    return out / f"decoder-{latents.fingerprint(vae)}"


def _learn_pictures(
    session: Session,
    plan: AutoencoderRecipe,
    vae: Any,
    groups: Sequence[ParameterGroup],
    part: str,
    folder: Path,
    spent: Spent,
) -> tuple[Any, Spent, bool]:
    held_out, device = session.held_out, session.device
    watched = held_out.images(range(min(WATCHED, len(held_out.captions))))

    def measure(mean: Any) -> dict[str, float]:
        psnr = autoencoder.decibels(watched, autoencoder.reconstruct(mean, watched, device=device))
        return {"held_out_psnr": float(psnr.mean()), "n": len(watched)}

    objective = Objective(
        groups=groups,
        loss_at=functools.partial(
            autoencoder.loss_at,
            pictures=session.pictures,
            recipe=plan,
            seed=session.recipe.seed,
            device=device,
        ),
        rate=functools.partial(autoencoder.rate, plan),
        measure=measure,
    )
    loop = Loop(
        part=part,
        images=plan.images,
        batch=plan.batch,
        half_life=plan.half_life,
        measure_every=2000,
        log_every=400,
    )
    return learning.learn(vae.to(device), objective, loop, folder, spent=spent, until=session.until)


def load_vae(recipe: BaseRecipe, pictures: Pictures, out: Path) -> Any:
    """The finished one with its decoder as polished, else the one in training, so that a half-made base can
    be looked at.
    """
    vae = autoencoder.build(recipe.autoencoder, pictures.side, recipe.seed)
    if (out / "vae" / base.VAE_FILE).is_file():
        base.copy_vae(out, vae)
        learning.average_of(_decoder_folder(vae, out), vae)
    elif learning.average_of(out / "vae", vae):
        autoencoder.settle(vae, pictures)
    return vae.eval().requires_grad_(False)


def load_tokenizer(pictures: Pictures, out: Path, older: Path | None) -> Any:
    """Once words have numbers they keep them."""
    for folder in (out, older):
        if folder is not None and (folder / "tokenizer").is_dir():
            return base.load_tokenizer(folder)
    tokenizer = text.build_tokenizer(text.words_of(pictures.captions + pictures.mirrored))
    tokenizer.save_pretrained(out / "tokenizer")
    return tokenizer


def load_trained(
    recipe: BaseRecipe, pictures: Pictures, out: Path, older: Path | None
) -> tuple[Parts, dict[str, Spent]]:
    """The base as it is now, and what its vae, decoder and denoiser have cost."""
    tokenizer = load_tokenizer(pictures, out, older)
    net = Denoiser(*_new_denoiser(recipe, tokenizer, pictures.side))
    spent = (
        base.spent_of(out)
        if (out / "vae" / base.VAE_FILE).is_file()
        else {"vae": learning.spent_of(out / "vae") or Spent()}
    )
    old = base.spent_of(older) if older is not None else {}
    vae = load_vae(recipe, pictures, out)
    same = old.get("vae") == spent["vae"]
    spent["decoder"] = learning.spent_of(_decoder_folder(vae, out)) or (
        old.get("decoder", Spent()) if same else Spent()
    )
    spent["denoiser"] = learning.spent_of(out / "denoiser") or old.get("denoiser", Spent())
    if not learning.average_of(out / "denoiser", net) and older is not None:
        base.load_denoiser(older, net)
    return Parts(vae, net.unet.eval(), net.text_encoder.eval(), tokenizer), spent


def _new_denoiser(recipe: BaseRecipe, tokenizer: Any, side: int) -> tuple[Any, Any]:
    plan = recipe.denoiser
    unet = denoiser.build_unet(
        plan, latent_channels=recipe.autoencoder.latent_channels, side=side, seed=recipe.seed
    )
    return unet, text.build_encoder(
        tokenizer, width=plan.text_width, layers=plan.text_layers, heads=plan.heads, seed=recipe.seed
    )
