"""`config.json` of an export folder."""

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass as pydantic_dataclass
from transformers import PreTrainedTokenizerBase

from fiber.config.base import STRICT, Count, CountOrNone, ModelConfig, Size
from fiber.config.loading import build_config, load_config
from fiber.config.stage1 import Stage1Config
from fiber.config.stage2 import DetectorConfig
from fiber.errors import ConfigError, WeightsError

CONFIG = "config.json"


@pydantic_dataclass(frozen=True, config=STRICT)
class ExportConfig:
    """What `config.json` holds. `image_size` is the side of the square (coarse) or the short side of a test image
    (fine, whose long side is at most `max_image_size`); `max_text` counts tokens; `classifiers` maps per task to its
    number of classes (coarse); `detector` holds the keyword arguments of FiberDetector (fine);
    `thresholds` the least score by verb ("detect"), calibrated on the run's evaluation data. `auto_map` and
    `architectures` tell transformers of the class in `modeling_fiber.py`, see `weights.transformers_class`.
    `trained`: the tasks that the weights were trained for (coarse; [] where that is not known)."""

    stage: Literal["coarse", "fine"]
    model: ModelConfig
    vocab_size: Count
    pad_id: CountOrNone
    image_size: Size
    max_text: Size
    max_image_size: Size | None = None
    classifiers: dict[str, Size] = field(default_factory=dict)
    detector: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    architectures: list[str] = field(default_factory=list)
    auto_map: dict[str, str] = field(default_factory=dict)
    format: Literal["fiber"] = "fiber"
    version: Literal[1] = 1


@pydantic_dataclass(frozen=True, config=STRICT)
class DetectorOptions(DetectorConfig):
    """What `ExportConfig.detector` may hold."""

    text_limit: Size = 256
    prompt_tuning: bool = False


@pydantic_dataclass(frozen=True, config=STRICT)
class _OfDetector:
    detector: DetectorOptions = DetectorOptions()


def coarse_config(
    config: Stage1Config, tokenizer: PreTrainedTokenizerBase, classifiers: Mapping[str, int] | None = None
) -> ExportConfig:
    """What an image-level run exports: `classifiers` maps the tasks whose heads its model has to their classes."""
    return ExportConfig(
        stage="coarse",
        model=config.model,
        vocab_size=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        image_size=config.image_size,
        max_text=config.max_text,
        classifiers=dict(classifiers or {}),
    )


def read_config(folder: Path) -> ExportConfig:
    """`config.json` of an export folder, every key checked. Raises WeightsError."""
    try:
        config = load_config(
            ExportConfig, folder / CONFIG
        )  # JSON is YAML: the strict reader of configurations serves
        build_config(_OfDetector, {"detector": config.detector})
        return config
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG} is no configuration of an export: {error}") from None
