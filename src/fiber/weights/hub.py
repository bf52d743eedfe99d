"""Exports on the Hugging Face hub: where they are found, and how they get there."""

from __future__ import annotations

from pathlib import Path

from fiber.errors import WeightsError
from fiber.weights.export_config import CONFIG
from fiber.weights.tensors import reason

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "modeling_fiber.py")
"""What an export folder holds, and all that is ever downloaded or uploaded."""


def export_folder(path: str | Path) -> Path:
    """The local folder of an export given as a folder, a run directory or a hub id: owner/name, or
    owner/name@revision (a branch, a tag or a commit), which is downloaded once. Raises WeightsError."""
    folder = Path(path)
    if (folder / "export" / CONFIG).is_file():
        return folder / "export"
    if folder.is_dir():
        return folder
    name, _, revision = str(path).partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(f"no folder {path}, and it is not a hub id (owner/name, owner/name@revision) either")
    check_hub_id(name)
    return _download(name, revision or None)


def check_hub_id(name: str) -> None:
    """Raises WeightsError where `name` is not owner/name as the hub has it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise WeightsError(f"{name} is no hub id: {reason(error)}") from None
    if name.count("/") != 1:
        raise WeightsError(f"{name} is no hub id: write owner/name")


def _download(name: str, revision: str | None) -> Path:
    """The files of a model on the hub, in the cache of huggingface_hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError:
        why = "the hub gives it only to those who have asked for it: accept its terms there, then `hf auth login`"
    except RevisionNotFoundError:
        why = f"the hub has the model, but no revision {revision}"
    except RepositoryNotFoundError:
        why = "the hub has no such model (or it is private: `hf auth login`)"
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = f"the hub cannot be reached, and there is no copy of it here ({_first_cause(error)})"
    raise WeightsError(f"no folder {name}, and {why}")


def _first_cause(error: BaseException) -> str:
    """What an error began with, in a line: the layers above it say only that they did not succeed."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return reason(error)[:200]
