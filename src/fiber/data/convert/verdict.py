"""What a conversion made, in the numbers that a user checks against his own, and what cannot be right about it."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from fiber.data.records import Record, clean_name

_MOST = 0.8
_FEW = 3  # boxes that are too few to tell
_SHOWN = 5  # classes, and pairs of classes that read the same


class Contents:
    """Counts over the records of detection sets; those of pieces add up."""

    def __init__(self, counts: dict[str, int] | None = None, per_class: dict[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts or {})
        self.per_class: Counter[str] = Counter(per_class or {})

    def add(self, record: Record) -> None:
        """Counts one stored record; one that is not annotated with boxes says nothing."""
        if "boxes" not in record:
            return
        boxes = record["boxes"]
        self.counts["images"] += 1
        self.counts["images_without"] += not boxes
        self.counts["boxes"] += len(boxes)
        for entry in boxes:
            x0, y0, x1, y1 = entry["box"]
            self.counts["crowd"] += bool(entry.get("crowd"))
            self.counts["under_a_pixel"] += x1 - x0 < 1 or y1 - y0 < 1
            if "category" in entry:
                self.per_class[str(entry["category"])] += 1

    def join(self, other: Contents) -> None:
        """Adds those of another piece."""
        self.counts += other.counts
        self.per_class += other.per_class

    def described(self, categories: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """{"images", "images_without", "boxes", "crowd", "under_a_pixel", "per_class": {name: boxes}}, most first;
        {} for a set without boxes."""
        if not self.counts["images"]:
            return {}
        names = {str(category["id"]): category["name"] for category in categories}
        keys = ("images", "images_without", "boxes", "crowd", "under_a_pixel")
        classes: Counter[str] = Counter()
        for key, count in self.per_class.items():
            classes[names.get(key, key)] += count
        return {**{key: self.counts[key] for key in keys}, "per_class": dict(classes.most_common())}


def warnings(
    boxes: dict[str, Any],
    categories: list[dict[str, Any]],
    prompts: bool = False,
    left_out: Mapping[str, int] | None = None,
    noted: Mapping[str, int] | None = None,
) -> list[str]:
    """What makes a set useless or odd although every entry of it could be stored. boxes: as `described`. prompts:
    whether class names stand in a context on purpose (`data.prompts.in_context`). left_out, noted: how often each
    reason of drops came."""
    found = []
    if boxes:
        total = boxes["boxes"]
        if not total:
            found.append("no image has a box: there is nothing to learn; are these the right annotations?")
        elif boxes["crowd"] == total:
            found.append("every box is a crowd region (iscrowd: 1), which training leaves out: there is nothing to "
                         "learn; set iscrowd to 0 where a box is one object")  # fmt: skip
        elif (tiny := boxes["under_a_pixel"]) >= _MOST * total:
            found.append(f"{tiny:,} of {total:,} boxes are smaller than a pixel: are they fractions of the image? "
                         "Pixels are expected")  # fmt: skip
        found += _odd(total, left_out or {}, noted or {})
    marked = [entry["name"] for entry in categories if set("[]") & set(entry["name"])]
    if marked and not prompts:
        names = ", ".join(map(repr, marked[:_SHOWN]))
        found.append(f"of class names with [brackets] the words in them alone stand for the class: {names}")
    numbers = [entry["name"] for entry in categories if entry["name"].strip().isdecimal()]
    if numbers and not prompts:
        names = ", ".join(numbers[:_SHOWN])
        found.append(f"class names that are numbers say nothing to the model: {names}; give words by --classes FILE, "
                     "lines `0 = coffee cup`")  # fmt: skip
    if categories:
        found += _same_words(categories)
    return found


def _odd(total: int, left_out: Mapping[str, int], noted: Mapping[str, int]) -> list[str]:
    """What boxes that do not fit their images say of the form that they are in. total: stored boxes."""
    outside, flat = left_out.get("box outside the image", 0), left_out.get("box without area", 0)
    over, every = outside + noted.get("box clipped to the image", 0), total + outside + flat
    found = []
    if over >= max(_FEW, every / 2):
        found.append(f"{over:,} of {every:,} boxes leave their image: are they corners where [x, y, width, height] "
                     "is expected, or are these other images?")  # fmt: skip
    if flat >= max(_FEW, every / 4):
        found.append(f"{flat:,} of {every:,} boxes have no area: are they [x, y, width, height] where corners are "
                     "expected?")  # fmt: skip
    return found


def _same_words(categories: list[dict[str, Any]]) -> list[str]:
    classes: dict[str, list[str]] = defaultdict(list)
    for category in categories:
        classes[clean_name(category["name"]).casefold()].append(f"{category['name']!r} (id {category['id']})")
    same = [" and ".join(which) for which in classes.values() if len(which) > 1]
    more = f", and {len(same) - _SHOWN} more" if len(same) > _SHOWN else ""
    text = f"classes that read the same in a prompt: {'; '.join(same[:_SHOWN])}{more}; rename or merge them"
    return [text] if same else []


def sentence(boxes: dict[str, Any]) -> str:
    """`described` in one line."""
    most = ", ".join(f"{name} {count:,}" for name, count in list(boxes["per_class"].items())[:_SHOWN])
    others = len(boxes["per_class"]) - _SHOWN
    most += f" and {others} more classes" if others > 0 else ""
    crowd = f", {boxes['crowd']:,} of them crowd regions" if boxes["crowd"] else ""
    return (f"{boxes['boxes']:,} boxes in {boxes['images'] - boxes['images_without']:,} images{crowd}; "
            f"{boxes['images_without']:,} images without" + (f"; {most}" if most else ""))  # fmt: skip


def report(summary: dict[str, Any], notes: list[str]) -> None:
    """Prints a summary of `engine.convert`, warnings to stderr."""
    _say(f"{summary['name']} {summary['split']}: {summary['samples']:,} samples of {summary['items']:,} items in "
          f"{summary['shards']} shards, {summary['bytes'] / 1e6:,.1f} MB -> {summary['out']}")  # fmt: skip
    for field, count in summary["annotations"].items():
        if field != "boxes" or "boxes" not in summary:
            _say(f"  {count:>10,} {field}")
    if "boxes" in summary:
        _say(f"  {sentence(summary['boxes'])}")
    for warning in summary.get("warnings", ()):
        _say(f"warning: {warning}", file=sys.stderr)
    for title, reasons in (("left out", summary["dropped"]), ("kept but noted", summary["noted"])):
        for reason, found in reasons.items():
            _say(f"  {found['count']:>10,} {title}: {reason}, e.g. {found['examples'][0]}")
    for note in notes:
        _say(f"  note: {note}")


def _say(text: str, file: TextIO | None = None) -> None:
    """Prints a line; what no terminal can show (half of a surrogate pair) as its escape."""
    print(text.encode("utf-8", "backslashreplace").decode(), file=file)
