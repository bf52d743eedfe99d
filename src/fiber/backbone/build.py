"""From a configuration to a backbone; both stages build theirs here."""

from fiber.backbone.fusion import FusionBackbone
from fiber.backbone.image import SwinTower
from fiber.backbone.text import RobertaTower
from fiber.config.base import TowersConfig

ROBERTA_POSITIONS = 514  # rows of the position table, kept for any text length that fits


def build_backbone(
    config: TowersConfig, vocab_size: int, pad_id: int, max_text: int, *, fine: bool = False
) -> FusionBackbone:
    """Towers and fusion as configured, weights not yet drawn. `fine`: any image size, a norm on every stage
    output and on the last text layer (stage 2). Raises ValueError on sizes that do not fit together."""
    image = SwinTower(
        embed_dim=config.image.embed_dim,
        depths=config.image.depths,
        heads=config.image.heads,
        window=config.image.window,
        drop_path=config.image.drop_path,
        padded=fine,
        stage_norms=fine,
        checkpointing=config.checkpointing,
    )
    text = RobertaTower(
        vocab_size=vocab_size,
        width=config.text.width,
        layers=config.text.layers,
        heads=config.text.heads,
        intermediate=config.text.intermediate,
        max_positions=max(ROBERTA_POSITIONS, max_text + pad_id + 1),
        pad_id=pad_id,
        dropout=config.text.dropout,
        checkpointing=config.checkpointing,
    )
    return FusionBackbone(image, text, num_fused=config.num_fused, query_norm=config.query_norm, last_text_norm=fine)
