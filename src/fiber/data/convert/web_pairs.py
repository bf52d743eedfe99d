"""Images fetched from a list of (caption, url) rows, as the two tools in use lay them out, and any WebDataset tars.

img2dataset: numbered folders (or tars) with NAME.jpg, NAME.json (caption, url, status) and NAME.txt.
ViLT: images_train/0000/0000000 without extension, 1000 a folder, and train_annot.json = [[path, caption], ...];
without that file, the number in the name is the row of the original list, which has the captions.
Tars of any name: the members of a key (WebDataset's: all before the first dot of the base name) may lie anywhere in
the tar; the caption is the `caption` or `text` of KEY.json, else KEY.txt.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fiber.data.convert.image_folder import is_image
from fiber.data.convert.items import ConversionError, Drop, RawImage, RawItem, image_in
from fiber.data.convert.json_stream import iter_array
from fiber.data.convert.splits import files_of, own_names, subfolders
from fiber.data.convert.tar_end import missing_end
from fiber.data.indexing import split_member

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def find(
    folder: Path, source: str, annotations: list[Path], rows: Iterator[str | Drop] | None
) -> tuple[str, Iterator[RawItem | Drop]]:
    """(layout, items) of the images under ``folder``.

    annotations: where a ViLT annot.json may be. rows: captions of the original list, in order, if there is one, and
    a Drop for a row without. Raises ConversionError if no layout fits.
    """
    for path in annotations:
        if path.exists():
            return "vilt", _vilt(path, folder, source)
    if found := files_of(folder, "*.tar"):
        return "tars", tars(found, source)
    if next(folder.glob("[0-9]*/*.json"), None) or next(folder.glob("[0-9]*/*.txt"), None):
        return "img2dataset files", _files(folder, source)
    if rows is not None and folder.is_dir():
        return "rows", _rows(rows, folder, source)
    raise ConversionError(
        f"{folder}: neither img2dataset's folders nor tars, nor ViLT's tree with {annotations[0].name} "
        "(or the original list); see docs/data.md. For pairs of your own: fiber shards pairs"
    )


def _item(source: str, name: str, caption: object, image: RawImage) -> RawItem:
    texts = caption if isinstance(caption, list) else [caption]
    record = {"image_id": f"{source}_{name}", "source": source, "captions": [{"text": text} for text in texts]}
    return RawItem(record, (image,))


def _vilt(path: Path, folder: Path, source: str) -> Iterator[RawItem | Drop]:
    """The path in a row is the fetching machine's: what counts is its end, folder and name."""
    for row in iter_array(path):
        if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str):
            yield Drop("row malformed", source, f"{row!r:.200}")
            continue
        name, caption = row
        parts = Path(name).parts
        image = image_in([folder], os.path.join(*parts[-2:]), parts[-1]) if parts else RawImage(())
        yield _item(source, Path(name).stem, caption, RawImage((*image.paths, name)))


def _rows(rows: Iterator[str | Drop], folder: Path, source: str) -> Iterator[RawItem | Drop]:
    for number, caption in enumerate(rows):
        if isinstance(caption, Drop):
            yield caption
            continue
        names = [f"{number // 1000:04d}/{number:07d}{extension}" for extension in ("", *_IMAGES)]
        yield _item(source, f"{number:07d}", caption, image_in([folder], *names))


def _files(folder: Path, source: str) -> Iterator[RawItem | Drop]:
    """A row that was not fetched has a .json with its status and no image."""
    for shard in (path for path in subfolders(folder) if path.name.isdecimal()):
        names = {name for name in os.listdir(shard) if not name.startswith(".")}
        for stem in sorted({Path(name).stem for name in names}):
            about: dict[str, Any] = {}
            if f"{stem}.txt" in names:
                about = _text((shard / f"{stem}.txt").read_bytes(), f"{shard.name}/{stem}.txt")
            if f"{stem}.json" in names:
                about |= _sidecar((shard / f"{stem}.json").read_bytes(), f"{shard.name}/{stem}.json")
            image_name = next((f"{stem}{ext}" for ext in _IMAGES if f"{stem}{ext}" in names), None)
            image = RawImage((str(shard / image_name),)) if image_name else None
            yield _fetched(source, f"{shard.name}_{stem}", about, image)


def tars(
    paths: list[Path],
    source: str,
    image_key: str | None = None,
    text_key: str | None = None,
    names: Mapping[Path, str] | None = None,
) -> Iterator[RawItem | Drop]:
    """The pairs of tars. A second image under a key is left out and counted. image_key: how the names of images end
    after the key, e.g. "input.jpg"; text_key: those of texts, e.g. "txt", or "json:prompt" for a key in a JSON file;
    without them, all usual ones. names: of the tars, with which image ids begin."""
    names = names or own_names(paths)
    for path in paths:
        if not path.is_file():
            raise ConversionError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            magic = file.read(4)
        kinds = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
        if packed := next((kind for start, kind in kinds.items() if magic.startswith(start)), None):
            raise ConversionError(
                f"{path}: a tar compressed by {packed}: members must lie as they are; unpack it first"
            )
        try:
            with tarfile.open(path, "r:") as tar:
                yield from _tar(tar, path, names[path], source, image_key, text_key)
        except (tarfile.TarError, ValueError, OverflowError) as error:  # ValueError: of pax headers
            raise ConversionError(
                f"{path}: broken tar of {path.stat().st_size} bytes: {error}; fetch or make it again"
            ) from None


def _tar(
    tar: tarfile.TarFile, path: Path, name: str, source: str, image_key: str | None, text_key: str | None
) -> Iterator[RawItem | Drop]:
    image_end = image_key.lower().lstrip(".") if image_key else None
    text_end, _, text_field = (text_key or "").lstrip(".").partition(":")
    images: dict[str, RawImage | None] = {}
    others: dict[str, RawImage] = {}  # of formats that are not stored as they are
    about: dict[str, dict[str, Any]] = {}
    again: list[Drop] = []
    for member in tar:
        if not member.isfile():
            continue
        key, suffix = split_member(member.name.removeprefix("./"))
        extension = f".{suffix.rpartition('.')[2]}"
        found = about.setdefault(key, {})
        images.setdefault(key, None)
        if suffix == image_end or (image_end is None and extension in _IMAGES):
            if images[key] is None:
                images[key] = RawImage((str(path),), member.offset_data, member.size)
            else:
                again.append(Drop("second image of a key", f"{source}_{name}_{key}", f"{path.name}: {member.name}"))
        elif image_end is None and is_image(member.name):
            others.setdefault(key, RawImage((str(path),), member.offset_data, member.size))
        elif suffix == text_end.lower() or (not text_end and extension in (".json", ".txt")):
            content = tar.extractfile(member)
            data = content.read() if content else b""
            if extension == ".json":
                more = _sidecar(data, f"{path.name}/{member.name}", text_field)
            else:
                more = _text(data, f"{path.name}/{member.name}")
            # The first of a kind counts, as for images; the JSON's caption before the text's.
            about[key] = {**more, **found} if "seen" in found or extension != ".json" else {**found, **more}
            about[key] |= {"seen": True} if extension == ".json" else {}
    if damage := missing_end(path, tar.offset):
        raise tarfile.ReadError(damage)
    for key, image in images.items():
        yield _fetched(source, f"{name}_{key}", about[key], image or others.get(key))
    yield from again


def _text(data: bytes, name: str) -> dict[str, Any]:
    """What a text file says of an image, as `_sidecar`."""
    try:
        return {"caption": data.decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        return {"status": f"{name} is not in UTF-8: {error}"}


def _sidecar(data: bytes, name: str, key: str = "") -> dict[str, Any]:
    """What a JSON file says of an image, its caption under "caption"; where it is broken, that. key: of the caption,
    "" for the usual ones."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        return {"status": f"{name} is broken: {error}"}
    if not isinstance(value, dict):
        return {"status": f"{name} is no JSON object"}
    keys = (key,) if key else ("caption", "text", "captions", "texts", "sentence", "prompt", "description")
    value["caption"] = next((value[name] for name in keys if value.get(name)), None)
    if not value.get("caption"):
        value.pop("caption", None)
    return value


def _fetched(source: str, name: str, about: dict[str, Any], image: RawImage | None) -> RawItem | Drop:
    status = str(about.get("error_message") or about.get("status") or "")[:200]
    if image is None:
        return Drop("not fetched", f"{source}_{name}", status or "no image of that name")
    if not about.get("caption"):
        looked = "no caption or text in its .json, no .txt"
        return Drop("no caption", f"{source}_{name}", status or looked)
    return _item(source, name, about["caption"], image)
