"""`RUN/report/`: a run on one page that opens without a server.

index.html and report.js are the page, data.js what it shows, thumbs/ small images. Everything that comes from outside
(names of classes, captions, answers) is data and is put on the page as text alone.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fiber import distributed
from fiber.data.shards import ShardSet
from fiber.errors import KnownError, without_secrets
from fiber.evaluation.context import EVALUATED
from fiber.evaluation.report_curves import curves, marks
from fiber.evaluation.report_parts import Part, ReportItem, mistakes
from fiber.evaluation.report_regions import region_part
from fiber.evaluation.report_texts import image_part
from fiber.evaluation.report_thumbnails import Thumbnails

IMAGES = 1000  # tiles of all galleries together
BUDGET = 6_000_000  # bytes of all thumbnails together
PAGE = ("index.html", "report.js")
ENTRY = {"name", "path", "field", "folder", "images", "figures", "fingerprint"}  # of a set that was evaluated

# What a figure has to beat: another figure of the same evaluation, by the ends of their names.
BASELINES = {
    "grounding_r1": "class_agnostic_r1",
    "grounding_r5": "class_agnostic_r5",
    "grounding_r10": "class_agnostic_r10",
    "accuracy": "majority_accuracy",
    "top1": "majority_top1",
    "cider": "constant_cider",
    "t2i_r1": "chance_t2i_r1",
    "reranked_t2i_r1": "t2i_r1",
    "reranked_i2t_r1": "i2t_r1",
    "joint_t2i_r1": "t2i_r1",
    "joint_i2t_r1": "i2t_r1",
    "itm_loss": "itm_prior",
}
HEADLINE = (
    "ap",
    "ap50",
    "ap75",
    "lvis_ap",
    "fixed_ap",
    "referring_p1",
    "i2t_r1",
    "r_mean",
    "zero_shot_top1",
    "detect_f1",
)


class ReportError(KnownError, ValueError):
    """A folder of which no report can be made; the message says why."""


def report_of_run(run: str | Path) -> None:
    """Make RUN/report at the end of a run, on rank 0; the other ranks go on. What goes wrong is one line on stderr:
    no run is lost for its report."""
    if not distributed.is_main():
        return
    try:
        page = make_report(run)
        print(f"report: {page}", file=sys.stderr)
    except Exception as error:  # whatever it is: the run itself is finished, and whole
        print(
            f"no report was made ({type(error).__name__}: {error}); `fiber report {run}` tries again", file=sys.stderr
        )


def make_report(run: str | Path, out: str | Path | None = None, images: int = IMAGES) -> Path:
    """Write the report of a run directory to `out` (default: RUN/report) -> its index.html.

    images: tiles of all galleries together, the worst first. Raises ReportError where the folder is no run, where
    `out` holds something else, or where the sets of the evaluation are not there any more.
    """
    run, out = Path(run), Path(out or Path(run) / "report")
    if not (run / "metrics.jsonl").is_file() and not (run / "predictions" / EVALUATED).is_file():
        raise ReportError(f"{run} is no run directory: it has neither metrics.jsonl nor predictions/{EVALUATED}")
    if out.exists() and any(out.iterdir()) and not (out / "data.js").is_file():
        raise ReportError(f"{out} holds something else than a report; choose another folder with --out")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    data = run_facts(run)
    data["parts"] = [part for _, part in _parts(run, data, partial, images)]
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A line of a script; no text in it can end the script.
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    (partial / "data.js").write_text(f"const REPORT = {text};\n", encoding="utf-8")
    for name in PAGE:
        page = resources.files("fiber.evaluation").joinpath("report_page", name)
        (partial / name).write_bytes(page.read_bytes())
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
    return out / "index.html"


def run_facts(run: Path) -> dict[str, Any]:
    """What is known of the run itself: name, task, steps, headline figures beside their baselines, curves."""
    config = _read(run / "config.yaml", yaml.safe_load)
    summary, evaluated = _read(run / "summary.json", json.loads), _read(run / "predictions" / EVALUATED, json.loads)
    _check(run, summary, evaluated)
    figures = dict(summary.get("eval") or {})
    for entry in () if figures else evaluated.get("sets", ()):
        figures |= {f"{entry['name']}/{key}": value for key, value in entry["figures"].items()}
    facts = {
        "task": config.get("task", "pretrain" if "pretrain" in config else "regions"),
        "steps": summary.get("steps"),
        "status": "finished" if summary else "not finished",
        "evaluated at step": evaluated.get("step"),
    }
    if best := summary.get("best"):
        facts["best step"] = f"{best['step']} (by {best.get('figure')})"
    return {
        "name": run.resolve().name,
        "facts": [[name, value] for name, value in facts.items() if value is not None],
        "headline": headline(figures),
        "figures": [[name, value] for name, value in figures.items() if value != -1],
        "curves": _curves(run / "metrics.jsonl"),
        "marks": marks(config),
        "sets": evaluated.get("sets", []),
        "warning": _warning(summary, evaluated),
    }


def _check(run: Path, summary: dict[str, Any], evaluated: dict[str, Any]) -> None:
    """Raises ReportError naming the file that is not as a run writes it."""
    best = summary.get("best") or {}
    if not isinstance(summary.get("eval") or {}, dict) or not isinstance(best, dict) or (best and "step" not in best):
        raise ReportError(f"{run / 'summary.json'} is damaged; the run's own command writes it again")
    sets = evaluated.get("sets", [])
    whole = isinstance(sets, list) and all(isinstance(entry, dict) and entry.keys() >= ENTRY for entry in sets)
    if evaluated and not (whole and "step" in evaluated):
        raise ReportError(f"{run / 'predictions' / EVALUATED} is damaged; evaluate the run again")


def _curves(path: Path) -> list[dict[str, Any]]:
    try:
        return curves(path)
    except ValueError as error:
        raise ReportError(str(error)) from None


def headline(figures: dict[str, float]) -> list[list[Any]]:
    """[name, figure, baseline or None, the baseline's name] of what counts, in the order of the evaluation."""
    rows: list[list[Any]] = []
    for name, value in figures.items():
        prefix, slash, key = name.rpartition("/")
        other = f"{prefix}{slash}{BASELINES.get(key, '')}"
        if key in BASELINES and other in figures:
            rows.append([name, value, figures[other], BASELINES[key]])
        elif key in HEADLINE or key in BASELINES:
            rows.append([name, value, None, ""])
    return rows


def _warning(summary: dict[str, Any], evaluated: dict[str, Any]) -> str:
    """Where the figures and the images are not of the same weights."""
    best = (summary.get("best") or {}).get("step")
    if not evaluated:
        return "This run has no predictions: it evaluates nothing, or an older version did it (evaluate it again)."
    if best is not None and best != evaluated.get("step"):
        return (
            f"The headline is that of step {best}, the best one; images and tables below are of step "
            f"{evaluated['step']}, which was evaluated last."
        )
    return ""


def _parts(run: Path, data: dict[str, Any], folder: Path, images: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The part of every set that was evaluated, as plain data."""
    sets = data.pop("sets")
    share = max(images // max(len(sets), 1), 1)
    thumbnails = Thumbnails(folder, min(images, sum(min(entry["images"], share) for entry in sets)), BUDGET)
    for entry in sets:
        try:
            shards = ShardSet(entry["path"]).view(entry["name"])
        except KnownError as error:
            kept = f" (what is secret of a URL is not in {EVALUATED}: add it)" if "://" in entry["path"] else ""
            what = f"set {entry['name']} of the evaluation: {without_secrets(str(error))}{kept}"
            raise ReportError(what) from None
        rows = run / "predictions" / entry["folder"]
        regions = (rows / f"{entry['name']}_{entry['field']}.jsonl").is_file()
        part = (region_part if regions else image_part)(shards, entry["field"], rows)
        if part is None:
            continue
        if shards.fingerprint != entry["fingerprint"]:
            part.notes.append("The set has changed since it was evaluated.")
        yield entry["name"], _plain(part, entry, shards, thumbnails, share)


def _plain(part: Part, entry: dict[str, Any], shards: ShardSet, thumbnails: Thumbnails, most: int) -> dict[str, Any]:
    """A part as the page reads it, with thumbnails for the `most` worst items."""
    worst = sorted(part.items, key=lambda item: -item.error)[:most]
    facts = [
        ["set", entry["name"]],
        ["annotations", entry["field"]],
        ["images", entry["images"]],
        ["shown", f"{len(worst)} of {len(part.items)}, the worst first"],
        ["classes", len(shards.categories) or None],
        ["where", Path(without_secrets(entry["path"])).name],
    ]
    return {
        "title": f"{entry['name']}: {part.title}",
        "error": part.error,
        "facts": [fact for fact in facts if fact[1] is not None],
        "notes": part.notes,
        "mistakes": [[name, count] for name, count in mistakes(part.items).most_common()],
        "tables": part.tables,
        "charts": part.charts,
        "matrix": part.matrix,
        "items": [_tile(item, thumbnails, shards) for item in worst],
    }


def _tile(item: ReportItem, thumbnails: Thumbnails, shards: ShardSet) -> dict[str, Any]:
    """An item as the page reads it; boxes in tenths of a pixel are enough."""
    beside = [] if item.other is None else thumbnails.of(shards, item.other)
    return {
        "id": shards.record(item.sample)["image_id"],
        "images": thumbnails.of(shards, item.sample) + beside,
        "error": round(item.error, 4),
        "tags": dict(item.tags),
        "classes": list(item.classes),
        "lines": [list(line) for line in item.lines],
        "size": list(item.size),
        "score": round(item.score, 4),
        "boxes": [[[round(x, 1) for x in box], *rest] for box, *rest in _short(item.boxes)],
    }


def _short(boxes: Iterable[tuple]) -> Iterator[tuple]:
    for box, kind, state, label, score in boxes:
        yield box, kind, state, label, round(score, 4)


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """A small file of the run, {} where it is not there or damaged."""
    try:
        found = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
