"""Files of the release's form, made of the recorded weights as the release wraps them."""

import argparse
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

TRAINER = {"epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.3.2"}


def word_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly the 120 ids of the recorded models: words w4 .. w118."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 119}
    vocabulary |= {f"w{i}": i for i in range(4, 119)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **marks)
    wrapped.save_pretrained(folder)
    return wrapped


def coarse_weights(shared: Path) -> dict[str, Tensor]:
    """Every recorded tensor of stage 1 under its official name, derived buffers included."""
    return load_file(shared / "parity/coarse_a.weights.safetensors")


def fine_weights(shared: Path) -> dict[str, Tensor]:
    """The same for stage 2."""
    return load_file(shared / "parity/fine_a.weights.safetensors")


def lightning_file(shared: Path, path: Path, hyper: bool = True) -> dict[str, Tensor]:
    """A stage-1 Lightning checkpoint with queues, callbacks and optimizer state -> its weights."""
    weights = coarse_weights(shared)
    config = json.loads((shared / "parity/coarse_a.json").read_text())["config"]
    queues = {
        "image_queue": torch.randn(32, 8),
        "text_queue": torch.randn(32, 8),
        "image_input_queue": torch.zeros(8, 3, 128, 128),
        "text_input_queue": torch.zeros(8, 12, dtype=torch.int64),
        "text_input_mask_queue": torch.ones(8, 12, dtype=torch.int64),
        "queue_ptr": torch.zeros(1, dtype=torch.int64),
        "queue_total": torch.zeros(1, dtype=torch.int64),
    }
    content = TRAINER | {
        "state_dict": weights | queues,
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]}],
    }
    if hyper:
        content["hyper_parameters"] = {"config": argparse.Namespace(**config)}
    with _foreign_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") as callback:
        content["callbacks"] = {callback: {"monitor": "val/the_metric", "best_model_score": torch.tensor(0.5)}}
        torch.save(content, path)
    return weights


def detection_file(shared: Path, path: Path) -> dict[str, Tensor]:
    """A stage-2 checkpoint of parallel training, with averaged weights beside the raw ones -> the raw ones."""
    weights = fine_weights(shared)
    raw = {f"module.{name}": tensor for name, tensor in weights.items()}
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in raw.items()}
    trainer = {"optimizer": {"state": {}, "param_groups": []}, "scheduler": {"last_epoch": 7}, "iteration": 7}
    torch.save({"model": raw, "model_ema": average} | trainer, path)
    return weights


@contextmanager
def _foreign_class(module: str, name: str) -> Iterator[type]:
    """A class of a library that is not installed: picklable by its name inside the block, unknown after it."""
    parts = module.split(".")
    modules = {".".join(parts[: n + 1]): types.ModuleType(part) for n, part in enumerate(parts)}
    made = type(name, (), {"__module__": module})
    setattr(modules[module], name, made)
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for loaded in modules:
            del sys.modules[loaded]
