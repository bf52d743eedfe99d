"""Every reader of files from outside: what it reads, and one use of it, from opening to the last sample."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutate import VALUES, Rng, damage, some_bytes
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

sys.path += [str(Path(__file__).resolve().parents[2] / place) for place in ("tools", "tests", "tests/data/convert")]
import raw

import convert_checkpoint
import fiber
import inspect_shards
import make_shards
import tiny_exports
from fiber.backbone.build import build_backbone
from fiber.cli.inspect import verify
from fiber.config.loading import load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import Stage2Config
from fiber.data.collate import collate
from fiber.data.convert.writer import write_dataset
from fiber.data.loader import eval_loader, make_loader
from fiber.data.order import MixedStream, Source
from fiber.data.prompts import PromptBuilder
from fiber.data.shapes.world import WORLDS, answers, categories, generate
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.errors import KnownError, SampleFault
from fiber.evaluation.example_regions import write_example_regions
from fiber.evaluation.figures import draw_predictions
from fiber.evaluation.region_images import EvalImage
from fiber.evaluation.regions import evaluate_regions
from fiber.fine.postprocess import Detections
from fiber.images.codec import check_decodes, decode
from fiber.predict.sources import ImageError, open_image
from fiber.tasks.pretrain import PretrainSample
from fiber.tasks.region_samples import RegionSample, check_set, collate_regions
from fiber.weights.export import read_export
from fiber.weights.official_file import write_official
from fiber.weights.pretrained import load_pretrained_towers

ROOT = Path(__file__).resolve().parents[2]
OK, COUNTED, LINE, LOST = "ok", "counted", "one line", "silent loss"
SAMPLES = 12


class Inputs:
    """Whole inputs of every reader, made once; a case copies and damages them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.raw = {name: raw.build(name, folder / "raw" / name) for name in raw.BUILDERS}
        self._pairs(folder / "raw" / "pairs")
        scenes = list(generate(WORLDS["easy"], "train", SAMPLES, seed=0))
        about = {"split": "train", "provenance": "drawn", "licence": "none", "max_samples": 5}
        listed = {"answers": answers(WORLDS["easy"]), "categories": categories(WORLDS["easy"])}
        write_dataset(scenes, folder / "set", name="scenes", **listed, **about)
        self.export = tiny_exports.coarse_export(folder / "export", vqa=4)
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(self.export)
        self.images = tiny_exports.images(folder / "images")
        self.detector = tiny_exports.fine_export(folder / "detector")
        for name, export in (("official.ckpt", self.export), ("official.pth", self.detector)):
            write_official(folder / name, read_export(export))
        state = torch.load(folder / "official.ckpt")["state_dict"]
        swin = {name.removeprefix("vit_model."): t for name, t in state.items() if name.startswith("vit_model.")}
        torch.save({"model": swin}, folder / "swin.pth")

    def _pairs(self, folder: Path) -> None:
        for number in range(4):
            raw.put(folder / f"{number}.jpg", raw.write_image(number))
        rows = [{"image": f"{number}.jpg", "caption": f"image {number}"} for number in range(4)]
        raw.put(folder / "pairs.json", rows)
        raw.put(folder / "pairs.csv", "image,caption\n" + "".join(f"{r['image']},{r['caption']}\n" for r in rows))
        raw.put(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _files(folder: Path, images: bool = False) -> list[Path]:
    pixels = (".jpg", ".png", ".gif", ".bmp")
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and (images or p.suffix.lower() not in pixels)]


def _copy(rng: Rng, source: Path, case: Path, images: float = 0.1) -> Path:
    """The input in the case's folder, one or two files of it damaged."""
    target = Path(shutil.copytree(source, case / source.name))
    files = _files(target, images=rng.random() < images) or _files(target, images=True)
    for path in {files[int(i)] for i in rng.integers(0, len(files), rng.integers(1, 3))}:
        damage(rng, path)
    return target


def _tool(main: Callable[[list[str]], int], arguments: list[str], bad: str = "") -> tuple[str, str]:
    """(outcome, what was said) of a command: status 0, or 1 with one line that begins with "error: "."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(arguments)
    if status == 0:
        return OK, out.getvalue()
    lines = [line for line in error.getvalue().splitlines() if line.startswith("error: ")]
    if len(lines) == 1 or (bad and bad in out.getvalue()):
        return LINE, lines[0] if lines else "verified"
    raise AssertionError(f"status {status} with {len(lines)} lines of error: {error.getvalue()[-500:]}")


def annotations(rng: Rng, inputs: Inputs, case: Path) -> str:
    """A raw folder of any data set -> make_shards."""
    names = [*inputs.raw, "pairs"]
    name = names[int(rng.integers(len(names)))]
    folder = _copy(rng, inputs.folder / "raw" / name, case)
    if name == "pairs":
        which = str(rng.choice(["pairs.json", "pairs.csv", "pairs.jsonl"]))
        arguments = ["pairs", "--raw", str(folder), "--annotations", which, "--out", str(case / "out")]
    else:
        made = inputs.raw[name]
        arguments = [str(folder) if a == str(made.folder) else a for a in made.command(case / "out")]
    outcome, said = _tool(make_shards.main, arguments)
    if outcome != OK:
        return outcome
    summary = json.loads(said.splitlines()[-1])
    lines = (case / "out" / "drops.jsonl").read_text().splitlines()
    lost = sum(not json.loads(line)["kept"] for line in lines)
    if summary["samples"] + lost < summary["items"]:
        return LOST
    shards = ShardSet(case / "out")
    if len(shards) != summary["samples"] or verify(shards):
        return LOST
    return COUNTED if lines else OK


def _set(rng: Rng, inputs: Inputs, case: Path) -> Path:
    folder = _copy(rng, inputs.folder / "set", case)
    if rng.random() < 0.5:
        (folder / "index.json").unlink(missing_ok=True) if not (folder / "index.json").is_dir() else None
    return folder


def _stream(shards: ShardSet, field: str, make: Any, gather: Any, per: str) -> str:
    """Three epochs' worth of batches, faults tolerated."""
    stream = MixedStream([Source(shards, field, per=per)], seed=1, global_batch=2, window_shards=2)
    loader = make_loader(stream, make, gather, micro_batch=2, max_fault_share=1.0)
    batches = [next(loader) for _ in range(2 * SAMPLES)]
    return COUNTED if any(batch["faults"] for batch in batches) else OK


def stage1(rng: Rng, inputs: Inputs, case: Path) -> str:
    """Shards -> the stream of stage 1."""
    shards = ShardSet(_set(rng, inputs, case))
    return _stream(shards, "captions", PretrainSample(inputs.tokenizer, 32, 12), collate, "annotation")


def stage2(rng: Rng, inputs: Inputs, case: Path) -> str:
    """Shards -> the stream of stage 2: captions with phrases, or labels."""
    shards = ShardSet(_set(rng, inputs, case))
    field = str(rng.choice(["captions", "boxes"]))
    builder = PromptBuilder(inputs.tokenizer, 48)
    check_set(shards, field, None)
    return _stream(shards, field, RegionSample(builder, short_sides=[32], max_side=48), collate_regions, "annotation")


def evaluation(rng: Rng, inputs: Inputs, case: Path) -> str:
    """Shards -> the evaluation loader: every annotation comes, or is a fault."""
    shards = ShardSet(_set(rng, inputs, case))
    sample = PretrainSample(inputs.tokenizer, 32, 12)
    seen = faults = 0
    for batch in eval_loader(shards, "captions", sample, collate, batch=4, max_fault_share=1.0):
        seen, faults = (
            seen + len(batch["keys"]),
            faults + sum(fault.reason != "damaged_shard" for fault in batch["faults"]),
        )
    if seen + faults != shards.count("captions"):
        return LOST
    return COUNTED if faults else OK


class Guess(nn.Module):
    """Finds the left half of every image, whatever it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # where it lies

    def encode_prompts(self, prompts: list) -> None:
        """Needs no preparation."""

    def detect(self, images: Tensor, sizes: Tensor, prompts: list, *_: Any, **__: Any) -> list[Detections]:
        """As `FiberDetector.detect`."""
        found = []
        for (height, width), own in zip(sizes.tolist(), prompts, strict=True):
            labels = torch.tensor([label for prompt in own for label in prompt.classes], dtype=torch.int64)
            box = torch.tensor([0.0, 0.0, width / 2, height]).expand(len(labels), 4)
            found.append(Detections(box, torch.full((len(labels),), 0.5), labels))
        return found


def regions(rng: Rng, inputs: Inputs, case: Path) -> str:
    """Shards -> an evaluation at region level: figures, drawn examples and their data."""
    shards = ShardSet(_set(rng, inputs, case))
    field = str(rng.choice(["captions", "expressions", "boxes"]))
    asked = PromptBuilder(inputs.tokenizer, 48), shards, field, EvalImage(32, 48)
    evaluate_regions(Guess(), *asked, folder=case / "out", batch=4)
    draw_predictions(Guess(), *asked, count=SAMPLES)
    rows = case / "out" / f"{shards.name}_{field}.jsonl"
    write_example_regions(shards, field, rows, case / "out" / "example", count=SAMPLES)
    return OK


def inspect(rng: Rng, inputs: Inputs, case: Path) -> str:
    """Shards -> inspect_shards with everything."""
    folder = _set(rng, inputs, case)
    sheet = ["--contact-sheet", str(case / "sheet.png"), "--samples", "6"]
    return _tool(inspect_shards.main, [str(folder), "--verify", *sheet], bad="verified: faults")[0]


def configuration(rng: Rng, inputs: Inputs, case: Path) -> str:
    """A YAML file and overrides -> a configuration."""
    stage = int(rng.integers(1, 3))
    configs = sorted((ROOT / "configs" / f"stage{stage}").glob("*.yaml"))
    path = case / "config.yaml"
    shutil.copy(configs[int(rng.integers(len(configs)))], path)
    overrides = []
    if rng.random() < 0.7:
        damage(rng, path)
    else:
        key = str(
            rng.choice(["optim.lr", "train.steps", "data.train", "data.train.0.path", "eval.every", "x.y", "model"])
        )
        value = VALUES[int(rng.integers(len(VALUES)))]
        text = (
            json.dumps(value) if rng.random() < 0.5 else some_bytes(rng, b"[{path: a}, 1e-5, !!x]").decode("latin-1")
        )
        overrides = [f"{key}={text}"]
    load_config(Stage1Config if stage == 1 else Stage2Config, path, overrides)
    return OK


def exports(rng: Rng, inputs: Inputs, case: Path) -> str:
    """An export -> a predictor and an answer, which is finite."""
    folder = _copy(rng, inputs.export, case)
    predictor = fiber.load(str(folder), "cpu")
    found = (
        predictor.match([next(iter(inputs.images.values()))], "a red circle") if hasattr(predictor, "match") else []
    )
    if not all(np.isfinite(one.probability) for one in found):
        raise AssertionError("an answer that is no number")
    return OK


def tokenizer(rng: Rng, inputs: Inputs, case: Path) -> str:
    """The tokenizer's files alone."""
    folder = Path(shutil.copytree(inputs.export, case / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors")))
    files = [path for path in _files(folder) if "token" in path.name or path.name in ("vocab.json", "merges.txt")]
    damage(rng, files[int(rng.integers(len(files)))])
    load_tokenizer(folder)
    return OK


def official(rng: Rng, inputs: Inputs, case: Path) -> str:
    """A file of the release's form, of either stage -> an export."""
    name = str(rng.choice(["official.ckpt", "official.pth"]))
    path = Path(shutil.copy(inputs.folder / name, case / name))
    damage(rng, path)
    return _tool(convert_checkpoint.main, [str(path), str(case / "out"), "--tokenizer", str(inputs.export)])[0]


def back(rng: Rng, inputs: Inputs, case: Path) -> str:
    """An export of either stage -> a file of the release's form."""
    source, name = (inputs.export, "a.ckpt") if rng.random() < 0.5 else (inputs.detector, "a.pth")
    return _tool(convert_checkpoint.main, [str(_copy(rng, source, case)), str(case / name)])[0]


def towers(rng: Rng, inputs: Inputs, case: Path) -> str:
    """A file of Swin weights -> the image tower of a new model."""
    path = Path(shutil.copy(inputs.folder / "swin.pth", case / "swin.pth"))
    damage(rng, path)
    vocabulary = len(inputs.tokenizer)
    load_pretrained_towers(build_backbone(tiny_exports.MODEL, vocabulary, 1, 12), inputs.tokenizer, image=str(path))
    return OK


def images(rng: Rng, inputs: Inputs, case: Path) -> str:
    """An image of any kind -> the three decoders, which agree on whether it can be used."""
    names = sorted(inputs.images)
    source = inputs.images[names[int(rng.integers(len(names)))]]
    path = Path(shutil.copy(source, case / source.name))
    damage(rng, path)
    opened = open_image(path)
    if opened.image.mode != "RGB" or opened.width < 1:
        raise AssertionError(f"mode {opened.image.mode}")
    data = path.read_bytes()
    check_decodes(data)
    decode(data)
    return OK


READERS: dict[str, Callable[[Rng, Inputs, Path], str]] = {
    reader.__name__: reader
    for reader in (
        annotations,
        stage1,
        stage2,
        evaluation,
        regions,
        inspect,
        configuration,
        exports,
        tokenizer,
        images,
        official,
        back,
        towers,
    )
}
KNOWN = (KnownError, SampleFault, ImageError)
"""What a reader may raise: one line each, by the rules of the commands."""
