"""Phrases of a sentence: the pieces that grounding looks for."""

import re
from collections.abc import Sequence

from fiber.data.convert.root_phrase import BREAKS as END_OF_PHRASE

Span = tuple[int, int]  # [start, end) characters

ARTICLES = {"a", "an", "the", "some"}
# Words that end a noun phrase: a plain list does for short captions; [brackets] or explicit phrases overrule it. Here
# a place ends one too: a caption that says "left" names what is there before or after it.
BREAKS = frozenset({*END_OF_PHRASE, "left", "right", "front"})


def find_phrases(sentence: str, phrases: Sequence[str] | None) -> tuple[str, list[Span]]:
    """The sentence without [brackets] and the character spans of its phrases: given (`locate`), bracketed, or found.
    Raises ValueError where a given phrase is not in the sentence or none is found."""
    spans: list[Span] = []
    if phrases:
        return sentence, locate(sentence, phrases)
    if "[" in sentence:
        plain = ""
        for part in re.split(r"(\[[^\[\]]*\])", sentence):
            if part.startswith("[") and part.endswith("]"):
                spans.append((len(plain), len(plain) + len(part) - 2))
                part = part[1:-1]
            plain += part
        sentence = plain
    else:
        spans = noun_phrases(sentence)
    if not spans:
        raise ValueError(f"no phrases found in {sentence!r}: mark them with [brackets]")
    return sentence, spans


def locate(sentence: str, phrases: Sequence[str]) -> list[Span]:
    """Where each phrase stands in the sentence, as whole words in any case. Longer phrases are placed first, and each
    takes its first place that no other holds: in "red dog and a dog", "dog" beside "red dog" is the second one, and
    "dog" given twice is both. A phrase without a free place may lie in a longer one.

    Raises ValueError naming a phrase that is not there, or is given more often than it is there.
    """
    spans: dict[int, Span] = {}
    for number in sorted(range(len(phrases)), key=lambda i: -len(phrases[i])):
        phrase = phrases[number].strip()
        pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
        places = [match.span() for match in re.finditer(pattern, sentence, re.IGNORECASE)] if phrase else []
        if not places:
            raise ValueError(f"phrase {phrases[number]!r} is not in the sentence {sentence!r} (as whole words)")
        held = spans.values()
        free = [span for span in places if all(span[1] <= start or end <= span[0] for start, end in held)]
        free = free or [span for span in places if span not in held]
        if not free:
            raise ValueError(f"phrase {phrase!r} is given more often than it is in the sentence {sentence!r}")
        spans[number] = free[0]
    return [spans[number] for number in range(len(phrases))]


def noun_phrases(sentence: str) -> list[Span]:
    """Runs of words between prepositions, conjunctions, common verbs and punctuation, without leading articles:
    "a red circle left of two dogs" -> the spans of "red circle" and "two dogs"."""
    spans: list[Span] = []
    run: list[Span] = []
    for token in [*re.finditer(r"[\w'-]+|[^\w\s]", sentence), None]:
        word = token.group().lower() if token else ""
        if token and word not in BREAKS and re.match(r"\w", word):
            if run or word not in ARTICLES:
                run.append(token.span())
        elif run:
            spans.append((run[0][0], run[-1][1]))
            run = []
    return spans


def class_names(text: str) -> list[str]:
    """The classes that a text lists: between commas, semicolons, line ends and full stops that stand alone ("cup .
    block ."); of a text with none of these, between full stops if it ends with one ("cup. block."), so that "St.
    Bernard" stays one."""
    parts = re.split(r"[,;\n\r]|(?<!\S)\.(?!\S)", text)
    if len(parts) == 1 and text.rstrip().endswith("."):
        parts = re.split(r"\.(?=\s|$)", text)
    return [name for part in parts if (name := part.strip())]
