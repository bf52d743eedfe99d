"""VQA accuracy as the VQAv2 server computes it, and the server's results file.

The rules, quirks included, are those of the official evaluation script; published numbers depend on them:

* Answers are normalised (`fiber.data.convert.answers`) only where the ten annotators do not all agree to the letter.
  For a unanimous question "The orange." is wrong where "orange" is asked for.
* A prediction scores min(1, matches / 3) against the other nine annotators, averaged over leaving each one out:
  0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 or more matches among ten.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiber.data.convert.answers import normalize_answer
from fiber.evaluation.predictions import Row, by_key, check_complete, write_results


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


def majority_accuracy(questions: Callable[[], Iterable[Mapping[str, Any]]], by: str | None = None) -> float:
    """Official accuracy of always giving the answer that the annotators of these very questions gave most often, or,
    `by` "question_type", most often for each kind of question: what can be had without looking.

    questions: makes the iterable of `evaluate`, which is walked twice.
    """
    counts: dict[Any, Counter[str]] = defaultdict(Counter)
    for question in questions():
        counts[question.get(by) if by else None].update(question["raw_answers"])
    best = {kind: min(given, key=lambda answer: (-given[answer], answer)) for kind, given in counts.items()}
    return _mean([question_accuracy(best[q.get(by) if by else None], q["raw_answers"]) for q in questions()])


def write_submission(path: str | Path, question_ids: Iterable[int], predictions: Iterable[Row]) -> Path:
    """The server's file: `[{"question_id": int, "answer": str}]`, sorted, exactly one row for every question id."""
    answers, ids = by_key(predictions, "question_id", "answer"), sorted(set(question_ids))
    check_complete(answers, ids, "VQA submission")
    return write_results(path, ({"question_id": key, "answer": answers[key]} for key in ids))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
