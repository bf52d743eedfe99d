"""Parity of the fine stage with tensors recorded from the reference (a `fine_*` fixture)."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.text import RobertaTower
from fiber.fine import atss, losses
from fiber.fine.boxes import decode, encode, make_anchors
from fiber.fine.dyhead import HeadOutput
from fiber.fine.losses import LossWeights, Targets, assign_batch, centerness, detection_losses, token_targets, totals
from fiber.fine.model import FiberDetector, FineFeatures
from fiber.fine.postprocess import BoxSelection, Detections, candidates, choose, class_weights
from fiber.weights.official import is_derived, official_name
from fiber.weights.official_fine import IMAGE_PREFIX, TEXT_PREFIX, fine_names, from_official_fine
from parity_common import Fixture, Report, join_windows, walk_backbone

FEATURE = 1e-4  # absolute, on features and losses (SPEC: float32 against float64 is <= 5e-5)
GRADIENT, GATE = 1e-3, 3e-3  # relative, on gradient norms
BOX = 1e-3  # pixels, on coordinates of matched detections
CUT = 1e-6  # scores this close to the last one kept may be exchanged for one another
# Recorded but without a counterpart here: unused by losses and detections, or inputs restated; gradients that are 0.
UNUSED = ("head.cls_logits.*", "anchors.visibility", "lang.masks", "targets.*.labels*", "grad.*")
REFERENCE_LOSS = {"loss_reg": "box", "loss_centerness": "centerness", "loss_dot_product_token": "token"}


def check_fine(fixture: Fixture) -> Report:
    """All comparisons of a fine fixture; every configuration value is read from its json."""
    report = Report()
    model = build(fixture)
    _check_weights(report, fixture, model)
    with torch.no_grad():
        features, output, anchors = _check_features(report, fixture, model)
        _check_debug(report, fixture, model, features)
        _check_boxes(report, fixture, anchors)
        _check_losses(report, fixture, model, output, anchors)
        _check_detections(report, fixture, output, anchors)
        if "prompt.tunable_linear.weight" in fixture.io:
            _check_prompt(report, fixture)
    _check_gradients(report, fixture, model)
    report.equal("recorded outputs left uncompared", fixture.io.unread(*UNUSED), [])
    return report


# ---------------------------------------------------------------------------------------------------- model


def build(fixture: Fixture, prompt: Tensor | None = None) -> FiberDetector:
    """The detector of a fixture in evaluation mode, with its weights and, for prompt tuning, the learned table."""
    spec, cfg = fixture.facts["spec"], fixture.facts["cfg"]
    _check_constants(cfg)
    backbone = FusionBackbone(
        SwinTower(
            embed_dim=spec["embed"],
            depths=tuple(spec["depths"]),
            heads=tuple(spec["heads"]),
            window=spec["window"],
            drop_path=0.0,
            padded=True,
            stage_norms=True,
        ),
        RobertaTower(
            vocab_size=spec["vocab"],
            width=spec["lang"],
            layers=fixture.count(TEXT_PREFIX + "encoder.layer.", "intermediate.dense.weight"),
            heads=spec["lang_heads"],
            intermediate=spec["inter"],
            max_positions=len(fixture.weights[TEXT_PREFIX + "embeddings.position_embeddings.weight"]),
            dropout=0.0,
        ),
        num_fused=fixture.count(IMAGE_PREFIX, "alpha_i2t"),
        query_norm=spec["version"] != "v2",
        last_text_norm=True,
    )
    model = FiberDetector(
        backbone,
        channels=spec["out_ch"],
        head_channels=cfg["DYHEAD"]["CHANNELS"],
        head_blocks=cfg["DYHEAD"]["NUM_CONVS"],
        anchor_sizes=cfg["RPN"]["ANCHOR_SIZES"],
        strides=cfg["RPN"]["ANCHOR_STRIDE"],
        groups=cfg["GROUP_NORM"]["NUM_GROUPS"],
        drop_block=cfg["FPN"]["DROP_PROB"],
        text_limit=spec["maxq"],
        prompt_tuning=prompt is not None,
    ).eval()
    weights = fixture.weights
    if prompt is not None:
        weights = weights | {"fusion_backbone.tunable_linear.weight": prompt}
    state = from_official_fine(weights, model.state_dict(), names_of(model))
    missing = set(model.state_dict()) - set(state)
    if any(not name.startswith("backbone.fusion.caption_maps.") for name in missing):
        raise ValueError(f"{fixture.name}: no weights for {sorted(missing)}")
    model.load_state_dict(state, strict=False)
    return model


def names_of(model: FiberDetector) -> dict[str, str]:
    """Our names -> official names of a detector."""
    backbone = model.backbone
    return fine_names(
        backbone.image.depths,
        len(backbone.text.layers),
        backbone.num_fused,
        len(model.head.blocks),
        len(model.strides),
    )


def _check_constants(cfg: dict) -> None:
    """Values that the published method fixes and this project does not offer to change."""
    fixed = {
        "RPN.ASPECT_RATIOS": (cfg["RPN"]["ASPECT_RATIOS"], [1.0]),
        "RPN.SCALES_PER_OCTAVE": (cfg["RPN"]["SCALES_PER_OCTAVE"], 1),
        "ATSS.TOPK": (cfg["ATSS"]["TOPK"], atss.CANDIDATES),
        "FUSE_CONFIG.TOKEN_ALPHA": (cfg["FUSE_CONFIG"]["TOKEN_ALPHA"], losses.ALPHA),
        "FUSE_CONFIG.TOKEN_GAMMA": (cfg["FUSE_CONFIG"]["TOKEN_GAMMA"], losses.GAMMA),
        "GROUP_NORM.EPSILON": (cfg["GROUP_NORM"]["EPSILON"], 1e-5),
    }
    for key, (theirs, ours) in fixed.items():
        if theirs != ours:
            raise ValueError(f"the fixture was made with {key} = {theirs}; this project has {ours}")


def _inputs(fixture: Fixture) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images turned from the release's BGR to our RGB, sizes, ids, mask."""
    io = fixture.io
    return io["input.images"].flip(1), io["input.image_sizes"], io["input.input_ids"], io["input.attention_mask"]


def _level_names(model: FiberDetector) -> list[str]:
    return [f"p{3 + i}" for i in range(len(model.strides))]


# ---------------------------------------------------------------------------------------------------- checks


def _check_weights(report: Report, fixture: Fixture, model: FiberDetector) -> None:
    used = {official_name(name, names_of(model)) for name in model.state_dict()}
    unused = {n for n in fixture.weights if n not in used and not is_derived(n)}
    report.equal("weights: unused besides cls_logits", unused - {"rpn.head.cls_logits.weight", _CLS_BIAS}, set())


_CLS_BIAS = "rpn.head.cls_logits.bias"


def _check_features(
    report: Report, fixture: Fixture, model: FiberDetector
) -> tuple[FineFeatures, HeadOutput, list[Tensor]]:
    io = fixture.io
    images, sizes, ids, mask = _inputs(fixture)
    fused = model.backbone.fuse(model.image_prefix(images, sizes), model.text_prefix(ids, mask))
    for stage, ours in enumerate(fused.stages):
        report.close(f"backbone.stage{stage + 2}", ours, io[f"backbone.stage{stage + 2}"], FEATURE)
    features = model.features(images, sizes, ids, mask)
    report.close("lang.hidden", features.hidden, io["lang.hidden"], FEATURE)
    report.close("lang.embedded", features.embedded, io["lang.embedded"], FEATURE)
    report.close(
        "lang.aggregate", features.embedded.sum(1) / mask.sum(1, keepdim=True), io["lang.aggregate"], FEATURE
    )
    output, anchors = model(images, sizes, ids, mask)
    for i, level in enumerate(_level_names(model)):
        report.close(f"fpn.{level}", features.levels[i], io[f"fpn.{level}"], FEATURE)
        report.close(f"anchors.{level}", anchors[i], io[f"anchors.{level}"], 1e-6)
        for name, ours in _head_outputs(output, i).items():
            recorded = io[f"head.{name}.{level}"]
            recorded = recorded.flatten(2).transpose(1, 2) if recorded.ndim == 4 else recorded
            report.close(f"head.{name}.{level}", ours, recorded, FEATURE)
    return features, output, anchors


def _head_outputs(output: HeadOutput, level: int) -> dict[str, Tensor]:
    """One level under the reference's names, cells first: (B,H*W,...)."""
    return {
        "bbox_reg": output.deltas[level],
        "centerness": output.centerness[level][..., None],
        "dot_product_logits": output.tokens[level],
    }


def _check_debug(report: Report, fixture: Fixture, model: FiberDetector, features: FineFeatures) -> None:
    io, window = fixture.io, fixture.facts["spec"]["window"]
    images, _, ids, mask = _inputs(fixture)
    for name, ours in walk_backbone(model.backbone, images, ids, mask):
        if f"debug.{name}" not in io:
            continue
        recorded = io[f"debug.{name}"]
        if name == "patch_embed":
            recorded = recorded.flatten(2).transpose(1, 2)
        if name.endswith("_attn"):
            stage = int(name[len("swin_layer")])
            recorded = join_windows(recorded, window, tuple(io[f"backbone.stage{stage + 2}"].shape[-2:]))
        report.close(f"debug.{name}", ours, recorded, FEATURE)
    levels = features.levels
    for index, block in enumerate(model.head.blocks):
        for name, ours in _head_block(block, levels) if index == 0 else ():
            if f"debug.tower0.{name}" in io:
                report.close(f"debug.tower0.{name}", ours, io[f"debug.tower0.{name}"], FEATURE)
        levels = block(levels)
        for level, ours in zip(_level_names(model), levels, strict=True):
            if f"head.tower{index}.{level}" in io:
                report.close(f"head.tower{index}.{level}", ours, io[f"head.tower{index}.{level}"], FEATURE)


def _head_block(block: torch.nn.Module, levels: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Outputs of a block's branches after GroupNorm, under the reference's names."""
    branches = {block.coarser: 0, block.same: 1, block.finer: 2}
    outputs: list[tuple[int, Tensor]] = []
    hooks = [
        b.register_forward_hook(lambda module, _, result: outputs.append((branches[module], result)))
        for b in branches
    ]
    block(levels)
    for hook in hooks:
        hook.remove()
    level = 2
    for branch, result in outputs:
        level += branch == 1  # every level starts with its own branch
        yield f"DyConv{branch}.into_p{level}", result


def _targets(fixture: Fixture, case: str) -> Targets:
    """Packed targets of both images in a box case."""
    io = fixture.io
    boxes = []
    while f"targets.{case}.boxes{len(boxes)}" in io:
        boxes.append(io[f"targets.{case}.boxes{len(boxes)}"])
    image = torch.cat([torch.full((len(b),), i) for i, b in enumerate(boxes)])
    return Targets(torch.cat(boxes), image, io[f"targets.{case}.positive_map"])


def _check_boxes(report: Report, fixture: Fixture, anchors: list[Tensor]) -> None:
    io = fixture.io
    report.close("coder.encoded", encode(io["coder.gt"], io["coder.anchors"]), io["coder.encoded"], FEATURE)
    report.close("coder.decoded", decode(io["coder.deltas"], io["coder.anchors"]), io["coder.decoded"], relative=1e-6)
    every = torch.cat(anchors)
    for case in fixture.facts["losses"]:
        targets = _targets(fixture, case)
        recorded = io[f"assign.{case}.gt_index"]
        assignment = assign_batch(targets, anchors, len(recorded))
        offset = torch.searchsorted(targets.image, assignment.image)
        index = torch.full_like(recorded, -1)
        index[assignment.image, assignment.anchor] = assignment.target - offset
        report.equal(f"assign.{case}.gt_index", index, recorded)
        positive, matched, boxes = (
            (assignment.image, assignment.anchor),
            every[assignment.anchor],
            targets.boxes[assignment.target],
        )
        report.close(
            f"assign.{case}.reg_targets", encode(boxes, matched), io[f"assign.{case}.reg_targets"][positive], FEATURE
        )
        labels = token_targets(
            assignment, targets, io[f"assign.{case}.token_labels"].shape, fixture.facts["spec"]["maxq"]
        )
        report.equal(f"assign.{case}.token_labels", labels, io[f"assign.{case}.token_labels"])
        if f"assign.{case}.centerness_targets" in io:
            recorded = io[f"assign.{case}.centerness_targets"]
            report.close(f"assign.{case}.centerness_targets", centerness(boxes, matched), recorded, FEATURE)
    if "atss_big.boxes" in io:
        _check_big_assignment(report, fixture)


def _check_big_assignment(report: Report, fixture: Fixture) -> None:
    """The recorded 800x1024 image: maps of strides 8 to 128, each side rounded up."""
    io, rpn = fixture.io, fixture.facts["cfg"]["RPN"]
    grids = [(-(-800 // stride), -(-1024 // stride)) for stride in rpn["ANCHOR_STRIDE"]]
    anchors = make_anchors(grids, rpn["ANCHOR_SIZES"], rpn["ANCHOR_STRIDE"])
    boxes = io["atss_big.boxes"]
    (index,) = atss.assign(boxes, torch.zeros(len(boxes), dtype=torch.int64), anchors, 1)
    positive = (index >= 0).nonzero().flatten()
    report.equal("atss_big.positive_index", positive, io["atss_big.positive_index"])
    report.equal("atss_big.positive_gt", index[positive], io["atss_big.positive_gt"])
    boxes, matched = boxes[index[positive]], torch.cat(anchors)[positive]
    report.close("atss_big.reg_targets", encode(boxes, matched), io["atss_big.reg_targets"], FEATURE)
    report.close("atss_big.centerness", centerness(boxes, matched), io["atss_big.centerness"], FEATURE)


def _losses(
    fixture: Fixture, case: str, model: FiberDetector, output: HeadOutput, anchors: list[Tensor]
) -> dict[str, Tensor]:
    """Weighted losses of a box case."""
    cfg = fixture.facts["cfg"]
    weights = LossWeights(cfg["FUSE_CONFIG"]["DOT_PRODUCT_TOKEN_LOSS_WEIGHT"], cfg["ATSS"]["REG_LOSS_WEIGHT"])
    mask = fixture.io["input.attention_mask"]
    targets = _targets(fixture, case)
    assignment = assign_batch(targets, anchors, len(mask))
    sums = totals(assignment, targets, anchors)
    raw = detection_losses(output, anchors, mask, targets, assignment, sums, model.text_limit)
    return {name: getattr(weights, name) * value for name, value in raw.items()}


def _check_losses(
    report: Report, fixture: Fixture, model: FiberDetector, output: HeadOutput, anchors: list[Tensor]
) -> None:
    for case, recorded in fixture.facts["losses"].items():
        ours = _losses(fixture, case, model, output, anchors)
        for theirs, name in REFERENCE_LOSS.items():
            report.close(f"loss {case}.{theirs}", ours[name], recorded[theirs], FEATURE)
        report.close(f"loss {case}.total", sum(ours.values()), recorded["total"], FEATURE)


def _check_detections(report: Report, fixture: Fixture, output: HeadOutput, anchors: list[Tensor]) -> None:
    io = fixture.io
    labels = {int(k): v for k, v in fixture.facts["positive_map_label_to_token"].items()}
    tokens = torch.zeros(len(labels), fixture.facts["spec"]["maxq"], dtype=torch.bool)
    for row, columns in enumerate(labels.values()):
        tokens[row, columns] = True
    names = torch.tensor(list(labels))
    sizes = io["input.image_sizes"]
    for setting, value in fixture.facts["detections"].items():
        selection = BoxSelection(
            threshold=value["PRE_NMS_THRESH"],
            top=value["PRE_NMS_TOP_N"],
            nms=value["NMS_TH"],
            keep=value["DETECTIONS_PER_IMG"],
        )
        scored = (output, tokens) if value["SCORE_AGG"] == "MEAN" else best_tokens(output, tokens)
        weights = class_weights([scored[1]] * len(sizes))
        found = choose(candidates(scored[0], anchors, weights, selection), sizes, len(names), selection)
        for image, ours in enumerate(found):
            recorded = Detections(*(io[f"dets.{setting}.img{image}.{f}"] for f in ("boxes", "scores", "labels")))
            _compare_sets(report, f"detections {setting}.img{image}", ours, recorded, names)


def best_tokens(output: HeadOutput, tokens: Tensor) -> tuple[HeadOutput, Tensor]:
    """The release's SCORE_AGG "MAX" in terms of the mean: the output with one token logit per class, the highest of
    the class's tokens (K,L) bool, and the tokens (K,K) of the classes in it."""
    highest = [torch.stack([x[..., own].amax(-1) for own in tokens], -1) for x in output.tokens]
    return output._replace(tokens=highest), torch.eye(len(tokens), dtype=torch.bool)


def _compare_sets(report: Report, name: str, ours: Detections, recorded: Detections, names: Tensor) -> None:
    """Every recorded detection has one of ours with its label, score and box, and none of ours is left over."""
    if len(ours.scores) != len(recorded.scores):
        report.equal(f"{name} count {len(ours.scores)} (recorded {len(recorded.scores)})", False, True)
        return
    free = torch.ones(len(ours.scores), dtype=torch.bool)
    worst, missing = [0.0, 0.0], 0
    cut = recorded.scores.min() + CUT if len(recorded.scores) else 0.0
    for box, score, label in zip(recorded.boxes, recorded.scores, recorded.labels, strict=True):
        box_error = (ours.boxes - box).abs().amax(1)
        score_error = (ours.scores - score).abs()
        match = free & (names[ours.labels] == label) & (score_error <= FEATURE) & (box_error <= BOX)
        if match.any():
            best = torch.where(match, box_error, torch.inf).argmin()
            free[best] = False
            worst = [max(worst[0], score_error[best].item()), max(worst[1], box_error[best].item())]
        elif score > cut:
            missing += 1
    report.close(f"{name} scores ({len(recorded.scores)})", worst[0], 0.0, FEATURE)
    report.close(f"{name} boxes, px", worst[1], 0.0, BOX)
    if missing:
        report.equal(f"{name}: {missing} missing", False, True)


def _check_prompt(report: Report, fixture: Fixture) -> None:
    model = build(fixture, fixture.io["prompt.tunable_linear.weight"])
    features = model.features(*_inputs(fixture))
    output, _ = model.predict(features)
    report.close("prompt.lang.hidden", features.hidden, fixture.io["prompt.lang.hidden"], FEATURE)
    for i, level in enumerate(_level_names(model)):
        report.close(f"prompt.fpn.{level}", features.levels[i], fixture.io[f"prompt.fpn.{level}"], FEATURE)
        name = f"prompt.dot_product_logits.{level}"
        report.close(name, output.tokens[i], fixture.io[name], FEATURE)


def _check_gradients(report: Report, fixture: Fixture, model: FiberDetector) -> None:
    """Gradients of the first box case's total loss with respect to the *official* tensors: these are the leaves, and
    the renaming is part of the graph."""
    case = next(iter(fixture.facts["losses"]))
    expected = {k: v for k, v in fixture.facts["grad_norms"].items() if v is not None}
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in fixture.weights.items()}
    ours = from_official_fine(leaves, model.state_dict(), names_of(model))
    output, anchors = functional_call(model, ours, _inputs(fixture))
    sum(_losses(fixture, case, model, output, anchors).values()).backward()
    gradients = {k: torch.zeros_like(v) if v.grad is None else v.grad for k, v in leaves.items() if k in expected}
    report.gradients({k: g.norm().item() for k, g in gradients.items()}, expected, GRADIENT, GATE)
    for name, recorded in fixture.io.items():
        if name.startswith("grad.") and expected.get(name[len("grad.") :], 0.0) >= 1e-6:
            tolerance = GATE if "alpha_" in name else GRADIENT
            report.close(name, gradients[name[len("grad.") :]], recorded, relative=tolerance)
