"""Root noun phrases against those marked by hand in real expressions, and in a converted set."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fiber.data.convert import root_phrase
from fiber.data.convert.root_phrase import Span, by_rule, parsed, root_phrases

MARKED = [
    line for line in (Path(__file__).parent / "root_phrases.txt").read_text().splitlines() if not line.startswith("#")
]


def share_right(find: Callable[[str], Span]) -> float:
    right = 0
    for line in MARKED:
        text = line.replace("[", "").replace("]", "")
        right += find(text) == (line.index("["), line.index("]") - 1)
    return right / len(MARKED)


def test_the_marked_expressions_are_real(shared: Path) -> None:
    written = "".join(path.read_text() for path in (shared / "real/refer").glob("*.json"))
    texts = {line.replace("[", "").replace("]", "") for line in MARKED}
    assert len(texts) == len(MARKED) >= 200
    assert all(f'"{text}"' in written for text in texts)


def test_the_rule_is_right_in_three_of_four() -> None:
    share = share_right(by_rule)
    print(f"root noun phrases by the rule: {share:.1%} of {len(MARKED)}")
    assert share >= 0.75


def test_the_parser_is_right_in_nine_of_ten() -> None:
    find, name, _ = root_phrases()
    if name == "rule":
        pytest.skip("spaCy or its English model is not installed: pip install spacy, spacy download en_core_web_sm")
    share = share_right(find)
    print(f"root noun phrases by {name}: {share:.1%} of {len(MARKED)}")
    assert share >= 0.9


def test_without_the_parser_the_rule_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(root_phrase, "MODELS", ())
    root_phrases.cache_clear()
    find, name, note = root_phrases()
    root_phrases.cache_clear()
    assert (find, name) == (by_rule, "rule")
    assert "by a rule" in note
    assert "spacy download" in note


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("the 2 men, standing", "the 2 men"),
        ("in blue shirt", "blue shirt"),
        ("left", "left"),
        ("of", "of"),
        ("Zebra's head that is up", "Zebra's head"),
    ],
)
def test_edges_of_the_rule(text: str, phrase: str) -> None:
    start, end = by_rule(text)
    assert text[start:end] == phrase


def test_what_the_parser_finds_stays_in_the_text() -> None:
    """A parser that takes the article put before the text for a part of the phrase, or finds no phrase at all."""

    class Token:
        def __init__(self, i: int) -> None:
            self.i, self.head, self.children = i, self, []

    class Chunk:
        start, end, start_char, end_char = 0, 2, 0, 7

    class Document(list):
        noun_chunks = (Chunk(),)

    assert parsed(lambda text: Document([Token(1)]), "man on it") == (0, 3)
    Document.noun_chunks = ()
    assert parsed(lambda text: Document(), "man on it") == (0, 3)
