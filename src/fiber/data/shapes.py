"""The shapes world: a procedural image-text-box data set that exercises every task with exact ground truth.

    easy    64 px, 2-4 large objects, 6 colours x 5 shapes: small models learn it in minutes
    hard    96 px, 2-6 objects, 8 colours x 7 shapes, three sizes, textures
    novel   96 px, other shapes, colours and backgrounds: a new domain for few-shot learning

Splits: train, val, test (no held-out combination of colour and shape, neither in the pictures nor in the words) and
compositional (at least one in every picture). `shapes_scene` draws, `shapes_language` and `shapes_tasks` speak.
"""

from collections.abc import Iterator
from typing import Any

from fiber.data.records import Sample
from fiber.data.shapes_language import RELATIONS, make_captions, make_expressions, swap_relation, texture_words
from fiber.data.shapes_scene import SPLITS, WORLDS, Scene, World, encode, generator, make_scene, paint

__all__ = ["SPLITS", "WORLDS", "World", "categories", "generate", "swap_relation", "visual_words"]


def generate(world: World, split: str, count: int, seed: int, captions: str = "mixed") -> Iterator[Sample]:
    """The first `count` scenes of a split as samples: sample i depends on (world, split, seed, i) only.

    captions: "mixed" names two to all objects, "full" all of them (for retrieval).
    Raises ValueError for an unknown split or kind of caption.
    """
    if captions not in ("mixed", "full"):
        raise ValueError(f"captions must be 'mixed' or 'full', got {captions!r}")
    for index in range(count):
        scene = make_scene(world, split, seed, index)
        name = f"{world.name}-{split}-{seed}-{index:06d}"
        yield Sample(name, [encode(paint(scene))], scene_record(scene, captions == "full"))


def scene_record(scene: Scene, full: bool = False) -> dict[str, Any]:
    """The record of a scene. The words depend on the scene alone, not on the size it is drawn at."""
    world, (seed, _, index, _) = scene.world, scene.key
    rng = generator(scene.key, "language")
    ids = {pair: i + 1 for i, pair in enumerate(world.combinations)}
    boxes = [
        {
            "box": list(map(float, o.box)),
            "category": ids[o.colour, o.shape],
            "area": float(o.area),
            "id": index * 8 + i,
        }
        for i, o in enumerate(scene.objects)
    ]
    return {
        "image_id": f"shapes_{world.name}_{scene.split}_{seed}_{index}",
        "width": world.image_size,
        "height": world.image_size,
        "source": f"shapes_{world.name}",
        "boxes": boxes,
        "captions": make_captions(scene, rng, full),
        "expressions": make_expressions(scene, rng),
    }


def categories(world: World) -> list[dict[str, Any]]:
    """Detection categories: every colour with every shape, ids from 1, held-out ones included.

    frequency: "f", "c" or "r" by how often the combination is drawn; held-out ones are "r".
    """
    return [
        {"id": i + 1, "name": f"{colour} {shape}", "frequency": _frequency(world.frequency(colour, shape))}
        for i, (colour, shape) in enumerate(world.combinations)
    ]


def _frequency(weight: float) -> str:
    return "f" if weight >= 0.9 else "c" if weight >= 0.25 else "r"


def visual_words(world: World) -> dict[str, list[str]]:
    """The words of a caption that only the picture can tell, by kind."""
    words = {
        "colour": list(world.colours),
        "shape": list(world.shapes),
        "size": [size for size, _, _ in world.sizes],
        "texture": texture_words(world),
        "relation": list(RELATIONS),
    }
    return {kind: known for kind, known in words.items() if known}
