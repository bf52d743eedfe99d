"""Images fetched from a list of (caption, url) rows, as the two tools in use lay them out.

img2dataset: numbered folders (or tars) with NAME.jpg, NAME.json (caption, url, status) and NAME.txt.
ViLT: images_train/0000/0000000 without extension, 1000 a folder, and train_annot.json = [[path, caption], ...];
without that file, the number in the name is the row of the original list, which has the captions.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem, image_in
from fiber.data.convert.json_stream import iter_array

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def find(folder: Path, source: str, annotations: list[Path], rows: Iterator[str] | None) -> tuple[str, Iterator]:
    """(layout, items) of the images under ``folder``.

    annotations: where a ViLT annot.json may be. rows: captions of the original list, in order, if there is one.
    Raises ConversionError if no layout fits.
    """
    for path in annotations:
        if path.exists():
            return "vilt", _vilt(path, folder, source)
    if any(folder.glob("[0-9]*.tar")):
        return "img2dataset tars", _tars(folder, source)
    if next(folder.glob("[0-9]*/*.json"), None) or next(folder.glob("[0-9]*/*.txt"), None):
        return "img2dataset files", _files(folder, source)
    if rows is not None and folder.is_dir():
        return "rows", _rows(rows, folder, source)
    raise ConversionError(
        f"{folder}: neither img2dataset's folders or tars, nor ViLT's tree with {annotations[0].name} "
        "(or the original list); see docs/data.md"
    )


def _item(source: str, name: str, caption: object, image: RawImage) -> RawItem:
    record = {"image_id": f"{source}_{name}", "source": source, "captions": [{"text": caption}]}
    return RawItem(record, (image,))


def _vilt(path: Path, folder: Path, source: str) -> Iterator[RawItem]:
    """The path in a row is the fetching machine's: what counts is its end, folder and name."""
    for name, caption in iter_array(path):
        parts = Path(name).parts
        image = image_in([folder], os.path.join(*parts[-2:]), parts[-1])
        yield _item(source, Path(name).stem, caption, RawImage((*image.paths, name)))


def _rows(rows: Iterator[str], folder: Path, source: str) -> Iterator[RawItem]:
    for number, caption in enumerate(rows):
        names = [f"{number // 1000:04d}/{number:07d}{extension}" for extension in ("", *_IMAGES)]
        yield _item(source, f"{number:07d}", caption, image_in([folder], *names))


def _files(folder: Path, source: str) -> Iterator[RawItem | Drop]:
    """A row that was not fetched has a .json with its status and no image."""
    for shard in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()):
        names = {name for name in os.listdir(shard) if not name.startswith(".")}
        for stem in sorted({Path(name).stem for name in names}):
            about: dict = {}
            if f"{stem}.json" in names:
                about = _sidecar((shard / f"{stem}.json").read_bytes(), f"{shard.name}/{stem}.json")
            elif f"{stem}.txt" in names:
                about = {"caption": (shard / f"{stem}.txt").read_text(encoding="utf-8", errors="replace")}
            image_name = next((f"{stem}{ext}" for ext in _IMAGES if f"{stem}{ext}" in names), None)
            image = RawImage((str(shard / image_name),)) if image_name else None
            yield _fetched(source, f"{shard.name}_{stem}", about, image)


def _tars(folder: Path, source: str) -> Iterator[RawItem | Drop]:
    for path in sorted(folder.glob("[0-9]*.tar")):
        try:
            with tarfile.open(path, "r:") as tar:
                for stem, members in itertools.groupby(tar, lambda member: member.name.partition(".")[0]):
                    about, image = {}, None
                    for member in members:
                        extension = os.path.splitext(member.name)[1].lower()
                        if extension == ".json":
                            content = tar.extractfile(member)
                            about = _sidecar(content.read() if content else b"", f"{path.name}/{member.name}")
                        elif extension in _IMAGES:
                            image = RawImage((str(path),), member.offset_data, member.size)
                    yield _fetched(source, f"{path.stem}_{stem}", about, image)
        except tarfile.TarError as error:
            raise ConversionError(f"{path}: broken tar: {error}; fetch it again") from None


def _sidecar(data: bytes, name: str) -> dict:
    try:
        return json.loads(data)
    except ValueError as error:
        return {"status": f"{name} is broken: {error}"}


def _fetched(source: str, name: str, about: dict, image: RawImage | None) -> RawItem | Drop:
    if image is None:
        return Drop("not fetched", f"{source}_{name}", str(about.get("error_message") or about.get("status") or ""))
    if not about.get("caption"):
        return Drop("no caption", f"{source}_{name}", str(about.get("status", "")))
    return _item(source, name, about["caption"], image)
