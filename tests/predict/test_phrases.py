"""Phrases of a sentence: given, bracketed or found."""

import pytest

from fiber.predict.phrases import find_phrases, noun_phrases


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a red circle left of two dogs", ["red circle", "two dogs"]),
        ("A man in the blue shirt, holding an old-fashioned camera.", ["man", "blue shirt", "old-fashioned camera"]),
        ("dogs", ["dogs"]),
        ("the", []),
    ],
)
def test_noun_phrases_are_runs_between_function_words(sentence, expected):
    assert [sentence[start:end] for start, end in noun_phrases(sentence)] == expected


def test_brackets_overrule_and_vanish():
    sentence, spans = find_phrases("a [red circle] left of [it]", None)
    assert sentence == "a red circle left of it"
    assert [sentence[start:end] for start, end in spans] == ["red circle", "it"]


def test_given_phrases_must_be_there():
    sentence, spans = find_phrases("A red circle", ["Red"])
    assert [sentence[start:end] for start, end in spans] == ["red"]
    with pytest.raises(ValueError, match="'green' is not in the sentence"):
        find_phrases("A red circle", ["green"])
    with pytest.raises(ValueError, match="no phrases found"):
        find_phrases("of the", None)
