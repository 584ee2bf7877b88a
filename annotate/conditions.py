"""The thirteen conditions of arXiv 2302.05543 v1, one row each; the only place where a condition's facts are
written.
"""

from dataclasses import dataclass

# kind of raw map -> the measures that annotate.maps.measures gives for it
MEASURES_OF: dict[str, tuple[str, ...]] = {
    "edges": ("edge_density",),
    "soft_edges": ("mean", "std"),
    "lines": ("n_lines", "line_length"),
    "people": ("n_people", "keypoint_fraction"),
    "labels": ("n_labels", "void_fraction"),
    "depth": ("mean", "std"),
    "normals": ("valid_fraction", "facing"),
}
MEASURES: tuple[str, ...] = tuple(dict.fromkeys(name for names in MEASURES_OF.values() for name in names))


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What never varies about a condition; choices that vary belong to the manifest."""

    name: str
    title: str
    kind: str  # a key of MEASURES_OF: the kind of raw map
    detectors: tuple[str, ...]  # in the order `auto` tries them
    # detectors that `auto` never tries: they know rendered scenes alone, are how somebody else evaluates, may
    # not be used commercially, know one kind of scene alone, take minutes, or draw another kind of line than
    # the condition is named after
    by_name: tuple[str, ...] = ()
    parent: str | None = None  # the condition whose raw map this one is computed from
    warm_start: str | None = None  # the condition whose ControlNet the paper starts from
    fidelity: str  # the measure that compares two maps of this condition
    rule: str  # the paper's rule for its training pairs
    layout: str | None = None  # people: the names and order of the keypoints
    label_spaces: tuple[str, ...] = ()  # labels: what the ids may mean
    wide: bool = False  # edges: lines of more than one pixel, as of a pen, which a comparison thins first
    shares: str | None = None  # the condition whose maps these are when made alike: one shard, two selections

    @property
    def compared_as(self) -> str:
        """The kind of comparison, a key of evaluate.fidelity.NAMES."""
        return f"wide_{self.kind}" if self.wide else self.kind


_TIPS = ("tipsv2-dpt", "tipsv2-dpt-large")
_DEPTH_BY_NAME = (
    "dpt-large", "mini", "depth-pro", "marigold-depth",
    "depth-anything-v2-base", "depth-anything-v2-large",
    "depth-anything-v2-metric-indoor", "depth-anything-v2-metric-indoor-base",
    "depth-anything-v2-metric-indoor-large",
    "depth-anything-v2-metric-outdoor", "depth-anything-v2-metric-outdoor-base",
    "depth-anything-v2-metric-outdoor-large",
)  # fmt: skip

_ROWS = (
    Condition(
        name="canny", title="Canny edges", kind="edges", detectors=("opencv-canny",),
        by_name=("kornia-canny",), fidelity="edge_f1_bsds",
        rule="3M internet pairs, Canny with random thresholds",
    ),
    Condition(
        name="hough", title="Hough lines", kind="lines", detectors=("mlsd", "opencv-lsd"), warm_start="canny",
        fidelity="line_f1_10",
        rule="600k pairs of Places2, learned line segments",
    ),
    Condition(
        name="hed", title="HED boundaries", kind="soft_edges", detectors=("controlnet-hed", "hed-bsds500"),
        by_name=("pidinet", "teed", "anyline", "lineart-realistic", "lineart-coarse"),
        fidelity="soft_ms_ssim",
        rule="3M internet pairs",
    ),
    Condition(
        name="sketch", title="User sketches", kind="edges", detectors=("sketch-hed",), parent="hed",
        warm_start="canny", fidelity="edge_f1_bsds", wide=True,
        rule="500k pairs: HED with random thresholds, random masking of strokes, random morphology, "
        "random non-maximum suppression",
    ),
    Condition(
        name="pose_openpifpaf", title="Human pose (OpenPifPaf, COCO keypoints)", kind="people",
        layout="coco_17",
        detectors=("openpifpaf", "vitpose", "dwpose", "movenet", "mediapipe-pose"), by_name=("mini",),
        fidelity="people_ap",
        rule="80k pairs: at least 30% of the keypoints of the best person found (keypoint_fraction >= 0.3)",
    ),
    Condition(
        name="pose_openpose", title="Human pose (OpenPose body keypoints)", kind="people",
        layout="openpose_18",
        detectors=("openpose", "vitpose", "dwpose", "movenet", "mediapipe-pose"), by_name=("mini",),
        fidelity="people_ap",
        rule="200k pairs: at least 30% of the keypoints of the best person found (keypoint_fraction >= 0.3)",
    ),
    Condition(
        name="seg_coco", title="Segmentation (COCO)", kind="labels",
        label_spaces=("coco_stuff_171", "coco_panoptic_133"),
        detectors=("oneformer-coco", "mask2former-coco", "eomt-coco"), by_name=("mini",), fidelity="miou",
        rule="164k pairs, COCO-Stuff ground truth",
    ),
    Condition(
        name="seg_ade20k", title="Segmentation (ADE20K)", kind="labels", label_spaces=("ade20k_150",),
        detectors=("oneformer-ade20k", "mask2former-ade20k", "upernet-ade20k", *_TIPS), by_name=("mini",),
        fidelity="miou",
        rule="ADE20K ground truth (printed as 164k pairs, more than ADE20K has)",
    ),
    Condition(
        name="depth_large", title="Depth (large scale)", kind="depth",
        detectors=("midas-dpt-hybrid", "depth-anything-v2", *_TIPS), by_name=_DEPTH_BY_NAME,
        fidelity="depth_rmse", rule="3M internet pairs, MiDaS",
    ),
    Condition(
        name="depth_small", title="Depth (small scale)", kind="depth", shares="depth_large",
        detectors=("midas-dpt-hybrid", "depth-anything-v2", *_TIPS), by_name=_DEPTH_BY_NAME,
        fidelity="depth_rmse", rule="the 200k pairs of depth_large with the highest resolution",
    ),
    Condition(
        name="normal", title="Normal maps", kind="normals", detectors=("normal-bae", *_TIPS),
        by_name=("mini", "marigold-normals"),
        fidelity="normal_angle",
        rule="25,452 pairs, DIODE ground truth",
    ),
    Condition(
        name="normal_extended", title="Normal maps (from depth)", kind="normals",
        detectors=("normal-from-depth",),
        parent="depth_large", warm_start="normal", fidelity="normal_angle",
        rule="normals from MiDaS depth, a = 2 pi, background threshold",
    ),
    Condition(
        name="cartoon", title="Cartoon line drawing", kind="edges", detectors=("anime2sketch", "xdog"),
        by_name=("anyline", "lineart-realistic", "lineart-coarse"),
        fidelity="edge_f1_bsds", wide=True,
        rule="1M cartoon pairs, the top million by popularity",
    ),
)  # fmt: skip

CONDITIONS: dict[str, Condition] = {row.name: row for row in _ROWS}  # in the paper's order
