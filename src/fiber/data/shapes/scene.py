"""Scenes of the shapes world: what is in an image and where it is; `outlines.py` and `paint.py` draw it.

A scene is a pure function of (world, split, seed, index). Positions and radii are fractions of the image side, so
the same scene can be drawn at any size. Every (colour, shape) combination has a fixed frequency; combinations of
frequency zero are held out: they appear in the split `compositional` and nowhere else, in no image and no text.
"""

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from fiber.data.shapes.outlines import Object, draw_mask

SPLITS = ("train", "val", "test", "compositional")
# Smallest centre distance of two objects, in sums of their radii: corners may overlap, bodies may not.
CLEARANCE = 0.85
MIN_DISTANCE = 0.22  # ... and in image sides, so that any two objects stand in at least one clear relation
MIN_VISIBLE = 0.75  # smallest visible share of an object's own pixels ...
FAMILY_KINDS = 3  # combinations of colour and shape in a family of scenes
JUDGED_AT = 64  # ... counted at this size, whatever size is drawn: a scene is the same at every size


@dataclass(frozen=True)
class World:
    """What can appear in an image. `dataclasses.replace(world, image_size=224)` draws the same scenes larger.

    `sizes` maps a size word to the range of the radius of the enclosing circle, in image sides. `tail[k]` is the
    relative frequency of colour i with shape j where k = (i + j) mod the number of colours; 0 holds the pair out.
    """

    name: str
    image_size: int
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[tuple[str, float, float], ...]
    textures: tuple[str, ...]
    objects: tuple[int, int]
    tail: tuple[float, ...]
    backgrounds: tuple[tuple[int, int, int], ...]
    in_line: float = 0.0  # share of scenes whose objects stand in one row or one column, spread evenly; else anywhere
    family: int = 0  # so many scenes in a row show the same FAMILY_KINDS combinations only; 0: each shows any

    def __post_init__(self) -> None:
        if len(self.tail) != len(self.colours):
            raise ValueError(f"world {self.name!r}: tail needs one frequency per colour ({len(self.colours)})")
        if not 2 <= self.objects[0] <= self.objects[1] <= 6:
            raise ValueError(
                f"world {self.name!r}: objects {self.objects} must lie within 2..6, what captions can name"
            )
        if self.image_size < 32:
            raise ValueError(
                f"world {self.name!r}: image_size {self.image_size} is too small to tell shapes (min 32)"
            )

    def frequency(self, colour: str, shape: str) -> float:
        """Relative frequency of a combination in train, val and test; 0 for a held-out one."""
        k = self.colours.index(colour) + self.shapes.index(shape)
        return self.tail[k % len(self.tail)]

    @property
    def combinations(self) -> list[tuple[str, str]]:
        """All (colour, shape) pairs, in category order."""
        return [(colour, shape) for colour in self.colours for shape in self.shapes]

    @property
    def held_out(self) -> list[tuple[str, str]]:
        return [pair for pair in self.combinations if self.frequency(*pair) == 0]


_LIGHT = ((236, 234, 228), (222, 230, 236), (232, 224, 232), (222, 234, 224), (240, 230, 214), (214, 218, 226))
_DIM = ((168, 176, 160), (178, 166, 152), (152, 168, 180), (164, 160, 176))

WORLDS = {
    "easy": World(
        name="easy",
        image_size=64,
        shapes=("circle", "square", "triangle", "star", "cross"),
        colours=("red", "orange", "yellow", "green", "blue", "purple"),
        sizes=(("small", 0.14, 0.16), ("large", 0.22, 0.245)),
        textures=("plain",),
        objects=(2, 4),
        tail=(0, 0.1, 0.5, 1, 1, 1),
        backgrounds=_LIGHT,
    ),
    "hard": World(
        name="hard",
        image_size=96,
        shapes=("circle", "square", "triangle", "star", "cross", "heart", "ring"),
        colours=("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black"),
        sizes=(("small", 0.085, 0.1), ("medium", 0.13, 0.145), ("large", 0.18, 0.205)),
        textures=("plain", "striped", "dotted"),
        objects=(2, 6),
        tail=(0, 0.05, 0.3, 0.3, 1, 1, 1, 1),
        backgrounds=_LIGHT,
    ),
    # A domain for few-shot learning: dimmer grounds, and half of the shapes and colours are in no other world.
    "novel": World(
        name="novel",
        image_size=96,
        shapes=("circle", "square", "diamond", "crescent"),
        colours=("red", "yellow", "pink", "white", "teal"),
        sizes=(("small", 0.1, 0.12), ("large", 0.17, 0.2)),
        textures=("plain", "striped"),
        objects=(2, 5),
        tail=(0, 0.3, 1, 1, 1),
        backgrounds=_DIM,
    ),
    # Two objects side by side or one above the other. Many scenes have the same two, and only their order tells the
    # scenes apart. Shows nothing that "easy" holds out.
    "arranged": World(
        name="arranged",
        image_size=64,
        shapes=("circle", "square", "star"),
        colours=("red", "blue", "yellow"),
        sizes=(("large", 0.2, 0.245),),
        textures=("plain",),
        objects=(2, 2),
        tail=(0, 1, 1),
        backgrounds=_LIGHT,
        in_line=1.0,
    ),
    # Two objects of any kind "easy" shows, but the same three kinds for many scenes in a row: of one shard, too, many
    # scenes have the same two, and only where these stand tells them apart.
    "paired": World(
        name="paired",
        image_size=64,
        shapes=("circle", "square", "triangle", "star", "cross"),
        colours=("red", "orange", "yellow", "green", "blue", "purple"),
        sizes=(("small", 0.14, 0.16), ("large", 0.22, 0.245)),
        textures=("plain",),
        objects=(2, 2),
        tail=(0, 1, 1, 1, 1, 1),
        backgrounds=_LIGHT,
        in_line=0.5,
        family=500,
    ),
}


@dataclass(frozen=True)
class Scene:
    """Objects in painting order (later ones hide earlier ones), with the soft masks they are painted with."""

    world: World
    split: str
    key: tuple[int, ...]
    objects: tuple[Object, ...]
    masks: np.ndarray = field(repr=False, compare=False)  # float32 (objects, S, S) in 0..1, hidden parts included


def generator(key: tuple[int, ...], purpose: str) -> np.random.Generator:
    """Independent streams for layout, paint and language: the words do not change with the size of the image."""
    return np.random.default_rng((*key, ("layout", "paint", "language").index(purpose) + 1))


def make_scene(world: World, split: str, seed: int, index: int, part: int = 0) -> Scene:
    """The scene of (seed, split, index). `part` tells the scenes of one index apart (pairs of images).

    In `compositional` at least one object is of a held-out combination. Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    key = (seed, SPLITS.index(split), index, part)
    rng = generator(key, "layout")
    count = int(rng.integers(world.objects[0], world.objects[1] + 1))
    in_line = world.in_line == 1 or (world.in_line > 0 and rng.random() < world.in_line)
    weights = _family_weights(world, seed, split, index // world.family) if world.family else _weights(world)
    while True:  # a crowded draw is thrown away whole, but not its number of objects: counts stay balanced
        drawn = _draw_objects(world, split, count, weights, rng)
        objects = _line_up(drawn, rng) if in_line else _place(drawn, rng)
        if objects is None:
            continue
        if _all_visible(np.stack([draw_mask(obj, JUDGED_AT) for obj in objects])):
            masks = np.stack([draw_mask(obj, world.image_size) for obj in objects])
            seen = visible_masks(masks)
            boxed = tuple(_with_box(obj, mask) for obj, mask in zip(objects, seen, strict=True))
            return Scene(world, split, key, boxed, masks)


def _all_visible(masks: np.ndarray) -> bool:
    seen, own = (visible_masks(masks) > 0.5).sum((1, 2)), (masks > 0.5).sum((1, 2))
    return bool((seen >= MIN_VISIBLE * own).all())


def _draw_objects(
    world: World, split: str, count: int, weights: np.ndarray, rng: np.random.Generator
) -> list[Object]:
    pairs = world.combinations
    chosen = [pairs[i] for i in rng.choice(len(pairs), size=count, p=weights)]
    if split == "compositional":
        held_out = world.held_out
        for i in range(int(rng.integers(1, count + 1))):
            chosen[i] = held_out[rng.integers(len(held_out))]
        rng.shuffle(chosen)
    objects: list[Object] = []
    taken = set()
    for colour, shape in chosen:
        word, low, high = world.sizes[rng.integers(len(world.sizes))]
        texture = world.textures[rng.integers(len(world.textures))]
        radius, angle = float(rng.uniform(low, high)), float(rng.uniform(-14, 14))
        if (colour, shape, word) in taken:  # two objects always differ in words a caption can use
            continue
        taken.add((colour, shape, word))
        objects.append(Object(str(shape), str(colour), word, texture, 0.0, 0.0, radius, angle))
    return objects if len(objects) == count else _draw_objects(world, split, count, weights, rng)


@cache
def _weights(world: World) -> np.ndarray:
    """Probability of every combination."""
    weights = np.array([world.frequency(*pair) for pair in world.combinations])
    return weights / weights.sum()


@cache
def _family_weights(world: World, seed: int, split: str, family: int) -> np.ndarray:
    """Probability of every combination in the scenes of one family: a few, drawn by their own frequencies."""
    weights = _weights(world)
    rng = np.random.default_rng((seed, SPLITS.index(split), family))
    chosen = rng.choice(len(weights), size=FAMILY_KINDS, replace=False, p=weights)
    return np.isin(np.arange(len(weights)), chosen) / FAMILY_KINDS


def _place(objects: list[Object], rng: np.random.Generator, tries: int = 12) -> list[Object] | None:
    """Give every object a place; None when `tries` attempts find no room for all of them."""
    for _ in range(tries):
        placed: list[Object] = []
        for obj in objects:
            margin = obj.radius + 0.01
            spots = rng.uniform(margin, 1 - margin, size=(16, 2))
            if placed:
                others = np.array([(p.x, p.y) for p in placed])
                wanted = np.array([max(MIN_DISTANCE, CLEARANCE * (obj.radius + p.radius)) for p in placed])
                distance = np.hypot(*(spots[:, None] - others).transpose(2, 0, 1))
                spots = spots[(distance >= wanted).all(1)]
            if not len(spots):
                break
            placed.append(replace(obj, x=float(spots[0, 0]), y=float(spots[0, 1])))
        else:
            return placed
    return None


def _line_up(objects: list[Object], rng: np.random.Generator) -> list[Object]:
    """Give the objects places along a row or a column, in their order."""
    count = len(objects)
    along = (np.arange(count) + 0.5 + rng.uniform(-0.05, 0.05, count)) / count
    across = rng.uniform(0.42, 0.58) + rng.uniform(-0.02, 0.02, count)
    x, y = (along, across) if rng.random() < 0.5 else (across, along)
    return [replace(obj, x=float(x[i]), y=float(y[i])) for i, obj in enumerate(objects)]


def _with_box(obj: Object, visible: np.ndarray) -> Object:
    seen = visible > 0.5
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return replace(obj, box=box, area=int(seen.sum()))


def visible_masks(masks: np.ndarray) -> np.ndarray:
    """Soft masks (N, S, S) in painting order -> the share of each pixel where the object is on top."""
    visible = np.empty_like(masks)
    uncovered = np.ones_like(masks[0])
    for i in range(len(masks) - 1, -1, -1):
        visible[i] = masks[i] * uncovered
        uncovered = uncovered * (1 - masks[i])
    return visible
