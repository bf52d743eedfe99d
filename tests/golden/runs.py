"""The recorded runs: their configurations and how they are started. Only the stable surface is used: the entrypoints,
their configuration keys, and `tools/make_shards.py`.

A file NAME.txt holds a run's losses; `record.py` writes it, `test_golden.py` compares with it. `old_index/` is a
shard set of sixteen scenes with the index that commit 842a6e4 wrote: sets packed before a change must open after it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

REPO = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4  # on another machine type: relative or absolute. AVX2 instead of AVX-512 moves them by up to 2e-5
# The gradient has kinks, where a sampling point comes into the next cell or another side of a box is the larger:
# rounding decides. From step 20 on, stage 2 goes one of two ways, by machine type (Intel, AMD) and by how the focal
# loss is rounded: norms up to 0.5 % apart, losses 6e-5. A wrong gradient shows in the losses of the next steps.
KINKS = 1e-2  # of `grad_norm`, relative

TOWERS: dict[str, Any] = {
    "image": {"embed_dim": 16, "depths": [1, 1, 2, 1], "heads": [1, 2, 2, 4], "window": 2, "drop_path": 0.0},
    "text": {"width": 32, "layers": 3, "heads": 2, "intermediate": 64, "dropout": 0.0},
    "num_fused": 2,
    "init": "fan_in",
}
DROPOUT = ["model.text.dropout=0.1", "model.image.drop_path=0.2"]
COMMON: dict[str, Any] = {
    "optim": {"lr": 1e-3, "warmup": 2, "clip": 1.0},
    "train": {
        "steps": 30,
        "global_batch": 8,
        "micro_batch": 4,
        "accumulation": 2,
        "zero_stage": 1,
        "precision": "fp32",
        "log_every": 1,
        "save_every": 1000,
        "hang_timeout_s": 120,
    },
    "tracking": {"wandb": "off"},
}
STAGE1 = COMMON | {
    "image_size": 64,
    "max_text": 24,
    "model": TOWERS | {"head_width": 32},
    "pretrain": {"queue_size": 16, "gather_gradient": True},
    "data": {"train": [{"path": "train"}], "window_shards": 2, "workers": 1},
}
IMAGE_TASK = COMMON | {
    "image_size": 64,
    "max_text": 24,
    "model": TOWERS | {"head_width": 32},
    "data": {"train": [{"path": "train"}], "window_shards": 2, "workers": 0},
    "train": COMMON["train"] | {"steps": 10},
}
STAGE2 = COMMON | {
    "max_text": 64,
    "model": TOWERS | {"image": TOWERS["image"] | {"window": 4}},
    "detector": {
        "channels": 32,
        "head_channels": 32,
        "head_blocks": 1,
        "groups": 8,
        "drop_block": 0.0,
        "log_scale": -2.5,
        "anchor_sizes": [24, 48, 96],
        "strides": [8, 16, 32],
    },
    "regions": {"short_sides": [48, 64], "test_side": 64, "max_side": 96, "max_negatives": 8, "frozen_stages": 0},
    "data": {
        "train": [
            {"path": "train", "field": "captions", "weight": 1},
            {"path": "train", "field": "boxes", "weight": 2},
        ],
        "window_shards": 2,
        "workers": 1,
    },
}
REGION_TASK = STAGE2 | {
    "data": {"train": [{"path": "train", "field": "boxes"}], "window_shards": 2, "workers": 0},
    "train": COMMON["train"] | {"steps": 10},
}
QUESTIONS = ["task=vqa", "data.train.0.field=questions"]
CAPTION = ["task=caption", "caption.max_new_tokens=6"]

# name: (stage, ranks, configuration, overrides)
RUNS: dict[str, tuple[int, int, dict[str, Any], list[str]]] = {
    "stage1_1rank": (1, 1, STAGE1, []),
    "stage1_2ranks": (1, 2, STAGE1, ["train.accumulation=1"]),
    "stage1_dropout": (1, 1, STAGE1, [*DROPOUT, "train.steps=10"]),
    "stage2_1rank": (2, 1, STAGE2, []),
    "stage2_2ranks": (2, 2, STAGE2, ["train.accumulation=1"]),
    "stage2_dropout": (2, 1, STAGE2, [*DROPOUT, "detector.drop_block=0.2", "train.steps=10"]),
    "stage2_old_index": (2, 1, STAGE2, [*(f"data.train.{i}.path=old_index" for i in range(2)), "train.steps=5"]),
    "vqa": (1, 1, IMAGE_TASK, QUESTIONS),
    "vqa_lora": (1, 1, IMAGE_TASK, [*QUESTIONS, "tuning.mode=lora"]),
    "vqa_frozen_towers": (1, 1, IMAGE_TASK, [*QUESTIONS, "tuning.mode=frozen_towers"]),
    "vqa_plain": (1, 1, IMAGE_TASK, [*QUESTIONS, "finetune.augment=false"]),
    "nlvr2": (1, 1, IMAGE_TASK, ["task=nlvr2", "data.train.0.path=pairs", "data.train.0.field=statements"]),
    "entailment": (1, 1, IMAGE_TASK, ["task=entailment", "data.train.0.field=hypotheses"]),
    "retrieval_itc": (1, 1, IMAGE_TASK, ["task=retrieval_itc"]),
    "retrieval_itm": (1, 1, IMAGE_TASK, ["task=retrieval_itm", "finetune.negatives=hard"]),
    "retrieval_itm_random": (1, 1, IMAGE_TASK, ["task=retrieval_itm", "finetune.itc_weight=1.0"]),
    "caption_mle": (1, 1, IMAGE_TASK, [*CAPTION, "caption.objective=mle"]),
    "caption_gold": (1, 1, IMAGE_TASK, [*CAPTION, "caption.objective=gold", "caption.gold_refresh=4"]),
    "caption_cider": (1, 1, IMAGE_TASK, [*CAPTION, "caption.objective=cider", "caption.samples=2"]),
    "grounding": (2, 1, REGION_TASK, ["data.train.0.field=captions"]),
    "referring": (2, 1, REGION_TASK, ["data.train.0.field=expressions", "regions.flip=0.0"]),
    "detection": (2, 1, REGION_TASK, ["regions.classes=all", "max_text=128"]),
    "detection_lora": (2, 1, REGION_TASK, ["tuning.mode=lora"]),
    "detection_linear": (2, 1, REGION_TASK, ["tuning.mode=linear"]),
    "detection_prompt": (2, 1, REGION_TASK, ["tuning.mode=prompt"]),
    "detection_frozen_towers": (2, 1, REGION_TASK, ["tuning.mode=frozen_towers"]),
}


def machine() -> str:
    """The machine type: curves of one type are equal to the last digit. Cloud machines hide a processor's name ("AMD
    EPYC"), so that its family, its model and the vector instructions that torch uses belong to the type."""
    text = Path("/proc/cpuinfo").read_text()
    name, family, model = (
        found[1] if (found := re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)) else "?"
        for key in ("model name", "cpu family", "model")
    )
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{name} (family {family}, model {model}, {vectors}), torch {torch.__version__}"


def environment(folder: Path) -> dict[str, str]:
    """One thread per rank, this checkout. Hashes stay random: no loss may hang on the order of a set."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "PYTHONPATH": str(REPO / "src"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
    }


def make_data(folder: Path) -> None:
    """Shards of drawn scenes (`train`), of pairs of them (`pairs`), a `tokenizer`, and a copy of `old_index`."""
    shutil.copytree(Path(__file__).with_name("old_index"), folder / "old_index")
    tools, out = REPO / "tools", ["--limit", "48", "--workers", "1", "--seed", "0"]
    shapes = [sys.executable, tools / "make_shards.py", "shapes", "--world", "easy", "--split", "train", *out]
    words = [sys.executable, tools / "train_tokenizer.py", "--vocab-size", "400", "--out", folder / "tokenizer"]
    for command in (
        [*shapes, "--out", folder / "train"],
        [*shapes, "--variant", "pairs", "--out", folder / "pairs"],
        [*words, folder / "train"],
    ):
        done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def prepare(name: str, folder: Path) -> tuple[Path, list[str]]:
    """The entrypoint of a run and its arguments; its configuration is written into `folder`."""
    stage, _, config, overrides = RUNS[name]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config | {"output": name, "tokenizer": "tokenizer"}))
    script = REPO / "src" / "fiber" / ("stage1_coarse.py" if stage == 1 else "stage2_fine.py")
    return script, ["--config", str(path), *overrides]


# Runs of one rank share a process's imports: each is a fork of it, two at a time.
SERVER = """
import json, os, runpy, sys, traceback
import torch, deepspeed, transformers, torchvision
import fiber.stage1_coarse, fiber.stage2_fine
torch.set_num_threads(1)
jobs, running, failed = json.loads(sys.stdin.read()), {}, []
while jobs or running:
    if jobs and len(running) < 2:
        script, arguments = jobs.pop(0)
        pid = os.fork()
        if pid:
            running[pid] = [script, *arguments]
            continue
        status = 1
        try:
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    pid, status = os.wait()
    arguments = running.pop(pid)
    if status:
        failed.append(" ".join(arguments))
if failed:
    sys.exit("failed: " + "; ".join(failed))
"""


def run_all(names: list[str], folder: Path) -> None:
    """Train the runs of `names`, each into folder/NAME."""
    alone = [prepare(name, folder) for name in names if RUNS[name][1] == 1]
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        input=json.dumps([(str(script), arguments) for script, arguments in alone]),
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-8000:]}"
    for name in names:
        if RUNS[name][1] > 1:
            script, arguments = prepare(name, folder)
            launcher = ["deepspeed", "--num_gpus", str(RUNS[name][1]), "--master_port", str(free_port())]
            command = [*launcher, str(script), *arguments]
            done = subprocess.run(
                command, env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-8000:]}"


def free_port() -> int:
    """A TCP port that nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def curve(run: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and losses, as the run has logged them: the total, every weighted part, and the norm of the gradient."""
    for line in (run / "metrics.jsonl").read_text().splitlines():
        logged = json.loads(line)
        values = {k: v for k, v in logged.items() if k in ("loss/total", "grad_norm") or k.startswith("weighted/")}
        if values:
            yield logged["step"], values
