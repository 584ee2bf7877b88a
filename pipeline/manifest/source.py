"""`source:` of a manifest: where raw images lie, and the maps that come with them."""

import codecs
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from pipeline.manifest.download import Download
from pipeline.manifest.section import Real, Section, Text, Whole
from pipeline.manifest.yaml_errors import wrong

LabelsCoding = Literal[
    "ade20k_150", "ade20k_png", "coco_stuff_171", "coco_stuff_png", "coco_stuff_pixelmaps",
    "coco_panoptic_133",
]  # fmt: skip
# a distance of 0 is invalid, and so is a disparity of 0
DepthCoding = Literal["metres", "millimetres", "distance", "inverse", "disparity"]
NormalsCoding = Literal[
    "x right, y up, z to the viewer", "x right, y down, z away",
    "x left, y up, z to the viewer", "x right, y down, z to the viewer",
    "cn10", "cn11",
]  # fmt: skip
KeypointsCoding = Literal["coco", "openpose"]


class Provided(Section):
    """Where the map of a condition lies that comes with the images, and how its numbers read
    (pipeline/dataset/provided/).
    """

    # folders: a path below the source's, with {folder}, {stem}, {name} of the image; a JSON of COCO's kind
    # that names neither stem nor name holds the maps of all images
    path: Text | None = None
    column: Text | None = None  # lists, tables: the column; archives: the member's extension, seg.png
    # which coding, axes or layout the numbers have: the one of the condition's kind must be said
    labels: LabelsCoding | None = None
    depth: DepthCoding | None = None
    normals: NormalsCoding | None = None
    keypoints: KeypointsCoding | None = None
    # depth: what a value is divided by to be metres; 5000 for TUM, 256 for KITTI
    depth_scale: Annotated[Real, Field(gt=0)] | None = None
    values: Literal["-1 to 1", "0 to 1"] | None = None  # normals that are no picture; None = -1 to 1
    # keypoints and lines; None = pixels, or fractions of the image where they can be nothing else
    coordinates: Literal["pixels", "fractions"] | None = None
    ink: Literal["light", "dark"] | None = None  # of edges; None = light, and refused where that can't be
    # in which the map lies of a photograph that EXIF turns: as its pixels are stored, or as it is shown
    frame: Literal["stored", "upright"] | None = None
    mask: str | None = None  # as `path` or `column`: where it is 0, the map is invalid

    @model_validator(mode="after")
    def _says_where(self) -> "Provided":
        if (self.path is None) == (self.column is None):
            raise wrong("set `path` (folders) or `column` (lists, tables, archives), one of them")
        for key, name in (("path", self.path), ("mask", self.mask if self.path else None)):
            try:
                (name or "").format(folder="", stem="", name="")
            except (LookupError, ValueError, AttributeError):
                raise wrong(
                    f"{name!r} may name {{folder}}, {{stem}} and {{name}} of the image, nothing else in"
                    " braces",
                    key,
                ) from None
        if self.depth_scale is not None and self.depth == "millimetres":
            raise wrong("millimetres are 1000 to a metre: remove it, or set `depth: metres`", "depth_scale")
        return self


def _known_encoding(name: str) -> str:
    try:
        if codecs.lookup(name)._is_text_encoding:
            return name
    except (LookupError, ValueError):
        pass
    raise wrong(f"{name!r} is no encoding of text: utf-8, utf-16, latin-1, cp1252, shift_jis, … are")


Encoding = Annotated[str, AfterValidator(_known_encoding)]
ProvidedMaps = dict[str, Provided]  # by condition
Column = Literal["none"] | dict[Literal["column", "template"], str]
Member = Literal["none"] | dict[Literal["member", "json", "template"], str]


class FolderSource(Section):
    """Every image below a folder; `include` and `exclude` are globs of what is meant and what is not.

    Captions: `sidecar` (photo.txt, photo.caption or photo.json beside photo.jpg, else a metadata.jsonl),
    `metadata` (metadata.jsonl alone) or {template: "a photograph"}.
    """

    kind: Literal["folder"]
    path: Text
    captions: Literal["sidecar", "metadata", "none"] | dict[Literal["template"], str] = "sidecar"
    encoding: Encoding = "utf-8"  # of captions that don't begin with a byte order mark
    include: list[Text] = []
    exclude: list[Text] = []
    provided: ProvidedMaps = {}
    download: Download = Download()  # of a folder in an object store


class ListSource(Section):
    """A JSONL or CSV list with a column `image`: a path, an address of the web (https://) or of an object
    store (s3://), or package:// for a file that an installed package ships.
    """

    kind: Literal["list"]
    path: Text
    image_column: str = "image"
    captions: dict[Literal["column", "template"], str] = {"column": "caption"}
    provided: ProvidedMaps = {}
    download: Download = Download()


class WebDatasetSource(Section):
    """Tars of samples: a .tar, a folder of them, or a glob.

    Captions: a member's extension, or a key of the .json member. `image_member` is the extension of the
    image, where samples hold several.
    """

    kind: Literal["webdataset"]
    path: Text
    captions: Member = {"member": "txt"}
    encoding: Encoding = "utf-8"  # of captions that don't begin with a byte order mark
    image_member: Text | None = None
    key_dot: Literal["first", "last"] = "first"  # where the key of a name ends
    provided: ProvidedMaps = {}


class Img2DatasetSource(Section):
    """What img2dataset wrote, in any of its formats: tars, folders of files, or Parquet."""

    kind: Literal["img2dataset"]
    path: Text
    captions: Member = {"member": "txt"}


class ParquetSource(Section):
    """Parquet files: one, a folder of them, or a glob.

    An image is bytes, a struct with bytes, an address, or a path relative to the file.
    """

    kind: Literal["parquet"]
    path: Text
    image_column: str = "image"
    captions: Column = {"column": "text"}
    provided: ProvidedMaps = {}
    download: Download = Download()


class HuggingFaceSource(Section):
    """A dataset of the hub or a local one.

    `streaming` keeps what it has read in the workspace, up to `count` rows.
    """

    kind: Literal["huggingface"]
    path: Text
    name: str | None = None  # the configuration
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    count: Annotated[Whole, Field(ge=1)] | None = None
    image_column: str = "image"
    captions: Column = {"column": "text"}
    provided: ProvidedMaps = {}
    download: Download = Download()


class ScenesSource(Section):
    """Rendered scenes at `image.resolution`, with exact depth, normals, labels and keypoints."""

    kind: Literal["scenes"]
    count: Annotated[Whole, Field(ge=1)]
    seed: Annotated[Whole, Field(ge=0)] = 0
    most_objects: Annotated[Whole, Field(ge=1)] = 4  # in a scene, the figure not counted
    # share of the picture that an object's box has at least
    least_box: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    least_visible: Annotated[Real, Field(ge=0, le=1)] = 0.0  # share of an object that nothing hides, at least


AnySource = (
    FolderSource
    | ListSource
    | WebDatasetSource
    | Img2DatasetSource
    | ParquetSource
    | HuggingFaceSource
    | ScenesSource
)
Source = Annotated[AnySource, Field(discriminator="kind")]
SOURCE_KINDS = tuple(get_args(section.model_fields["kind"].annotation)[0] for section in get_args(AnySource))
