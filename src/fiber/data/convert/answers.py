"""Answers of VQAv2 as everyone counts them: the official normalisation, quirks included, and the soft targets.

Published numbers and the 3,129-answer vocabulary depend on these rules to the letter.
"""

import re
from collections import Counter
from collections.abc import Iterable

SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # by the number of ten annotators who gave the answer, 4 and more: 1

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
# The official pattern; its look-ahead "not the characters <= and a digit" was surely meant as a look-behind.
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_MAX_PERIODS = 32  # the script passes re.UNICODE (32) where the substitution count goes
_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = {"a", "an", "the"}
# Words that get back the one apostrophe they lack: "dont" -> "don't", "couldnt've" and "couldn'tve" -> "couldn't've".
_WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905  (a hundred quoted strings would hide the words)
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _WITH_APOSTROPHES
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # sic


def normalize_answer(answer: str) -> str:
    """The official processPunctuation and processDigitArticle: "The U.S. flag" -> "us flag", "two" -> "2"."""
    text = answer
    digits = _DIGIT_COMMA.search(answer) is not None
    for mark in _PUNCTUATION:
        glued = not digits and mark + " " not in answer and " " + mark not in answer
        text = text.replace(mark, " " if glued else "")
    text = _PERIOD.sub("", text, count=_MAX_PERIODS)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_scores(answers: Iterable[str]) -> dict[str, float]:
    """Training targets of one question: raw answer -> 0.3, 0.6, 0.9 or 1, counting exact strings of ten answers."""
    return {answer: SOFT_SCORES[min(count, 4)] for answer, count in Counter(answers).items()}
