"""Export folders of models small enough to run in milliseconds, with open gates, and images of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.coarse.model import CoarseModel
from fiber.config.base import ImageTowerConfig, ModelConfig, TextTowerConfig
from fiber.data.shapes.tokenizer import train_bpe
from fiber.fine.model import FiberDetector
from fiber.weights.card import Card
from fiber.weights.export import write_export
from fiber.weights.export_config import ExportConfig

ANSWERS = ["yes", "no", "two", "red"]
CATEGORIES = ["circle", "square", "large triangle"]
MODEL = ModelConfig(
    image=ImageTowerConfig(embed_dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), window=2),
    text=TextTowerConfig(width=32, layers=3, heads=4, intermediate=64),
    num_fused=2,
    head_width=32,
    init="fan_in",
)


def coarse_export(folder: Path, seed: int = 0, **heads: int) -> Path:
    """A model at image level; `heads`: classifiers, e.g. vqa=4."""
    tokenizer = _tokenizer(folder)
    config = ExportConfig("coarse", MODEL, len(tokenizer), 1, image_size=64, max_text=12, classifiers=heads)
    backbone = build_backbone(MODEL, len(tokenizer), 1, 12)
    vectors = {name: 1 for name in heads if name == "classification"}  # it reads the image alone
    model = CoarseModel(backbone, head_width=32, vocab_size=len(tokenizer), classifiers=heads, vectors=vectors)
    answers = ANSWERS if heads.get("vqa") == len(ANSWERS) else ()
    return write_export(folder, _drawn(model, seed), config, tokenizer, card=Card(["none"], 0), answers=answers)


def fine_export(folder: Path, seed: int = 0, **options: Any) -> Path:
    """A model at region level; `options` of FiberDetector."""
    tokenizer = _tokenizer(folder)
    detector = {"channels": 16, "head_channels": 16, "head_blocks": 1, "groups": 4, "text_limit": 32} | options
    sizes = {"image_size": 64, "max_image_size": 96, "max_text": 32, "detector": detector}
    config = ExportConfig("fine", MODEL, len(tokenizer), 1, **sizes)
    model = FiberDetector(build_backbone(MODEL, len(tokenizer), 1, 32, fine=True), **detector)
    tensors = _drawn(model, seed)
    tensors["head.bias"] += 4  # a fresh head finds next to nothing
    return write_export(folder, tensors, config, tokenizer, categories=CATEGORIES)


def images(folder: Path) -> dict[str, Path]:
    """The same scene (a light left half, a dark right one) as files of every mode and size that users have."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((60, 90, 3), 40, np.uint8)
    pixels[:, :45] = (220, 120, 90)
    plain = Image.fromarray(pixels)
    grey16 = Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257)
    turned = plain.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise when shown
    made = {
        "rgb.jpg": plain,
        "grey.png": plain.convert("L"),
        "grey16.png": grey16,
        "bilevel.png": plain.convert("1"),
        "palette.gif": plain.convert("P"),
        "alpha.png": plain.convert("RGBA"),
        "cmyk.jpg": plain.convert("CMYK"),
        "thin.png": plain.resize((400, 7)),
        "pixel.png": plain.resize((1, 1)),
    }
    for name, image in made.items():
        image.save(folder / name)
    turned.save(folder / "turned.jpg", exif=exif)
    return {path.stem: path for path in sorted(folder.iterdir())}


def _tokenizer(folder: Path):
    folder.parent.mkdir(parents=True, exist_ok=True)
    return train_bpe(["a red circle left of a blue square", "two dogs"], 280, folder.parent / "tokenizer")


@torch.no_grad()
def _drawn(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    initialise(model, "fan_in", seed)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.fill_(0.5)
    return model.state_dict()
