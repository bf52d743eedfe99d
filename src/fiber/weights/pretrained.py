"""Starting points for the towers: Swin weights in timm's or the original form, RoBERTa weights from Hugging Face."""

import re
from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.data.text import load_tokenizer
from fiber.errors import WeightsError
from fiber.weights.load import LoadReport, load_weights
from fiber.weights.official import backbone_names, to_ours
from fiber.weights.tensors import load_safely, read_tensors, reason

OTHER_THAN_IMAGE = ("text.*", "fusion.*", "image.stage_norms.*")
OTHER_THAN_TEXT = ("image.*", "fusion.*")
BLOCK = re.compile(r"layers\.(\d{1,4})\.blocks\.(\d{1,4})\.")
MERGE = re.compile(r"layers\.(\d{1,4})\.downsample\.")


def load_pretrained_towers(
    backbone: FusionBackbone,
    tokenizer: PreTrainedTokenizerBase,
    *,
    image: str | None = None,
    text: str | None = None,
) -> dict[str, LoadReport]:
    """Put pre-trained weights into the towers of `backbone` -> a report for each tower that was asked for.

    image: a timm model name (`swin_base_patch4_window12_384.ms_in22k`), or a file or folder with Swin weights in
    timm's form or the original one. text: a Hugging Face name (`roberta-base`) or a folder. tokenizer: the run's;
    where its vocabulary differs from that of `text`, rows follow their tokens.

    Raises WeightsError where sizes do not fit (windows and text lengths are resized) or nothing can be read.
    """
    reports = {}
    if image is not None:
        tensors = swin_tensors(image, backbone.image)
        reports["image"] = load_weights(backbone, tensors, allow_new=OTHER_THAN_IMAGE)
    if text is not None:
        tensors, vocabulary = roberta_tensors(text, backbone, tokenizer)
        reports["text"] = load_weights(backbone, tensors, allow_new=OTHER_THAN_TEXT, vocabulary=vocabulary)
    return reports


def swin_tensors(source: str, tower: SwinTower) -> dict[str, Tensor]:
    """Weights of a Swin under the names of a FusionBackbone; `tower` says which sizes are expected."""
    state = _swin_state(source)
    # timm keeps a merge at the start of the stage it leads to, the original at the end of the stage it closes.
    if not any(name.startswith("layers.0.downsample.") for name in state):
        state = {_merge_to_end(name): tensor for name, tensor in state.items()}
    depths: dict[int, int] = {}
    for block in filter(None, map(BLOCK.match, state)):
        stage, number = map(int, block.groups())
        depths[stage] = max(depths.get(stage, 0), number + 1)
    read = tuple(depths[stage] for stage in sorted(depths))
    if read != tower.depths:
        raise WeightsError(f"{source} has the depths {read}, model.image.depths is {tower.depths}")
    ours, _ = to_ours(state, _tower_names(tower.depths, 1, "image."))
    return ours


def roberta_tensors(
    source: str, backbone: FusionBackbone, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Tensor], tuple[dict[str, int], dict[str, int]] | None]:
    """Weights of a RoBERTa under the names of a FusionBackbone, and both vocabularies where they differ."""
    from transformers import RobertaModel

    try:
        model = RobertaModel.from_pretrained(source, add_pooling_layer=False)
        theirs = load_tokenizer(source).get_vocab()
    except Exception as error:  # no such model, no network, a damaged file: each its own class
        raise WeightsError(f"no RoBERTa weights at {source}: {reason(error)}") from None
    _check_roberta(source, model.config, backbone)
    names = _tower_names(backbone.image.depths, len(backbone.text.layers), "text.")
    ours, _ = to_ours(model.state_dict(), names)
    vocabulary = tokenizer.get_vocab()
    return ours, None if theirs == vocabulary else (theirs, vocabulary)


def _swin_state(source: str) -> dict[str, Tensor]:
    """State dict of a timm model by name, or of a file."""
    path = Path(source)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise WeightsError(f"{source} has no model.safetensors")
    if path.is_file():
        content = read_tensors(path) if path.suffix == ".safetensors" else load_safely(path)
        inner = content.get("model", content) if isinstance(content, dict) else None
        if not isinstance(inner, dict):
            raise WeightsError(f"{path} holds no state dict")
        return {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
    import timm

    try:
        return timm.create_model(source, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # unknown name, no network, no weights under that tag: each its own class
        raise WeightsError(f"no file {source}, and timm cannot load it: {reason(error)}") from None


def _merge_to_end(name: str) -> str:
    return MERGE.sub(lambda merge: f"layers.{int(merge[1]) - 1}.downsample.", name)


def _tower_names(depths: tuple[int, ...], layers: int, tower: str) -> dict[str, str]:
    """Our names -> names of the stand-alone tower ("image." or "text.") that the release's files are built of."""
    prefixes = ("", "-") if tower == "image." else ("-", "")
    names = backbone_names(depths, layers, 1, *prefixes)
    return {ours: theirs for ours, theirs in names.items() if ours.startswith(tower)}


def _check_roberta(source: str, config: PretrainedConfig, backbone: FusionBackbone) -> None:
    """What shapes do not show must agree too."""
    tower = backbone.text
    facts = {
        "model.text.layers": (config.num_hidden_layers, len(tower.layers)),
        "model.text.heads": (config.num_attention_heads, tower.heads),
        "LayerNorm eps": (config.layer_norm_eps, tower.embeddings.norm.eps),
        "padding id": (config.pad_token_id, tower.embeddings.pad_id),
        "activation": (config.hidden_act, "gelu"),
    }
    for name, (theirs, expected) in facts.items():
        if theirs != expected:
            raise WeightsError(f"{source} has {name} {theirs}, this model {expected}")
