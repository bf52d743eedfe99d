"""NLVR2 accuracy and consistency (Suhr et al., 2019), as the official script counts them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from fiber.evaluation.predictions import Row, by_key, check_complete


def sentence_of(identifier: str) -> str:
    """The identifier `split-set-pair-sentence` without its pair: `dev-850-2-0` -> `dev-850--0`."""
    fields = identifier.split("-")
    if len(fields) != 4:
        raise ValueError(f"NLVR2 identifier {identifier!r} is not of the form split-set-pair-sentence")
    return f"{fields[0]}-{fields[1]}--{fields[3]}"


def evaluate(statements: Iterable[Mapping[str, Any]], predictions: Iterable[Row]) -> dict[str, float]:
    """Score predicted truth values.

    statements: as in records, `{"id", "label": bool}`. predictions: rows `{"id", "label": bool}`, one a statement.
    Returns fractions: `accuracy` over statements, `consistency`: the share of distinct sentences that are judged
    rightly with every pair of images they come with. ValueError names the identifier at fault.
    """
    labels = by_key(statements, "id", "label")
    predicted = by_key(predictions, "id", "label")
    check_complete(predicted, labels, "NLVR2 statements")
    sentences: dict[str, list[bool]] = defaultdict(list)
    for identifier, label in labels.items():
        if not isinstance(predicted[identifier], bool):
            raise ValueError(f"NLVR2 prediction for {identifier} is {predicted[identifier]!r}, not true or false")
        sentences[sentence_of(str(identifier))].append(predicted[identifier] == label)
    return {
        "accuracy": sum(map(sum, sentences.values())) / len(labels),
        "consistency": sum(map(all, sentences.values())) / len(sentences),
    }
