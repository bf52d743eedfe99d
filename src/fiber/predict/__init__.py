"""A trained model on one's own images; `fiber.load` is `load` here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    import torch

    from fiber.predict.image import CoarsePredictor
    from fiber.predict.region import FinePredictor


@overload
def load(
    path_or_hub_id: str | Path,
    device: str | torch.device | None = None,
    dtype: str = "fp32",
    *,
    level: Literal["image"],
) -> CoarsePredictor: ...
@overload
def load(
    path_or_hub_id: str | Path,
    device: str | torch.device | None = None,
    dtype: str = "fp32",
    *,
    level: Literal["region"],
) -> FinePredictor: ...
@overload
def load(
    path_or_hub_id: str | Path, device: str | torch.device | None = None, dtype: str = "fp32", *, level: None = None
) -> CoarsePredictor | FinePredictor: ...
def load(
    path_or_hub_id: str | Path,
    device: str | torch.device | None = None,
    dtype: str = "fp32",
    *,
    level: Literal["image", "region"] | None = None,
) -> CoarsePredictor | FinePredictor:
    """A predictor from an export folder, a run directory or a hub id.

    device: CUDA where there is one, else the CPU. dtype: "fp32" or "bf16". level: what the model must be, "image"
    (match, retrieve, caption, answer, ...) or "region" (ground, refer, detect), so that a type checker knows its
    methods; without it, tell the two apart by `isinstance`. Raises WeightsError where the folder is not a whole
    export or is of the other level, ValueError for another dtype or level, or a device
    that is not here.
    """
    import torch  # only here: `import fiber` takes no time

    from fiber import cards
    from fiber.coarse.model import CoarseModel
    from fiber.errors import KnownError, WeightsError
    from fiber.weights.export import read_export
    from fiber.weights.from_export import build

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if dtype not in dtypes:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(dtypes)}")
    if level not in (None, "image", "region"):
        raise ValueError(f"level {level!r} is not one of image, region")
    device = _device(device)
    try:
        export = read_export(path_or_hub_id)
        model, _ = build(export)
    except KnownError:
        raise
    except Exception as error:  # whatever libraries make of a damaged file
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(f"{path_or_hub_id}: a damaged export ({what:.300}); copy or export it again") from error
    if len(export.tokenizer) > export.config.vocab_size:
        words = f"{len(export.tokenizer)} tokens, the model {export.config.vocab_size}"
        raise WeightsError(f"{path_or_hub_id}: the tokenizer has {words}; copy or export it again")
    if odd := [name for name, tensor in export.tensors.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{path_or_hub_id}: {len(odd)} weights are not finite, such as {odd[0]}")
    found: Literal["image", "region"] = "image" if isinstance(model, CoarseModel) else "region"
    if level not in (None, found):
        raise WeightsError(f"{path_or_hub_id}: a model at {found} level, asked for was one at {level} level")
    cards.choose_kernels(device)
    model = model.to(device, dtypes[dtype]).eval().requires_grad_(False)
    if isinstance(model, CoarseModel):
        from fiber.predict.image import CoarsePredictor

        return CoarsePredictor(model, export, device)
    from fiber.predict.region import FinePredictor

    return FinePredictor(model, export, device)


def _device(asked: str | torch.device | None) -> torch.device:
    """The device asked for, None: CUDA where there is one. Raises ValueError where it is not here."""
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(asked or ("cuda" if cards else "cpu"))
    except RuntimeError:
        raise ValueError(f"device {asked!r} is none: give cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise ValueError(f"device {str(device)!r}: there are {cards} CUDA cards here; give cpu, or leave it out")
    return device
