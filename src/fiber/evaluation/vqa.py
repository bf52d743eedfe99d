"""VQA accuracy as the VQAv2 server computes it, and the server's results file.

The rules, quirks included, are those of the official evaluation script; published numbers depend on them:

* Answers are normalised only where the ten annotators do not all agree to the letter. For a unanimous question
  "The orange." is wrong where "orange" is asked for.
* A prediction scores min(1, matches / 3) against the other nine annotators, averaged over leaving each one out:
  0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 or more matches among ten.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiber.evaluation.predictions import Row, by_key, check_complete, write_results

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


def question_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy (0..1) of one predicted answer against the raw answers of all annotators (ten in VQAv2)."""
    if len(answers) < 4:
        raise ValueError(
            f"{len(answers)} answers: leave-one-out accuracy needs at least 4 (VQAv2 has 10) to be able to reach 1; "
            "repeat a single true answer 10 times"
        )
    prediction, *answers = (_one_line(text) for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = (normalize_answer(text) for text in (prediction, *answers))
    matches = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / len(matches)


def soft_scores(answers: Iterable[str]) -> dict[str, float]:
    """Training targets of one question: raw answer -> 0.3, 0.6, 0.9 or 1, counting exact strings of ten answers."""
    return {answer: SOFT_SCORES[min(count, 4)] for answer, count in Counter(answers).items()}


def evaluate(questions: Iterable[Mapping[str, Any]], predictions: Iterable[Row]) -> dict[str, Any]:
    """Official accuracy over a whole split.

    questions: as in records, `{"id", "raw_answers": [10 strings], "answer_type"?, "question_type"?}`.
    predictions: rows `{"question_id", "answer"}`, one for every question.
    Returns fractions: `{"accuracy", "answer_type": {type: accuracy}, "question_type": {type: accuracy}}`. Raises
    ValueError naming a question without prediction, predicted twice, unknown, or without raw answers.
    """
    answers = by_key(predictions, "question_id", "answer")
    scores: dict[Any, float] = {}
    groups: dict[str, dict[str, list[float]]] = {"answer_type": defaultdict(list), "question_type": defaultdict(list)}
    for question in questions:
        identity = question["id"]
        if identity in scores:
            raise ValueError(f"VQA question {identity} occurs twice")
        if not question.get("raw_answers"):
            raise ValueError(f"VQA question {identity} has no raw answers; it can only be sent to the server")
        if identity not in answers:
            raise ValueError(f"no prediction for VQA question {identity}")
        try:
            scores[identity] = question_accuracy(answers[identity], question["raw_answers"])
        except ValueError as error:
            raise ValueError(f"VQA question {identity}: {error}") from None
        for kind, group in groups.items():
            if kind in question:
                group[question[kind]].append(scores[identity])
    check_complete(answers, scores, "VQA questions")
    by_type = {kind: {name: _mean(group[name]) for name in sorted(group)} for kind, group in groups.items()}
    return {"accuracy": _mean(list(scores.values())), **by_type}


def write_submission(path: str | Path, question_ids: Iterable[int], predictions: Iterable[Row]) -> Path:
    """The server's file: `[{"question_id": int, "answer": str}]`, sorted, exactly one row for every question id."""
    answers = by_key(predictions, "question_id", "answer")
    check_complete(answers, set(question_ids), "VQA submission")
    return write_results(path, ({"question_id": key, "answer": answers[key]} for key in sorted(answers)))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
