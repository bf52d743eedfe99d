"""VQA accuracy against the official script's recorded output and hand-counted cases."""

import json
from pathlib import Path

import pytest

from fiber.data.convert.answers import normalize_answer, soft_scores
from fiber.evaluation.metrics import vqa_accuracy as vqa


@pytest.fixture(scope="module")
def real(shared: Path) -> Path:
    return shared / "real/vqav2"


def test_normalisation_equals_the_official_scripts_on_every_recorded_string(real):
    rows = json.loads((real / "normalisation_expected.json").read_text())["rows"]
    assert len(rows) > 2_800
    wrong = [(raw, normalize_answer(raw), official) for raw, official, _ in rows
             if normalize_answer(raw) != official]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a/c", "c"),  # the slash becomes a blank, then "a" is an article
        ("t - shirt", "t shirt"),  # punctuation beside a blank vanishes
        ("1,000 men-women", "1000 menwomen"),  # a comma between digits makes all punctuation vanish
        ("$5.00.", "$5.00"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # the official table has "Im" only, which lower-casing never leaves
        ("." * 40, "." * 8),  # no more than 32 periods are removed
    ],
)
def test_quirks_of_the_normalisation(raw, expected):
    assert normalize_answer(raw) == expected


def test_accuracy_equals_the_official_script(real):
    annotations = json.loads((real / "allennlp_train2014_annotations_slice.json").read_text())["annotations"]
    answers = {entry["question_id"]: [a["answer"] for a in entry["answers"]] for entry in annotations}
    for case in json.loads((real / "expected_accuracy.json").read_text())["cases"]:
        score = vqa.question_accuracy(case["prediction"], answers[case["question_id"]])
        assert round(100 * score, 4) == case["accuracy"], case


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_soft_targets_are_the_leave_one_out_accuracy(matches, score):
    answers = ["yes"] * matches + [f"no {i}" for i in range(10 - matches)]
    assert vqa.question_accuracy("yes", answers) == pytest.approx(score, abs=1e-12)
    assert soft_scores(answers).get("yes", 0.0) == score


def questions() -> list[dict]:
    return [
        {"id": 7, "raw_answers": ["Two"] * 4 + ["3"] * 6, "answer_type": "number", "question_type": "how many"},
        {"id": 9, "raw_answers": ["yes"] * 9 + ["no"], "answer_type": "yes/no", "question_type": "is the"},
        {"id": 8, "raw_answers": ["no"] * 10, "answer_type": "yes/no", "question_type": "is the"},
    ]


def test_evaluate_by_type():
    rows = [{"question_id": 7, "answer": "2"}, {"question_id": 8, "answer": "No"}, {"question_id": 9, "answer": "NO"}]
    result = vqa.evaluate(questions(), rows)
    # 2: four of ten; "No" != "no" as that question is unanimous and so not normalised; "NO": one of ten
    assert result["accuracy"] == pytest.approx((1 + 0 + 0.3) / 3)
    assert result["answer_type"] == pytest.approx({"number": 1.0, "yes/no": 0.15})
    assert result["question_type"] == pytest.approx({"how many": 1.0, "is the": 0.15})


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([(7, "2"), (8, "no")], "no prediction for VQA question 9"),
        ([(7, "2"), (8, "no"), (9, "no"), (9, "no")], "two predictions for question_id 9"),
        ([(7, "2"), (8, "no"), (9, "no"), (10, "no")], "1 unknown, e.g. 10"),
    ],
)
def test_incomplete_predictions_are_refused(rows, named):
    with pytest.raises(ValueError, match=named):
        vqa.evaluate(questions(), [{"question_id": key, "answer": answer} for key, answer in rows])


def test_questions_that_cannot_be_scored_are_named():
    with pytest.raises(ValueError, match="question 1 has no raw answers"):
        vqa.evaluate([{"id": 1}], [{"question_id": 1, "answer": "x"}])
    with pytest.raises(ValueError, match="question 1: 1 answers: leave-one-out"):
        vqa.evaluate([{"id": 1, "raw_answers": ["x"]}], [{"question_id": 1, "answer": "x"}])


def test_submission_holds_every_question_once_in_order(tmp_path):
    rows = [{"question_id": 9, "answer": "café"}, {"question_id": 7, "answer": "2", "score": 0.5}]
    path = vqa.write_submission(tmp_path / "vqa.json", [7, 9], rows)
    assert json.loads(path.read_text()) == [
        {"question_id": 7, "answer": "2"},
        {"question_id": 9, "answer": "café"},
    ]
    with pytest.raises(ValueError, match=r"VQA submission: no prediction for 1 of 3, e\.g\. 8"):
        vqa.write_submission(tmp_path / "short.json", [7, 8, 9], rows)
    assert not (tmp_path / "short.json").exists()


def test_the_majority_answer_is_judged_as_any_other():
    def questions():
        yield {"id": 1, "raw_answers": ["yes"] * 10, "question_type": "is"}
        yield {"id": 2, "raw_answers": ["no"] * 9 + ["yes"], "question_type": "is"}
        yield {"id": 3, "raw_answers": ["2"] * 7 + ["3"] * 2 + ["no"], "question_type": "how many"}

    # "yes" 11 times, "no" 10: of the three questions it scores 1, 0.3 (one of ten) and 0.
    assert vqa.majority_accuracy(questions) == pytest.approx((1 + 0.3) / 3)
    assert vqa.majority_accuracy(questions, "question_type") == pytest.approx((1 + 0.3 + 1) / 3)
