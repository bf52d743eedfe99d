"""Weights & Biases: a run of its own, online where it can be, else offline (`wandb sync` later).

Variables WANDB_* come before what is set here. It never holds training up: see `INIT_S`, `FINISH_S`.
"""

from __future__ import annotations

import os
import secrets
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from fiber.dashboards.board import About, ExampleImage
from fiber.dashboards.sections import SAMPLES, SECTIONS

if TYPE_CHECKING:
    import wandb
    from wandb.sdk.wandb_run import Run as WandbRun

INIT_S, FINISH_S = 15.0, 60.0  # how long W&B may take to begin, and at the end to upload
ALERT_EVERY_S = 3600  # of one title
TAG_LENGTH = 64  # W&B refuses longer ones


class WandbBoard:
    """A run of W&B. Every panel has the training samples on its horizontal axis; the summary of a figure is its
    highest value so far, of the loss its lowest."""

    def __init__(self, run: WandbRun) -> None:
        self.run, self._defined = run, set[str]()
        run.define_metric(SAMPLES)
        for section in SECTIONS:
            run.define_metric(f"{section}/*", step_metric=SAMPLES)
        run.define_metric("headline/loss", step_metric=SAMPLES, summary="min")

    def log(self, step: int, metrics: Mapping[str, float], best: Sequence[str] = ()) -> None:
        """See `Board`."""
        for name in best:
            if name not in self._defined:
                self.run.define_metric(name, step_metric=SAMPLES, summary="max")
                self._defined.add(name)
        self.run.log(dict(metrics), step=step)

    def images(self, step: int, images: Sequence[ExampleImage]) -> None:
        """A table of images with their texts; those with regions also as images whose boxes can be switched on and
        off by class and by score."""
        import wandb

        columns = list(dict.fromkeys(chain.from_iterable(image.texts for image in images)))
        rows = [
            [wandb.Image(str(image.path)), image.path.stem, *(image.texts.get(column, "") for column in columns)]
            for image in images
        ]
        logged: dict[str, Any] = {"eval/examples": wandb.Table(columns=["image", "name", *columns], data=rows)}
        boxed = [self._boxed(image) for image in images if image.clean is not None]
        if boxed:
            logged["eval/regions"] = boxed
        self.run.log(logged, step=step)

    def alert(self, title: str, text: str) -> None:
        """See `Board`; of one title at most one in ALERT_EVERY_S."""
        self.run.alert(title, text, level="WARN", wait_duration=ALERT_EVERY_S)

    def close(self, failed: bool) -> None:
        """Waits FINISH_S at most for what is still to be uploaded."""
        self.run.finish(exit_code=int(failed))

    def _boxed(self, image: ExampleImage) -> wandb.Image:
        import wandb

        labels = sorted({str(region["label"]) for region in image.regions})
        names = dict(enumerate(labels))
        boxes: dict[str, Any] = {}
        for region in image.regions:
            x0, y0, x1, y1 = region["box"]
            entry: dict[str, Any] = {
                "position": {"minX": x0, "minY": y0, "maxX": x1, "maxY": y1},
                "domain": "pixel",
                "class_id": labels.index(str(region["label"])),
                "box_caption": str(region["label"]),
            }
            if region.get("score") is not None:
                entry["scores"] = {"score": region["score"]}
                entry["box_caption"] += f" {region['score']:.2f}"
            kind = boxes.setdefault(region["kind"], {"box_data": [], "class_labels": names})
            kind["box_data"].append(entry)
        return wandb.Image(str(image.clean), boxes=boxes, caption="; ".join(image.texts.values()))


def start_wandb(
    folder: Path, config: Mapping[str, Any], mode: Literal["online", "offline"], project: str, about: About
) -> WandbBoard | None:
    """A W&B run in `folder`, or None where there is no package, WANDB_MODE=disabled or W&B cannot begin. Without a
    network it takes seconds, with a server that does not answer a few more than INIT_S."""
    try:
        import wandb
    except ImportError:
        print("tracking.wandb: the wandb package is not installed; metrics.jsonl only", file=sys.stderr)
        return None
    wanted = os.environ.get("WANDB_MODE", mode)
    if wanted == "disabled":
        return None
    attempts: list[Literal["online", "offline"]] = ["online", "offline"] if wanted == "online" else ["offline"]
    for attempt in attempts:
        try:
            settings = _settings(folder, project, about)
            if attempt == "online" and not (_has_key(common := wandb.setup().settings) and _answers(common.base_url)):
                print("tracking.wandb: no key or no network; going on offline (`wandb sync` later)", file=sys.stderr)
                continue
            settings.mode = attempt
            if attempt == "online" and "WANDB_RESUME" not in os.environ:
                settings.resume = "allow"
            return WandbBoard(wandb.init(config=dict(config), settings=settings))
        except Exception as error:  # whatever it is, it must not stop a training run
            print(f"tracking.wandb: {attempt} failed ({error!r:.200})", file=sys.stderr)
        with suppress(Exception, SystemExit):
            wandb.teardown()  # of a start that failed, which has the run's id until then
    return None


def _settings(folder: Path, project: str, about: About) -> wandb.Settings:
    """Those of a run of W&B that the environment does not have."""
    import wandb

    file = folder / "wandb" / "id"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    ours = {  # variable -> setting of that meaning, ours where the variable is not set
        "WANDB_PROJECT": ("project", project),
        "WANDB_NAME": ("run_name", folder.name),
        "WANDB_RUN_GROUP": ("run_group", about.group or None),
        "WANDB_JOB_TYPE": ("run_job_type", about.job_type or None),
        "WANDB_TAGS": ("run_tags", tuple(dict.fromkeys(tag[:TAG_LENGTH] for tag in about.tags if tag)) or None),
        "WANDB_DIR": ("root_dir", str(folder)),
        "WANDB_RUN_ID": ("run_id", file.read_text().strip()),
        "WANDB_SILENT": ("silent", True),
        "WANDB_INIT_TIMEOUT": ("init_timeout", INIT_S),
        "WANDB_FINISH_TIMEOUT": ("finish_timeout", FINISH_S),
        "WANDB_FINISH_TIMEOUT_RAISES": ("finish_timeout_raises", True),
    }
    return wandb.Settings(
        **{key: value for name, (key, value) in ours.items() if name not in os.environ and value is not None}
    )


def _has_key(settings: Any) -> bool:
    """Whether W&B has a key or a token for its server, of the environment, its own settings or .netrc: without one
    it would ask at the terminal."""
    if settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    given = os.environ.get("NETRC")
    for file in [given] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(OSError, NetrcParseError):
            return netrc(file).authenticators(urlsplit(settings.base_url).netloc) is not None
    return False


def _answers(url: str) -> bool:
    """Whether a server answers within three seconds, through the proxy of the environment if there is one."""
    try:
        urlopen(url, timeout=3.0).close()
    except (OSError, ValueError) as error:  # HTTP's errors are answers; W&B may know the certificate
        return isinstance(error, HTTPError) or isinstance(getattr(error, "reason", None), ssl.SSLError)
    return True
