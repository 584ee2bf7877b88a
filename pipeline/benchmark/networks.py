"""The networks that look at samples, once a process, and what identifies them."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.weights import Mark
from pipeline import MillError
from pipeline.manifest import Evaluate, Manifest


@dataclass(frozen=True)
class WantedNetworks:
    """The networks that a manifest asks for."""

    features: tuple[tuple[str, str | None], ...] = ()  # extractor, absolute path of its weights
    clip: str | None = None  # `mini`, or the absolute path of a folder of transformers


@functools.cache
def extractor(name: str, weights: str | None, device: str) -> Any:  # evaluate.extractors.Extractor
    """The extractor of that name with its weights, loaded once a process. MillError where there is none of
    that name, or its weights are missing or can't be read.
    """
    from evaluate import extractors

    try:
        return extractors.load(name, weights, device)
    except (OSError, ValueError) as error:
        raise MillError(f"evaluate.features: {error}") from error


@functools.cache
def dual_encoder(spec: str, device: str) -> Any:  # evaluate.alignment.DualEncoder
    """`mini`, or a folder of transformers. MillError where files of it are missing or can't be read."""
    from evaluate import alignment

    try:
        return alignment.load(spec, device)
    except (OSError, ValueError) as error:
        raise MillError(f"evaluate.clip: {error}") from error


def wanted(evaluation: Evaluate) -> WantedNetworks:
    """With absolute paths, since a worker may stand in another folder."""
    return WantedNetworks(
        tuple((it.extractor, _absolute(it.weights)) for it in evaluation.features),
        evaluation.clip if evaluation.clip in (None, "mini") else _absolute(evaluation.clip),
    )


def identity(evaluation: Evaluate) -> list[list[str]]:
    """Versions and weights of all of them."""
    asked = wanted(evaluation)
    marks = [[*_extractor_mark(*it)] for it in asked.features]
    return marks + ([["clip", *_encoder_mark(asked.clip)]] if asked.clip else [])


@functools.cache
def _extractor_mark(name: str, weights: str | None) -> Mark:
    """MillError as for `extractor`; once a process, as that is."""
    from evaluate import extractors

    try:
        return extractors.mark(name, weights)
    except (OSError, ValueError) as error:
        raise MillError(f"evaluate.features: {error}") from error


@functools.cache
def _encoder_mark(spec: str) -> Mark:
    """MillError as for `dual_encoder`."""
    from evaluate import alignment

    try:
        return alignment.mark(spec)
    except (OSError, ValueError) as error:
        raise MillError(f"evaluate.clip: {error}") from error


def weights_of(evaluation: Evaluate, metric: str) -> str:
    """Name, version and sha256 of the network that a measure looks with; '' where it looks with none."""
    what, _, name = metric.rstrip(")").partition(" (")
    asked = wanted(evaluation)
    if what in ("clip_score", "clip_image") and asked.clip:
        return _told(_encoder_mark(asked.clip))
    return next((_told(_extractor_mark(*it)) for it in asked.features if it[0] == name), "")


def _told(mark: Mark) -> str:
    return f"{mark.name} {mark.version} (sha256 {mark.sha256})"


def lacking(given: Manifest) -> list[str]:
    """A sentence for each network of `evaluate:` that can't be loaded here."""
    asked, sentences = wanted(given.evaluate) if given.evaluate else WantedNetworks(), []
    loads: list[tuple[tuple[str | int, ...], Any, tuple[Any, ...]]] = [
        (("features", number), extractor, (name, weights, "cpu"))
        for number, (name, weights) in enumerate(asked.features)
    ]
    loads += [(("clip",), dual_encoder, (asked.clip, "cpu"))] if asked.clip else []
    for steps, load, arguments in loads:
        try:
            load(*arguments)
        except MillError as error:
            sentences.append(f"{given.at('evaluate', *steps)}: {error.__cause__ or error}")
    return sentences


def _absolute(path: str | None) -> str | None:
    return str(Path(path).expanduser().resolve()) if path else None
