"""Phrases of a sentence: the pieces that grounding looks for."""

import re
from collections.abc import Sequence

Span = tuple[int, int]  # [start, end) characters

ARTICLES = {"a", "an", "the", "some"}
# Words that end a noun phrase: a plain list does for short captions; [brackets] or explicit phrases overrule it.
PREPOSITIONS = """of in on at by with without from to into onto over under above below behind beside between near next
left right front around through across along against inside outside up down out off"""
JOINTS = "and or but while as that which who whose where there it he she they them him her its his their this these"
VERBS = """is are was were be being been has have had do does holding wearing sitting standing walking riding playing
looking eating running lying"""
BREAKS = set(f"{PREPOSITIONS} {JOINTS} {VERBS}".split())


def find_phrases(sentence: str, phrases: Sequence[str] | None) -> tuple[str, list[Span]]:
    """The sentence without [brackets] and the character spans of its phrases: given, bracketed, or found. Raises
    ValueError where a given phrase is not in the sentence or none is found."""
    spans: list[Span] = []
    if phrases:
        for phrase in phrases:
            start = sentence.lower().find(phrase.lower())
            if start < 0 or not phrase.strip():
                raise ValueError(f"phrase {phrase!r} is not in the sentence {sentence!r}")
            spans.append((start, start + len(phrase)))
        return sentence, spans
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
