"""Objects of the shapes world and their outlines, as soft masks."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw


@dataclass(frozen=True)
class Object:
    """One object. x, y (centre) and radius in image sides; angle in degrees; box in pixels [x0, y0, x1, y1],
    tight around the pixels it covers by more than half and nothing hides; area: the number of those pixels."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    area: int = 0


def _around(count: int, radius: float = 1.0, start: float = -90.0) -> np.ndarray:
    turn = np.deg2rad(start + 360 * np.arange(count) / count)
    return radius * np.stack([np.cos(turn), np.sin(turn)], 1)


def _star() -> np.ndarray:
    points = _around(10)
    points[1::2] *= 0.46
    return points


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2
    return np.stack([x, y], 1) / 17.5


def _cross(arm: float = 0.34) -> np.ndarray:
    quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
    turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) for a in np.pi / 2 * np.arange(4)]
    return np.concatenate([quarter @ turn for turn in turns]) * 0.93


# name -> (outline, hole or None), inside the unit circle, y downwards; radii chosen so that areas look alike
OUTLINES: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "circle": (_around(48, 0.86), None),
    "square": (_around(4, 1.0, -45), None),
    "triangle": (_around(3) * np.array([1.06, 1.0]) + np.array([0, 0.12]), None),
    "star": (_star(), None),
    "cross": (_cross(), None),
    "heart": (_heart(), None),
    "ring": (_around(48, 0.9), _around(48, 0.48)),
    "crescent": (_around(48, 0.95), _around(48, 0.76) + np.array([0.42, -0.1])),
    "diamond": (np.array([(0, -1), (0.6, 0), (0, 1), (-0.6, 0)]), None),
}


def _outline(name: str, angle: float, scale: float, centre: tuple[float, float]) -> list[list[tuple[float, float]]]:
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    rings = [ring for ring in OUTLINES[name] if ring is not None]
    return [list(map(tuple, (ring @ rotation * scale + centre).tolist())) for ring in rings]


def draw_mask(obj: Object, side: int) -> np.ndarray:
    """The covered share of every pixel, float32 (side, side) in 0..1, drawn at four times the size and averaged."""
    times = 4
    reach = obj.radius * side * 1.15 + 1
    x0, y0 = (max(0, int(c * side - reach)) for c in (obj.x, obj.y))
    x1, y1 = (min(side, int(c * side + reach) + 1) for c in (obj.x, obj.y))
    patch = Image.new("L", ((x1 - x0) * times, (y1 - y0) * times))
    pen = ImageDraw.Draw(patch)
    centre = ((obj.x * side - x0) * times, (obj.y * side - y0) * times)
    scale = obj.radius * side * times - 0.4  # PIL fills a little beyond the outline
    for ring, fill in zip(_outline(obj.shape, obj.angle, scale, centre), (255, 0), strict=False):
        pen.polygon(ring, fill=fill)
    mask = np.zeros((side, side), np.float32)
    mask[y0:y1, x0:x1] = np.asarray(patch.reduce(times), np.float32) / 255
    return mask
