"""Questions, hypotheses and statements on pairs of images, for the shapes world.

Many lines, since every kind of question and of statement has its own way to be true and to be false.

Answers are balanced where a reader could guess: yes and no by a coin, hypothesis labels one of each per scene, a
statement true for two of the four pairs it is said of. What is asked for in vain is drawn as objects are, so that
the words betray little. The one exception is named: a "neutral" hypothesis speaks of what no image shows (a heavy
circle), so a reader of the words alone reaches 2/3 on hypotheses, not 1/3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fiber.data.shapes.language import (
    CLEAR,
    NUMBER_WORDS,
    RELATIONS,
    SWAPPED,
    Description,
    a,
    clear_relations,
    describe,
    fitting,
    may_mention,
    offset,
    pick,
    plural,
    relation_words,
    relational_references,
    unique_descriptions,
)
from fiber.data.shapes.scene import Scene, World, generator, make_scene

INVISIBLE = ("heavy", "wooden", "new", "cheap", "borrowed", "soft")
SIZE_MENTIONED = 0.4  # share of existence sentences that also name a size, true or not
LISTED = 0.5  # share of the sentences on two images that list the contents of one
PAIRS_PER_SET = 4
VQA_SCORES = {1: 0.3, 2: 0.6, 3: 0.9}  # of ten annotators, this many agree; 1.0 from four on

# ------------------------------------------------------------------------------------------- true and not true


def present(scene: Scene, rng: np.random.Generator) -> Description:
    """Something that is there, described so that nothing else fits."""
    extra = ("size",) if rng.random() < SIZE_MENTIONED else ()
    return describe(scene, int(rng.integers(len(scene.objects))), extra)


def absent(scene: Scene, rng: np.random.Generator) -> Description:
    """Something that is not there: half the time an object that is, with one attribute changed."""
    world = scene.world
    while True:
        size = pick(rng, world.sizes)[0] if rng.random() < SIZE_MENTIONED else None
        colour, shape = _drawn_combination(scene, rng)
        if rng.random() < 0.5:
            near = pick(rng, scene.objects)
            colour, shape = (near.colour, shape) if rng.random() < 0.5 else (colour, near.shape)
        description = Description(size=size, colour=colour, shape=shape)
        if not fitting(scene, description) and may_mention(scene, description):
            return description


def _drawn_combination(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    world = scene.world
    weights = np.array([world.frequency(*pair) for pair in world.combinations])
    if scene.split == "compositional":
        weights[weights == 0] = weights.sum() / len(world.held_out)  # as often as all the others together
    return world.combinations[rng.choice(len(weights), p=weights / weights.sum())]


def make_statement(scene: Scene, truth: bool, rng: np.random.Generator, adjective: str = "") -> str:
    """A sentence, true or false: "there is a red star", "a red star is left of a blue cross".

    adjective: goes before the first noun phrase.
    """
    if rng.random() < 0.5:
        description = present(scene, rng) if truth else absent(scene, rng)
        return f"there is {a(f'{adjective} {description}'.strip())}"
    first, relation, second = _related(scene, truth, rng)
    return f"{a(f'{adjective} {first}'.strip())} is {relation_words(relation)} {a(second)}"


def _related(scene: Scene, truth: bool, rng: np.random.Generator) -> tuple[Description, str, Description]:
    first, second = rng.permutation(len(scene.objects))[:2].tolist()
    relation = pick(rng, clear_relations(scene.objects[first], scene.objects[second]))
    return describe(scene, first), relation if truth else SWAPPED[relation], describe(scene, second)


def make_hypotheses(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One of each label. Neutral: a true statement with an attribute no image shows; so have half of the false."""
    return [
        {"text": make_statement(scene, True, rng), "label": "entailment"},
        {"text": make_statement(scene, True, rng, pick(rng, INVISIBLE)), "label": "neutral"},
        {"text": make_statement(scene, False, rng, pick(rng, INVISIBLE + ("",) * 6)), "label": "contradiction"},
    ]


# --------------------------------------------------------------------------------------------------- questions

ShapesQuestion = tuple[str, str, list[str]]  # question, answer, other answers an inattentive reader might give


def ask_count(scene: Scene, rng: np.random.Generator) -> ShapesQuestion:
    """How many of a colour, of a shape, or of all; every number that some question has is as likely."""
    world = scene.world
    questions: dict[Any, Any] = {}
    for attribute, words in (("colour", world.colours), ("shape", world.shapes)):
        for word in words:
            description = Description(**{attribute: word})
            questions.setdefault(len(fitting(scene, description)), []).append(description)
    questions.setdefault(len(scene.objects), []).append(Description())
    if rng.random() < 0.7:
        questions.pop(0, None)  # no word may be left that fits nothing
    number = pick(rng, sorted(questions))
    wrong = [str(n) for n in (number - 1, number + 1) if 0 <= n <= world.objects[1]]
    return f"how many {plural(pick(rng, questions[number]))} are there?", str(number), wrong


def ask_existence(scene: Scene, rng: np.random.Generator) -> ShapesQuestion:
    truth = bool(rng.random() < 0.5)
    return f"is there {a(present(scene, rng) if truth else absent(scene, rng))}?", *_yes_no(truth)


def ask_relation(scene: Scene, rng: np.random.Generator) -> ShapesQuestion:
    truth = bool(rng.random() < 0.5)
    first, relation, second = _related(scene, truth, rng)
    return f"is the {first} {relation_words(relation)} the {second}?", *_yes_no(truth)


def ask_attribute(scene: Scene, rng: np.random.Generator) -> ShapesQuestion | None:
    """Colour, shape, size or texture of the one object that other words point out. None where no words do."""
    world = scene.world
    kinds = {"colour": world.colours, "shape": world.shapes, "size": tuple(word for word, _, _ in world.sizes)}
    if len(world.textures) > 1:
        kinds["texture"] = world.textures
    for attribute in (list(kinds)[i] for i in rng.permutation(len(kinds))):
        index = int(rng.integers(len(scene.objects)))
        references = [str(d) for d in unique_descriptions(scene, index) if getattr(d, attribute) is None]
        references += [
            f"{head} {relation_words(relation)} the {anchor}"
            for head, relation, anchor in relational_references(scene, index)
            if getattr(head, attribute) is None
        ]
        if references:
            answer = getattr(scene.objects[index], attribute)
            word = "color" if attribute == "colour" else attribute
            return (
                f"what {word} is the {pick(rng, references)}?",
                answer,
                [w for w in kinds[attribute] if w != answer],
            )
    return None


def ask_comparison(scene: Scene, rng: np.random.Generator) -> ShapesQuestion | None:
    """Larger of two, or more of two kinds. None where all are of one size and no two kinds differ in number."""
    rank = [word for word, _, _ in scene.world.sizes]
    questions = []
    for first, one in enumerate(scene.objects):
        for second, two in enumerate(scene.objects):
            if rank.index(one.size) > rank.index(two.size):
                questions.append(
                    (f"is the {describe(scene, first)} larger than the {describe(scene, second)}?", True)
                )
                questions.append(
                    (f"is the {describe(scene, second)} larger than the {describe(scene, first)}?", False)
                )
    for attribute in ("colour", "shape"):
        kinds = [Description(**{attribute: word}) for word in sorted({getattr(o, attribute) for o in scene.objects})]
        for kind in kinds:
            for other in kinds:
                more = len(fitting(scene, kind)) - len(fitting(scene, other))
                if more:
                    questions.append((f"are there more {plural(kind)} than {plural(other)}?", more > 0))
    if not questions:
        return None
    question, truth = pick(rng, questions)
    return question, *_yes_no(truth)


def _yes_no(truth: bool) -> tuple[str, list[str]]:
    return ("yes", ["no"]) if truth else ("no", ["yes"])


KINDS: dict[str, tuple[str, Callable[[Scene, np.random.Generator], ShapesQuestion | None]]] = {
    "count": ("number", ask_count),
    "existence": ("yes/no", ask_existence),
    "attribute": ("other", ask_attribute),
    "relation": ("yes/no", ask_relation),
    "comparison": ("yes/no", ask_comparison),
}


def make_questions(scene: Scene, rng: np.random.Generator, first_id: int) -> list[dict[str, Any]]:
    """One question of each kind the scene allows, in the record schema, ids from `first_id` on.

    Ten annotators answer. One time in seven one to three of them err, as people do; the others are right.
    """
    questions: list[dict[str, Any]] = []
    for kind, (answer_type, ask) in KINDS.items():
        asked = ask(scene, rng)
        if asked is None:
            continue
        question, answer, wrong = asked
        raw = [answer] * 10
        if wrong and rng.random() < 1 / 7:
            for annotator in rng.permutation(10)[: rng.integers(1, 4)]:
                raw[annotator] = pick(rng, wrong)
        questions.append(
            {
                "id": first_id + len(questions),
                "question": question,
                "answers": [{"answer": w, "score": VQA_SCORES.get(raw.count(w), 1.0)} for w in sorted(set(raw))],
                "raw_answers": raw,
                "answer_type": answer_type,
                "question_type": kind,
            }
        )
    return questions


# -------------------------------------------------------------------------------------------- pairs of images


@dataclass(frozen=True)
class Claim:
    """A sentence on two images and its truth: None where a fair reader could hesitate."""

    text: str
    holds: Callable[[Scene, Scene], bool | None]


def draw_claim(scenes: list[Scene], rng: np.random.Generator) -> Claim:
    """A sentence on two images: half of them list what one shows (the contents of one of `scenes`), the others tell
    presence, number or relation of objects."""
    world, split = scenes[0].world, scenes[0].split
    one, two = _loose_description(world, split, rng), _loose_description(world, split, rng)
    kind, here = int(rng.integers(4)), int(rng.integers(2))
    side, other = ("left", "right") if here == 0 else ("right", "left")
    if rng.random() < LISTED:
        shown = pick(rng, scenes)
        contents = [describe(shown, i, ("size",)) for i in rng.permutation(len(shown.objects)).tolist()]
        *first, last = map(a, contents)
        return Claim(f"the {side} image shows {', '.join(first)} and {last}", partial(_all_in, contents, here))
    if kind == 0:
        quantity = pick(rng, ("both", "neither", "at least one", "only"))
        subject = {"both": "both images contain", "only": f"only the {side} image contains"}
        text = f"{subject.get(quantity, f'{quantity} image contains')} {a(one)}"
        return Claim(text, partial(_present_in, one, quantity, here))
    if kind == 1:
        number = int(rng.integers(1, 5))
        words = f"is exactly one {one}" if number == 1 else f"are exactly {NUMBER_WORDS[number]} {plural(one)}"
        return Claim(f"there {words} in total", partial(_counted, one, number))
    if kind == 2:
        text = f"the {side} image contains more {plural(one)} than the {other} image"
        return Claim(text, partial(_more_in, one, here))
    relation = pick(rng, RELATIONS)
    text = f"the {side} image shows {a(one)} {relation_words(relation)} {a(two)}"
    return Claim(text, partial(_related_in, one, two, relation, here))


def _loose_description(world: World, split: str, rng: np.random.Generator) -> Description:
    """Words that fit many objects: a colour, a shape, one of them with a size, or both."""
    colour, shape = pick(rng, world.combinations)
    size = pick(rng, world.sizes)[0]
    choices = [
        Description(colour=colour),
        Description(shape=shape),
        Description(size=size, colour=colour),
        Description(size=size, shape=shape),
    ]
    if split == "compositional" or world.frequency(colour, shape) > 0:
        choices.append(Description(colour=colour, shape=shape))
    return pick(rng, choices)


def _all_in(what: list[Description], here: int, left: Scene, right: Scene) -> bool:
    return all(fitting((left, right)[here], description) for description in what)


def _present_in(what: Description, quantity: str, here: int, left: Scene, right: Scene) -> bool:
    found = [bool(fitting(scene, what)) for scene in (left, right)]
    return {
        "both": all(found),
        "neither": not any(found),
        "at least one": any(found),
        "only": found[here] and not found[1 - here],
    }[quantity]


def _counted(what: Description, number: int, left: Scene, right: Scene) -> bool:
    return len(fitting(left, what)) + len(fitting(right, what)) == number


def _more_in(what: Description, here: int, left: Scene, right: Scene) -> bool:
    counts = [len(fitting(scene, what)) for scene in (left, right)]
    return counts[here] > counts[1 - here]


def _related_in(
    one: Description, two: Description, relation: str, here: int, left: Scene, right: Scene
) -> bool | None:
    scene = (left, right)[here]
    objects = scene.objects
    offsets = [
        offset(relation, objects[i], objects[j]) for i in fitting(scene, one) for j in fitting(scene, two) if i != j
    ]
    if any(distance > CLEAR for distance in offsets):
        return True
    return None if any(distance > 0 for distance in offsets) else False


@dataclass(frozen=True)
class Pair:
    left: Scene
    right: Scene
    statements: list[dict[str, Any]]


def make_pairs(world: World, split: str, seed: int, number: int, pool: int = 10) -> list[Pair]:
    """Set `number`: four pairs of scenes and two sentences, each true for two of the pairs, in all four ways.

    Identifiers are those of NLVR2: split-set-pair-sentence.
    """
    scenes = [make_scene(world, split, seed, number, part) for part in range(1, pool + 1)]
    rng = generator(scenes[0].key, "language")
    order = [divmod(i, pool) for i in rng.permutation(pool * pool).tolist()]
    order = [(left, right) for left, right in order if left != right]
    while True:
        claims = [draw_claim(scenes, rng) for _ in range(2)]
        found: dict[tuple[bool, bool], tuple[int, int]] = {}
        for left, right in order:
            first, second = (claim.holds(scenes[left], scenes[right]) for claim in claims)
            if first is not None and second is not None:
                found.setdefault((first, second), (left, right))
        if len(found) == 4:
            break
    pairs = []
    for p, truth in enumerate(list(found)):
        statements = [
            {"text": claim.text, "label": bool(label), "id": f"{split}-{number}-{p}-{s}"}
            for s, (claim, label) in enumerate(zip(claims, truth, strict=True))
        ]
        left, right = found[truth]
        pairs.append(Pair(scenes[left], scenes[right], statements))
    return pairs
