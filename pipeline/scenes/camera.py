"""The camera of the rendered scenes, and the room as it sees it.

World: metres, x right, y up, the camera above the origin looking to -z and down. Camera space: x right, y up,
z to the viewer. A ray of the camera is (x / f, y / f, -1), so the ray's parameter is the depth along the
viewing axis.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class View:
    """The camera (focal length in half widths of the image, height in metres, pitch down in radians) and the
    room (wall, its yaw).
    """

    focal: float
    height: float
    pitch: float
    wall: float  # distance of the wall along -z at x = 0
    yaw: float  # of the wall's normal from +z towards +x

    @cached_property
    def rotation(self) -> np.ndarray:
        """float64 [3, 3]: world directions to camera space."""
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

    @cached_property
    def room(self) -> np.ndarray:
        """float64 [3, 3], rows: along the wall, up, the wall's normal; all in camera space."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) @ self.rotation.T

    @property
    def wall_offset(self) -> float:
        """Distance of the camera from the wall's plane."""
        return self.wall * math.cos(self.yaw)

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points [N, 3] in camera space."""
        return (self.rotation @ (points.T - [[0.0], [self.height], [0.0]])).T

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points [N, 3] -> [N, 3]: x right and y up in half widths from the middle, depth in metres."""
        x, y, z = self.to_camera(points).T
        return np.array([self.focal * x / -z, self.focal * y / -z, -z]).T

    def floor_point(self, x: float, y: float) -> np.ndarray | None:
        """The world point of the floor seen at x, y (half widths); None above the horizon."""
        ray = self.rotation.T @ (x / self.focal, y / self.focal, -1.0)
        return None if ray[1] > -1e-3 else np.array([0.0, self.height, 0.0]) + ray * (self.height / -ray[1])


def pixels(half_widths: np.ndarray, size: int) -> np.ndarray:
    """x right, y up in half widths [N, 2+] -> pixels [N, 2], x right, y down, pixel centres at integers."""
    return np.array([(half_widths[:, 0] + 1) * size / 2 - 0.5, (1 - half_widths[:, 1]) * size / 2 - 0.5]).T
