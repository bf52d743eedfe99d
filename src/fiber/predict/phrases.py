"""Phrases of a sentence: the pieces that grounding looks for.

spaCy's parser finds them where it is installed (pip install fiber-vl[refer], python -m spacy download
en_core_web_sm); else a rule stands in for it.
"""

import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from unicodedata import category

from fiber.data.convert.root_phrase import BREAKS as END_OF_PHRASE
from fiber.data.convert.root_phrase import MODELS

Span = tuple[int, int]  # [start, end) characters

ARTICLES = {"a", "an", "the", "some"}
DETERMINERS = ARTICLES | {"his", "her", "its", "their", "my", "your", "our", "this", "these", "those", "another"}
# Words that end a noun phrase: a plain list does for short captions; [brackets] or explicit phrases overrule it. Here
# a place ends one too: a caption that says "left" names what is there before or after it.
BREAKS = frozenset({*END_OF_PHRASE, "left", "right", "front"})

DRAWN = {"So", "Sk", "Mn", "Cf"}
"""Kinds of characters that emoji are made of: words, too."""


def find_phrases(sentence: str, phrases: Sequence[str] | None) -> tuple[str, list[Span]]:
    """The sentence without [brackets] and the character spans of its phrases: given (`locate`), bracketed, or found.
    Raises ValueError where a given phrase is not in the sentence, a bracketed one is not whole, or none is found."""
    spans: list[Span] = []
    if phrases:
        return sentence, locate(sentence, phrases)
    if "[" in sentence:
        plain = ""
        for part in re.split(r"(\[[^\[\]]*\])", sentence):
            if part.startswith("[") and part.endswith("]"):
                spans.append((len(plain), len(plain) + len(part) - 2))
                part = part[1:-1]
                if not part.strip():
                    raise ValueError(f"an empty phrase [] in {sentence!r}")
            elif "[" in part or "]" in part:
                raise ValueError(f"brackets that do not close, or lie in others, in {sentence!r}")
            plain += part
        sentence = plain
    else:
        spans = found_phrases(sentence)[0]
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


def found_phrases(sentence: str) -> tuple[list[Span], str]:
    """The noun phrases of a sentence without leading articles, and what found them ("spacy" or "rule")."""
    parser = _parser()
    if parser is None:
        return noun_phrases(sentence), "rule"
    # The parser takes places for a part of the noun ("a blue square right of ..."), which the rule leaves out.
    chunks = [(chunk.start_char, chunk.end_char) for chunk in parser(sentence).noun_chunks]
    inner = [(start, noun_phrases(sentence[start:end])) for start, end in chunks]
    return [(start + spans[0][0], start + spans[-1][1]) for start, spans in inner if spans], "spacy"


@lru_cache(maxsize=1)
def _parser() -> Any:
    """spaCy's English parser, None where it is not installed."""
    model = next((name for name in MODELS if importlib.util.find_spec(name)), None)
    if model is None or importlib.util.find_spec("spacy") is None:
        return None
    return importlib.import_module("spacy").load(model, exclude=["ner", "lemmatizer"])


def noun_phrases(sentence: str) -> list[Span]:
    """The rule: runs of words between prepositions, conjunctions, common verbs, determiners and punctuation: "a red
    circle left of two dogs" -> the spans of "red circle" and "two dogs". Of several words the one right before a
    determiner is taken for a verb: "hat" of "hat throws the frisbee"."""
    spans: list[Span] = []
    run: list[Span] = []
    for token in [*re.finditer(r"[\w'-]+|[^\w\s]", sentence), None]:
        word = token.group().lower() if token else ""
        if token and word not in BREAKS | DETERMINERS and (re.match(r"\w", word) or category(word[0]) in DRAWN):
            run.append(token.span())
        elif run:
            if word in DETERMINERS and len(run) > 1:
                run.pop()
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
