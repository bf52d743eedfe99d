"""The shapes world is checked by a reader of its own: sentences are parsed with regular expressions and judged
against the objects by brute force, boxes against outlines filled by scikit-image at eight times the size."""

import io
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon2mask

from fiber.data.records import TEXT_OF, validate_record
from fiber.data.shapes import world as shapes
from fiber.data.shapes.outlines import OUTLINES
from fiber.data.shapes.paint import RGB, paint
from fiber.data.shapes.questions import INVISIBLE, ask_count, make_pairs
from fiber.data.shapes.scene import Scene, World, make_scene, visible_masks

SCENES = 60
WORLDS = list(shapes.WORLDS.values())
ALL_SPLITS = [(world, split) for world in WORLDS for split in ("train", "compositional")]
split_ids = [f"{world.name}-{split}" for world, split in ALL_SPLITS]


# ------------------------------------------------------------------------------------------- a reader of its own

NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
NOUN = r"(?:[a-z]+ ){0,4}?[a-z]+"
RELATION = r"(?:to the |on the )?(left of|right of|above|below)"
AXES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def read_noun(words: str, world: World) -> dict[str, str]:
    """Attributes named by a noun phrase; every word must be known."""
    known = {"size": [w for w, _, _ in world.sizes], "texture": world.textures, "colour": world.colours}
    known["shape"] = world.shapes
    said = {}
    for word in words.split():
        if word in ("a", "an", "the", *NUMBERS):
            continue
        singular = word if word in (*world.shapes, "object") else re.sub(r"(?<=s)es$|s$", "", word)
        kinds = [kind for kind, vocabulary in known.items() if singular in vocabulary]
        assert kinds or singular == "object", f"{word!r} in {words!r} means nothing in {world.name}"
        said.update({kind: singular for kind in kinds})
    return said


def meant(words: str, scene: Scene) -> list[int]:
    said = read_noun(words, scene.world)
    return [i for i, o in enumerate(scene.objects) if all(getattr(o, kind) == word for kind, word in said.items())]


def apart(relation: str, i: int, j: int, scene: Scene) -> float:
    axis, sign = AXES[relation]
    first, second = scene.objects[i], scene.objects[j]
    return sign * ((first.x, first.y)[axis] - (second.x, second.y)[axis])


def related(relation: str, i: int, j: int, scene: Scene) -> bool:
    """Judged on the centres with the promised margin; raises where it is neither clearly so nor clearly not."""
    distance = apart(relation, i, j, scene)
    assert distance > 0.15 or distance < -0.15, "an unclear relation was spoken of"
    axis, sign = AXES[relation]
    boxes = [scene.objects[k].box for k in (i, j)]
    centres = [(box[axis] + box[axis + 2]) / 2 for box in boxes]
    assert (sign * (centres[0] - centres[1]) > 0) == (distance > 0), "the boxes say otherwise"
    return distance > 0


def one(words: str, scene: Scene) -> int:
    found = meant(words, scene)
    assert len(found) == 1, f"{words!r} fits {len(found)} objects"
    return found[0]


def statement_holds(text: str, scene: Scene) -> bool:
    """there is a X | a X is REL a Y"""
    if text.startswith("there is "):
        return bool(meant(text.removeprefix("there is "), scene))
    first, relation, second = re.fullmatch(rf"({NOUN}) is {RELATION} ({NOUN})", text).groups()
    return related(relation, one(first, scene), one(second, scene), scene)


def caption_clauses(text: str) -> list[tuple[str, str, str]]:
    """(subject, relation or "and", object) of every claim of a caption."""
    claims = []
    for clause in re.sub("^(there is|a picture of) ", "", text).split(", "):
        parts = re.split(rf" (?:and |is )?{RELATION} ", clause)
        if len(parts) == 1:
            subject, other = clause.split(" and ")
            claims.append((subject, "and", other))
        claims += [(parts[0], relation, other) for relation, other in zip(parts[1::2], parts[2::2], strict=True)]
    return claims


def caption_holds(text: str, scene: Scene) -> bool:
    for subject, relation, other in caption_clauses(text):
        first = meant(subject, scene)
        number = NUMBERS.get(subject.split()[0], 1)
        if len(first) != number or len(meant(other, scene)) != 1:
            return False
        if relation != "and" and not all(apart(relation, i, meant(other, scene)[0], scene) > 0.15 for i in first):
            return False
    return True


def referred(text: str, scene: Scene) -> list[int]:
    """the X | the X REL the Y; "left of" counts from the first hair's breadth, so a rival must not be left at all."""
    parts = re.split(f" {RELATION} the ", text)
    if len(parts) == 1:
        return meant(text, scene)
    anchor = one(parts[2], scene)
    return [i for i in meant(parts[0], scene) if i != anchor and apart(parts[1], i, anchor, scene) > 0]


def answer_of(question: str, scene: Scene) -> str:
    text = question.removesuffix("?")
    if found := re.fullmatch("how many (.+) are there", text):
        return str(len(meant(found[1], scene)))
    if found := re.fullmatch("is there (.+)", text):
        return "yes" if meant(found[1], scene) else "no"
    if found := re.fullmatch("what (color|shape|size|texture) is (the .+)", text):
        (index,) = referred(found[2], scene)
        return getattr(scene.objects[index], found[1].replace("color", "colour"))
    if found := re.fullmatch("is (.+) larger than (.+)", text):
        first, second = (scene.objects[one(words, scene)] for words in found.groups())
        assert max(first.radius, second.radius) > 1.25 * min(first.radius, second.radius), "too close to call"
        return "yes" if first.radius > second.radius else "no"
    if found := re.fullmatch("are there more (.+) than (.+)", text):
        first, second = (len(meant(words, scene)) for words in found.groups())
        assert first != second
        return "yes" if first > second else "no"
    first, relation, second = re.fullmatch(f"is (the {NOUN}) {RELATION} (the {NOUN})", text).groups()
    return "yes" if related(relation, one(first, scene), one(second, scene), scene) else "no"


def pair_statement_holds(text: str, left: Scene, right: Scene) -> bool:
    sides = {"left": left, "right": right}
    if found := re.fullmatch(
        r"(both|neither|at least one|only the left|only the right) images? contains? (.+)", text
    ):
        has = [bool(meant(found[2], scene)) for scene in (left, right)]
        wanted = {"both": (2,), "neither": (0,), "at least one": (1, 2)}
        if found[1] in wanted:
            return sum(has) in wanted[found[1]]
        return has == [found[1] == "only the left", found[1] == "only the right"]
    if found := re.fullmatch(r"there (?:is|are) exactly (\w+) (.+) in total", text):
        return sum(len(meant(found[2], scene)) for scene in (left, right)) == NUMBERS[found[1]]
    if found := re.fullmatch(r"the (left|right) image contains more (.+) than the (left|right) image", text):
        assert found[1] != found[3]
        return len(meant(found[2], sides[found[1]])) > len(meant(found[2], sides[found[3]]))
    side, shown = re.fullmatch("the (left|right) image shows (.+)", text).groups()
    scene = sides[side]
    if " and " in shown:
        return all(meant(words, scene) for words in re.split(", | and ", shown))
    first, relation, second = re.fullmatch(rf"({NOUN}) {RELATION} ({NOUN})", shown).groups()
    distances = [apart(relation, i, j, scene) for i in meant(first, scene) for j in meant(second, scene) if i != j]
    assert any(d > 0.15 for d in distances) or not any(d > 0 for d in distances), "an unclear relation"
    return any(d > 0.15 for d in distances)


def samples(world: World, split: str, captions: str = "mixed") -> list[tuple[Scene, dict]]:
    made = shapes.generate(world, split, SCENES, seed=3, captions=captions)
    return [(make_scene(world, split, 3, i), sample.record) for i, sample in enumerate(made)]


# ------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
@pytest.mark.parametrize("size", [64, 150])
def test_boxes_are_tight_around_what_is_visible(world: World, size: int) -> None:
    exact = []
    for index in range(12):
        scene = make_scene(replace(world, image_size=size), "test", 5, index)
        times = 8
        on_top = np.full((size * times, size * times), -1)
        for i, obj in enumerate(scene.objects):
            turn = np.deg2rad(obj.angle)
            rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            masks = []
            for ring in OUTLINES[obj.shape]:
                if ring is not None:
                    points = (ring @ rotation.T * obj.radius + (obj.x, obj.y)) * size * times - 0.5
                    masks.append(polygon2mask(on_top.shape, points[:, ::-1]))
            on_top[masks[0] & ~masks[1] if len(masks) > 1 else masks[0]] = i
        for i, obj in enumerate(scene.objects):
            share = (on_top == i).reshape(size, times, size, times).mean((1, 3))
            rows, columns = np.where(share.max(1) > 0.5)[0], np.where(share.max(0) > 0.5)[0]
            expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            difference = np.abs(np.subtract(expected, obj.box))
            assert difference.max() <= 1, (index, obj, expected)
            exact += (difference == 0).tolist()
    assert np.mean(exact) > 0.8


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_image_shows_what_the_record_says(world: World) -> None:
    for index in range(20):
        scene = make_scene(world, "train", 0, index)
        pixels = paint(scene).astype(float)
        visible = visible_masks(scene.masks) > 0.98
        for obj, seen in zip(scene.objects, visible, strict=True):
            assert seen.sum() > 0.5 * obj.area
            colour = pixels[seen].mean(0)
            if obj.texture == "plain":
                nearest = min(world.colours, key=lambda name: np.abs(colour - RGB[name]).sum())
                assert nearest == obj.colour
            else:  # two inks: far more contrast than noise and light give
                assert pixels[seen].std(0).max() > 20
        background = ~(scene.masks.sum(0) > 0)
        assert np.abs(pixels[background].mean(0) - world.backgrounds).sum(1).min() < 60


def test_scenes_keep_their_promises() -> None:
    for world, split in ALL_SPLITS:
        numbers = Counter()
        for index in range(SCENES):
            scene = make_scene(world, split, 1, index)
            numbers[len(scene.objects)] += 1
            own, seen = (m > 0.5 for m in (scene.masks, visible_masks(scene.masks)))
            assert (seen.sum((1, 2)) >= 0.7 * own.sum((1, 2))).all(), "hidden too much"
            centres = np.array([(o.x, o.y) for o in scene.objects])
            gaps = np.abs(centres[:, None] - centres).max(-1)[~np.eye(len(centres), dtype=bool)]
            assert gaps.min() > 0.15, "two objects without a clear relation"
        assert set(numbers) == set(range(world.objects[0], world.objects[1] + 1))


def test_images_are_encoded_at_the_size_asked_for() -> None:
    for size, extension in ((64, "png"), (200, "jpg")):
        (sample,) = shapes.generate(replace(shapes.WORLDS["hard"], image_size=size), "train", 1, 0)
        assert sample.images[0][0] == extension
        image = Image.open(io.BytesIO(sample.images[0][1]))
        assert (image.size, image.mode) == ((size, size), "RGB")
        assert (sample.record["width"], sample.record["height"]) == (size, size)


# ---------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(("world", "split"), ALL_SPLITS, ids=split_ids)
def test_records_are_valid_and_texts_true(world: World, split: str) -> None:
    known = {category["id"] for category in shapes.categories(world)}
    names = {category["id"]: category["name"] for category in shapes.categories(world)}
    for scene, record in samples(world, split):
        validate_record(record, known)
        for box, obj in zip(record["boxes"], scene.objects, strict=True):
            assert names[box["category"]] == f"{obj.colour} {obj.shape}"
        for category in record["negative_categories"]:
            assert not meant(names[category], scene)
        for expression in record["expressions"]:
            assert referred(expression["text"], scene) == [expression["box"]], expression["text"]
        for question in record["questions"]:
            answer = max(question["answers"], key=lambda entry: entry["score"])["answer"]
            assert answer == answer_of(question["question"], scene), question["question"]
            assert Counter(question["raw_answers"]).most_common(1)[0][0] == answer
            assert len(question["raw_answers"]) == 10
        for hypothesis in record["hypotheses"]:
            plain = re.sub(rf"\ban? ({'|'.join(INVISIBLE)}) ", "a ", hypothesis["text"])
            invisible = plain != hypothesis["text"]
            if hypothesis["label"] == "contradiction":
                assert not statement_holds(plain, scene), hypothesis["text"]
            else:
                assert statement_holds(plain, scene), hypothesis["text"]
                assert invisible == (hypothesis["label"] == "neutral")


@pytest.mark.parametrize(("world", "split"), ALL_SPLITS, ids=split_ids)
@pytest.mark.parametrize("kind", ["mixed", "full"])
def test_captions_are_true_and_their_spans_name_the_boxes(world: World, split: str, kind: str) -> None:
    for scene, record in samples(world, split, kind):
        first, second = record["captions"]
        assert first["text"] != second["text"]
        for caption in (first, second):
            text = caption["text"]
            assert caption_holds(text, scene), text
            mentioned = {index for phrase in caption["phrases"] for index in phrase["boxes"]}
            assert len(mentioned) >= 2
            assert kind == "mixed" or len(mentioned) == len(scene.objects)
            for phrase in caption["phrases"]:
                ((start, end),) = phrase["span"]
                assert meant(text[start:end], scene) == phrase["boxes"], text[start:end]
            assert len(text.replace(",", " ,").split()) <= (26 if len(mentioned) <= 4 else 36), text
            if split == "compositional":
                combos = {(scene.objects[i].colour, scene.objects[i].shape) for i in mentioned}
                assert combos & set(world.held_out)
            if any(relation != "and" for _, relation, _ in caption_clauses(text)):
                swapped = shapes.swap_relation(text)
                assert not caption_holds(swapped, scene)
                assert shapes.swap_relation(swapped) == text


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_ordered_captions_list_every_object_along_an_axis(world: World) -> None:
    told = Counter()
    for scene, record in samples(world, "train", "ordered"):
        first, second = record["captions"]
        assert caption_holds(first["text"], scene)
        order, _, listed = second["text"].partition(": ")
        told[order if listed else "unordered"] += 1
        if not listed:
            assert caption_holds(second["text"], scene)
            for places in ([obj.x for obj in scene.objects], [obj.y for obj in scene.objects]):
                assert min(abs(p - q) for i, p in enumerate(places) for q in places[:i]) < 0.07
            continue
        found = [meant(words, scene) for words in listed.split(", ")]
        assert found == [phrase["boxes"] for phrase in second["phrases"]]
        assert sorted(index for (index,) in found) == list(range(len(scene.objects)))
        axis = {"from left to right": "x", "from top to bottom": "y"}[order]
        places = [getattr(scene.objects[index], axis) for (index,) in found]
        assert all(after - before > 0.05 for before, after in pairwise(places))
        for phrase in second["phrases"]:
            ((start, end),) = phrase["span"]
            assert meant(second["text"][start:end], scene) == phrase["boxes"]
        with pytest.raises(ValueError, match="no relation"):
            shapes.swap_relation(second["text"])
    assert min(told["from left to right"], told["from top to bottom"]) > 10


@pytest.mark.parametrize("world", ["arranged", "paired"])
def test_worlds_of_two_objects_show_nothing_that_easy_holds_out(world: str) -> None:
    few, easy = shapes.WORLDS[world], shapes.WORLDS["easy"]
    shown = set(few.combinations) - set(few.held_out)
    assert shown <= set(easy.combinations) - set(easy.held_out)


def test_swapping_turns_every_relation_and_needs_one() -> None:
    swapped = shapes.swap_relation("a star to the left of a ring and below an upright cross")
    assert swapped == "a star to the right of a ring and above an upright cross"
    with pytest.raises(ValueError, match="no relation"):
        shapes.swap_relation("two circles and a square")


@pytest.mark.parametrize(("world", "split"), ALL_SPLITS, ids=split_ids)
def test_pair_statements_are_true_balanced_and_named_as_nlvr2(world: World, split: str) -> None:
    made = list(shapes.generate_pairs(world, split, 38, seed=2))
    pairs = [pair for number in range(10) for pair in make_pairs(world, split, 2, number)]
    labels = Counter()
    for i, (sample, pair) in enumerate(zip(made, pairs, strict=False)):
        validate_record(sample.record)
        assert [data for _, data in sample.images] == [shapes.encode(paint(s))[1] for s in (pair.left, pair.right)]
        for s, statement in enumerate(sample.record["statements"]):
            assert statement["id"] == f"{split}-{i // 4}-{i % 4}-{s}"
            assert statement["label"] == pair_statement_holds(statement["text"], pair.left, pair.right)
            labels[statement["text"], i // 4, statement["label"]] += 1
    assert len(made) == 38
    assert set(list(labels.values())[:32]) == {2}  # the first nine sets are whole: twice true, twice false


def test_answers_and_labels_are_balanced() -> None:
    world = shapes.WORLDS["easy"]
    answers, labels = Counter(), Counter()
    for i in range(400):
        record = shapes.scene_record(make_scene(world, "train", 0, i))
        for question in record["questions"]:
            kind, answer = (
                question["question_type"],
                max(set(question["raw_answers"]), key=question["raw_answers"].count),
            )
            assert answer in shapes.answers(world)
            answers[kind, answer] += 1
        labels.update(hypothesis["label"] for hypothesis in record["hypotheses"])
    for kind in ("existence", "relation", "comparison"):
        assert abs(answers[kind, "yes"] / (answers[kind, "yes"] + answers[kind, "no"]) - 0.5) < 0.08
    counts = {n: answers["count", str(n)] for n in range(5)}
    assert max(counts.values()) < 0.5 * sum(counts.values())
    assert min(counts.values()) > 0.03 * sum(counts.values())
    assert len(set(labels.values())) == 1


# --------------------------------------------------------------------------------------------- splits, determinism


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_held_out_combinations_stay_out_of_train_val_and_test(world: World) -> None:
    held_out = [f"{colour} {shape}" for colour, shape in world.held_out]
    assert len(held_out) == len(world.shapes)
    ids = {category["id"]: category["name"] for category in shapes.categories(world)}
    for split in shapes.SPLITS:
        spoken, shown = Counter(), []
        for _, record in samples(world, split):
            shown.append({ids[box["category"]] for box in record["boxes"]} & set(held_out))
            shown[-1] |= {ids[category] for category in record["negative_categories"]} & set(held_out)
            texts = [entry[key] for field, key in TEXT_OF.items() for entry in record.get(field, [])]
            spoken.update(name for name in held_out for text in texts if re.search(rf"\b{name}", text))
        for sample in shapes.generate_pairs(world, split, 40, seed=0):
            texts = [statement["text"] for statement in sample.record["statements"]]
            spoken.update(name for name in held_out for text in texts if re.search(rf"\b{name}", text))
        if split == "compositional":
            assert all(shown)
            assert set(spoken) == set(held_out)
        else:
            assert not any(shown)
            assert not spoken
    for attribute in range(2):  # every word of a held-out combination is known from others
        seen = {pair[attribute] for pair in world.combinations if pair not in world.held_out}
        assert seen >= {pair[attribute] for pair in world.held_out}


def test_splits_share_no_image() -> None:
    world = shapes.WORLDS["easy"]
    images = [s.images[0][1] for split in shapes.SPLITS for s in shapes.generate(world, split, 30, 0)]
    images += [s.images[0][1] for s in shapes.generate(world, "train", 30, 1)]
    images += [data for s in shapes.generate_pairs(world, "train", 8, 0) for _, data in s.images]
    assert len(set(images)) >= 5 * 30 + 8


FINGERPRINT = """
import hashlib, json
from fiber.data.shapes import world as shapes
digest = hashlib.sha256()
for world in shapes.WORLDS.values():
    for made in (shapes.generate(world, "train", 6, 4), shapes.generate_pairs(world, "val", 6, 4)):
        for sample in made:
            digest.update(json.dumps([sample.key, sample.record]).encode() + sample.images[0][1])
print(digest.hexdigest())
"""


def test_samples_are_the_same_in_every_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def test_a_sample_depends_on_its_index_alone_and_its_words_not_on_the_size() -> None:
    world = shapes.WORLDS["hard"]
    few, many = list(shapes.generate(world, "val", 3, 9)), list(shapes.generate(world, "val", 6, 9))
    assert few == many[:3]
    large = list(shapes.generate(replace(world, image_size=288), "val", 6, 9))
    for small, big in zip(many, large, strict=True):
        for field in TEXT_OF:
            assert small.record.get(field) == big.record.get(field)
        boxes = [np.array([box["box"] for box in s.record["boxes"]]) for s in (small, big)]
        assert np.abs(boxes[0] - boxes[1] / 3).max() < 1.5


# ----------------------------------------------------------------------------------------------------- word lists


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_word_lists_cover_what_is_said(world: World) -> None:
    vocabulary = set(" ".join(shapes.vocabulary_texts(world, scenes=60)).replace(",", " ").split())
    for scene, record in samples(world, "compositional", "full"):
        for field, key in TEXT_OF.items():
            for entry in record.get(field, []):
                assert set(entry[key].replace(",", " ").replace("?", " ").split()) <= {
                    w.strip("?") for w in vocabulary
                }
        for obj in scene.objects:
            words = shapes.visual_words(world)
            assert obj.colour in words["colour"]
            assert obj.shape in words["shape"]
            assert obj.size in words["size"]
    answers = shapes.answers(world)
    assert len(answers) == len(set(answers))


def test_categories_have_a_long_tail() -> None:
    world = shapes.WORLDS["hard"]
    drawn = Counter(
        f"{obj.colour} {obj.shape}" for i in range(400) for obj in make_scene(world, "train", 0, i).objects
    )
    mean = {}
    for frequency in "fcr":
        names = [c["name"] for c in shapes.categories(world) if c["frequency"] == frequency]
        mean[frequency] = np.mean([drawn[name] for name in names])
        assert len(names) >= len(world.shapes)
    assert mean["f"] > 2 * mean["c"] > 4 * mean["r"] > 0
    assert [c["id"] for c in shapes.categories(world)] == list(range(1, 57))


def test_novel_has_other_grounds_and_half_of_its_words_are_new() -> None:
    novel, others = shapes.WORLDS["novel"], [shapes.WORLDS["easy"], shapes.WORLDS["hard"]]
    assert max(max(ground) for ground in novel.backgrounds) <= 180
    assert min(min(ground) for other in others for ground in other.backgrounds) > 192
    for own, known in (
        (novel.colours, {word for other in others for word in other.colours}),
        (novel.shapes, {word for other in others for word in other.shapes}),
    ):
        assert 2 * len(set(own) - known) in (len(own), len(own) + 1)


def test_arranged_objects_stand_in_a_row_or_a_column() -> None:
    layouts = Counter()
    for scene, _ in samples(shapes.WORLDS["arranged"], "train"):
        (x0, y0), (x1, y1) = ((obj.x, obj.y) for obj in scene.objects)
        dx, dy = abs(x0 - x1), abs(y0 - y1)
        assert max(dx, dy) > 0.35
        assert min(dx, dy) < 0.05
        layouts[dx > dy] += 1
    assert min(layouts.values()) > SCENES / 4


def test_paired_scenes_share_three_kinds_and_stand_in_a_line_or_anywhere() -> None:
    world, in_line = shapes.WORLDS["paired"], 0
    families: dict[int, set[tuple[str, str]]] = {}
    for family in range(12):
        for index in range(family * world.family, family * world.family + 40):
            objects = make_scene(world, "test", 5, index).objects
            families.setdefault(family, set()).update((obj.colour, obj.shape) for obj in objects)
            dx, dy = abs(objects[0].x - objects[1].x), abs(objects[0].y - objects[1].y)
            in_line += max(dx, dy) > 0.35 and min(dx, dy) < 0.05
    assert {len(kinds) for kinds in families.values()} == {3}
    assert len(set.union(*families.values())) > 20
    assert len({frozenset(kinds) for kinds in families.values()}) == 12
    assert 0.4 < in_line / (12 * 40) < 0.65


def test_bad_requests_say_what_is_wrong() -> None:
    world = shapes.WORLDS["easy"]
    with pytest.raises(ValueError, match="unknown split 'dev': one of train"):
        next(shapes.generate(world, "dev", 1, 0))
    with pytest.raises(ValueError, match="captions must be"):
        next(shapes.generate(world, "train", 1, 0, captions="long"))
    with pytest.raises(ValueError, match="one frequency per colour"):
        replace(world, tail=(1, 1))
    with pytest.raises(ValueError, match=r"objects \(1, 9\) must lie within"):
        replace(world, objects=(1, 9))
    with pytest.raises(ValueError, match="too small"):
        replace(world, image_size=8)


def test_an_image_that_shows_every_colour_and_shape_has_questions() -> None:
    scene = make_scene(shapes.WORLDS["novel"], "test", 0, 198)
    assert {obj.colour for obj in scene.objects} == set(scene.world.colours)
    assert {obj.shape for obj in scene.objects} == set(scene.world.shapes)
    counts = {ask_count(scene, np.random.default_rng(seed))[1] for seed in range(40)}
    assert "0" not in counts
    assert len(counts) > 1
