"""What was found in many images, as files that other tools read: JSON, JSON lines, Parquet, COCO.

A result is the plain data of one image: `image`, `width`, `height` (px) and what the verb found. All writers take the
results one by one, and put the file in its place when it is whole.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from fiber.predict.stream import in_groups

Result = dict[str, Any]
COCO, PARQUET, LINES, LIST = ".coco.json", ".parquet", ".jsonl", ".json"
COCO_VERBS = ("caption", "ground", "refer", "detect", "label")
ROWS = 1024  # of Parquet written at a time


def kind_of_file(out: Path) -> str | None:
    """The kind of table that a name asks for by its ending; None for a name that is none of a table."""
    return next((ending for ending in (COCO, PARQUET, LINES, LIST) if out.name.endswith(ending)), None)


def write_table(out: Path, results: Callable[[], Iterable[Result]], classes: Sequence[str] = ()) -> None:
    """Write all results to `out` in the form that its name asks for. `results()` gives them from the first one on, as
    often as it is called; `classes`: the categories of a COCO file, before those that only the results name.

    Raises OSError, and ValueError where pyarrow is missing for Parquet.
    """
    kind = kind_of_file(out)
    if kind == PARQUET:
        return _write_parquet(out, results())
    with _aside(out) as file:
        if kind == LINES:
            file.writelines(f"{_json(result)}\n" for result in results())
        elif kind == LIST:
            for number, result in enumerate(results()):
                file.write(("[\n" if number == 0 else ",\n") + _json(result))
            file.write("\n]\n")
        else:
            _write_coco(file, results, classes)
    return None


def rounded(value: Any, key: str = "") -> Any:
    """Plain data with boxes to a tenth of a pixel and every other number to four digits behind the point."""
    if isinstance(value, dict):
        return {name: rounded(entry, name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, key) for entry in value]
    return round(value, 1 if key == "box" else 4) if isinstance(value, float) else value


def parquet() -> tuple[Any, Any]:
    """(pyarrow, pyarrow.parquet). Raises ValueError that says how to install it."""
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install pyarrow (or give --out another ending)") from None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _aside(out: Path) -> Iterator[TextIO]:
    """A text file under another name, renamed when it is whole."""
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------- COCO


def _write_coco(file: TextIO, results: Callable[[], Iterable[Result]], classes: Sequence[str]) -> None:
    """COCO's object detection format, or of captions its caption format: images, annotations, categories."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(classes), start=1)}
    file.write('{"images": [')
    for number, result in enumerate(results(), start=1):
        image = {"id": number, "file_name": result["image"], "width": result["width"], "height": result["height"]}
        file.write(("\n" if number == 1 else ",\n") + _json(image))
        for region in result.get("regions", ()):
            numbers.setdefault(region["label"], len(numbers) + 1)
    file.write('\n],\n"annotations": [')
    count = 0
    for number, result in enumerate(results(), start=1):
        for annotation in chain(_boxes(result, numbers), _captions(result)):
            count += 1
            file.write(("\n" if count == 1 else ",\n") + _json({"id": count, "image_id": number} | annotation))
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    file.write(f'\n],\n"categories": {_json(categories)}}}\n')


def _boxes(result: Result, numbers: dict[str, int]) -> Iterator[Result]:
    for region in result.get("regions", ()):
        x0, y0, x1, y1 = region["box"]
        width, height = round(x1 - x0, 1), round(y1 - y0, 1)
        yield {
            "category_id": numbers[region["label"]],
            "bbox": [x0, y0, width, height],
            "area": round(width * height, 2),
            "iscrowd": 0,
            "score": region["score"],
        }


def _captions(result: Result) -> Iterator[Result]:
    for caption in result.get("captions", ())[:1]:
        yield {"caption": caption["text"], "score": caption["score"]}


# ---------------------------------------------------------------------------------------------- Parquet


def _write_parquet(out: Path, results: Iterable[Result]) -> None:
    """One row per image. Columns have one type in all files, whatever the first images show."""
    pa, pq = parquet()
    scored = pa.list_(pa.struct([("text", pa.string()), ("score", pa.float64())]))
    region = [("box", pa.list_(pa.float64())), ("score", pa.float64()), ("label", pa.string())]
    types = {
        "width": pa.int32(),
        "height": pa.int32(),
        "probability": pa.float64(),
        "similarity": pa.float64(),
        "regions": pa.list_(pa.struct([*region, ("span", pa.list_(pa.int32()))])),
    } | dict.fromkeys(("captions", "answers", "classes"), scored)
    partial, writer = out.with_name(f"{out.name}.{os.getpid()}.partial"), None
    try:
        for group in in_groups(results, ROWS):
            if writer is None:
                schema = pa.schema([(name, types.get(name, pa.string())) for name in group[0]])
                writer = pq.ParquetWriter(partial, schema)
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
        if writer is not None:
            writer.close()
            os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
