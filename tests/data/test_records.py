"""The schema: what validates, what does not, and which field the message names."""

import copy
import hashlib
import pickle

import pytest

from fiber.data.records import RecordError, annotation_text, clean_text, count, image_hash, validate_record
from fiber.images.codec import sniff

GOOD = {
    "image_id": "coco_1",
    "width": 100,
    "height": 50,
    "source": "coco",
    "boxes": [{"box": [-1.0, 0.0, 40.5, 51.0], "category": 3}, {"box": [10, 10, 20, 20], "category": 7}],
    "captions": [{"text": "a dog near a cat", "phrases": [{"span": [[0, 5]], "boxes": [0]}]}],
    "expressions": [{"text": "the dog", "box": 1, "span": [[4, 7]]}],
    "questions": [{"id": 1, "question": "what?", "answers": [{"answer": "dog", "score": 0.3}]}],
    "hypotheses": [{"text": "it rains", "label": "neutral"}],
    "statements": [{"text": "two dogs", "label": True, "id": "x"}],
    "negative_categories": [7],
}


def put(path: str, value: object) -> dict:
    """GOOD with the entry at a path of keys and indices replaced."""
    record = copy.deepcopy(GOOD)
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    entry = record
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    return record


def test_a_full_record_is_valid() -> None:
    validate_record(GOOD, {3, 7})


@pytest.mark.parametrize(
    ("path", "value", "reason", "named"),
    [
        ("image_id", 7, "missing_field", "image_id"),
        ("source", "", "missing_field", "source"),
        ("width", 0, "bad_size", "width"),
        ("height", 50.0, "bad_size", "height"),
        ("captions", {}, "bad_field", "captions"),
        ("boxes.1.box", [10, 10, 10, 20], "bad_box", "boxes[1]"),
        ("boxes.1.box", [10, 10, float("nan"), 20], "bad_box", "boxes[1]"),
        ("boxes.0.box", [0, 0, 102, 20], "bad_box", "boxes[0]"),
        ("boxes.0.box", [0, -1.5, 40, 20], "bad_box", "boxes[0]"),
        ("boxes.1.category", 4, "bad_category", "boxes[1]"),
        ("negative_categories", [99], "bad_category", "negative_categories"),
        ("captions.0.text", "  ", "empty_text", "captions[0]"),
        ("captions.0.text", None, "missing_field", "captions[0]"),
        ("captions.0.phrases.0.span", [[0, 17]], "bad_span", "captions[0].phrases[0]"),
        ("captions.0.phrases.0.span", [[1, 2]], "bad_span", "captions[0].phrases[0]"),
        ("captions.0.phrases.0.span", [], "bad_span", "captions[0].phrases[0]"),
        ("captions.0.phrases.0.boxes", [2], "bad_index", "captions[0].phrases[0]"),
        ("expressions.0.box", -1, "bad_index", "expressions[0]"),
        ("questions.0.answers.0.score", 1.5, "bad_score", "questions[0].answers[0]"),
        ("questions.0.question", "", "empty_text", "questions[0]"),
        ("hypotheses.0.label", "maybe", "bad_label", "hypotheses[0]"),
        ("statements.0.label", "True", "bad_label", "statements[0]"),
        ("statements.0", {"text": "two dogs"}, "bad_id", "statements[0].id"),
        ("questions.0.id", [1], "bad_id", "questions[0].id"),
        ("boxes.1.area", "large", "bad_box", "boxes[1].area"),
        ("captions.0.text", "a dog near \ud800 cat", "bad_field", "surrogates"),  # half a character
    ],
)
def test_a_fault_is_named(path: str, value: object, reason: str, named: str) -> None:
    with pytest.raises(RecordError) as error:
        validate_record(put(path, value), {3, 7})
    assert error.value.reason == reason
    assert named in str(error.value)


def test_detection_counts_images_and_needs_categories() -> None:
    assert count(GOOD, "boxes") == 1
    assert count({"boxes": []}, "boxes") == 1, "looked at and nothing found is a detection sample"
    assert count({"boxes": [{"box": [0, 0, 1, 1]}]}, "boxes") == 0
    assert count({}, "boxes") == 0
    assert count(GOOD, "captions") == 1


def test_text_is_cleaned_and_found() -> None:
    assert clean_text(" a \t red\u00a0 dog\n") == "a red dog"
    assert annotation_text(GOOD, "questions", 0) == "what?"
    with pytest.raises(Exception, match=r"no captions\[1\]"):
        annotation_text(GOOD, "captions", 1)


def test_extension_comes_from_the_bytes() -> None:
    assert sniff(b"\xff\xd8\xff\xe0rest") == "jpg"
    assert sniff(b"\x89PNG\r\n\x1a\nrest") == "png"
    assert sniff(b"RIFF\0\0\0\0WEBPVP8 ") == "webp"
    assert sniff(b"GIF89a") is None


def test_image_hash_is_blake2_and_fits_int64() -> None:
    digest = hashlib.blake2b(b"coco_1", digest_size=8).hexdigest()
    assert image_hash("coco_1") == int(digest, 16) // 2 < 2**63


def test_faults_survive_the_way_from_a_worker() -> None:
    fault = pickle.loads(pickle.dumps(RecordError("bad_box", "boxes[0]")))
    assert (fault.reason, str(fault)) == ("bad_box", "boxes[0]")
