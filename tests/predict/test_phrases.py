"""Phrases of a sentence: given, bracketed or found."""

import pytest

from fiber.predict import phrases as module
from fiber.predict.phrases import class_names, find_phrases, found_phrases, noun_phrases


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a red circle left of two dogs", ["red circle", "two dogs"]),
        ("A man in the blue shirt, holding an old-fashioned camera.", ["man", "blue shirt", "old-fashioned camera"]),
        ("A brown dog jumps over the fence.", ["brown dog", "fence"]),
        ("two children are playing while a man reads a book", ["two children", "man", "book"]),
        ("a man in a hat throws the frisbee", ["man", "hat", "frisbee"]),
        ("two kids kick a ball", ["two kids", "ball"]),
        ("a woman rides her bike", ["woman", "bike"]),
        ("dogs", ["dogs"]),
        ("🦝 on a 木", ["🦝", "木"]),
        ("a 👩🏽‍🚒 beside the ❤️ sign", ["👩🏽‍🚒", "❤️ sign"]),
        ("the", []),
    ],
)
def test_noun_phrases_are_runs_between_function_words(sentence, expected):
    assert [sentence[start:end] for start, end in noun_phrases(sentence)] == expected


@pytest.mark.parametrize("parser", ["rule", "spacy"])
@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a man in a hat throws the frisbee", ["man", "hat", "frisbee"]),
        ("the cat sleeps under a table", ["cat", "table"]),
        ("two kids kick a ball", ["two kids", "ball"]),
        ("a large blue square right of a large orange triangle", ["large blue square", "large orange triangle"]),
        ("an old man sits on a bench next to his dog", ["old man", "bench", "dog"]),
    ],
)
def test_everyday_sentences_with_the_parser_and_without(sentence, expected, parser, monkeypatch):
    if parser == "rule":
        monkeypatch.setattr(module, "_parser", lambda: None)
    else:
        pytest.importorskip("spacy")
    spans, by = found_phrases(sentence)
    assert (by, [sentence[start:end] for start, end in spans]) == (parser, expected)


def test_brackets_overrule_and_vanish():
    sentence, spans = find_phrases("a [red circle] left of [it]", None)
    assert sentence == "a red circle left of it"
    assert [sentence[start:end] for start, end in spans] == ["red circle", "it"]


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("[a square] right of [a triangle", "brackets that do not close"),
        ("a square] right of [a triangle]", "brackets that do not close"),
        ("[a [large] square]", "lie in others"),
        ("a square and []", "an empty phrase"),
        ("[ ]", "an empty phrase"),
    ],
)
def test_brackets_that_mark_nothing_whole_are_named(sentence, message):
    with pytest.raises(ValueError, match=message):
        find_phrases(sentence, None)


def test_given_phrases_must_be_there():
    sentence, spans = find_phrases("A red circle", ["Red"])
    assert [sentence[start:end] for start, end in spans] == ["red"]
    with pytest.raises(ValueError, match="'green' is not in the sentence"):
        find_phrases("A red circle", ["green"])
    with pytest.raises(ValueError, match="no phrases found"):
        find_phrases("of the", None)


@pytest.mark.parametrize(
    ("sentence", "phrases", "places"),
    [
        ("red dog and a dog", ["dog", "dog"], [(4, 7), (14, 17)]),
        ("red dog and a dog", ["dog", "red dog"], [(14, 17), (0, 7)]),
        ("a man in a red shirt", ["man in a red shirt", "red shirt"], [(2, 20), (11, 20)]),
        ("concatenate the Cat", ["cat"], [(16, 19)]),
        ("a cat (black)", ["cat (black)", " black "], [(2, 13), (7, 12)]),
        ("\u0130stanbul is a city", ["CITY"], [(14, 18)]),  # lower() makes the first letter two
    ],
)
def test_given_phrases_are_whole_words_and_each_has_its_own_place(sentence, phrases, places):
    assert find_phrases(sentence, phrases) == (sentence, places)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        (["cat"], "'cat' is not in the sentence"),
        ([" "], "' ' is not in the sentence"),
        (["dog", "dog"], "'dog' is given more often than it is in the sentence"),
    ],
)
def test_phrases_that_cannot_be_placed_are_named(phrases, message):
    with pytest.raises(ValueError, match=message):
        find_phrases("concatenate a dog", phrases)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cup . block .", ["cup", "block"]),
        ("cup. block.", ["cup", "block"]),
        ("cup; block", ["cup", "block"]),
        ("cup\nblock\r\nplate\n", ["cup", "block", "plate"]),
        ("raccoon,coffee cup", ["raccoon", "coffee cup"]),
        ("St. Bernard, AC/DC unit, C++", ["St. Bernard", "AC/DC unit", "C++"]),
        ("St. Bernard", ["St. Bernard"]),
        ("杯子, 🚗", ["杯子", "🚗"]),
        (" , . ;", []),
    ],
)
def test_lists_of_classes_in_every_way_of_writing(text, expected):
    """shared/cases/own_data/detect_dots: GLIP and GroundingDINO are asked "a . b ."."""
    assert class_names(text) == expected
