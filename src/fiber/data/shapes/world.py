"""The shapes world: a procedural image-text-box data set that exercises every task with exact ground truth.

    easy    64 px, 2-4 large objects, 6 colours x 5 shapes: small models learn it in minutes
    hard    96 px, 2-6 objects, 8 colours x 7 shapes, three sizes, textures
    novel   96 px, dimmer grounds, half of the shapes and colours new: another domain, for few-shot learning
    arranged  64 px, two large objects of few kinds in a row or a column: only their order tells many scenes apart
    paired  64 px, two objects in a line or anywhere, of three kinds for many scenes in a row: the same for all kinds

Splits: train, val, test (no held-out combination of colour and shape, neither in the images nor in the words) and
compositional (at least one in every image). Everything is a pure function of (world, split, seed, index);
`scene.py` and `paint.py` draw, `language.py` and `questions.py` speak.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from fiber.data.records import TEXT_OF, Sample
from fiber.data.shapes.language import KINDS, RELATIONS, make_captions, make_expressions, swap_relation, texture_words
from fiber.data.shapes.paint import encode, paint
from fiber.data.shapes.questions import INVISIBLE, PAIRS_PER_SET, Pair, make_hypotheses, make_pairs, make_questions
from fiber.data.shapes.scene import SPLITS, WORLDS, Scene, World, generator, make_scene

__all__ = [
    "SPLITS",
    "WORLDS",
    "World",
    "answers",
    "categories",
    "generate",
    "generate_pairs",
    "swap_relation",
    "visual_words",
    "vocabulary_texts",
]


def generate(world: World, split: str, count: int, seed: int, captions: str = "mixed") -> Iterator[Sample]:
    """The first `count` samples of `scene_sample`. Raises ValueError for an unknown split or kind of caption."""
    return (scene_sample(world, split, seed, captions, index) for index in range(count))


def generate_pairs(world: World, split: str, count: int, seed: int) -> Iterator[Sample]:
    """The first `count` samples of `pair_sample`. Raises ValueError for an unknown split."""
    return (pair_sample(world, split, seed, index) for index in range(count))


def scene_sample(world: World, split: str, seed: int, captions: str, index: int) -> Sample:
    """One scene of a split with all annotations but statements. captions: a kind of `language.make_captions`."""
    scene = make_scene(world, split, seed, index)
    name = f"{world.name}-{split}-{seed}-{index:06d}"
    return Sample(name, [encode(paint(scene))], scene_record(scene, captions))


def pair_sample(world: World, split: str, seed: int, index: int) -> Sample:
    """One pair of images of a split with two true or false statements (NLVR2). Four pairs in a row make a set and
    share its two sentences."""
    group, member = divmod(index, PAIRS_PER_SET)
    pair = _pair_set(world, split, seed, group)[member]
    size = {"width": world.image_size, "height": world.image_size}
    record: dict[str, Any] = {
        "image_id": f"shapes_{world.name}_{split}_{seed}_pair_{group}_{member}",
        **size,
        "images": [dict(size), dict(size)],
        "source": f"shapes_{world.name}",
        "statements": pair.statements,
    }
    images = [encode(paint(scene)) for scene in (pair.left, pair.right)]
    return Sample(f"{world.name}-{split}-{seed}-pair-{group:06d}-{member}", images, record)


@lru_cache(maxsize=1)  # the pairs of a set are made together and read one after the other
def _pair_set(world: World, split: str, seed: int, group: int) -> list[Pair]:
    return make_pairs(world, split, seed, group)


def scene_record(scene: Scene, captions: str = "mixed") -> dict[str, Any]:
    """The record of a scene. The words depend on the scene alone, not on the size it is drawn at."""
    world, (seed, _, index, _) = scene.world, scene.key
    rng = generator(scene.key, "language")
    image_id = f"shapes_{world.name}_{scene.split}_{seed}_{index}"
    ids = {pair: i + 1 for i, pair in enumerate(world.combinations)}
    boxes = [
        {
            "box": list(map(float, obj.box)),
            "category": ids[obj.colour, obj.shape],
            "area": float(obj.area),
            "id": index * 8 + i,
        }
        for i, obj in enumerate(scene.objects)
    ]
    record: dict[str, Any] = {
        "image_id": image_id,
        "width": world.image_size,
        "height": world.image_size,
        "source": f"shapes_{world.name}",
        "boxes": boxes,
        "captions": make_captions(scene, rng, captions),
        "expressions": make_expressions(scene, rng),
        "questions": make_questions(scene, rng, first_id=index * 8),
        "hypotheses": make_hypotheses(scene, rng),
        "negative_categories": _negative_categories(scene, ids, rng),
    }
    for i, expression in enumerate(record["expressions"]):
        expression["id"] = index * 8 + i
    for i, hypothesis in enumerate(record["hypotheses"]):
        hypothesis["id"] = f"{image_id}#{i}"
    return record


def _negative_categories(scene: Scene, ids: dict[tuple[str, str], int], rng: np.random.Generator) -> list[int]:
    """A few categories known to be absent, as LVIS lists them; held-out ones only where the split has them."""
    shown = {(obj.colour, obj.shape) for obj in scene.objects}
    hidden = set() if scene.split == "compositional" else set(scene.world.held_out)
    negative = [ids[pair] for pair in ids if pair not in shown and pair not in hidden]
    return sorted(rng.choice(negative, size=min(8, len(negative)), replace=False).tolist())


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


def answers(world: World) -> list[str]:
    """The answer vocabulary of the questions, in label order."""
    words = visual_words(world)
    numbers = [str(n) for n in range(world.objects[1] + 1)]
    textures = list(world.textures) if len(world.textures) > 1 else []
    return ["yes", "no", *numbers, *words["colour"], *words["shape"], *words["size"], *textures]


def visual_words(world: World) -> dict[str, list[str]]:
    """The words of a caption that only the image can tell, by kind: colour, shape, size, texture, relation."""
    words = {
        "colour": list(world.colours),
        "shape": list(world.shapes),
        "size": [size for size, _, _ in world.sizes],
        "texture": texture_words(world),
        "relation": list(RELATIONS),
    }
    return {kind: known for kind, known in words.items() if known}


def vocabulary_texts(world: World, scenes: int = 300) -> list[str]:
    """Sentences of every kind from the training split, to train a tokenizer on; every word of the world is there."""
    texts = [category["name"] for category in categories(world)]
    texts += [word for words in visual_words(world).values() for word in words]
    texts += [*answers(world), *INVISIBLE]
    for index in range(scenes):
        scene = make_scene(world, "train", 0, index * max(world.family, 1))
        record = scene_record(scene, captions=KINDS[index % 3])
        texts += [entry[key] for field, key in TEXT_OF.items() for entry in record.get(field, [])]
    for number in range(scenes // 8):
        texts += [
            statement["text"] for pair in make_pairs(world, "train", 0, number) for statement in pair.statements
        ]
    return texts
