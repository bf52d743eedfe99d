"""From a configuration to a model, its task, its training samples and its export at image level."""

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fiber.backbone.build import build_backbone
from fiber.backbone.init import initialise
from fiber.backbone.lora import add_lora, merge_lora
from fiber.coarse.decoding import SpecialTokens
from fiber.coarse.model import CoarseModel
from fiber.config.base import TuningConfig
from fiber.config.stage1 import Stage1Config
from fiber.data.loader import MakeSample
from fiber.data.records import LABELS
from fiber.data.samples.captions import RewardSample
from fiber.data.samples.pretrain import PretrainSample
from fiber.data.samples.text import ImageTransform, LabelledSample, TextSample, VqaSample
from fiber.data.shards import ShardSet
from fiber.data.text import load_tokenizer
from fiber.errors import ConfigError, WeightsError
from fiber.tasks.caption import CaptionTask, Reward
from fiber.tasks.image_text import ClassifyTask, RetrievalItcTask, RetrievalItmTask, VqaTask
from fiber.tasks.pretrain import PretrainTask
from fiber.weights.export import ANSWERS, Card, coarse_config, export_folder, read_config, read_export, write_export
from fiber.weights.load import LoadReport, load_weights


def open_tokenizer(config: Stage1Config) -> PreTrainedTokenizerFast:
    """The run's tokenizer. Raises ConfigError where there is none, or `init_from` is no export or has another."""
    try:
        tokenizer = load_tokenizer(config.tokenizer)
    except ValueError as error:
        raise ConfigError(f"tokenizer: {error}") from None
    if config.init_from is not None:
        try:
            trained = read_config(export_folder(config.init_from)).vocab_size
        except WeightsError as error:
            raise ConfigError(f"init_from: {error}") from None
        if trained != len(tokenizer):
            raise ConfigError(
                f"tokenizer: {config.tokenizer} has {len(tokenizer)} ids, the model of init_from {trained}; "
                f"use tokenizer={config.init_from}"
            )
    return tokenizer


def build_model(
    config: Stage1Config, tokenizer: PreTrainedTokenizerBase, classifiers: Mapping[str, int] | None = None
) -> CoarseModel:
    """The image-level model of a run, with initial weights drawn from the run's seed (the same on all ranks).
    `classifiers`: answer heads and their numbers of classes."""
    model = CoarseModel(
        build_backbone(config.model, len(tokenizer), tokenizer.pad_token_id, config.max_text),
        head_width=config.model.head_width,
        vocab_size=len(tokenizer),
        classifiers=dict(classifiers or {}),
    )
    initialise(model, config.model.init, config.seed)
    return model


def build_task(config: Stage1Config, tokenizer: PreTrainedTokenizerBase, reward: Reward | None = None) -> nn.Module:
    """What a training step of the run computes; what the run does not train is frozen. `reward`: of captions, where
    their training asks for it. Raises ConfigError."""
    answers = answer_vocabulary(config) if config.task == "vqa" else []
    classes = {"vqa": len(answers), "nlvr2": 2, "entailment": len(LABELS)}
    model = build_model(config, tokenizer, {name: n for name, n in classes.items() if name == config.task})
    tune(model, config.tuning, config.seed)
    recipe, smoothing = config.finetune, config.finetune.label_smoothing
    gather_gradient = config.pretrain.gather_gradient
    match config.task:
        case "pretrain":
            return PretrainTask(model, config.pretrain)
        case "vqa":
            return VqaTask(model, answers, smoothing)
        case "nlvr2" | "entailment":
            return ClassifyTask(model, config.task, smoothing)
        case "retrieval_itc":
            return RetrievalItcTask(model, config.pretrain.queue_size, gather_gradient)
        case "retrieval_itm":
            return RetrievalItmTask(
                model,
                hard=recipe.negatives == "hard",
                itc_weight=recipe.itc_weight,
                gather_gradient=gather_gradient,
                label_smoothing=smoothing,
            )
        case "caption":
            special_tokens = SpecialTokens.of(tokenizer), tokenizer.pad_token_id
            return CaptionTask(model, config.caption, *special_tokens, reward, smoothing)


def tune(model: CoarseModel, tuning: TuningConfig, seed: int) -> None:
    """Freeze what `tuning` does not train, and add what it trains instead."""
    if tuning.mode == "frozen_towers":
        model.backbone.image.requires_grad_(False)
        model.backbone.text.requires_grad_(False)
    elif tuning.mode == "lora":
        add_lora(model, tuning.lora_rank, tuning.lora_alpha, seed)


def build_sample(config: Stage1Config, tokenizer: PreTrainedTokenizerFast) -> MakeSample:
    """How the run makes training samples."""
    pil_resize = config.data.transform == "pil"
    if config.task == "pretrain":
        masked = config.pretrain.mask_probability
        return PretrainSample(tokenizer, config.image_size, config.max_text, masked, pil_resize)
    transform = ImageTransform(config.image_size, pil_resize, config.finetune.augment, config.finetune.flip_sides)
    match config.task:
        case "vqa":
            answers = {answer: number for number, answer in enumerate(answer_vocabulary(config))}
            return VqaSample(tokenizer, transform, config.max_text, answers=answers)
        case "nlvr2":
            return LabelledSample(tokenizer, transform, config.max_text, images=2)
        case "entailment":
            return LabelledSample(tokenizer, transform, config.max_text)
        case "caption" if config.caption.objective == "cider":
            drawn = config.caption.samples, config.caption.max_new_tokens
            return RewardSample(tokenizer, transform, config.max_text, *drawn)
        case _:
            return TextSample(tokenizer, transform, config.max_text)


def answer_vocabulary(config: Stage1Config) -> list[str]:
    """The answers that a question head knows: those that the run has exported; else those of the first training set
    that lists any (sets mixed with it count as far as their answers are among these); else, without training data,
    those of `init_from`. Raises ConfigError where none is found."""
    exported = Path(config.output) / "export" / ANSWERS
    if exported.is_file():
        return json.loads(exported.read_text())
    for source in config.data.train:
        if answers := ShardSet(source.path).answers:
            return answers
    if not config.data.train and config.init_from is not None and (answers := read_export(config.init_from).answers):
        return answers
    raise ConfigError(
        "data.train: none of the sets has an answer vocabulary in its dataset.json; make the shards with "
        "tools/make_shards.py vqav2 (or another set of questions with --answers)"
    )


def start_from(task: nn.Module, path: str | Path) -> LoadReport:
    """Put the weights of a run or export into the model of `task`, in place. Answer heads may stay new (and do where
    the file's stands for other answers), and so may parts that the task does not reach. Raises WeightsError."""
    export = read_export(path)
    tensors = export.tensors
    if export.answers != getattr(task, "answers", export.answers):
        tensors = {name: x for name, x in tensors.items() if not name.startswith("heads.classifiers.vqa.")}
    new = ("heads.classifiers.*", "*.lora_down", "*.lora_up", *task.unused_parameters)
    return load_weights(task.model, tensors, allow_new=new)


def export_model(
    config: Stage1Config,
    tokenizer: PreTrainedTokenizerFast,
    task: nn.Module,
    weights: Mapping[str, Tensor],
    figures: Mapping[str, float],
) -> None:
    """The export folder of a finished run: a plain model, without the heads that its task has left behind.
    weights: of the task, by name."""
    tensors = {name.removeprefix("model."): x for name, x in weights.items() if name.startswith("model.")}
    tensors = merge_lora(tensors, config.tuning.lora_alpha, config.tuning.lora_rank)
    stale = [
        pattern for pattern in task.unused_parameters if re.fullmatch(r"heads\.\w+\.\*", pattern)
    ]  # heads as a whole
    tensors = {n: x for n, x in tensors.items() if not any(fnmatchcase(n, pattern) for pattern in stale)}
    classes = {name: head[-1].out_features for name, head in task.model.heads.classifiers.items()}
    write_export(
        Path(config.output) / "export",
        tensors,
        coarse_config(config, tokenizer, classes),
        tokenizer,
        card=Card([Path(source.path).name for source in config.data.train], config.train.steps, figures),
        answers=getattr(task, "answers", ()),
    )
