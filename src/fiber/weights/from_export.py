"""A model built of an export, with its weights."""

from fnmatch import filter as matching

from fiber.backbone.build import build_backbone
from fiber.coarse.heads import FUSED_PAIR
from fiber.coarse.model import CoarseModel
from fiber.errors import WeightsError
from fiber.fine.model import FiberDetector
from fiber.weights.export import Export
from fiber.weights.load import CAPTION_MAPS, NEW_IN_FINE, LoadReport, load_weights

OPTIONAL = {
    "cross_modal": "heads.cross_modal.*",
    "contrastive": "heads.contrastive.*",
    "temperature": "heads.temperature.*",
    "itm": "heads.itm.*",
    "mlm": "heads.mlm.*",
    "caption_maps": CAPTION_MAPS,
}


def build(export: Export, as_start: bool = False) -> tuple[CoarseModel | FiberDetector, LoadReport]:
    """The model of an export with its weights, on the CPU. Heads that the file lacks as a whole stay new (their tasks
    are not offered); a head that it has in part is a WeightsError. So is a detector without pyramid and head, unless
    it is read `as_start` of a training."""
    config = export.config
    fine = config.stage == "fine"
    if export.towers_only and not as_start:
        raise WeightsError("this export has towers but no pyramid and no head: train from it (init_from=...) first")
    backbone = build_backbone(config.model, config.vocab_size, config.pad_id, config.max_text, fine=fine)
    if fine:
        model: CoarseModel | FiberDetector = FiberDetector(backbone, **config.detector)
    else:
        model = CoarseModel(
            backbone,
            head_width=config.model.head_width,
            vocab_size=config.vocab_size,
            classifiers=config.classifiers,
            vectors={name: _vectors(export, name) for name in config.classifiers},
        )
    optional = NEW_IN_FINE if export.towers_only else OPTIONAL.values()
    absent = [pattern for pattern in optional if not matching(export.tensors, pattern)]
    return model, load_weights(model, export.tensors, allow_new=absent)


def _vectors(export: Export, head: str) -> int:
    """How many pooled vectors an answer head reads, as the shape of its first weight tells."""
    weight = export.tensors.get(f"heads.classifiers.{head}.0.weight")
    return FUSED_PAIR if weight is None else weight.shape[1] // export.config.model.head_width
