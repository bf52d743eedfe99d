"""The sections of gpu_check: each computes for seconds and returns what it found. `dry`: tiny sizes, on a CPU too."""

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmark_caption
import benchmark_detect
import benchmark_fine_step
import benchmark_rerank
import check_parity
import parity_common
from benchmark_common import DTYPES, BenchConfig, build_model, make_batch, peak_memory, timed
from benchmark_common import machine as described
from fiber import cards, distributed
from fiber.backbone.attention import explicit_attention, fused_attention
from fiber.config.loading import load_config
from fiber.tasks.compiled import compile_blocks
from fiber.tasks.flops import pair_cost
from fiber.tasks.pretrain import PretrainTask
from fiber.tasks.regions import GroundingTask

TOWERS = {
    "model.image": ("embed_dim=16", "depths=[2,2,2,2]", "heads=[2,2,4,8]", "window=3"),
    "model.text": ("layers=4", "width=32", "heads=2", "intermediate=64"),
    "model": ("num_fused=3",),
    "bench": ("vocabulary=2000", "repeats=1", "warmup=0", "pairs=4", "pair_batch=2"),
}
STAGE1 = ("image_size=96", "model.head_width=32", "caption.max_new_tokens=4", "max_text=16")
STAGE2 = ("detector.channels=32", "detector.head_channels=32", "detector.head_blocks=1", "regions.test_side=96")
STAGE2 += ("regions.max_side=128", "regions.short_sides=[96]", "max_text=256", "eval.batch=16")
PARITY = Path(__file__).resolve().parents[2] / "shared/parity"


def configured(stage: int, dry: bool, precision: str, *overrides: str):
    """The base configuration of a stage, or its tiny form."""
    tiny = [f"{part}.{value}" for part, values in TOWERS.items() for value in values]
    tiny += STAGE1 if stage == 1 else STAGE2
    schema = BenchConfig if stage == 1 else benchmark_detect.DetectBenchConfig
    start = [] if stage == 1 else ["init_from=null"]
    given = [f"train.precision={precision}", *start, *(tiny if dry else []), *overrides]
    return load_config(schema, f"configs/stage{stage}/fiber_base.yaml", given)


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Median of calls after one that is not counted."""
    function()
    return median(timed(function) for _ in range(repeats))


def step_of(task: nn.Module, batch: dict) -> Callable[[], object]:
    def step() -> None:
        task.zero_grad(set_to_none=True)
        sum(task(batch)[0].values()).backward()

    return step


def coarse_task(dry: bool, precision: str, *overrides: str) -> tuple[PretrainTask, BenchConfig]:
    config = configured(1, dry, precision, *overrides)
    return PretrainTask(build_model(config), config.pretrain), config


def fine_task(dry: bool, precision: str, *overrides: str) -> tuple[GroundingTask, benchmark_detect.DetectBenchConfig]:
    config = configured(2, dry, precision, *overrides)
    task = GroundingTask(benchmark_detect.build_model(config))
    task.model.tune("full", 1)
    return task, config


def region_batch(config: benchmark_detect.DetectBenchConfig, height: int, width: int, size: int) -> dict:
    """Noise of a size that need not be square."""
    batch = benchmark_fine_step.noise(config, min(height, width), size)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8, device=distributed.device())
    return batch | {"images": images, "sizes": batch["sizes"].new_tensor([[height, width]] * size)}


def machine(dry: bool) -> dict:
    device, size = distributed.device(), 256 if dry else 8192
    found: dict = described()
    x = torch.empty(2**20 if dry else 2**31, dtype=torch.uint8, device=device)
    found["copy_tb_s"] = 2 * len(x) / seconds(lambda: x.clone()) / 1e12
    for name in ("bf16", "fp32"):
        a = torch.randn(size, size, device=device).to(DTYPES[name])
        found[f"product_tflops_{name}"] = 2 * size**3 / seconds(lambda a=a: a @ a) / 1e12
    return found


def equal(dry: bool) -> dict:
    """Small models, all paths: losses and gradients on the device in each precision against the CPU in fp32."""
    device, found = distributed.device(), {}
    coarse, coarse_config = coarse_task(True, "fp32")
    fine, fine_config = fine_task(True, "fp32", "model.checkpointing=false")
    batches = make_batch(coarse_config, 4), region_batch(fine_config, 96, 128, 2)
    for stage, task, batch in ((1, coarse, batches[0]), (2, fine, batches[1])):
        task.eval()  # no dropout; gradients flow all the same
        host = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in batch.items()}
        expected = losses_and_gradients(copy.deepcopy(task).cpu(), host)
        for precision in ("fp32",) if dry else ("fp32", "bf16", "fp16"):
            losses, gradients = losses_and_gradients(copy.deepcopy(task).to(device, DTYPES[precision]), dict(batch))
            norms = {n: g.norm().clamp(min=1e-9) for n, g in expected[1].items() if g.norm() > 1e-6}
            errors = [float((gradients[n] - expected[1][n]).norm() / norm) for n, norm in norms.items()]
            found[f"stage{stage} {precision}"] = {
                "losses": losses, "cpu": expected[0], "gradient_error": [median(errors), max(errors)]
            }  # fmt: skip
    return found


def losses_and_gradients(task: nn.Module, batch: dict) -> tuple[dict[str, float], dict[str, Tensor]]:
    losses = task(batch)[0]
    sum(loss.float() for loss in losses.values()).backward()
    gradients = {n: p.grad.double().cpu() for n, p in task.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def attention(dry: bool) -> dict:
    """Milliseconds of a window attention of FIBER-B, forward and backward, by form: 64 images of 384 px."""
    device, images, found = distributed.device(), 1 if dry else 64, {}
    kept = dict(device=device, dtype=torch.bfloat16, requires_grad=True)
    for windows, heads in ((4, 2),) if dry else ((64, 4), (16, 8), (4, 16)):
        q, k, v = (torch.randn(images * windows, heads, 144, 32, **kept) for _ in range(3))
        biases = [torch.randn(n, heads, 144, 144, **kept) for n in (1, windows)]
        forms = attention_forms((q, k, v), *biases)
        for name, form in forms.items():
            found[f"{windows} windows, {heads} heads, {name}"] = 1e3 * seconds(
                lambda form=form: form().sum().backward()
            )
    return found


def attention_forms(qkv: tuple[Tensor, Tensor, Tensor], one: Tensor, each: Tensor) -> dict[str, Callable[[], Tensor]]:
    """By bias: `one` (1,h,N,N) for all windows, `each` (n,h,N,N) by its place in the image."""
    last = one.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).detach()  # as it was: heads last
    times = len(qkv[0]) // len(each)
    return {
        "one bias": lambda: fused_attention(*qkv, one),
        "one bias, heads last": lambda: fused_attention(*qkv, last),
        "bias per window": lambda: fused_attention(*qkv, each),
        "bias per window, repeated": lambda: fused_attention(*qkv, each.repeat(times, 1, 1, 1)),
        "bias per window, written out": lambda: explicit_attention(*qkv, each),
        "no bias": lambda: F.scaled_dot_product_attention(*qkv),
    }


def stage1(dry: bool) -> dict:
    task, config = coarse_task(dry, "fp32" if dry else "bf16")
    cost = 3 * pair_cost(task.model, config.image_size, config.max_text, 6).shared
    peak, found = cards.peak_flops(distributed.device()), {}
    task.train()
    for size in (2,) if dry else (64, 32, 8, 96, 128):
        try:
            spent = seconds(step_of(task, make_batch(config, size)))
        except torch.cuda.OutOfMemoryError:
            found[f"micro-batch {size}"] = "out of memory"
            continue
        row = {"pairs_per_second": size / spent, "peak_gib": peak_memory() / 2**30}
        found[f"micro-batch {size}"] = row | {"mfu": peak and cost * size / spent / peak}
    return found


def stage2(dry: bool) -> dict:
    found, (height, width) = {}, (96, 128) if dry else (800, 1344)
    for precision in ("fp32",) if dry else ("bf16", "fp16"):
        task, config = fine_task(dry, precision, f"model.checkpointing={str(dry).lower()}")
        task.train()
        for size in (1,) if dry else (1, 2, 4, 8):
            try:
                spent = seconds(step_of(task, region_batch(config, height, width, size)), 2)
            except torch.cuda.OutOfMemoryError:
                found[f"{precision} micro-batch {size}"] = "out of memory"
                break
            row = {"images_per_second": size / spent, "peak_gib": peak_memory() / 2**30}
            found[f"{precision} micro-batch {size}"] = row
    new = [region_batch(config, 64 + 32 * n if dry else 480 + 32 * n, width, 1) for n in range(1 if dry else 6)]
    steps = [step_of(task, batch) for batch in new]
    found["new size, again, seconds"] = [(timed(step), timed(step)) for step in steps]
    return found


def train(dry: bool) -> dict:
    """Losses by step of runs from nothing on the toy world, by precision; needs no data."""
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        world = [f"--out={folder}/train", "--limit=40" if dry else "--limit=400"]
        run([sys.executable, "tools/make_shards.py", "shapes", *world])
        run([sys.executable, "tools/train_tokenizer.py", f"{folder}/train", f"--out={folder}/tokenizer"])
        for stage, script in ((1, "stage1_coarse"), (2, "stage2_fine")):
            for precision in ("fp32",) if dry else ("fp32", "bf16", "fp16")[: stage + 1]:
                out, size = Path(folder) / f"{stage}_{precision}", 4 if dry else 32
                settings = {"train.steps": 2 if dry else 100, "train.log_every": 1, "train.precision": precision}
                settings |= {"train.micro_batch": size, "train.global_batch": size, "output": out, "eval.data": "[]"}
                settings |= {"tokenizer": f"{folder}/tokenizer", "data.workers": 2, "tracking.wandb": "off"}
                sources = 1 if stage == 1 else 2
                settings |= {f"data.train.{n}.path": f"{folder}/train" for n in range(sources)}
                settings |= {} if stage == 1 else {"init_from": "null"}
                given = [f"{key}={value}" for key, value in settings.items()]
                config = f"configs/stage{stage}/shapes_tiny.yaml"
                run([sys.executable, f"src/fiber/{script}.py", "--config", config, *given])
                rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
                found[f"stage{stage} {precision}"] = [row["loss/total"] for row in rows if "loss/total" in row]
            if dry:
                break
    return found


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:3])}: {done.stderr[-500:]}")


def evaluate(dry: bool) -> dict:
    found = {}
    for precision in ("fp32",) if dry else ("fp32", "bf16"):
        sizes = [] if dry else ["bench.pairs=1024", "bench.pair_batch=256", "bench.repeats=2"]
        found[f"rerank {precision}"] = benchmark_rerank.run(configured(1, dry, precision, *sizes))
        found[f"caption {precision}"] = benchmark_caption.run(configured(1, dry, precision))
        found[f"detect {precision}"] = benchmark_detect.run(configured(2, dry, precision))
    return found


def parity(dry: bool) -> dict:
    """Outputs within their tolerance, of how many, by recorded case; fp32 without TF32."""
    cards.choose_kernels(distributed.device(), exact=True)
    found = {}
    for path in sorted(PARITY.glob("*.json"))[: 1 if dry else None]:
        fixture = parity_common.Fixture.load(str(path.with_suffix("")))
        checks = {"fine": check_parity.check_fine, "coarse": check_parity.check_coarse}
        with distributed.device():
            rows = checks[fixture.stage](fixture).rows
        found[path.stem] = {"ok": sum(row.ok for row in rows), "of": len(rows)}
    return found


def compiled(dry: bool) -> dict:
    """A stage-1 step with train.compile; dry, one layer is traced."""
    task, config = coarse_task(dry, "fp32" if dry else "bf16", "train.compile=true")
    part = task.model.backbone.text.layers[0] if dry else task.model
    compile_blocks(part, config, backend="eager" if dry else "inductor")
    task.train()
    step = step_of(task, make_batch(config, 2 if dry else 64))
    return {"first_seconds": timed(step), "seconds": seconds(step)}


def loader(dry: bool) -> dict:
    sizes = ["bench.images=8", "bench.samples=16"] if dry else ["bench.images=400", "bench.samples=6000"]
    sizes += ["image_size=384", "train.global_batch=8", "train.micro_batch=8", "data.workers=1" if dry else ""]
    config = ["--config", "configs/stage1/benchmark_mid.yaml", *filter(None, sizes)]
    done = subprocess.run([sys.executable, "tools/benchmark.py", "loader", *config], capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])
