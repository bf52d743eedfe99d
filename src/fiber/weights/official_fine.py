"""Names of the released stage-2 weights against those of a FiberDetector, and the one change of content between
them: the release reads BGR images, ours RGB, so the patch embedding's input channels are reversed."""

from torch import Tensor

from fiber.weights.official import backbone_names, from_official, to_official

PATCH_EMBEDDING = "backbone.image.patch_embed.proj.weight"
IMAGE_PREFIX = "fusion_backbone.backbone.body."
TEXT_PREFIX = "fusion_backbone.language_backbone.body.model."

# Ours -> official, within one dynamic block.
HEAD_BLOCK = {
    "coarser.weight": "DyConv.0.conv.weight",
    "coarser.bias": "DyConv.0.conv.bias",
    "coarser.norm": "DyConv.0.bn",
    "same.weight": "DyConv.1.conv.weight",
    "same.bias": "DyConv.1.conv.bias",
    "same.norm": "DyConv.1.bn",
    "finer.weight": "DyConv.2.conv.weight",
    "finer.bias": "DyConv.2.conv.bias",
    "finer.norm": "DyConv.2.bn",
    "offset": "offset",
    "attention": "AttnConv.1",
    "relu.squeeze": "relu.fc.0",
    "relu.expand": "relu.fc.2",
}
HEAD = {
    "head.box": "rpn.head.bbox_pred",
    "head.centerness": "rpn.head.centerness",
    "head.project_text": "rpn.head.dot_product_projection_text",
    "head.log_scale": "rpn.head.log_scale",
    "head.token_bias": "rpn.head.bias_lang",
    "head.bias": "rpn.head.bias0",
    "prompt": "fusion_backbone.tunable_linear.weight",
}


def fine_names(
    depths: tuple[int, ...], layers: int, num_fused: int, head_blocks: int = 6, levels: int = 5
) -> dict[str, str]:
    """Module and tensor names of a FiberDetector -> names in the release's stage-2 checkpoints. `rpn.head.cls_logits`
    has no counterpart: its loss has weight 0."""
    backbone = backbone_names(depths, layers, num_fused, IMAGE_PREFIX, TEXT_PREFIX)
    names = {f"backbone.{ours}": theirs for ours, theirs in backbone.items()} | HEAD
    stages = len(depths) - 1
    for i in range(stages):
        names[f"fpn.laterals.{i}"] = f"fusion_backbone.backbone.fpn.fpn_inner{i + 2}"
        names[f"fpn.outputs.{i}"] = f"fusion_backbone.backbone.fpn.fpn_layer{i + 2}"
    for i in range(levels - stages):
        names[f"fpn.extra.{i}"] = f"fusion_backbone.backbone.fpn.top_blocks.p{i + 3 + stages}"
    for i in range(levels):
        names[f"head.box_scales.{i}"] = f"rpn.head.scales.{i}.scale"
    for i in range(head_blocks):
        for ours, theirs in HEAD_BLOCK.items():
            names[f"head.blocks.{i}.{ours}"] = f"rpn.head.dyhead_tower.{i}.{theirs}"
    return names


def from_official_fine(
    state: dict[str, Tensor], wanted: dict[str, Tensor], names: dict[str, str]
) -> dict[str, Tensor]:
    """Official stage-2 tensors under our names, see `official.from_official`; differentiable."""
    return _reverse_channels(from_official(state, wanted, names))


def to_official_fine(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Our tensors under their official names; inverse of `from_official_fine`."""
    return to_official(_reverse_channels(state), names)


def _reverse_channels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BGR <-> RGB in the patch embedding, whose weight is (E,3,4,4)."""
    reversed_weight = {PATCH_EMBEDDING: state[PATCH_EMBEDDING].flip(1)} if PATCH_EMBEDDING in state else {}
    return state | reversed_weight
