"""Every task on a pretended card (`pretended_card`): nothing meets the wrong device, attention runs in fused kernels,
and the host waits no oftener than is written here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import card_runs
import pytest
import torch
from pretended_card import CUDA, Card, CardTensor, on_card, pretended_card, to_card
from tiny_detector import LIMIT, tiny_detector
from torch import nn
from transformers import RobertaTokenizerFast

from fiber import cards
from fiber.data.prompts import PromptBuilder
from fiber.data.text import load_tokenizer
from fiber.fine import postprocess
from fiber.fine.inference import Query, run_queries
from fiber.fine.postprocess import BoxSelection, Detections, choose
from fiber.tasks.table import task_of

Configure = Callable[[Path, Path], Any]


def coarse(task: str, field: str, precision: str = "bf16", **settings: Any) -> Configure:
    return lambda sets, output: card_runs.coarse_config(sets, output, task, field, precision, **settings)


def caption(objective: str) -> Configure:
    return coarse("caption", "captions", caption=card_runs.caption_config(objective))


def fine(field: str, precision: str = "bf16", mode: str = "full") -> Configure:
    return lambda sets, output: card_runs.fine_config(sets, output, field, precision, mode)


RUNS: dict[str, Configure] = {
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
    "regions": fine("boxes", "fp16"),
    "grounding": fine("captions"),
    "frozen towers": fine("captions", mode="frozen_towers"),
}
STEP_WAITS = 2
"""Of a step: whether losses are finite and a signal came, and the norm of the gradient."""
MICRO_BATCH_WAITS = {"pretrain": 1, "pretrain fp32": 1, "regions": 1, "grounding": 1, "frozen towers": 1}
"""Of a micro-batch: how many tokens are masked, how many anchors learn a box; and of drawn captions how long they are
and their words (and every eighth token whether all have ended). Tasks that are not named: none."""
MICRO_BATCH_WAITS["caption cider"] = 2
MOST_UPLOADS = 12
"""Of a step: the tensors of its batch, and two numbers."""


@pytest.fixture(autouse=True)
def _kernels() -> Any:
    """What a run on a card sets before it begins, and put back."""
    before = torch.backends.cuda.cudnn_sdp_enabled(), torch.get_float32_matmul_precision()
    cards.choose_kernels(CUDA)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before[0])
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize("name", RUNS)
def test_a_training_step(name: str, task_sets: Path, tmp_path: Path) -> None:
    with pretended_card() as card:
        figures = card_runs.train_steps(RUNS[name](task_sets, tmp_path), card)
    assert figures["loss/total"] > 0
    assert fused(card)
    assert card.waits.total() == STEP_WAITS + MICRO_BATCH_WAITS.get(name, 0), card.waits
    assert card.uploads.total() <= MOST_UPLOADS, card.uploads


@pytest.mark.parametrize("name", RUNS)
def test_the_work_of_a_step_is_counted(name: str, task_sets: Path, tmp_path: Path) -> None:
    """For "tflops" and "mfu" in the log, where each step does the same: captions differ, frozen parts skip some."""
    config = RUNS[name](task_sets, tmp_path)
    row = task_of(config)
    cost = row.flops(config, row.build_module(config, load_tokenizer(config.tokenizer)))
    assert (cost is None) == (name == "frozen towers" or "caption" in name)
    assert cost is None or cost(torch.Size([4, 3, 96, 96])) > 1e6


@pytest.mark.parametrize(
    "name", ["pretrain", "vqa", "nlvr2", "classification", "caption mle", "regions", "grounding"]
)
def test_an_evaluation(name: str, task_sets: Path, tmp_path: Path) -> None:
    """Waits per batch: one for answers, two for boxes of images of one size (here four times), six for
    captions; of retrieval a fixed number."""
    with pretended_card() as card:
        figures = card_runs.evaluate(RUNS[name](task_sets, tmp_path))
    assert figures
    assert fused(card)
    most = {
        "pretrain": 32,
        "vqa": 15,
        "nlvr2": 6,
        "classification": 3,
        "caption mle": 18,
        "regions": 8,
        "grounding": 8,
    }
    assert card.waits.total() <= most[name], card.waits


def fused(card: Card) -> bool:
    """Whether attention ran, never in the form that writes all logits, nor in cuDNN's, which plans every shape."""
    kernels = {place.split()[0] for place in card.attention}
    return bool(kernels) and kernels <= {"flash", "efficient"}


@pytest.mark.parametrize("prompts", [1, 9])
def test_post_processing_waits_do_not_depend_on_the_number_of_prompts(
    prompts: int, tokenizer: RobertaTokenizerFast
) -> None:
    """One for suppression, one for the result. Detections are those of the CPU."""
    model, builder = tiny_detector().eval(), PromptBuilder(tokenizer, LIMIT)
    asked = builder.chunks([f"dogs {i}" for i in range(2 * prompts)], max_classes=2)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    queries = [Query(image, (96, 64), asked)]
    (expected,) = run_queries(model, queries, card_runs.SELECTION, pairs=4)
    with pretended_card() as card:
        (found,) = run_queries(to_card(model), queries, card_runs.SELECTION, pairs=4)
    assert len(asked) == prompts
    assert len(expected.scores) >= prompts
    assert card.waits.total() == 2, card.waits
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes)


def test_more_candidates_than_a_card_takes_at_once_are_chosen_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal scores among them, entries that are none, and a pair that has no candidate: the same as on the CPU."""
    draw = torch.Generator().manual_seed(1)
    corner, side = torch.rand(2, 7, 40, 2, generator=draw) * 60
    scores = torch.randint(-3, 9, (7, 40), generator=draw).clamp(min=-1) / 8
    scores[3] = -1.0
    found = Detections(torch.cat([corner, corner + side], 2), scores, torch.randint(0, 3, (7, 40), generator=draw))
    sizes, selection = torch.tensor([[64, 100]]).expand(7, 2), BoxSelection(nms=0.3, keep=9)
    expected = choose(found, sizes, 3, selection)
    for most, waits in ((300, 2), (100, 6)):  # all; too many, then both halves
        monkeypatch.setattr(postprocess, "AT_ONCE", most)
        with pretended_card() as card:
            on = Detections(*(CardTensor(x) for x in (found.boxes, found.scores, found.labels)))
            chosen = choose(on, CardTensor(sizes), 3, selection)
        for one, other in zip(chosen, expected, strict=True):
            assert all(torch.equal(getattr(one, f), getattr(other, f)) for f in ("boxes", "scores", "labels"))
        assert card.waits.total() == waits, card.waits
    assert [len(one.scores) > 0 for one in expected] == [True, True, True, False, True, True, True]


# ---------------------------------------------------------------------------------------------- the card itself


def test_the_card_refuses_what_cuda_refuses() -> None:
    host = torch.arange(3.0)
    with pretended_card():
        x = host.to("cuda")
        assert (x.device.type, x.is_cuda, x.cpu().tolist()) == ("cuda", True, [0.0, 1.0, 2.0])
        for wrong in (
            lambda: x + host,
            lambda: torch.stack([x.sum(), host.sum()]),
            lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
            lambda: nn.Linear(3, 2)(x),
        ):
            with pytest.raises(RuntimeError, match="CPU"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert torch.equal((x + host.sum()).cpu(), host + 3)  # a number may come from the CPU


@pytest.mark.parametrize(
    ("operation", "waits", "uploads"),
    [
        (lambda x: x.sum().item(), 1, 0),
        (lambda x: x.tolist(), 1, 0),
        (lambda x: bool((x > 0).any()), 1, 0),
        (lambda x: x[x > 1], 1, 0),
        (lambda x: x.nonzero(), 1, 0),
        (lambda x: x.unique(), 1, 0),
        (lambda x: x.cpu(), 1, 0),
        (lambda x: x[[0, 2]], 0, 1),
        (lambda x: x.new_tensor([1.0]), 0, 1),
        (lambda x: x[torch.tensor([0])], 0, 1),
        (lambda x: x.where(x > 1, 0.0).cumsum(0).topk(2), 0, 0),
        (lambda x: x.index_fill_(0, on_card(torch.tensor([1])), 2.0), 0, 0),
    ],
)
def test_waits_and_uploads_are_counted(operation: Callable[[Any], Any], waits: int, uploads: int) -> None:
    with pretended_card() as card:
        operation(CardTensor(torch.arange(3.0)))
        assert (card.waits.total(), card.uploads.total()) == (waits, uploads)


def test_kernels_are_chosen_by_torch_s_rules() -> None:
    """A bias whose last stride is not 1 costs the fused kernel; a half-precision call without one is flash's."""
    q = torch.zeros(2, 4, 9, 8, dtype=torch.bfloat16)
    bias = torch.zeros(9, 9, 4, dtype=torch.bfloat16).permute(2, 0, 1)[None]
    attend = nn.functional.scaled_dot_product_attention
    with pretended_card() as card:
        x, y = on_card((q, bias))
        for mask in (None, y, y.contiguous()):
            nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    assert [place.split()[0] for place in card.attention] == ["flash", "math", "efficient"]
    assert nn.functional.scaled_dot_product_attention is attend  # put back
