"""The jointed figure of a rendered scene.

Lengths are in heights of the person; x to the person's left, y up, z to the front.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from pipeline.scenes.bodies import Part
from pipeline.scenes.props import COLOURS, RGB, pick, span, yaw

SKIN = ((0.96, 0.78, 0.65), (0.83, 0.60, 0.44), (0.52, 0.34, 0.24))
HAIR = ((0.13, 0.09, 0.07), (0.42, 0.24, 0.11), (0.88, 0.68, 0.16))
# degrees: out to the side and to the front of (upper arm, lower arm) and (thigh, shin), from hanging down
_ARMS = {
    "down": ((10, 18, -6, 8), (3, 12, 5, 30)),
    "up": ((148, 165, 0, 12), (165, 182, 0, 8)),
    "out": ((80, 98, -5, 8), (82, 105, -5, 12)),
    "hip": ((44, 52, -14, -6), (-52, -44, 4, 14)),
    "wave": ((92, 110, 0, 10), (160, 185, 0, 10)),
    "front": ((2, 8, 78, 95), (0, 4, 80, 98)),
    "forth": ((6, 10, 26, 42), (0, 5, 50, 70)),
    "back": ((6, 12, -42, -28), (4, 8, -25, -10)),
}
_LEGS = {
    "straight": ((2, 7, -3, 4), (1, 4, -5, 0)),
    "forth": ((1, 3, 24, 36), (1, 3, 6, 16)),
    "back": ((1, 3, -26, -16), (1, 3, -52, -34)),
    "bent": ((12, 20, 68, 84), (3, 8, -44, -30)),
}
# words -> arm, other arm, leg, other leg, from where it can be told; {side} is the side of the first arm
POSES = {
    "standing with arms down": ("down", "down", "straight", "straight", ("front", "back", "side")),
    "standing with arms raised": ("up", "up", "straight", "straight", ("front", "back", "side")),
    "standing with arms spread": ("out", "out", "straight", "straight", ("front", "back")),
    "standing with hands on hips": ("hip", "hip", "straight", "straight", ("front", "back")),
    "waving with the {side} hand": ("wave", "down", "straight", "straight", ("front", "back")),
    "reaching forward": ("front", "front", "straight", "straight", ("side",)),
    "walking": ("forth", "back", "back", "forth", ("front", "back", "side")),
    "crouching": ("front", "front", "bent", "bent", ("front", "side")),
}
FACINGS = {"us": 0, "away": 180, "left": -90, "right": 90}  # yaw in degrees
# keypoint -> the parts on which it is seen, and how far below the surface it lies at most there
ON = {
    "nose": (("head", "nose"), 0.03), "eye": (("head",), 0.03), "ear": (("head",), 0.05),
    "neck": (("shoulders", "neck", "torso", "head", "left_upper_arm", "right_upper_arm"), 0.18),
    "shoulder": (("shoulders", "{side}_upper_arm", "torso"), 0.07),
    "elbow": (("{side}_upper_arm", "{side}_lower_arm"), 0.05),
    "wrist": (("{side}_lower_arm", "{side}_hand"), 0.05), "hip": (("pelvis", "{side}_thigh", "torso"), 0.1),
    "knee": (("{side}_thigh", "{side}_shin"), 0.07), "ankle": (("{side}_shin", "{side}_foot"), 0.09),
}  # fmt: skip


@dataclass(frozen=True)
class Person:
    """A person: joints are world points, by the names of annotate/skeletons.py."""

    facing: str
    pose: str
    shirt: str
    trousers: str
    tall: float  # metres, upright
    axes: np.ndarray  # [3, 3], columns left, up, front in the world
    joints: dict[str, np.ndarray]
    skin: RGB
    hair: RGB

    def parts(self) -> list[Part]:
        """Its capsules and ellipsoids."""
        j, h = self.joints, self.tall
        left, up, front = self.axes.T
        head = (j["left_ear"] + j["right_ear"]) / 2
        hips = (j["left_hip"] + j["right_hip"]) / 2
        shirt, trousers, shoes = COLOURS[self.shirt], COLOURS[self.trousers], (0.24, 0.16, 0.12)

        def limb(name: str, a: np.ndarray, b: np.ndarray, radius: float, colour: RGB) -> Part:
            half = math.dist(a, b) / 2
            y = (b - a) / (2 * half)
            x = _cross(y, front if abs(y @ front) < 0.9 else up)
            x /= math.sqrt(x @ x)
            axes = np.stack([x, y, _cross(x, y)], axis=1) * (radius * h)
            return Part(
                "capsule", axes, (a + b) / 2, name, (half / (radius * h),), ("plain", colour, colour, 0.0)
            )

        def blob(name: str, at: np.ndarray, radii: tuple[float, float, float], paint: tuple) -> Part:
            return Part("ball", self.axes * np.array(radii) * h, at, name, (), paint)

        spine = j["neck"] - hips
        trunk = np.stack(
            [left * 0.13 * h, spine / 2, _cross(left, spine) * (0.085 * h / math.sqrt(spine @ spine))], axis=1
        )
        parts = [
            blob("head", head, (0.07, 0.095, 0.08), ("head", self.skin, self.hair, 0.0)),
            blob("nose", j["nose"], (0.014, 0.02, 0.02), ("plain", self.skin, self.skin, 0.0)),
            limb("neck", j["neck"], head, 0.032, self.skin),
            limb("shoulders", j["left_shoulder"], j["right_shoulder"], 0.052, shirt),
            Part("frustum", trunk, hips + spine / 2, "torso", (0.72, 1.0), ("plain", shirt, shirt, 0.0)),
            limb("pelvis", j["left_hip"], j["right_hip"], 0.07, trousers),
        ]
        for side in ("left", "right"):
            at = {
                name: j[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
            }
            hand = at["wrist"] + 0.2 * (at["wrist"] - at["elbow"])
            foot = at["ankle"] + h * (0.045 * front - 0.012 * up)
            parts += [
                limb(f"{side}_upper_arm", at["shoulder"], at["elbow"], 0.038, shirt),
                limb(f"{side}_lower_arm", at["elbow"], at["wrist"], 0.031, self.skin),
                blob(f"{side}_hand", hand, (0.036, 0.036, 0.036), ("plain", self.skin, self.skin, 0.0)),
                limb(f"{side}_thigh", at["hip"], at["knee"], 0.06, trousers),
                limb(f"{side}_shin", at["knee"], at["ankle"], 0.046, trousers),
                blob(f"{side}_foot", foot, (0.042, 0.034, 0.085), ("plain", shoes, shoes, 0.0)),
            ]
        return parts

    def stand(self, at: tuple[float, float], turn: float) -> "Person":
        """The same person at world x, z, turned by a yaw more."""
        more = yaw(turn)
        joints = {name: np.array([at[0], 0, at[1]]) + more @ point for name, point in self.joints.items()}
        return replace(self, axes=more @ self.axes, joints=joints)


def draw_person(rng: np.random.Generator) -> Person:
    """A person who stands at the origin and faces a camera far along +z, or shows it another side."""
    facing = pick(rng, list(FACINGS))
    view = {"left": "side", "right": "side", "us": "front"}.get(facing, "back")
    words = pick(rng, [pose for pose, row in POSES.items() if view in row[4]])
    arms, legs = POSES[words][:2], POSES[words][2:4]
    sides = ("left", "right") if rng.random() < 0.5 else ("right", "left")
    turn = math.radians(FACINGS[facing] + span(rng, -25, 25) * (0.7 if view == "side" else 1))
    lean = math.radians({"crouching": 18.0, "walking": 4.0}.get(words, 0.0))
    spine = np.array([0.0, math.cos(lean), math.sin(lean)])
    nape = np.array([0.0, -math.sin(lean), math.cos(lean)])
    neck = 0.3 * spine
    head = neck + 0.125 * spine
    j = {"neck": neck, "nose": head - 0.012 * spine + 0.082 * nape}
    for side, arm, leg in zip(sides, arms, legs, strict=True):
        out = np.array([1.0 if side == "left" else -1.0, 0, 0])
        j[f"{side}_eye"] = head + 0.014 * spine + 0.026 * out + 0.072 * nape
        j[f"{side}_ear"] = head + 0.064 * out
        j[f"{side}_shoulder"] = neck + 0.115 * out - 0.01 * spine
        j[f"{side}_elbow"] = j[f"{side}_shoulder"] + 0.165 * _swing(rng, out, _ARMS[arm][0])
        j[f"{side}_wrist"] = j[f"{side}_elbow"] + 0.15 * _swing(rng, out, _ARMS[arm][1])
        j[f"{side}_hip"] = 0.06 * out
        j[f"{side}_knee"] = j[f"{side}_hip"] + 0.24 * _swing(rng, out, _LEGS[leg][0])
        j[f"{side}_ankle"] = j[f"{side}_knee"] + 0.225 * _swing(rng, out, _LEGS[leg][1])
    lowest = min(j["left_ankle"][1], j["right_ankle"][1]) - 0.046
    middle = (j["left_ankle"] + j["right_ankle"] + 2 * (j["left_hip"] + j["right_hip"])) / 6
    tall, axes = span(rng, 1.6, 1.85), yaw(turn)
    joints = {name: axes @ (tall * (p - (middle[0], lowest, middle[2]))) for name, p in j.items()}
    shirt = pick(rng, [name for name in COLOURS if name != "black"])
    trousers = pick(
        rng, [name for name in ("blue", "black", "white", "green", "purple", "red") if name != shirt]
    )
    return Person(
        facing,
        words.format(side=sides[0]),
        shirt,
        trousers,
        tall,
        axes,
        joints,
        pick(rng, SKIN),
        pick(rng, HAIR),
    )


def _swing(rng: np.random.Generator, out: np.ndarray, degrees: tuple[int, int, int, int]) -> np.ndarray:
    """A unit direction that far out to the side and to the front from hanging down."""
    side, front = math.radians(span(rng, *degrees[:2])), math.radians(span(rng, *degrees[2:]))
    return out * math.sin(side) + np.array(
        [0, -math.cos(side) * math.cos(front), math.cos(side) * math.sin(front)]
    )


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """np.cross of two single vectors, 20 times as fast."""
    (x, y, z), (u, v, w) = a.tolist(), b.tolist()
    return np.array([y * w - z * v, z * u - x * w, x * v - y * u])
