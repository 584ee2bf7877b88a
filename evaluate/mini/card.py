"""The card of a mini scorer: data, cost, scores and weaknesses, from the same facts that its note holds."""

from collections.abc import Iterator, Mapping

from evaluate.mini.clip import MiniClip
from evaluate.mini.note import VERSION
from evaluate.mini.scores import AMONG, BEFORE, Proportion

HARDLY = 0.6  # share of captions before a changed one, where half are by chance
WEAKNESSES = (
    (
        "It knows rendered scenes and the words of their captions, nothing else. Of a photograph it tells"
        " nothing. `known` gives the share of a caption's words that it has learned; a word that it has not"
        " is one and the same unknown to it."
    ),
    (
        "It judges the picture as a whole: a caption with one wrong word lies near the right one (see the"
        " table). A mean over many pictures ranks models; one picture's score is a weak judgement."
    ),
    (
        "It learned from the same renderer that it judges, so it may like what looks rendered. Its scores"
        " compare with no published CLIP score."
    ),
    (
        "The features are means over cells: they notice what there is and how it looks, and little of where"
        " it stands. They have learned to overlook what the training pictures were spoiled by: blur of about"
        " a pixel, faint noise, other light, JPEG."
    ),
)


def write(
    *,
    scorer: MiniClip,
    spent: Mapping[str, float],  # images, cpu_seconds, seconds
    scores: Mapping[str, Proportion],
    data: str,  # one sentence: what the pictures were
    machine: str,
    wanted: int,  # images that the recipe asks for
) -> str:  # Markdown
    """Says what is unfinished before it says what is good."""
    sizes = scorer.net.sizes
    seen = int(spent["images"])
    done = "complete" if seen >= wanted else f"unfinished: {seen:,} of {wanted:,} images"
    lines = [
        "# ControlMill's mini scorer",
        "",
        (
            f"A contrastive image-text encoder of {sum(p.numel() for p in scorer.net.parameters()) / 1e6:.2f}"
            f" M parameters: a convolutional net for {sizes.side}x{sizes.side} pictures, a transformer of"
            f" {sizes.text_layers} layers over {len(scorer.net.words)} words, embeddings of {sizes.width}"
            f" dimensions, image features of {sizes.features}. For `clip_score (mini-clip)` and `fd (mini"
            " features)`, in runs without a hub."
        ),
        "",
        (
            f"**Training is {done}.** {spent['cpu_seconds'] / 60:.1f} CPU minutes,"
            f" {spent['seconds'] / 60:.0f} minutes by the clock, {seen:,} images seen; {machine}, one thread."
        ),
        "",
        (
            f"**Data.** {data} Spoiled by blur, noise, other light and JPEG. No picture of anyone, no"
            " downloaded file."
        ),
        "",
        (
            f"**Scores** on held-out scenes, with Wilson's 95 % intervals. By chance {100 / AMONG:.1f} % are"
            f" first of {AMONG} (31 others drawn for each scene), and half of the captions stand before a"
            " changed one."
        ),
        "",
        "| | share | interval | scenes |",
        "|---|---|---|---|",
        *_rows(scores),
        "",
        "**Weaknesses.**",
        "",
        *(f"- {line}" for line in (*_blind(scores), *WEAKNESSES)),
        "",
        (
            f"**Identity.** `{scorer.name}`, version {VERSION}, sha256 `{scorer.sha256}`. bfloat16, read as"
            " float32."
        ),
        "",
        "**Licence.** Apache-2.0. The weights were made by `manifests/mini/scorer.yaml` alone.",
        "",
    ]
    return "\n".join(lines)


def _rows(scores: Mapping[str, Proportion]) -> Iterator[str]:
    """Rounded as in the note."""
    for name, one in scores.items():
        low, high = (f"{100 * round(end, 4):.1f}" for end in (one.low, one.high))
        yield f"| {name} | {100 * round(one.value, 4):.1f} % | {low} to {high} % | {one.n:,} |"


def _blind(scores: Mapping[str, Proportion]) -> Iterator[str]:
    """What it can't tell from a false caption."""
    names = [name for name, one in scores.items() if one.low < HARDLY and name.startswith(BEFORE)]
    if names:
        yield (
            f"**Hardly better than chance: {'; '.join(names)}.** It can't judge whether a model drew that"
            " right."
        )
