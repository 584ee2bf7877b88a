"""`image:`, `split:`, `captions:` and `conditions:` of a manifest: what is made of the images, and chosen."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.manifest.section import Fraction, Real, Seconds, Section, Whole
from pipeline.manifest.yaml_errors import wrong

CAPTIONER = "blip-base"  # where the manifest names none


class Image(Section):
    """The canonical image that every detector reads; changing any of it is a new image key, and a key at its
    default is no part of that, nor is `time_limit`.
    """

    resolution: Annotated[Whole, Field(ge=64, le=4096, multiple_of=64)] = 512
    # squash: all of the image as a square, its aspect ratio lost, as ControlNet++ evaluates
    fit: Literal["crop", "bucket", "squash"] = "crop"
    store: Literal["jpeg", "png"] = "jpeg"
    max_pixels: Annotated[Whole, Field(ge=4096)] = 100_000_000
    min_side: Annotated[Whole, Field(ge=1)] = 32  # pixels of the raw image
    max_aspect: Annotated[Real, Field(ge=1)] | None = None  # long side to short side
    damaged: Literal["fail", "keep"] = "fail"
    frames: Literal["first", "refuse"] = "first"  # of animations and files of several pages
    # [black, white] of pictures of 16 bits, of 32 and of floating point; what lies outside is clipped
    range: tuple[Whole, Whole] | None = None
    time_limit: Seconds = 120.0  # that reading and decoding one image may take; far addresses have their own

    @model_validator(mode="after")
    def _white_is_above_black(self) -> "Image":
        if self.range is not None and self.range[0] >= self.range[1]:
            raise wrong("range must rise from black to white: set it to [black, white], such as [0, 4095]")
        return self


class Split(Section):
    """A function of salt and group.

    Near-duplicates share a group: images whose 64-bit perceptual hashes differ in `near` bits at most, of
    which thumbnails then decide; where they have no plain ground, within twice as many. Flat ones join none.
    """

    validation: Fraction = 0.05
    test: Fraction = 0.05
    salt: Whole | str = 0
    near: Annotated[Whole, Field(ge=0, le=16)] | None = 6  # None: only equal files are one group

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> "Split":
        if self.validation + self.test >= 1:
            raise wrong("validation + test must leave something to train on: set them to sum below 1")
        return self


class Select(Section):
    """The rows that become pairs: SQL over the catalog's view `candidates`."""

    where: str = "true"
    order_by: str | None = None
    limit: Annotated[Whole, Field(ge=1)] | None = None


class Captions(BaseModel):
    """Captions by a network, for the images that came without one, or for all; every further key is a
    parameter of the captioner. `choose` alone asks for no network.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    model: str | None = None  # None: only where `choose` stands alone
    when: Literal["missing", "always"] = "missing"
    # what training sees of an image with several captions: always the first, or one drawn anew in each epoch
    choose: Literal["first", "random"] = "first"
    time_limit: Seconds = 300.0  # that one image may take

    @model_validator(mode="before")
    @classmethod
    def _a_network_unless_only_chosen(cls, given: Any) -> Any:
        if isinstance(given, dict) and "model" not in given and set(given) != {"choose"}:
            return given | {"model": CAPTIONER}
        return given

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ConditionSettings(BaseModel):
    """Detector and selection; every further key is a parameter of the detector, checked by the detector."""

    model_config = ConfigDict(extra="allow", frozen=True)
    detector: str = "auto"
    select: Select = Select()
    time_limit: Seconds | None = None  # that one image may take; None = as the detector's row says

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})
