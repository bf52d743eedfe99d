"""Parity of the coarse stage with tensors recorded from the reference (a `coarse_*` fixture)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.states import ImageState, TextState
from fiber.backbone.text import RobertaTower
from fiber.coarse.caption_losses import (
    caption_labels,
    caption_logits,
    gold_loss,
    gold_weights,
    mle_loss,
    start_captions,
    token_losses,
)
from fiber.coarse.decoding import SpecialTokens, greedy
from fiber.coarse.itc import ContrastiveOutput, FeatureQueue, itc_loss, negative_weights
from fiber.coarse.itm import itm_loss
from fiber.coarse.mlm import IGNORED, mlm_loss
from fiber.coarse.model import CoarseModel
from fiber.config.base import OptimConfig
from fiber.training.optim import learning_rate, parameter_groups
from fiber.weights.load import resize_bias_table
from fiber.weights.official import coarse_names, from_official, is_derived, official_name
from parity_common import Fixture, Report, walk_backbone

FEATURE = 1e-4  # absolute, on features and logits
LOSS = 1e-5  # relative
WEIGHT = 1e-4  # relative, on negative-sampling weights
GRADIENT, GATE = 1e-4, 2e-3  # relative, on gradient norms
PAD = 1

# Recorded outputs of the release that this project has no counterpart for, by design: queues of pixels and ids,
# weights over queued candidates, which entry is heaviest there, and beams that copy themselves once they end.
UNUSED = (
    "itc.queue_text_ids",
    "itc.queue_text_masks",
    "itc.queue_image_fill",
    "itc_*.heaviest_*",
    "itc_*.text_neg_if_heaviest",
    "itc_partial.weights_*",
    "enqueue.text_ids",
    "enqueue.text_masks",
    "enqueue.image_mean",
    "beam5.ids",
    "beam*.text_ids",
)
# Weights that take no part in any output of the release.
UNUSED_WEIGHTS = ("rank_output", "text_transformer.pooler", "cross_modal_att_layers", "alpha_t2i", "output.LayerNorm")


def check_coarse(fixture: Fixture) -> Report:
    """All comparisons of a coarse fixture; every configuration value is read from its json."""
    report = Report()
    model = build(fixture)
    _check_weights(report, fixture, model)
    with torch.no_grad():
        _check_fused(report, fixture, model)
        _check_contrastive(report, fixture, model)
        _check_enqueue(report, fixture, model)
        for name, ours in _pretraining_losses(fixture, model).items():
            report.close(f"{name}.loss", ours, fixture.facts["losses"][name], relative=LOSS)
            report.close(f"{name}.loss (tensor)", ours, fixture.io[f"{name}.loss"], relative=LOSS)
        _check_matching(report, fixture, model)
        _check_caption(report, fixture, model)
        _check_decoding(report, fixture, model)
        _check_answers(report, fixture, model)
    _check_gradients(report, fixture, model)
    _check_resize(report, fixture)
    _check_optimizer(report, fixture, model)
    report.equal("recorded outputs left uncompared", fixture.io.unread(*UNUSED), [])
    return report


# ---------------------------------------------------------------------------------------------------- model


def build(fixture: Fixture) -> CoarseModel:
    """The model of a fixture in evaluation mode, with its weights."""
    facts, config = fixture.facts, fixture.facts["config"]
    image = SwinTower(
        embed_dim=config["embed_dim"],
        depths=tuple(facts["depths"]),
        heads=tuple(config["swin_heads"]),
        window=facts["window"],
        mlp_ratio=config["mlp_ratio"],
        drop_path=0.0,
    )
    text = RobertaTower(
        vocab_size=config["vocab_size"],
        width=config["input_text_embed_size"],
        layers=config["num_layers"],
        heads=config["num_heads"],
        intermediate=len(fixture.weights["text_transformer.encoder.layer.0.intermediate.dense.bias"]),
        max_positions=facts["text_config"]["max_position_embeddings"],
        pad_id=facts["text_config"]["pad_token_id"],
        eps=facts["text_config"]["layer_norm_eps"],
        dropout=0.0,
    )
    model = CoarseModel(
        FusionBackbone(image, text, num_fused=config["num_fuse_block"]),
        head_width=config["hidden_size"],
        vocab_size=config["vocab_size"],
        classifiers={"vqa": config["vqav2_label_size"], "nlvr2": 2},
        vectors={"nlvr2": 4},
    ).eval()
    model.load_state_dict(from_official(fixture.weights, model.state_dict(), names_of(model)))
    return model


def names_of(model: CoarseModel) -> dict[str, str]:
    """Our names -> official names of a model."""
    backbone = model.backbone
    return coarse_names(backbone.image.depths, len(backbone.text.layers), backbone.num_fused)


def _prefixes(fixture: Fixture, model: CoarseModel, ids: str = "in.text_ids") -> tuple[ImageState, TextState]:
    io = fixture.io
    return model.image_prefix(io["in.image"]), model.text_prefix(io[ids], io["in.text_masks"])


# ---------------------------------------------------------------------------------------------------- checks


def _check_weights(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    used = {official_name(name, names_of(model)) for name in model.state_dict()}
    unused = {n for n in fixture.weights if n not in used and not is_derived(n)}
    report.equal("weights: unused", [n for n in sorted(unused) if not any(part in n for part in UNUSED_WEIGHTS)], [])


def _check_fused(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    io = fixture.io
    last_prefix = len(model.backbone.text.layers) - model.backbone.num_fused - 1
    first = model.backbone.image.places[-model.backbone.num_fused - 1]
    for name, ours in walk_backbone(model.backbone, io["in.image"], io["in.text_ids"], io["in.text_masks"]):
        theirs = name.replace("text_embeddings", "text_embedding").replace("swin_layer", "image_stage")
        names = [f"image_{name}", f"image_{name}_downsample"] if name.startswith("stage") else [theirs]
        if name == f"text_layer{last_prefix}":
            names.append("text_embeds_before_fusion")
        if name == f"swin_layer{first[0]}_block{first[1]}":
            names.append("image_embeds_before_fusion")
        for recorded in names:
            if f"fused.{recorded}" in io:
                report.close(f"fused.{recorded}", ours, io[f"fused.{recorded}"], FEATURE)
    fused = model.fuse(*_prefixes(fixture, model))
    report.close("fused.text_feats", fused.text, io["fused.text_feats"], FEATURE)
    report.close("fused.image_feats", fused.image, io["fused.image_feats"], FEATURE)
    report.close("fused.cls_feats", fused.cls, io["fused.cls_feats"], FEATURE)
    masked = model.fuse(*_prefixes(fixture, model, "in.text_ids_mlm"))
    report.close("mlm.logits", model.heads.mlm(masked.text), io["mlm.logits"], FEATURE)


def _queue(fixture: Fixture, image: Tensor, text: Tensor, filled: int) -> FeatureQueue:
    """Our queue with the recorded columns (H,Q), `filled` of them in use."""
    queue = FeatureQueue(image.shape[1], image.shape[0])
    queue.image.copy_(image.T)
    queue.text.copy_(text.T)
    queue.enqueued.fill_(filled)
    return queue


def _contrast(fixture: Fixture, model: CoarseModel, queue: FeatureQueue) -> tuple[Tensor, ContrastiveOutput]:
    image, text = _prefixes(fixture, model)
    features = model.image_embedding(image), model.text_embedding(text)
    distinct = torch.arange(len(image))
    return itc_loss(*features, distinct, model.heads.temperature(), queue, gather_gradient=False)


def _queues(fixture: Fixture) -> dict[str, FeatureQueue]:
    """Queues of the recorded cases, as the release fills them: slots never enqueued take part there, so `itc_i`
    and `itc_partial` are reproduced by calling their noise filled."""
    io = fixture.io
    raw, full = ((io[f"itc.queue{kind}_image"], io[f"itc.queue{kind}_text"]) for kind in ("_raw", ""))
    slots, width = raw[0].shape[1], raw[0].shape[0]
    empty = torch.zeros(width, 0)
    real = io["itc_partial.weights_i2t"].shape[1] - len(io["in.image"])  # slots filled in the recorded case
    partial = [torch.cat([f[:, :real], r[:, real:]], 1) for f, r in zip(full, raw, strict=True)]
    return {
        "itc_i": _queue(fixture, *raw, slots),
        "itc_noqueue": _queue(fixture, empty, empty, 0),
        "itc_ii": _queue(fixture, *full, slots),
        "itc_partial": _queue(fixture, *partial, slots),
    }


def _check_contrastive(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    io = fixture.io
    image, text = _prefixes(fixture, model)
    image_tokens, _ = model.heads.contrastive.image(model.backbone.finish_image(image))
    text_tokens, _ = model.heads.contrastive.text(model.backbone.finish_text(text))
    report.close("itc.image_feats", image_tokens, io["itc.image_feats"], FEATURE)
    report.close("itc.text_feats", text_tokens, io["itc.text_feats"], FEATURE)
    report.close("itc.image_cls_feats", model.image_embedding(image), io["itc.image_cls_feats"], FEATURE)
    report.close("itc.text_cls_feats", model.text_embedding(text), io["itc.text_cls_feats"], FEATURE)
    raw = _queue(fixture, io["itc.queue_raw_image"], io["itc.queue_raw_text"], 0)
    loss, _ = _contrast(fixture, model, raw)
    report.close("itc loss, unfilled slots masked = no queue", loss, io["itc_noqueue.loss"], relative=LOSS)
    for case, queue in _queues(fixture).items():
        loss, contrast = _contrast(fixture, model, queue)
        report.close(f"{case}.loss", loss, io[f"{case}.loss"], relative=LOSS)
        report.close(f"{case}.loss (json)", loss, fixture.facts["losses"][case], relative=LOSS)
        if case == "itc_partial":
            continue
        for direction, logits in (("i2t", contrast.image_to_text), ("t2i", contrast.text_to_image)):
            ours = negative_weights(logits, contrast.same_image, hard=True)
            recorded = io[f"{case}.weights_{direction}"][:, : ours.shape[1]]  # ours never draw from the queue
            ours, recorded = (w / w.sum(1, keepdim=True) for w in (ours, recorded))
            report.close(f"{case}.weights_{direction} (of the batch)", ours, recorded, relative=WEIGHT)


def _check_enqueue(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    """One batch enters a queue of 8 at slot 6 and wraps."""
    io = fixture.io
    image, text = _prefixes(fixture, model)
    pointer = int(io["enqueue.total"]) - len(image)
    queue = _queue(fixture, io["itc.queue_image"], io["itc.queue_text"], pointer)
    queue.enqueue(model.image_embedding(image), model.text_embedding(text), torch.arange(len(image)))
    report.close("enqueue.image_queue", queue.image.T, io["enqueue.image_queue"], FEATURE)
    report.close("enqueue.text_queue", queue.text.T, io["enqueue.text_queue"], FEATURE)
    report.equal("enqueue.total", queue.enqueued, io["enqueue.total"])
    report.equal("enqueue.ptr", queue.enqueued % len(queue.image), io["enqueue.ptr"])


def _pretraining_losses(fixture: Fixture, model: CoarseModel) -> dict[str, Tensor]:
    """mlm, itc_ii and itm, whose sum is the recorded total."""
    io = fixture.io
    image, masked = _prefixes(fixture, model, "in.text_ids_mlm")
    mlm, _ = mlm_loss(model.heads.mlm, model.fuse(image, masked).text, io["in.text_labels_mlm"])
    itc, _ = _contrast(fixture, model, _queues(fixture)["itc_ii"])
    valid = torch.ones(len(image), dtype=torch.bool)
    itm = itm_loss(_match_logits(fixture, model), valid, valid)
    return {"mlm": mlm, "itc_ii": itc, "itm": itm, "total": mlm + itc + itm}


def _match_logits(fixture: Fixture, model: CoarseModel) -> Tensor:
    """Logits (3B,2) of the recorded triple: true pairs, (image, other text), (other image, text)."""
    io = fixture.io
    image, text = _prefixes(fixture, model)
    images = ImageState.cat([image, image, image[io["itm.image_neg_index"]]])
    return model.match_logits(images, TextState.cat([text, text[io["itm.text_neg_index"]], text]))


def _check_matching(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    io = fixture.io
    logits = _match_logits(fixture, model)
    report.close("itm.logits", logits, io["itm.logits"], FEATURE)
    labels = io["itm.labels"]
    report.close("itm.loss, recorded labels", F.cross_entropy(logits, labels.long()), io["itm.loss"], relative=LOSS)
    report.close("itm.rank_output = match logit", logits[: len(labels) // 3, 1], io["itm.rank_output"], FEATURE)


def _check_caption(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    io, losses = fixture.io, fixture.facts["losses"]
    images, ids, mask = io["in.image"], io["in.text_ids"], io["in.text_masks"]
    image = model.backbone.image_tail(model.image_prefix(images))
    report.close("caption.image_embeds", image, io["caption.image_embeds"], FEATURE)
    tokens = model.caption_tokens(ids, mask, model.backbone.start_decoding(image))
    report.close("caption.text_feats", tokens, io["caption.text_feats"], FEATURE)
    pooled = model.heads.cross_modal.text_pooler(tokens[:, 0]).tanh()
    report.close("caption.cls_feats", pooled, io["caption.cls_feats"], FEATURE)
    logits = caption_logits(model, start_captions(model, images), ids, mask)
    report.close("caption.logits", logits, io["caption.logits"], FEATURE)
    labels = caption_labels(ids, PAD)
    report.equal("caption_mle.labels", labels, io["caption_mle.labels"])
    report.close("caption_mle.loss", mle_loss(logits, labels), io["caption_mle.loss"], relative=LOSS)
    report.close("caption_mle.loss (json)", mle_loss(logits, labels), losses["caption_mle"], relative=LOSS)
    weights = gold_weights(logits, labels)
    report.close("caption_gold.weights", weights, io["caption_gold.weights"], relative=WEIGHT)
    evaluated = token_losses(logits, labels).mean()  # the release's evaluation: over all positions, unweighted
    report.close("caption_gold.eval_loss", evaluated, io["caption_gold.eval_loss"], relative=LOSS)
    report.close("caption_gold.eval_loss (json)", evaluated, losses["caption_gold_eval"], relative=LOSS)
    recorded = _released_gold_loss(logits, labels, weights)
    report.close("caption_gold.train_loss, release's form", recorded, io["caption_gold.train_loss"], relative=LOSS)
    report.close("caption_gold train (json)", recorded, losses["caption_gold_train"], relative=LOSS)
    expected = fixture.facts["caption_gold_train_if_divided_by_token_count"]
    report.close("gold_loss, divided by the token count", gold_loss(logits, labels, weights), expected, relative=LOSS)


def _released_gold_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """GOLD as released: each caption's weighted sum is divided by its number of *ignored* positions."""
    return ((weights * token_losses(logits, labels)).sum(1) / (labels == IGNORED).sum(1)).mean()


def _check_decoding(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    """Logits of every recorded step of beam search, and the greedy caption, both through the key/value cache."""
    io = fixture.io
    image = model.backbone.image_tail(model.image_prefix(io["in.image"]))
    for name in [n for n in io if n.startswith("beam") and n.endswith(".logits")]:
        beam, step = name.split(".")[0], int(name.split(".step")[1].split(".")[0])
        ids = io[f"{beam}.step{step}.text_ids"] if step else torch.zeros(len(image), 1, dtype=torch.int64)
        cache = model.backbone.start_decoding(image.repeat_interleave(len(ids) // len(image), 0))
        tokens = torch.cat([model.caption_tokens(ids[:, t : t + 1], None, cache) for t in range(step + 1)], 1)
        report.close(name, model.heads.mlm(tokens[:, -1:]), io[name], FEATURE)
    recorded = io["beam1.ids"]  # <s>, <pad> and </s> are shown as <pad>
    special_tokens = SpecialTokens(
        start=0, end=2, forbidden=(fixture.facts["config"]["vocab_size"] - 1,)
    )  # <mask> is the last id
    generated = torch.full_like(recorded, PAD)
    for row, caption in enumerate(greedy(model, image, special_tokens, recorded.shape[1] + 1)):
        generated[row, : len(caption.ids)] = torch.tensor(caption.ids)
    report.equal("greedy caption = beam1.ids", generated, recorded)


def _check_answers(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    io, losses, heads = fixture.io, fixture.facts["losses"], model.heads.classifiers
    image, text = _prefixes(fixture, model)
    first = model.fuse(image, text).cls
    logits = heads["vqa"](first)
    report.close("vqa.logits", logits, io["vqa.logits"], FEATURE)
    targets = torch.zeros_like(logits)
    for row, (labels, scores) in enumerate(
        zip(fixture.facts["vqa_labels"], fixture.facts["vqa_scores"], strict=True)
    ):
        targets[row, labels] = torch.tensor(scores)
    report.close("vqa.targets", targets, io["vqa.targets"], relative=1e-6)
    loss = F.binary_cross_entropy_with_logits(logits, targets) * logits.shape[1]
    report.close("vqa.loss", loss, io["vqa.loss"], relative=LOSS)
    report.close("vqa.loss (json)", loss, losses["vqa"], relative=LOSS)
    second = model.fuse(model.image_prefix(io["in.image_1"]), text).cls
    logits = heads["nlvr2"](torch.cat([first, second], -1))
    report.close("nlvr2.logits", logits, io["nlvr2.logits"], FEATURE)
    loss = F.cross_entropy(logits, io["nlvr2.labels"])
    report.close("nlvr2.loss", loss, io["nlvr2.loss"], relative=LOSS)
    report.close("nlvr2.loss (json)", loss, losses["nlvr2"], relative=LOSS)


class _Losses(torch.nn.Module):
    """A loss as a module's forward, for `functional_call`."""

    def __init__(self, model: CoarseModel, fixture: Fixture, gold: bool) -> None:
        super().__init__()
        self.model, self.fixture, self.gold = model, fixture, gold

    def forward(self) -> Tensor:
        """Total of the pre-training losses, or the released GOLD loss."""
        io = self.fixture.io
        if not self.gold:
            return _pretraining_losses(self.fixture, self.model)["total"]
        images = start_captions(self.model, io["in.image"])
        logits = caption_logits(self.model, images, io["in.text_ids"], io["in.text_masks"])
        labels = caption_labels(io["in.text_ids"], PAD)
        return _released_gold_loss(logits, labels, gold_weights(logits, labels))


def _check_gradients(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    """Gradients with respect to the *official* tensors: these are the leaves, the renaming is part of the graph."""
    for gold, recorded in ((False, fixture.facts["grad_norms"]), (True, fixture.facts["caption_gold_grad_norms"])):
        leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in fixture.weights.items()}
        ours = from_official(leaves, model.state_dict(), names_of(model))
        functional_call(_Losses(model, fixture, gold), {f"model.{k}": v for k, v in ours.items()}, ()).backward()
        norms = {k: 0.0 if v.grad is None else v.grad.norm().item() for k, v in leaves.items()}
        what = "gold: " if gold else ""
        reached = {k: v for k, v in recorded.items() if v is not None}
        zero = set(fixture.facts["grad_zero_by_symmetry"])
        expected = {k: v for k, v in reached.items() if k not in zero}
        report.gradients(norms, expected, GRADIENT, GATE, what)
        spurious = [k for k in recorded if recorded[k] is None and norms.get(k, 0.0) > 0]
        report.equal(f"{what}gradients where the reference has none", spurious, [])
        if not gold:
            for name in [n for n in fixture.io if n.startswith("grad.")]:
                ours_grad, tolerance = leaves[name[len("grad.") :]].grad, GATE if "alpha_" in name else GRADIENT
                report.close(name, ours_grad, fixture.io[name], relative=tolerance)
            sums = {k: v for k, v in fixture.facts["grad_sums"].items() if v is not None and abs(v) > 1e-3}
            ours_sums = torch.tensor([leaves[k].grad.sum().item() for k in sums])
            report.close(f"gradient sums ({len(sums)})", ours_sums, list(sums.values()), relative=GRADIENT)


def _check_resize(report: Report, fixture: Fixture) -> None:
    for name in [n for n in fixture.io if n.startswith("resize.") and ".before_" in n]:
        recorded = fixture.io[name.replace(".before_", ".after_")]
        side = (round(len(recorded) ** 0.5) + 1) // 2
        report.close(name.replace(".before_", "."), resize_bias_table(fixture.io[name], side), recorded, FEATURE)


def _check_optimizer(report: Report, fixture: Fixture, model: CoarseModel) -> None:
    """Learning-rate multipliers of every parameter, weight decay of every matrix, and the schedule. One-dimensional
    parameters never decay here; the release decays the temperature, the gates and a few norms."""
    config, recorded = fixture.facts["config"], fixture.facts["optimizer"]
    cross_modal, head = float(config["lr_mult_cross_modal"]), float(config["lr_mult_head"])
    optim = OptimConfig(
        lr=config["learning_rate"],
        betas=tuple(recorded["betas"]),
        eps=recorded["eps"],
        weight_decay=config["weight_decay"],
        warmup=config["warmup_steps"],
        cross_modal_multiplier=cross_modal,
        head_multiplier=head,
        gate_multiplier=cross_modal,
    )
    names = names_of(model)
    ours, shape = {}, {official_name(n, names): p.ndim for n, p in model.named_parameters()}
    for group in parameter_groups(model.named_parameters(), optim):
        for name in group["names"]:
            ours[official_name(name, names)] = (group["multiplier"], group["weight_decay"])
    theirs = {p: (g["lr_over_base"], g["weight_decay"]) for g in recorded["groups"] for p in g["params"]}
    both = sorted(ours.keys() & theirs.keys())
    report.equal("optimizer: parameters in no recorded group", sorted(ours.keys() - theirs.keys()), [])
    report.equal("optimizer: lr multipliers", [ours[n][0] for n in both], [theirs[n][0] for n in both])
    matrices = [n for n in both if shape[n] > 1]
    report.equal("optimizer: weight decay", [ours[n][1] for n in matrices], [theirs[n][1] for n in matrices])
    vectors = [ours[n][1] for n in both if shape[n] <= 1]
    report.equal("optimizer: 1-d parameters do not decay", vectors, [0.0] * len(vectors))
    for key in [k for k in recorded if k.startswith("lr_over_base_for_max_steps_")]:
        steps = int(key.split("max_steps_")[1].split("_")[0])
        schedule = [learning_rate(step, steps, optim) / optim.lr for step in range(len(recorded[key]))]
        report.close("optimizer: schedule", schedule, recorded[key], relative=1e-6)
