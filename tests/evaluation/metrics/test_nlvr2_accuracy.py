"""NLVR2 against the official script's recorded output and a hand-counted case."""

import csv
import json

import pytest

from fiber.evaluation.metrics import nlvr2_accuracy as nlvr2


def test_equals_the_official_script(shared):
    real = shared / "real/nlvr2"
    examples = [json.loads(line) for line in (real / "dev_first500.json").read_text().splitlines()]
    statements = [{"id": e["identifier"], "label": e["label"] == "True"} for e in examples]
    with (real / "dev_first500_predictions.csv").open() as file:
        predictions = [{"id": identifier, "label": label == "True"} for identifier, label in csv.reader(file)]
    result = nlvr2.evaluate(statements, predictions)
    expected = json.loads((real / "expected.json").read_text())["metrics.py stdout"]
    assert "".join(f"{name}={value}\n" for name, value in result.items()) == expected


STATEMENTS = [
    {"id": "dev-1-0-0", "label": True},
    {"id": "dev-1-1-0", "label": False},  # the same sentence with another pair of images
    {"id": "dev-1-0-1", "label": True},  # another sentence with the first pair
]


def test_a_sentence_counts_as_consistent_only_with_all_its_pairs():
    rows = [{"id": s["id"], "label": True} for s in STATEMENTS]
    assert nlvr2.evaluate(STATEMENTS, rows) == {"accuracy": 2 / 3, "consistency": 1 / 2}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("dev-1-0-0", True), ("dev-1-1-0", True)], "no prediction for 1 of 3, e.g. 'dev-1-0-1'"),
        ([("dev-1-0-0", True)] * 2, "two predictions for id 'dev-1-0-0'"),
        ([("dev-1-0-0", "True"), ("dev-1-1-0", True), ("dev-1-0-1", True)], "dev-1-0-0 is 'True', not true or false"),
    ],
)
def test_bad_predictions_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        nlvr2.evaluate(STATEMENTS, [{"id": identifier, "label": label} for identifier, label in rows])


def test_a_malformed_identifier_is_named():
    rows = [{"id": "pair7", "label": True}]
    with pytest.raises(ValueError, match="'pair7' is not of the form split-set-pair-sentence"):
        nlvr2.evaluate(rows, rows)
