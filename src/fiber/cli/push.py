"""`fiber push`: share a trained model on the Hugging Face hub."""

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """Share a trained model on the Hugging Face hub:

    fiber push runs/demo/stage2 owner/name --licence cc-by-4.0
    fiber push runs/demo/stage2 owner/name --dry-run --out folder     (look at it first)

RUN is a run directory or an export folder. Everything is built and checked before anything is sent: the weights are
read and used once, the card gets the licence and the name of the model. Then anybody may write
fiber.load("owner/name") or fiber.load("owner/name@revision"). Log in once with `hf auth login`.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("run_or_export", metavar="RUN", help="a run directory or an export folder")
    parser.add_argument("name", metavar="OWNER/NAME", help="of the model on the hub")
    parser.add_argument("--licence", help="of the weights, as the hub spells it: cc-by-4.0, apache-2.0, other, ...")
    parser.add_argument("--private", action="store_true", help="only you and your organisation may see it")
    parser.add_argument("--revision", help="the branch to write to (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="build and check everything, send nothing")
    parser.add_argument("--out", type=Path, help="keep what is sent in this folder")


def run(arguments: argparse.Namespace) -> int:
    """Build, check, send; -> exit status."""
    import tempfile

    from fiber.errors import WeightsError
    from fiber.weights.hub import check_hub_id, export_folder

    check_hub_id(arguments.name)
    source = Path(arguments.run_or_export)
    if not source.is_dir():
        raise WeightsError(f"{source} is no folder: give a run directory or an export folder")
    source = export_folder(source)
    if arguments.out is not None and arguments.out.exists() and any(arguments.out.iterdir()):
        raise ValueError(f"--out {arguments.out} is not empty: choose another folder")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out or Path(scratch) / "model"
        build(source, folder, arguments.name, arguments.licence)
        files = sorted(path for path in folder.iterdir())
        for path in files:
            print(f"  {path.stat().st_size:>13,} bytes  {path.name}")
        if arguments.dry_run:
            print(f"{arguments.name}: {len(files)} files are ready; nothing was sent (--dry-run)")
            return 0
        print(f"sent to {_send(folder, arguments)}")
    return 0


def build(source: Path, folder: Path, name: str, licence: str | None) -> None:
    """What is sent, in `folder`: the files of the export, tried once, and its card under its name on the hub. Raises
    WeightsError for an export that cannot be used, ValueError for a card or a licence that the hub would refuse."""
    import shutil
    from fnmatch import fnmatch

    import fiber
    from fiber.weights.export_config import read_config
    from fiber.weights.hub import FILES

    predictor = fiber.load(source, device="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in FILES):
            shutil.copyfile(path, folder / path.name)  # with the modes of new files
    read_config(folder)
    _try(predictor)
    card = folder / "README.md"
    card.write_text(finished_card(card.read_text() if card.exists() else "", name, licence))


def finished_card(text: str, name: str, licence: str | None) -> str:
    """The card of an export, with its name on the hub and its licence. Raises ValueError where the hub would refuse
    it."""
    import re

    import yaml
    from huggingface_hub import ModelCard

    found = re.match(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    if found is None:
        raise ValueError("the export's README.md has no front matter: export or convert the weights again")
    try:
        front: dict[str, Any] = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise ValueError(f"the export's README.md: its front matter is no YAML ({what:.150})") from None
    if not isinstance(front, dict):
        raise ValueError("the export's README.md: its front matter is no list of KEY: VALUE lines")
    index = front.get("model-index") or []
    if not isinstance(index, list) or not all(isinstance(entry, dict) for entry in index):
        raise ValueError("the export's README.md: model-index in its front matter is no list of models; remove it")
    if licence is not None:
        if not re.fullmatch(r"[a-z0-9.+-]+", licence):
            raise ValueError(f"--licence {licence}: the hub spells licences like cc-by-4.0, apache-2.0 or other")
        front["license"] = licence
        if licence != "other":
            front.pop("license_name", None)
    for entry in index:
        entry["name"] = name.partition("/")[2]
    body = found[2]
    title = re.search(r"^# (.+)$", body, re.MULTILINE)
    if title is not None:
        body = body.replace(title[0], f"# {name.partition('/')[2]}", 1)
    body = re.sub(r'(fiber\.load|from_pretrained)\("[^"]*"', rf'\1("{name}"', body)
    finished = f"---\n{yaml.safe_dump(front, sort_keys=False).strip()}\n---\n{body}"
    read = ModelCard(finished).data  # raises ValueError for a model index that the hub would refuse
    missing = [key for key in ("license", "library_name", "pipeline_tag") if not getattr(read, key)]
    if missing:
        raise ValueError(f"the card's front matter lacks {', '.join(missing)}: export the weights again")
    return finished


def _try(predictor: Any) -> None:
    """Use the model once, on a grey image. Raises whatever it raises."""
    from PIL import Image

    image = Image.new("RGB", (64, 64), (128, 128, 128))
    uses = {
        "detect": lambda: predictor.detect(image, ["thing"]),
        "match": lambda: predictor.match(image, "a thing"),
        "retrieve": lambda: predictor.embed_images(image),
        "answer": lambda: predictor.answer(image, "what is it?"),
        "caption": lambda: predictor.caption(image, method="greedy"),
    }
    for verb in predictor.tasks:
        if verb in uses:
            uses[verb]()


def _send(folder: Path, arguments: argparse.Namespace) -> str:
    """Create the model on the hub where it is new, and upload -> its address. Raises OSError where that fails."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from fiber.weights.tensors import reason

    api = HfApi()
    try:
        address = api.create_repo(arguments.name, private=arguments.private, exist_ok=True)
        if arguments.revision is not None:
            api.create_branch(arguments.name, branch=arguments.revision, exist_ok=True)
        api.upload_folder(
            repo_id=arguments.name,
            folder_path=folder,
            revision=arguments.revision,
            commit_message="A model of fiber",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (None, 401, 403):
            said = "the hub does not let you write there: `hf auth login` with a token that may write"
            raise OSError(f"{arguments.name}: {said} ({reason(error):.150})") from None
        raise OSError(f"{arguments.name}: the hub refused it: {reason(error):.200}") from None
    except Exception as error:  # the HTTP library's own errors, whichever library that is
        raise OSError(f"the hub cannot be reached ({type(error).__name__}: {error!s:.150})") from None
    return str(address)
