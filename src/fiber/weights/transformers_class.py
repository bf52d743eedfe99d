"""What a region-level export carries for those who use transformers: a class that `AutoModel.from_pretrained(export,
trust_remote_code=True)` finds by `auto_map` of config.json. It stands here as text: it belongs to the export, and it
asks `fiber.load`, which lies above this room."""

FILE = "modeling_fiber.py"
CLASS = "FiberForZeroShotObjectDetection"
AUTO_MAP = {"AutoConfig": "modeling_fiber.FiberConfig", "AutoModel": f"modeling_fiber.{CLASS}"}

SOURCE = '''"""FIBER for zero-shot object detection in transformers; the fiber-vl package has the model."""

from pathlib import Path

import fiber
import torch
from transformers import PretrainedConfig, PreTrainedModel


class FiberConfig(PretrainedConfig):
    """config.json of an export as it stands."""

    model_type = "fiber"


class FiberForZeroShotObjectDetection(PreTrainedModel):
    """`fiber.load` of the export; `model` is the detector, `predictor` asks it about images."""

    config_class = FiberConfig
    main_input_name = "images"

    def __init__(self, config, predictor):
        super().__init__(config)
        self.model = predictor.model
        self._asked = [predictor]  # in a list: a part of the model it is not

    @classmethod
    def from_pretrained(cls, path, *_, config=None, revision=None, **__):
        """The weights are read by `fiber.load`, which checks them; other arguments are not needed."""
        name = path if revision in (None, "main") or Path(path).is_dir() else f"{path}@{revision}"
        loaded = fiber.load(name, device="cpu")
        return cls(config or FiberConfig.from_pretrained(path, revision=revision), loaded).eval()

    @property
    def predictor(self):
        """The predictor of `fiber.load`, on the device that the model is on now."""
        self._asked[0].device = next(self.model.parameters()).device
        return self._asked[0]

    @torch.no_grad()
    def detect(self, images, candidate_labels, threshold=0.3, keep=100):
        """Objects of the named classes in each image (paths, PIL images or arrays), as transformers' post-processing
        gives them: {"scores": (N,), "labels": (N,) places in `candidate_labels`, "boxes": (N, 4) xyxy px,
        "text_labels": names}."""
        names = list(candidate_labels)
        found = []
        for regions in self.predictor.detect(images, names, threshold=threshold, keep=keep):
            found.append(
                {
                    "scores": torch.tensor([region.score for region in regions]),
                    "labels": torch.tensor([names.index(region.label) for region in regions], dtype=torch.int64),
                    "boxes": torch.tensor([region.box for region in regions]).reshape(-1, 4),
                    "text_labels": [region.label for region in regions],
                }
            )
        return found

    def forward(self, images, sizes, ids, mask):
        """The detector itself: raw outputs and anchors."""
        return self.model(images, sizes, ids, mask)
'''
