"""`evaluate:` of a manifest: the frozen benchmark, who is compared, and by which networks."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from pipeline.manifest.dataset import ConditionSettings
from pipeline.manifest.section import NAME, Real, Seconds, Section, Text, Whole
from pipeline.manifest.yaml_errors import wrong
from train.samplers import CfgHint, Precision, Sampler

# cfg_hint -> what fingerprints and notes have under its first name, guide_hint
GUIDE_HINT: dict[CfgHint, bool | str] = {"both": False, "conditional": True, "weighted": "weighted"}


def cfg_hint_of(guide_hint: bool | str) -> CfgHint:
    """The reverse of GUIDE_HINT."""
    return next(name for name, stored in GUIDE_HINT.items() if stored == guide_hint)


class Benchmark(Section):
    """What every system is asked for, frozen: samples of other benchmarks are never compared."""

    split: Literal["train", "validation", "test"] = "test"
    samples: Annotated[Whole, Field(ge=1)] = 1000  # images of the split, each with every seed
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] = [0]
    sampler: Sampler = "ddim"
    num_inference_steps: Annotated[Whole, Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[Real, Field(ge=0)] = 7.5
    # of the networks that draw; auto: bf16 where the device multiplies in it, else fp32
    precision: Precision = "fp32"
    negative_prompt: str = ""  # of the unconditional branch
    controlnet_conditioning_scale: Annotated[Real, Field(ge=0)] = 1.0
    # the branches of classifier-free guidance that see the hint: both, as in the released code, or the
    # conditional one alone, so that guidance strengthens the hint as well as the prompt; weighted is
    # conditional with the paper's resolution weights (3.5)
    cfg_hint: CfgHint = "both"
    licence: Text | None = (
        None  # of the images, told to whoever enters the benchmark; no part of any identity
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "steps": "num_inference_steps",
        "guidance": "guidance_scale",
        "negative": "negative_prompt",
        "scale": "controlnet_conditioning_scale",
        "guide_hint": "cfg_hint",
    }

    @property
    def younger(self) -> dict[str, Any]:
        """Settings that came later, where they are set: without them fingerprints stay as they were."""
        return {} if self.precision == "fp32" else {"precision": self.precision}

    def stored(self, *keys: str) -> dict[str, Any]:
        """Under the names and values of the first versions, which fingerprints and notes are made of: all of
        them, or these.
        """
        values = {
            "split": self.split,
            "samples": self.samples,
            "seeds": self.seeds,
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "negative": self.negative_prompt,
            "scale": self.controlnet_conditioning_scale,
            "guide_hint": GUIDE_HINT[self.cfg_hint],
            "sampler": self.sampler,
        }
        return {key: values[key] for key in keys or values}


class External(Section):
    """Somebody's ControlNet, scored beside the runs."""

    name: Annotated[str, Field(pattern=NAME)]
    condition: str
    checkpoint: str  # a diffusers folder, a file in the original layout, or a hub id


class Submitted(Section):
    """Pictures that somebody's model made for an exported benchmark, scored beside the runs."""

    name: Annotated[str, Field(pattern=NAME)]
    condition: str
    images: Text  # folder with submission.json
    shuffled: Text | None = None  # folder; None = `shuffled` below images, where it is there
    plain: Text | None = None  # likewise: without a hint


class Features(Section):
    """A network whose features the distribution is measured on."""

    extractor: str  # a name of evaluate.extractors
    weights: str | None = None  # file or folder; None = those that an installed package ships


Baseline = Literal[
    "no_control", "shuffled_condition", "vae_round_trip", "real_image", "warm_start", "earlier"
]
BASELINES = get_args(Baseline)
WITHOUT_BASE = {"real_image", "shuffled_condition"}  # the latter of what is submitted


class Evaluate(Section):
    base: Text | None = None  # None = train.base
    benchmark: Benchmark = Benchmark()
    baselines: list[Baseline] = ["no_control", "shuffled_condition", "vae_round_trip", "real_image"]
    external: list[External] = []
    submissions: list[Submitted] = []
    # another detector to read a condition again from what was generated; else the one that made it
    readers: dict[str, ConditionSettings] = {}
    features: list[Features] = []
    time_limit: Seconds = 3600.0  # that making or scoring one sample may take
    published: Text | None = None  # file of numbers from elsewhere, beside those that ship
    clip: str | None = None  # `mini`, or the folder of a CLIP in transformers' layout

    @property
    def names(self) -> set[str]:
        """Of all that no run of the manifest makes."""
        return {it.name for it in self.external} | {it.name for it in self.submissions}

    @property
    def draws(self) -> bool:
        """Whether samples are drawn here, or by nobody but whoever submits them."""
        return not self.submissions or bool(self.external or set(self.baselines) - WITHOUT_BASE)

    @model_validator(mode="after")
    def _names_are_names(self) -> "Evaluate":
        names = [(it.name, it.condition) for it in self.external]
        names += [(it.name, it.condition) for it in self.submissions]
        doubled = sorted({name for name, condition in names if names.count((name, condition)) > 1})
        if doubled:
            raise wrong(
                f"names {', '.join(doubled)} twice for one condition: call one of them otherwise",
                "submissions" if self.submissions else "external",
            )
        return self
