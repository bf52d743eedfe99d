"""From a configuration to a model and its task at image level."""

from transformers import PreTrainedTokenizerBase

from fiber.backbone.build import build_backbone
from fiber.backbone.initialise import initialise
from fiber.coarse.model import CoarseModel
from fiber.coarse.pretrain import PretrainTask
from fiber.config_stage1 import Stage1Config


def build_model(config: Stage1Config, tokenizer: PreTrainedTokenizerBase) -> CoarseModel:
    """The image-level model of a run, with initial weights drawn from the run's seed (the same on all ranks)."""
    model = CoarseModel(
        build_backbone(config.model, len(tokenizer), tokenizer.pad_token_id, config.max_text),
        head_width=config.model.head_width,
        vocab_size=len(tokenizer),
    )
    initialise(model, config.model.init, config.seed)
    return model


def build_task(config: Stage1Config, tokenizer: PreTrainedTokenizerBase) -> PretrainTask:
    """What a training step of the run computes."""
    return PretrainTask(build_model(config, tokenizer), config.pretrain)
