"""Names of the released FIBER weights against ours.

The maps are built from the shape of a model, one entry per tensor of ours, so every tensor has exactly one name
on either side. Only `temp` differs in shape: () in the release, (1,) here.
"""

import re

from torch import Tensor

# Ours -> official, within one Swin block, one text layer, one fused pair.
BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "attn.relative_position_bias": "attn.relative_position_bias_table",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
IMAGE_TO_TEXT = {
    "norm": "attn.norm_i2t_i",
    "query": "attn.qkv_i2t",
    "key_value": "attn.qkv_text_i2t",
    "output": "attn.proj_i2t",
    "gate": "attn.alpha_i2t",
}
TEXT_TO_IMAGE = {
    "query": "crossattention_t2i.self.query",
    "key": "crossattention_t2i.self.key",
    "value": "crossattention_t2i.self.value",
    "output": "crossattention_t2i.output.dense",
    "gate": "alpha_t2i",
}
COARSE_HEADS = {
    "heads.cross_modal.text_transform": "cross_modal_text_transform",
    "heads.cross_modal.image_transform": "cross_modal_image_transform",
    "heads.cross_modal.text_pooler": "cross_modal_text_pooler.dense",
    "heads.cross_modal.image_pooler": "cross_modal_image_pooler.dense",
    "heads.contrastive.text_transform": "cross_modal_text_transform_itc",
    "heads.contrastive.image_transform": "cross_modal_image_transform_itc",
    "heads.contrastive.text_pooler": "cross_modal_text_pooler_itc.dense",
    "heads.contrastive.image_pooler": "cross_modal_image_pooler_itc.dense",
    "heads.temperature.value": "temp",
    "heads.mlm.dense": "mlm_score.transform.dense",
    "heads.mlm.norm": "mlm_score.transform.LayerNorm",
    "heads.mlm.decoder.weight": "mlm_score.decoder.weight",
    "heads.mlm.decoder.bias": "mlm_score.bias",
    "heads.itm": "itm_score.fc",
    "heads.classifiers.vqa": "vqa_classifier",
    "heads.classifiers.nlvr2": "nlvr2_classifier",
}


def backbone_names(
    depths: tuple[int, ...], layers: int, num_fused: int, image_prefix: str, text_prefix: str
) -> dict[str, str]:
    """Module names of a FusionBackbone (without `backbone.`) -> official names, for given depths, text layers and
    fused pairs; the prefixes are those of the Swin and RoBERTa parts, e.g. "vit_model." and "text_transformer."."""
    names = {
        "image.patch_embed.proj": f"{image_prefix}patch_embed.proj",
        "image.patch_embed.norm": f"{image_prefix}patch_embed.norm",
        "image.norm": f"{image_prefix}norm",
        "text.embeddings.word": f"{text_prefix}embeddings.word_embeddings",
        "text.embeddings.position": f"{text_prefix}embeddings.position_embeddings",
        "text.embeddings.token_type": f"{text_prefix}embeddings.token_type_embeddings",
        "text.embeddings.norm": f"{text_prefix}embeddings.LayerNorm",
    }
    blocks = [(s, i) for s, depth in enumerate(depths) for i in range(depth)]
    for s in range(len(depths) - 1):
        names[f"image.stages.{s}.merge.norm"] = f"{image_prefix}layers.{s}.downsample.norm"
        names[f"image.stages.{s}.merge.reduction"] = f"{image_prefix}layers.{s}.downsample.reduction"
        names[f"image.stage_norms.{s}"] = f"{image_prefix}norm{s + 1}"
    for s, i in blocks:
        for ours, theirs in BLOCK.items():
            names[f"image.stages.{s}.blocks.{i}.{ours}"] = f"{image_prefix}layers.{s}.blocks.{i}.{theirs}"
    for j in range(layers):
        for ours, theirs in LAYER.items():
            names[f"text.layers.{j}.{ours}"] = f"{text_prefix}encoder.layer.{j}.{theirs}"
    for k, (s, i) in enumerate(blocks[-num_fused:]):
        for ours, theirs in IMAGE_TO_TEXT.items():
            names[f"fusion.image_to_text.{k}.{ours}"] = f"{image_prefix}layers.{s}.blocks.{i}.{theirs}"
        j = layers - num_fused + k
        for ours, theirs in TEXT_TO_IMAGE.items():
            names[f"fusion.text_to_image.{k}.{ours}"] = f"{text_prefix}encoder.layer.{j}.{theirs}"
        names[f"fusion.caption_maps.{k}"] = f"cross_modal_att_layers.{j}"
    return names


def coarse_names(depths: tuple[int, ...], layers: int, num_fused: int) -> dict[str, str]:
    """Module names of a CoarseModel -> names in the release's stage-1 checkpoints."""
    backbone = backbone_names(depths, layers, num_fused, "vit_model.", "text_transformer.")
    return {f"backbone.{ours}": theirs for ours, theirs in backbone.items()} | COARSE_HEADS


def official_name(tensor: str, names: dict[str, str]) -> str:
    """Official name of our tensor `tensor`, whose longest module prefix in `names` decides."""
    if tensor in names:
        return names[tensor]
    module = tensor
    while "." in module:
        module = module.rsplit(".", 1)[0]
        if module in names:
            return names[module] + tensor[len(module) :]
    raise KeyError(f"{tensor} has no official name")


def from_official(state: dict[str, Tensor], wanted: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Official tensors under our names, for every tensor of `wanted` (a state dict of ours) that the file has;
    `temp` becomes (1,)."""
    ours = {}
    for tensor, like in wanted.items():
        theirs = state.get(official_name(tensor, names))
        if theirs is not None:
            ours[tensor] = theirs.reshape(like.shape) if theirs.numel() == like.numel() == 1 else theirs
    return ours


def to_official(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Our tensors under their official names; inverse of `from_official`."""
    renamed = {official_name(tensor, names): value for tensor, value in state.items()}
    if "temp" in renamed:
        renamed["temp"] = renamed["temp"].reshape(())
    return renamed


def to_ours(state: dict[str, Tensor], names: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Official tensors under our names, and the rest under its official names; `temp` becomes (1,)."""
    modules = {theirs: ours for ours, theirs in names.items()}
    ours, rest = {}, {}
    for name, tensor in state.items():
        module = name
        while module not in modules and "." in module:
            module = module.rsplit(".", 1)[0]
        if module in modules:
            ours[modules[module] + name[len(module) :]] = tensor.reshape(1) if name == "temp" else tensor
        else:
            rest[name] = tensor
    return ours, rest


def is_queue(name: str) -> bool:
    """Official buffers that are training state: past features, pixels and texts (gigabytes), never weights."""
    return bool(re.fullmatch(r"(image|text)(_input(_mask)?)?_queue|queue_(ptr|total)", name))


def is_derived(name: str) -> bool:
    """Official entries that are functions of the configuration or training state, never weights."""
    return is_queue(name) or bool(
        re.search(r"(relative_position_index|attn_mask|position_ids|cell_anchors.*)$", name)
    )
