"""What only a real card can show: `pytest -m gpu tests/gpu`, skipped without one. The rest is in `pretended_card`."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import card_runs
import pytest
import torch
from tiny_detector import LIMIT, tiny_detector
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import RobertaTokenizerFast

import check_parity
import parity_common
from fiber import cards
from fiber.data.prompts import PromptBuilder
from fiber.fine.inference import Query, run_queries
from fiber.tasks.compiled import compile_blocks
from fiber.tasks.table import task_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card on this machine"),
]
PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"
STEPS, SCALE = 20, 1024.0  # of the curves; of fp16's losses


@pytest.fixture(autouse=True)
def _exact_fp32() -> Iterator[None]:
    cards.choose_kernels(torch.device("cuda"), exact=True)
    yield
    cards.choose_kernels(torch.device("cuda"))


def configured(stage: int, sets: Path, output: Path, precision: str = "fp32") -> Any:
    if stage == 1:
        return card_runs.coarse_config(sets, output, "pretrain", "captions", precision)
    return card_runs.fine_config(sets, output, "boxes", precision)


def module_of(config: Any) -> nn.Module:
    """The task's module as it begins, in fp32 on the CPU, without dropout."""
    return task_of(config).build_module(config, card_runs.load_tokenizer(config.tokenizer)).eval()


def prepared(module: nn.Module, batch: dict[str, Any], device: str) -> dict[str, Any]:
    """A batch as the loop hands it to a task."""
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()} | {"step": 5}
    if hasattr(module, "loss_normalisers"):
        batch["loss_normalisers"] = {k: v.float().clamp(min=1) for k, v in module.loss_normalisers(batch).items()}
    return batch


def total(module: nn.Module, batch: dict[str, Any], device: str) -> Tensor:
    losses, _ = module(prepared(module, batch, device))
    return torch.stack([loss.float() for loss in losses.values()]).sum()


@pytest.mark.parametrize("stage", [1, 2])
def test_losses_and_gradients_are_those_of_the_cpu(stage: int, task_sets: Path, tmp_path: Path) -> None:
    config = configured(stage, task_sets, tmp_path)
    module, batch = module_of(config), next(card_runs.batches(config))
    there = copy.deepcopy(module).cuda()
    for one, device in ((module, "cpu"), (there, "cuda")):
        one.zero_grad()
        total(one, dict(batch), device).backward()
    here, found = total(module, dict(batch), "cpu").item(), total(there, dict(batch), "cuda").item()
    assert found == pytest.approx(here, rel=1e-4)
    for (name, p), q in zip(module.named_parameters(), there.parameters(), strict=True):
        if p.grad is not None:
            assert q.grad is not None
            torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=1e-2, atol=1e-4 * p.grad.abs().max(), msg=name)


@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "bf16"), (2, "fp16")])
def test_half_precision_learns_as_fp32(stage: int, precision: str, task_sets: Path, tmp_path: Path) -> None:
    """Losses of every step within 2 %, with fp32 masters and a fixed loss scale."""
    curves = []
    for kind in ("fp32", precision):
        config = configured(stage, task_sets, tmp_path)
        module, source = module_of(config).cuda(), iter(card_runs.batches(config))
        masters = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
        module.to(card_runs.DTYPES[kind])
        curve = []
        for _ in range(STEPS):
            module.zero_grad()
            loss = total(module, next(source), "cuda")
            (loss * SCALE).backward()
            curve.append(loss.item())
            with torch.no_grad():
                for name, p in module.named_parameters():
                    if p.grad is not None:
                        masters[name] -= 1e-3 * (p.grad.float() / SCALE).clamp(-1, 1)
                        p.copy_(masters[name])
        curves.append(curve)
    assert curves[1] == pytest.approx(curves[0], rel=0.02)


@pytest.mark.parametrize("stage", [1, 2])
def test_attention_needs_no_math_kernel(stage: int, task_sets: Path, tmp_path: Path) -> None:
    """With the other kernels alone, torch raises where none of them takes a call."""
    config = configured(stage, task_sets, tmp_path, "bf16")
    module = module_of(config).cuda().to(torch.bfloat16).train()
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        total(module, next(card_runs.batches(config)), "cuda").backward()


def test_a_compiled_model_is_the_same(task_sets: Path, tmp_path: Path) -> None:
    config = configured(1, task_sets, tmp_path)
    module, batch = module_of(config), next(card_runs.batches(config))
    for part in module.modules():  # nothing drawn
        for name in ("dropout", "drop_path"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    plain = module.cuda().train()
    plain.model.backbone.text.embeddings.dropout.p = 0.0  # type: ignore[union-attr]
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled, replace(config, train=replace(config.train, compile=True)))
    found, expected = (total(one, dict(batch), "cuda").item() for one in (compiled, plain))
    assert found == pytest.approx(expected, rel=1e-4)


def test_waits_of_boxes_are_two(tokenizer: RobertaTokenizerFast) -> None:
    """As torch itself counts them."""
    model, builder = tiny_detector().eval().cuda(), PromptBuilder(tokenizer, LIMIT)
    asked = builder.chunks([f"dogs {i}" for i in range(8)], max_classes=2)
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    run_queries(model, [Query(image, (96, 64), asked)], card_runs.SELECTION)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run_queries(model, [Query(image, (96, 64), asked)], card_runs.SELECTION)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in seen if "synchroniz" in str(w.message)]) <= 2 + 3  # and three pageable uploads


@pytest.mark.skipif(not PARITY.is_dir(), reason="no recorded tensors of the release at shared/parity")
@pytest.mark.parametrize("case", ["coarse_a", "fine_a"])
def test_parity_with_the_release_on_the_card(case: str) -> None:
    fixture = parity_common.Fixture.load(str(PARITY / case))
    check = {"fine": check_parity.check_fine, "coarse": check_parity.check_coarse}[fixture.stage]
    with torch.device("cuda"):
        rows = check(fixture).rows
    assert [row for row in rows if not row.ok] == []
