"""TensorBoard: event files in RUN/tensorboard (`tensorboard --logdir RUN`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiber.dashboards.board import About, ExampleImage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """The scalars, images and texts of a run; the horizontal axis is the update."""

    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def log(self, step: int, metrics: Mapping[str, float], best: Sequence[str] = ()) -> None:
        """See `Board`."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def images(self, step: int, images: Sequence[ExampleImage]) -> None:
        """The drawn images and, below the same name, their texts."""
        import numpy as np
        from PIL import Image

        for image in images:
            tag = f"eval/examples/{image.path.stem.removeprefix(f'step_{step + 1:06d}_')}"
            with Image.open(image.path) as drawn:
                self.writer.add_image(tag, np.asarray(drawn.convert("RGB")), step, dataformats="HWC")
            for column, text in image.texts.items():
                self.writer.add_text(f"{tag}/{column}", text, step)

    def alert(self, title: str, text: str) -> None:
        """A text: TensorBoard calls nobody."""
        self.writer.add_text("alerts", f"{title}: {text}")
        self.writer.flush()

    def close(self, failed: bool) -> None:
        """See `Board`."""
        self.writer.close()


def start_tensorboard(folder: Path, config: Mapping[str, Any], about: About, start: int) -> TensorBoard | None:
    """Event files in `folder`/tensorboard, None without the package. Those of a run that goes on at `start` hide what
    older ones say of later updates."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "tracking.tensorboard: the tensorboard package is not installed (pip install tensorboard); going on "
            "without it",
            file=sys.stderr,
        )
        return None
    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)
    if not start:
        told = {"group": about.group, "task": about.job_type, "tags": list(about.tags)}
        shown = json.dumps(told | dict(config), indent=1, default=str)
        writer.add_text("config", "\n".join(f"    {line}" for line in shown.splitlines()), 0)
    return TensorBoard(writer)
