"""Every task on a pretended card (`pretended_card`): nothing meets the wrong device, attention runs in fused kernels,
and the host waits no oftener than is written here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import card_runs
import pytest
from pretended_card import pretended_card

Configure = Callable[[Path, Path], Any]


def coarse(task: str, field: str, precision: str = "bf16", **settings: Any) -> Configure:
    return lambda sets, output: card_runs.coarse_config(sets, output, task, field, precision, **settings)


def caption(objective: str) -> Configure:
    return coarse("caption", "captions", caption=card_runs.caption_config(objective))


def fine(field: str, precision: str = "bf16", mode: str = "full") -> Configure:
    return lambda sets, output: card_runs.fine_config(sets, output, field, precision, mode)


CASES: dict[str, Configure] = {
    "pretrain": coarse("pretrain", "captions"),
    "pretrain fp32": coarse("pretrain", "captions", "fp32"),
    "vqa": coarse("vqa", "questions"),
    "nlvr2": coarse("nlvr2", "statements"),
    "entailment": coarse("entailment", "hypotheses"),
    "retrieval_itc": coarse("retrieval_itc", "captions"),
    "retrieval_itm": coarse("retrieval_itm", "captions"),
    "classification": coarse("classification", "captions"),
    "caption mle": caption("mle"),
    "caption gold": caption("gold"),
    "caption cider": caption("cider"),
    "regions": fine("boxes"),
    "regions fp16": fine("boxes", "fp16"),
    "grounding": fine("captions"),
    "referring": fine("expressions"),
    "prompt": fine("captions", mode="linear"),
}


@pytest.mark.parametrize("case", CASES)
def test_train(case: str, task_sets: Path, tmp_path: Path) -> None:
    with pretended_card() as card:
        figures = card_runs.train_steps(CASES[case](task_sets, tmp_path), card)
    print(case, figures["loss/total"])
    show(card)


@pytest.mark.parametrize("case", CASES)
def test_evaluate(case: str, task_sets: Path, tmp_path: Path) -> None:
    with pretended_card() as card:
        figures = card_runs.evaluate(CASES[case](task_sets, tmp_path))
    print(case, figures)
    show(card)


def show(card):
    print("   launches", card.launches, "waits", card.waits.total(), "uploads", card.uploads.total())
    for n in ("waits", "uploads", "attention"):
        for k, v in getattr(card, n).most_common(30):
            print("      ", n, v, k)
