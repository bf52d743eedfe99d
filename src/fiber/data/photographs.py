"""A handful of real photographs, described by hand: those that scikit-image ships inside its package.

Small enough to live in the tests, real enough to meet what drawings lack: grey-scale files, wide and square images,
objects cut by the border, twenty-four boxes of one phrase. Nothing is downloaded; the files are read where
scikit-image is installed and stored as they are. The boxes were read off the enlarged images, to about two pixels.
"""

import importlib.util
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fiber.data.records import Sample

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Photograph:
    """What is said of one image.

    boxes: name -> (category, corners, ...); a name stands for all its boxes.
    captions: noun phrases in markup, "[a red cup](cup) on [a saucer](saucer)".
    expressions: (text, name of the box). questions: (question, answer, answer type).
    hypotheses: (entailment, neutral, contradiction).
    """

    file: str
    boxes: dict[str, tuple[str | Corners, ...]]
    captions: tuple[str, ...]
    expressions: tuple[tuple[str, str], ...]
    questions: tuple[tuple[str, str, str], ...]
    hypotheses: tuple[str, str, str]


PHOTOGRAPHS = (
    Photograph(
        "astronaut.png",
        {
            "woman": ("person", (20, 15, 363, 512)),
            "helmet": ("helmet", (277, 343, 512, 512)),
            "flag": ("flag", (0, 0, 97, 512)),
            "shuttle": ("space shuttle", (354, 0, 473, 290)),
            "patch": ("badge", (133, 347, 208, 423)),
            "tag": ("badge", (279, 339, 331, 378)),
        },
        (
            "[a smiling astronaut in an orange suit](woman) with [a black and white helmet](helmet)",
            "[a woman](woman) in front of [a flag](flag) and [a model of a space shuttle](shuttle)",
            "[a round patch](patch) and [a name tag](tag) on the orange suit of [an astronaut](woman)",
        ),
        (
            ("the woman in orange", "woman"),
            ("the round patch", "patch"),
            ("the name tag right of the patch", "tag"),
            ("the space shuttle model right of the woman", "shuttle"),
        ),
        (
            ("what color is the suit?", "orange", "other"),
            ("how many people are there?", "1", "number"),
            ("is the woman smiling?", "yes", "yes/no"),
            ("is the flag right of the woman?", "no", "yes/no"),
        ),
        (
            "a woman is wearing an orange suit",
            "the woman has been in space twice",
            "the woman is wearing a green suit",
        ),
    ),
    Photograph(
        "chelsea.png",
        {
            "cat": ("cat", (0, 0, 400, 300)),
            "left eye": ("eye", (135, 84, 210, 148)),
            "right eye": ("eye", (294, 109, 345, 165)),
            "nose": ("nose", (228, 223, 294, 267)),
        },
        (
            "[a brown tabby cat](cat) with [green eyes](left eye, right eye) and [a pink nose](nose)",
            "the face of [a striped cat](cat) looking to the right",
        ),
        (("the eye on the left", "left eye"), ("the eye on the right", "right eye"), ("the nose of the cat", "nose")),
        (
            ("what animal is this?", "cat", "other"),
            ("what color are the eyes?", "green", "other"),
            ("how many eyes are there?", "2", "number"),
            ("is this a dog?", "no", "yes/no"),
        ),
        ("an animal with green eyes", "the cat is hungry", "the eyes of the cat are closed"),
    ),
    Photograph(
        "coffee.png",
        {
            "cup": ("cup", (173, 17, 409, 308)),
            "saucer": ("saucer", (76, 68, 480, 390)),
            "spoon": ("spoon", (326, 66, 424, 326)),
            "coffee": ("coffee", (203, 94, 370, 194)),
        },
        (
            "[a red cup](cup) of [coffee](coffee) on [a red saucer](saucer) with [a small spoon](spoon)",
            "[an espresso](coffee) in [a cup](cup) on a wooden table",
        ),
        (("the spoon on the saucer", "spoon"), ("the plate under the cup", "saucer"), ("the drink", "coffee")),
        (
            ("what is in the cup?", "coffee", "other"),
            ("what color is the saucer?", "red", "other"),
            ("is the spoon right of the handle?", "yes", "yes/no"),
            ("how many cups are there?", "1", "number"),
        ),
        ("a cup stands on a saucer", "the coffee has sugar in it", "the cup is empty"),
    ),
    Photograph(
        "rocket.jpg",
        {
            "rocket": ("rocket", (310, 126, 336, 406)),
            "tower 1": ("tower", (0, 0, 88, 427)),
            "tower 2": ("tower", (164, 122, 205, 427)),
            "tower 3": ("tower", (440, 122, 480, 427)),
            "tower 4": ("tower", (560, 0, 640, 427)),
        },
        (
            "[a white rocket](rocket) between [four steel towers](tower 1, tower 2, tower 3, tower 4) at dusk",
            "[a rocket](rocket) on its launch pad under a dark blue sky",
        ),
        (
            ("the white rocket", "rocket"),
            ("the tower on the far left", "tower 1"),
            ("the tower on the far right", "tower 4"),
        ),
        (
            ("how many towers are there?", "4", "number"),
            ("what color is the sky?", "blue", "other"),
            ("is the rocket flying?", "no", "yes/no"),
            ("what is between the towers?", "rocket", "other"),
        ),
        ("a rocket stands on the ground", "the rocket carries a satellite", "the rocket stands in bright sunshine"),
    ),
    Photograph(
        "motorcycle_left.png",
        {
            "motorcycle": ("motorcycle", (92, 14, 684, 454)),
            "front wheel": ("wheel", (513, 295, 684, 454)),
            "rear wheel": ("wheel", (121, 236, 279, 403)),
            "headlight": ("headlight", (507, 121, 561, 189)),
            "bench": ("bench", (40, 87, 282, 309)),
            "container": ("box", (522, 181, 618, 253)),
            "bottle": ("bottle", (401, 51, 420, 93)),
            "carton": ("box", (527, 29, 597, 100)),
        },
        (
            "[a red motorcycle](motorcycle) in a garage in front of [a wooden bench](bench)",
            "[a motorcycle](motorcycle) with [two wheels](front wheel, rear wheel) and [a headlight](headlight)",
            "[a yellow bottle](bottle) and [a cardboard box](carton) on shelves above [a red container](container)",
        ),
        (
            ("the rear wheel of the motorcycle", "rear wheel"),
            ("the front wheel of the motorcycle", "front wheel"),
            ("the wooden bench behind the motorcycle", "bench"),
            ("the yellow bottle on the shelf", "bottle"),
        ),
        (
            ("what color is the motorcycle?", "red", "other"),
            ("is the bench made of wood?", "yes", "yes/no"),
            ("how many motorcycles are there?", "1", "number"),
            ("is anybody riding?", "no", "yes/no"),
        ),
        ("a motorcycle is parked indoors", "the motorcycle is for sale", "the motorcycle is parked on a beach"),
    ),
    Photograph(
        "camera.png",
        {
            "man": ("person", (0, 63, 332, 512)),
            "camera": ("camera", (253, 138, 325, 186)),
            "tripod": ("tripod", (229, 187, 408, 512)),
            "tower": ("tower", (412, 116, 432, 194)),
        },
        (
            "[a man in a dark coat](man) looks through [a camera](camera) on [a tripod](tripod)",
            "[a photographer](man) on a field with [a tall building](tower) far behind",
        ),
        (("the man with the camera", "man"), ("the tall building", "tower"), ("the stand of the camera", "tripod")),
        (
            ("what is the man looking through?", "camera", "other"),
            ("how many people are there?", "1", "number"),
            ("is the man left of the tripod?", "yes", "yes/no"),
            ("is the man sitting?", "no", "yes/no"),
        ),
        ("a man stands outdoors", "the man films a football match", "the man looks at the sky with bare eyes"),
    ),
    Photograph(
        "coins.png",
        {
            "coins": (
                "coin",
                *((22, 35, 67, 74), (81, 39, 120, 74), (132, 28, 179, 74)),
                *((192, 30, 240, 73), (255, 34, 297, 72), (305, 16, 365, 72)),
                *((25, 104, 67, 145), (84, 108, 122, 145), (134, 110, 173, 145)),
                *((186, 105, 226, 144), (245, 95, 296, 144), (317, 106, 356, 145)),
                *((26, 179, 63, 217), (80, 175, 124, 217), (135, 179, 174, 217)),
                *((189, 170, 237, 217), (251, 172, 297, 217), (93, 245, 136, 287)),
                *((18, 233, 75, 288), (144, 236, 201, 288), (220, 240, 269, 288)),
                *((276, 239, 326, 289), (336, 248, 382, 289)),
            ),
            "largest coin": ("coin", (315, 156, 380, 218)),
        },
        (
            "[twenty-four old coins](coins, largest coin) in four rows on a dark ground",
            "rows of coins, [the largest one](largest coin) at the right end of the third row",
        ),
        (("the largest coin", "largest coin"),),
        (
            ("how many rows of coins are there?", "4", "number"),
            ("how many coins are there?", "24", "number"),
            ("what are these?", "coins", "other"),
            ("is there a banknote?", "no", "yes/no"),
        ),
        ("round things lie in rows", "the coins are worth a fortune", "the coins lie in one pile"),
    ),
    Photograph(
        "moon.png",
        {"crater": ("crater", (95, 63, 147, 113))},
        (
            "[a round crater](crater) on the grey surface of the moon",
            "the ground of the moon with [one large crater](crater) at the upper left",
        ),
        (("the large round crater", "crater"),),
        (
            ("what is the round hole called?", "crater", "other"),
            ("is the large crater at the top?", "yes", "yes/no"),
            ("are there any trees?", "no", "yes/no"),
        ),
        ("there is a crater in the ground", "astronauts have walked here", "the ground is covered with grass"),
    ),
)


def categories() -> list[dict[str, Any]]:
    """Detection categories of the set, ids from 1 in order of first use."""
    names = dict.fromkeys(entry[0] for photograph in PHOTOGRAPHS for entry in photograph.boxes.values())
    return [{"id": i + 1, "name": name} for i, name in enumerate(names)]


def answers() -> list[str]:
    """The answer vocabulary, in order of first use."""
    return list(dict.fromkeys(answer for photograph in PHOTOGRAPHS for _, answer, _ in photograph.questions))


def photographs() -> Iterator[Sample]:
    """The photographs as samples with captions, boxes, expressions, questions and hypotheses.

    Raises ImportError where scikit-image is not installed, FileNotFoundError where its package lacks an image.
    """
    folder = _folder()
    for number, photograph in enumerate(PHOTOGRAPHS):
        path = folder / photograph.file
        if not path.is_file():
            raise FileNotFoundError(f"scikit-image has no {photograph.file} in {folder}: install scikit-image>=0.24")
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        yield Sample(path.stem, [(path.suffix[1:], data)], _record(photograph, number, width, height))


def _folder() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError("the photographs are part of scikit-image: pip install -e '.[test]'")
    return Path(spec.origin).parent / "data"


def _record(photograph: Photograph, number: int, width: int, height: int) -> dict[str, Any]:
    ids = {category["name"]: category["id"] for category in categories()}
    boxes: list[dict[str, Any]] = []
    indices: dict[str, list[int]] = {}
    for name, (category, *corners) in photograph.boxes.items():
        indices[name] = list(range(len(boxes), len(boxes) + len(corners)))
        for box in corners:
            area = float((box[2] - box[0]) * (box[3] - box[1]))
            key = {"id": number * 100 + len(boxes), "category": ids[category]}
            boxes.append({"box": list(map(float, box)), "area": area, **key})
    return {
        "image_id": f"photo_{Path(photograph.file).stem}",
        "width": width,
        "height": height,
        "source": "photographs",
        "boxes": boxes,
        "captions": [_caption(text, indices) for text in photograph.captions],
        "expressions": [
            {"id": number * 100 + i, "text": text, "box": indices[name][0]}
            for i, (text, name) in enumerate(photograph.expressions)
        ],
        "questions": [
            {
                "id": number * 100 + i,
                "question": question,
                "answers": [{"answer": answer, "score": 1.0}],
                "raw_answers": [answer] * 10,
                "answer_type": kind,
            }
            for i, (question, answer, kind) in enumerate(photograph.questions)
        ],
        "hypotheses": [
            {"text": text, "label": label, "id": f"{number}#{label}"}
            for text, label in zip(photograph.hypotheses, ("entailment", "neutral", "contradiction"), strict=True)
        ],
    }


def _caption(marked: str, indices: dict[str, list[int]]) -> dict[str, Any]:
    """From "[a red cup](cup) on a table" to the text without markup, and its phrases with spans and box indices."""
    text, phrases, end = "", [], 0
    for found in re.finditer(r"\[([^]]+)\]\(([^)]+)\)", marked):
        text += marked[end : found.start()]
        names = found[2].split(", ")
        boxes = [index for name in names for index in indices[name]]
        phrases.append({"span": [[len(text), len(text) + len(found[1])]], "boxes": boxes, "chain": found[2]})
        text, end = text + found[1], found.end()
    return {"text": text + marked[end:], "phrases": phrases}
