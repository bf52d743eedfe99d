"""What can be said about a scene of the shapes world: descriptions, relations, captions, referring expressions.

Everything said is true with a margin and means one thing. A described object is the only one its words fit. A
relation is said of two objects only where their centres lie CLEAR apart along its axis, and counted as false only
where they are level or the other way round; what lies between is never spoken of. Held-out combinations occur in no
text of train, val and test, not even in a false one.
"""

import re
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from fiber.data.shapes.outlines import Object
from fiber.data.shapes.scene import Scene, World

KINDS = ("mixed", "full", "ordered")  # of captions, see make_captions
STEP = 0.06  # objects are told in order along an axis when each lies this far from the last, in image sides
CLEAR = 0.15  # a relation holds when the centres are this far apart along its axis, in image sides
RELATIONS = ("left", "right", "above", "below")
SWAPPED = {"left": "right", "right": "left", "above": "below", "below": "above"}
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six")
ATTRIBUTES = ("size", "texture", "colour", "shape")


@dataclass(frozen=True)
class Description:
    """A noun phrase without its article. An attribute that is None is not mentioned ("object" for the shape)."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, obj: Object) -> bool:
        return (
            self.size in (None, obj.size)
            and self.texture in (None, obj.texture)
            and self.colour in (None, obj.colour)
            and self.shape in (None, obj.shape)
        )

    def __str__(self) -> str:
        words = [self.size, self.texture, self.colour, self.shape or "object"]
        return " ".join(word for word in words if word)


def of(obj: Object, attributes: tuple[str, ...]) -> Description:
    """The description of an object by some of its attributes."""
    return Description(**{name: getattr(obj, name) for name in attributes})


def fitting(scene: Scene, description: Description) -> list[int]:
    """Indices of the objects a description fits."""
    return [i for i, obj in enumerate(scene.objects) if description.fits(obj)]


def a(words: Any) -> str:
    """With the indefinite article."""
    return f"{'an' if str(words)[0] in 'aeiou' else 'a'} {words}"


def plural(words: Any) -> str:
    text = str(words)
    return text + ("es" if text.endswith(("s", "x", "ch", "sh")) else "s")


def offset(relation: str, first: Object, second: Object) -> float:
    """How far `first` lies to the `relation` of `second`, in image sides; negative on the other side."""
    return {
        "left": second.x - first.x,
        "right": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }[relation]


def clear_relations(first: Object, second: Object) -> list[str]:
    """The relations that hold beyond doubt, in the order of RELATIONS; never empty within a scene."""
    return [relation for relation in RELATIONS if offset(relation, first, second) > CLEAR]


def relation_words(relation: str, style: int = 0) -> str:
    """The words: "left of", "to the left of", "on the left of"; above and below have one form."""
    if relation in ("above", "below"):
        return relation
    return ("", "to the ", "on the ")[style] + f"{relation} of"


def swap_relation(text: str) -> str:
    """Turn every left into right and above into below and back: a true caption becomes a false one.

    Raises ValueError where the text has no relation.
    """
    turned, count = re.subn(r"\b(?:(?:left|right)(?= of)|above|below)\b", lambda word: SWAPPED[word[0]], text)
    if not count:
        raise ValueError(f"no relation to swap in {text!r}")
    return turned


def may_mention(scene: Scene, description: Description) -> bool:
    """False for held-out combinations outside the compositional split."""
    if scene.split == "compositional" or description.colour is None or description.shape is None:
        return True
    return scene.world.frequency(description.colour, description.shape) > 0


def pick(rng: np.random.Generator, choices: list | tuple) -> Any:
    return choices[rng.integers(len(choices))]


def texture_words(world: World) -> list[str]:
    return [texture for texture in world.textures if texture != "plain"]


# --------------------------------------------------------------------------------------------------- captions

Part = str | tuple[str, list[int]]  # plain words, or a noun phrase with the objects it stands for


def compose(parts: list[Part]) -> dict[str, Any]:
    """Join parts to a caption of the record schema: text and phrases with character spans and box indices.

    A phrase's coreference chain is named after its objects.
    """
    text, phrases = "", []
    for part in parts:
        words = part if isinstance(part, str) else part[0]
        if not isinstance(part, str):
            span, boxes = [len(text), len(text) + len(words)], part[1]
            phrases.append({"span": [span], "boxes": boxes, "chain": "-".join(map(str, boxes))})
        text += words
    return {"text": text, "phrases": phrases}


def describe(scene: Scene, index: int, extra: tuple[str, ...] = ()) -> Description:
    """Colour, shape, the `extra` attributes ("size", "texture"), and the size where only that makes it unique."""
    obj = scene.objects[index]
    said = ["colour", "shape", *(name for name in extra if name != "texture" or obj.texture != "plain")]
    if len(fitting(scene, of(obj, tuple(said)))) > 1:
        said.append("size")
    return of(obj, tuple(said))


def _clause(
    scene: Scene, members: list[int], extra: tuple[str, ...], style: int, rng: np.random.Generator
) -> list[Part]:
    """The first member in relation to the one or two others: "a red circle left of a blue star and above a ..."."""
    subject = scene.objects[members[0]]
    parts: list[Part] = [(a(describe(scene, members[0], extra)), members[:1])]
    for i, other in enumerate(members[1:]):
        relation = pick(rng, clear_relations(subject, scene.objects[other]))
        joint = " and " if i else (" is " if style == 2 else " ")
        parts.append(f"{joint}{relation_words(relation, (0, 1, 0, 2)[style])} ")
        parts.append((a(describe(scene, other, extra)), [other]))
    return parts


def _group_caption(scene: Scene, rng: np.random.Generator) -> list[Part] | None:
    """A phrase with several boxes: "two stars above a red circle". None where the scene has no such group."""
    groups = []
    for attribute in ("colour", "shape"):
        for word in sorted({getattr(obj, attribute) for obj in scene.objects}):
            members = fitting(scene, Description(**{attribute: word}))
            if 2 <= len(members) < len(scene.objects):
                groups.append((plural(Description(**{attribute: word})), members))
    if not groups:
        return None
    words, members = pick(rng, groups)
    phrase: Part = (f"{NUMBER_WORDS[len(members)]} {words}", members)
    other = pick(rng, [i for i in range(len(scene.objects)) if i not in members])
    shared = [r for r in RELATIONS if all(offset(r, scene.objects[m], scene.objects[other]) > CLEAR for m in members)]
    joint = relation_words(pick(rng, shared)) if shared else "and"
    return [phrase, f" {joint} ", (a(describe(scene, other)), [other])]


def _caption(scene: Scene, full: bool, style: int, rng: np.random.Generator) -> list[Part]:
    count = len(scene.objects)
    about_held_out = scene.split == "compositional"
    if not full and not about_held_out and rng.random() < 0.15 and (group := _group_caption(scene, rng)):
        return group
    mentioned = count if full else int(rng.integers(2, count + 1))
    order = rng.permutation(count).tolist()
    if about_held_out:  # they come first, so that one is always mentioned
        order.sort(key=lambda i: scene.world.frequency(scene.objects[i].colour, scene.objects[i].shape))
        order = [order[i] for i in (*rng.permutation(mentioned), *range(mentioned, count))]
    extra: tuple[str, ...] = ()
    if mentioned <= 4 and (full or rng.random() < 0.5):
        both = mentioned == 2 and bool(texture_words(scene.world))
        extra = ("size", "texture") if both else ("size",)
    cuts = {2: [2], 3: [3], 4: [2, 2], 5: [3, 2], 6: [3, 3]}[mentioned]
    if mentioned > 4:
        style = 0
    parts: list[Part] = [("", "there is ", "", "a picture of ")[style]] if style in (1, 3) else []
    for i, size in enumerate(cuts):
        start = sum(cuts[:i])
        parts += [", "] if i else []
        parts += _clause(scene, order[start : start + size], extra, style if i == 0 else 0, rng)
    return parts


def _ordered_caption(scene: Scene, rng: np.random.Generator) -> list[Part] | None:
    """Every object in the order of one axis: "from left to right: a red circle, a blue star". None where two of them
    are about level on both axes."""
    axes = []
    for words, places in (
        ("from left to right", [obj.x for obj in scene.objects]),
        ("from top to bottom", [obj.y for obj in scene.objects]),
    ):
        if np.diff(sorted(places)).min() > STEP:
            axes.append((words, np.argsort(places).tolist()))
    if not axes:
        return None
    words, order = pick(rng, axes)
    parts: list[Part] = [words]
    for index in order:
        parts += [", " if len(parts) > 1 else ": ", (a(describe(scene, index, ("size",))), [index])]
    return parts


def make_captions(scene: Scene, rng: np.random.Generator, kind: str = "mixed") -> list[dict[str, Any]]:
    """Two captions of different wording, in the record schema.

    kind: "mixed" names two to all objects; "full" all of them, with their relations, so that a caption tells its
    scene from others; "ordered" is "full", but the second caption lists them from left to right or top to
    bottom where such an order is plain.
    Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"captions must be one of {', '.join(KINDS)}, got {kind!r}")
    full = kind != "mixed"
    styles = rng.permutation(4)[:2].tolist()
    first = compose(_caption(scene, full, styles[0], rng))
    if kind == "ordered" and (listed := _ordered_caption(scene, rng)):
        return [first, compose(listed)]
    while True:
        second = compose(_caption(scene, full, styles[1], rng))
        if second["text"] != first["text"]:
            return [first, second]


# ------------------------------------------------------------------------------------------------ expressions


def unique_descriptions(scene: Scene, index: int) -> list[Description]:
    """Every description that fits this object alone and none of whose words could be left out."""
    obj = scene.objects[index]
    names = [name for name in ATTRIBUTES if name != "texture" or obj.texture != "plain"]
    found: list[tuple[str, ...]] = []
    for length in range(1, len(names) + 1):
        for attributes in combinations(names, length):
            shorter = any(set(known) <= set(attributes) for known in found)
            if not shorter and fitting(scene, of(obj, attributes)) == [index]:
                found.append(attributes)
    return [of(obj, attributes) for attributes in found]


def relational_references(scene: Scene, index: int) -> list[tuple[Description, str, Description]]:
    """(head, relation, anchor) that fit this object alone where the head does not: "the star left of the ring"."""
    obj, found = scene.objects[index], []
    heads = [of(obj, attributes) for attributes in ((), ("shape",), ("colour",), ("colour", "shape"))]
    for head in heads:
        rivals = [i for i in fitting(scene, head) if i != index]
        if not rivals:
            continue
        for anchor, other in enumerate(scene.objects):
            if anchor == index:
                continue
            words = describe(scene, anchor)
            for relation in clear_relations(obj, other):
                if all(offset(relation, scene.objects[r], other) <= 0 for r in rivals):
                    found.append((head, relation, words))
    return found


def make_expressions(scene: Scene, rng: np.random.Generator, limit: int = 3) -> list[dict[str, Any]]:
    """Up to `limit` referring expressions, each for another object; half of them by a relation where one will do."""
    expressions = []
    for index in rng.permutation(len(scene.objects))[:limit].tolist():
        related = relational_references(scene, index)
        if related and rng.random() < 0.5:
            head, relation, anchor = pick(rng, related)
            text = f"the {head} {relation_words(relation)} the {anchor}"
        else:
            head = pick(rng, unique_descriptions(scene, index))
            text = f"the {head}"
        expressions.append({"text": text, "box": index, "span": [[0, len(f"the {head}")]]})
    return expressions
