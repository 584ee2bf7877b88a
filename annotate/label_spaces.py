"""What the ids of label maps mean and in which colours they are drawn; where ids of published data sets are
taken over.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

VOID = 255  # the id that means "no class", in 8-bit and in 16-bit maps; drawn black


@dataclass(frozen=True)
class LabelSpace:
    """Names and RGB colours of the ids 0, 1, 2, …; two ids of ADE20K share a colour, so its ids can't be read
    back from a drawing.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]


def translate(array: np.ndarray, source: str) -> np.ndarray:
    """Integer ids of any shape in a published coding (a key of SOURCES) -> uint8 ids of the space
    SOURCES[source], void 255.

    ValueError: source unknown, values that are not integers, or an id the coding does not have.
    """
    table = _table(source)
    if array.dtype.kind not in "iu":
        raise ValueError(f"labels are integers, not {array.dtype.name}")
    unknown = lacking(array, source)
    if unknown.any():
        ids = np.flatnonzero(table[:VOID] >= 0)
        raise ValueError(
            f"{source} has no id {int(array[unknown].max())}; its ids are {ids.min()} to {ids.max()}, and"
            f" {VOID} for void"
        )
    return table[array].astype(np.uint8)


def lacking(array: np.ndarray, source: str) -> np.ndarray:
    """bool of the array's shape: where integers are no ids of a published coding, nor 255, which is void."""
    table = _table(source)
    if array.dtype == np.uint8:
        return np.asarray(table[array] < 0)
    inside = (array >= 0) & (array <= VOID)
    return np.asarray(~inside | (table[np.where(inside, array, VOID)] < 0))


def _table(source: str) -> np.ndarray:
    """int16 [256]: what each id of a coding is in its space, -1 where the coding has no such id."""
    if source not in SOURCES:
        raise ValueError(f"unknown coding of labels {source!r}; known: {', '.join(SOURCES)}")
    table = np.full(VOID + 1, -1, np.int16)
    codes = _CODES.get(source, range(len(SPACES[SOURCES[source]].names)))
    table[: len(codes)] = codes
    table[VOID] = VOID
    return table


def id_of(name: str, space: str) -> int | None:
    """The id of a class by its name, in which synonyms follow commas ("windowpane, window"), or None."""
    parts = [part.strip().lower() for part in name.split(",")]
    names = SPACES[space].names
    return next(
        (i for part in parts for i, known in enumerate(names) if part in (known, _ALSO.get(known))), None
    )


def disagreement(id2label: Mapping[int, str], space: str) -> str | None:
    """Where a model's classes differ from a label space, in words; None = same classes in the same order.

    Synonyms ("road, route"), letter case and the endings -other, -stuff and -merged of COCO's names don't
    count.
    """
    names = SPACES[space].names
    if sorted(id2label) != list(range(len(names))):
        return f"{len(id2label)} classes instead of the {len(names)} of {space}"
    for i, name in enumerate(names):
        theirs = {_plain(part) for part in id2label[i].split(",")}
        if not theirs & {_plain(name), _ALSO.get(name)}:
            return f"class {i} is {id2label[i]!r} instead of {name!r} ({space})"
    return None


def nameless(id2label: Mapping[int, str], space: str) -> bool:
    """Whether a model has as many classes as a label space and names none: transformers calls them LABEL_0,
    LABEL_1, … then.
    """
    return dict(id2label) == {i: f"LABEL_{i}" for i in range(len(SPACES[space].names))}


def _plain(name: str) -> str:
    words = name.strip().lower().replace("_", "-").split("-")
    while len(words) > 1 and words[-1] in ("other", "stuff", "merged"):
        words.pop()
    return "-".join(words)


def _read(table: str) -> LabelSpace:
    entries = [entry.strip().rpartition(" ") for entry in table.split(",")]
    codes = [bytes.fromhex(code) for _, _, code in entries]
    return LabelSpace(tuple(name for name, _, _ in entries), tuple((r, g, b) for r, g, b in codes))


# Names and order: SceneParsing benchmark, first or best known synonym. Colours: ControlNet 1.0 and 1.1
# (annotator/uniformer, ADE20K palette).
_ADE20K = """
wall 787878, building b47878, sky 06e6e6, floor 503232, tree 04c803, ceiling 787850, road 8c8c8c, bed cc05ff,
windowpane e6e6e6,
grass 04fa07, cabinet e005ff, sidewalk ebff07, person 96053d, earth 787846, door 08ff33, table ff0652,
mountain 8fff8c, plant ccff04,
curtain ff3307, chair cc4603, car 0066c8, water 3de6fa, painting ff0633, sofa 0b66ff, shelf ff0747,
house ff09e0, sea 0907e6,
mirror dcdcdc, rug ff095c, field 7009ff, armchair 08ffd6, seat 07ffe0, fence ffb806, desk 0aff47,
rock ff290a, wardrobe 07ffff,
lamp e0ff08, bathtub 6608ff, railing ff3d06, cushion ffc207, base ff7a08, box 00ff14, column ff0829,
signboard ff0599,
chest of drawers 0633ff, counter eb0cff, sand a09614, sink 00a3ff, skyscraper 8c8c8c, fireplace fa0a0f,
refrigerator 14ff00,
grandstand 1fff00, path ff1f00, stairs ffe000, runway 99ff00, case 0000ff, pool table ff4700, pillow 00ebff,
screen door 00adff,
stairway 1f00ff, river 0bc8c8, bridge ff5200, bookcase 00fff5, blind 003dff, coffee table 00ff70,
toilet 00ff85, flower ff0000,
book ffa300, hill ff6600, bench c2ff00, countertop 008fff, stove 33ff00, palm 0052ff, kitchen island 00ff29,
computer 00ffad,
swivel chair 0a00ff, boat adff00, bar 00ff99, arcade machine ff5c00, hovel ff00ff, bus ff00f5, towel ff0066,
light ffad00,
truck ff0014, tower ffb8b8, chandelier 001fff, awning 00ff3d, streetlight 0047ff, booth ff00cc,
television receiver 00ffc2,
airplane 00ff52, dirt track 000aff, apparel 0070ff, pole 3300ff, land 00c2ff, bannister 007aff,
escalator 00ffa3, ottoman ff9900,
bottle 00ff0a, buffet ff7000, poster 8fff00, stage 5200ff, van a3ff00, ship ffeb00, fountain 08b8aa,
conveyer belt 8500ff,
canopy 00ff5c, washer b800ff, plaything ff001f, swimming pool 00b8ff, stool 00d6ff, barrel ff0070,
basket 5cff00, waterfall 00e0ff,
tent 70e0ff, bag 46b8a0, minibike a300ff, cradle 9900ff, oven 47ff00, ball ff00a3, food ffcc00, step ff008f,
tank 00ffeb,
trade name 85ff00, microwave ff00eb, pot f500ff, animal ff007a, bicycle fff500, lake 0abed4,
dishwasher d6ff00, screen 00ccff,
blanket 1400ff, sculpture ffff00, hood 0099ff, sconce 0029ff, vase 00ffcc, traffic light 2900ff, tray 29ff00,
ashcan ad00ff,
fan 00f5ff, pier 4700ff, crt screen 7a00ff, plate 00ffb8, monitor 005cff, bulletin board b8ff00,
shower 0085ff, radiator ffd600,
glass 19c2c2, clock 66ff00, flag 5c00ff
"""

# 80 things, 91 stuff. Names, order and colours: mmsegmentation 1.2.2, mmseg/datasets/coco_stuff.py, but for
# REDRAWN.
_COCO_STUFF = """
person 00c040, bicycle ffffff, car 004060, motorcycle 80c0c0, airplane 004040, bus 00c0e0, train 00c0c0,
truck 80c040, boat 00c060,
traffic light ff40ff, fire hydrant 8020c0, stop sign 0000e0, parking meter 000040, bench 00a0c0, bird 800060,
cat 8000c0, dog 0020c0,
horse 8080e0, sheep 0000c0, cow 80a0c0, elephant 808000, bear 800020, zebra 802000, giraffe 800080,
backpack 408020, umbrella 00a000,
handbag 40ffff, tie c080a0, suitcase 002000, frisbee 008080, skis 4080a0, snowboard 80a000,
sports ball 008000, kite c08020,
baseball bat 806080, baseball glove 000080, skateboard 400020, surfboard 00e080, tennis racket 800000,
bottle c000a0,
wine glass 006080, cup 808080, fork 4000a0, knife 80e080, spoon 808040, bowl c00020, banana 806000,
apple ffc060, sandwich 008020,
orange 40e000, broccoli ffffa0, carrot 8080a0, hot dog 406000, pizza 0080c0, donut 0080a0, cake c0e000,
chair 008040, couch 808020,
potted plant c02080, bed 0040c0, dining table 000020, toilet 40a080, tv 804040, laptop 8000a0, mouse 402080,
remote ffff20,
keyboard 0000a0, cell phone c0a080, microwave 80c000, oven ffa0ff, toaster c02000, sink 804080,
refrigerator 408060, book 40a000,
clock 004000, vase c080e0, scissors 402000, teddy bear 00c080, hair drier 4080e0, toothbrush c0a000,
banner 00c000, blanket c08060,
branch c06080, bridge 004080, building-other 400060, bush 40e080, cabinet 804000, cage c000e0,
cardboard 406080, carpet 80c080,
ceiling-other 4000e0, ceiling-tile c0e080, cloth a0ffff, clothes c00060, clouds c06000, counter 8040c0,
cupboard 008060,
curtain 00e000, desk-stuff 404040, dirt ffa0a0, door-stuff 006000, fence 40c0c0, floor-marble 0080e0,
floor-other 80e000,
floor-stone 40c040, floor-tile 808060, floor-wood 802080, flower 4000c0, fog ffa020, food-other 00a080,
fruit c00040,
furniture-other 8040e0, grass 002080, gravel c080c0, ground-other 0040e0, hill 80a080, house c08000,
leaves 804020, light 802040,
mat c00080, metal 40c020, mirror-stuff 00a040, moss 400000, mountain c0c0a0, mud 002040, napkin 408080,
net 40c0a0, paper 80a040,
pavement 408000, pillow c0c020, plant-other 8060c0, plastic 400080, platform 404020, playingfield 00e0c0,
railing c00000,
railroad c040a0, river 0060c0, road c08080, rock 4040a0, roof 80e0c0, rug c08040, salad c04020, sand 806040,
sea c000c0, shelf 00c020,
sky-other 40e040, skyscraper 400040, snow 80c0a0, solid-other 406040, stairs 4080c0, stone 00c0a0,
straw c0e040,
structural-other 408040, table 80c020, tent c020c0, textile-other 4040c0, towel 004020, tree 40a0c0,
vegetable c04040,
wall-brick 8040a0, wall-concrete 4020c0, wall-other c0c0c0, wall-panel 0040a0, wall-stone c0a0c0,
wall-tile c0c000, wall-wood 804060,
water-other c02040, waterdrops c04080, window-blind 40c060, window-other 40a040, wood 404000
"""

# 80 things, 53 stuff, by category id. Names and colours: detectron2, data/datasets/builtin_meta.py,
# COCO_CATEGORIES.
_COCO_PANOPTIC = """
person dc143c, bicycle 770b20, car 00008e, motorcycle 0000e6, airplane 6a00e4, bus 003c64, train 005064,
truck 000046, boat 0000c0,
traffic light faaa1e, fire hydrant 64aa1e, stop sign dcdc00, parking meter af74af, bench fa001e, bird a52a2a,
cat ff4dff, dog 00e2fc,
horse b6b6ff, sheep 005200, cow 78a69d, elephant 6e4c00, bear ae39ff, zebra c76400, giraffe 480076,
backpack ffb3f0, umbrella 007d5c,
handbag d10097, tie bcd0b6, suitcase 00dcb0, frisbee ff63a4, skis 5c0049, snowboard 8581ff,
sports ball 4eb4ff, kite 00e400,
baseball bat aefff3, baseball glove 2d59ff, skateboard 868667, surfboard 9194ae, tennis racket ffd0ba,
bottle c5e2ff,
wine glass ab8601, cup 6d3f36, fork cf8aff, knife 97005f, spoon 09503d, bowl 546933, banana 4a4169,
apple a6c466, sandwich d0c3d2,
orange ff6d41, broccoli 008f95, carrot b300c2, hot dog d1636a, pizza 057900, donut e3ffcd, cake 93bad0,
chair 994501, couch 035fa1,
potted plant a3ff00, bed 7700aa, dining table 00b6c7, toilet 00a578, tv b78258, laptop 5f2000, mouse 827287,
remote 6e8185,
keyboard a64a76, cell phone db8eb9, microwave 4fd272, oven b25a3e, toaster 41460f, sink 7fa773,
refrigerator 3b696a, book 8e6c2d,
clock c4ac00, vase 5f3650, scissors 804cff, teddy bear c93901, hair drier f6007a, toothbrush bfa2d0,
banner ffff80, blanket 93d3cb,
bridge 966464, cardboard a8abac, counter 9270c6, curtain d2aa64, door-stuff 5c8859, floor-wood da58b8,
flower f18100, fruit d911ff,
gravel 7c4ab5, house 464646, light ffe4ff, mirror-stuff 9ad000, net c1005c, pillow 4c5b71, platform ffb4c3,
playingfield 6a9ab0,
railroad e6968c, river 3c8fff, road 804080, roof 5c5237, sand fed47c, sea 494dae, shelf ffa062, snow ffffff,
stairs 68546d,
tent a9a483, towel e1c7ff, wall-brick 89364a, wall-stone 879edf, wall-tile 07f6e7, wall-wood 6bffc8,
water-other 3a2995,
window-blind b7798e, window-other ff4961, tree-merged 6b8e23, fence-merged be9999, ceiling-merged 928b8d,
sky-other-merged 4682b4,
cabinet-merged 86c79c, table-merged d1e28c, floor-other-merged 60246c, pavement-merged 606060,
mountain-merged 40aa40,
grass-merged 98fb98, dirt-merged d0e5e4, paper-merged cebaab, food-other-merged 98a140,
building-other-merged 747000,
rock-merged 00728f, wall-other-merged 66669c, rug-merged fa8dff
"""

# Classes of coco_stuff_171 with a colour of ours, far from all others: in the published list nine have that
# of an earlier class (cat = apple), and the handbag is as black as void.
REDRAWN = (
    "bicycle", "traffic light", "handbag", "apple", "broccoli", "remote", "oven", "cloth", "dirt", "fog",
)  # fmt: skip

SPACES: dict[str, LabelSpace] = {
    "ade20k_150": _read(_ADE20K),
    "coco_stuff_171": _read(_COCO_STUFF),
    "coco_panoptic_133": _read(_COCO_PANOPTIC),
}

# the other name that models give an ADE20K class (Mask2Former and OneFormer:
# data/datasets/register_ade20k_panoptic.py)
_ALSO = {
    "windowpane": "window", "bathtub": "tub", "railing": "rail", "streetlight": "street lamp",
    "television receiver": "tv",
    "airplane": "plane", "apparel": "clothes", "swimming pool": "pool", "waterfall": "falls",
    "ashcan": "trash can",
}  # fmt: skip

# ids of the COCO-Stuff pixel maps that no pixel ever has: categories that were named and then not annotated
_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)

# index: id in the PNGs of stuffthingmaps_trainval2017 (0..181, category id - 1); value: id in coco_stuff_171,
# or void
COCO_182_TO_171: tuple[int, ...] = tuple(
    VOID if i in _UNUSED else i - sum(unused < i for unused in _UNUSED) for i in range(182)
)

# coding of published label maps -> label space of what translate() gives
SOURCES: dict[str, str] = {
    "ade20k_150": "ade20k_150",
    "ade20k_png": "ade20k_150",  # annotations/*.png of SceneParsing: 0 is void, k is class k - 1
    "coco_stuff_png": "coco_stuff_171",
    # stuff_{train,val}2017_pixelmaps: 92 to 182 are category ids of stuff, 183 is any thing, 0 is void
    "coco_stuff_pixelmaps": "coco_stuff_171",
    "coco_stuff_171": "coco_stuff_171",
    "coco_panoptic_133": "coco_panoptic_133",
}
# coding -> for each id from 0 on its id in the space; VOID = void, -1 = the coding has no such id
_CODES: dict[str, tuple[int, ...]] = {
    "ade20k_png": (VOID, *range(150)),
    "coco_stuff_png": tuple(-1 if i in _UNUSED else new for i, new in enumerate(COCO_182_TO_171)),
    "coco_stuff_pixelmaps": (VOID, *[-1] * 91, *COCO_182_TO_171[91:], VOID),
}
