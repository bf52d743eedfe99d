"""Seeded damage to files of every kind: bytes, JSON trees, members of tars, arrays of an index, YAML, images."""

from __future__ import annotations

import copy
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Rng = np.random.Generator

# What stands in for a value of JSON: other types, limits, names that are paths or commands, and text of every kind.
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 10**9, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "abc", "0",
    "1", "../../../evil", "/tmp/evil", "a;touch pwned", "$(touch pwned)", "a/b", "a\\b", "\0", "\ud800", "é木🚗",
    "x" * 70_000, [], [None], [[]], [1, 2], ["a"], {}, {"a": 1}, {"id": None}, "-1", "1e400",
    "!!python/object:os.system",
)  # fmt: skip


def deep(levels: int = 100_000, opening: str = "[") -> bytes:
    """Nested brackets, closed."""
    closing = {"[": "]", "{": "}"}[opening]
    unit = opening if opening == "[" else '{"a":'
    return (unit * levels + ("1" if opening == "{" else "") + closing * levels).encode()


def some_bytes(rng: Rng, data: bytes) -> bytes:
    """Bits flipped, cut, doubled, replaced, or swapped."""
    if not data:
        return rng.bytes(10)
    at = int(rng.integers(len(data)))
    match rng.integers(9):
        case 0:
            return data[:at]
        case 1:
            flipped = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 9)).tolist():
                flipped[place] ^= 1 << int(rng.integers(8))
            return bytes(flipped)
        case 2:
            return data[:at] + bytes(int(rng.integers(1, 3000))) + data[at:]
        case 3:
            return data[:at] + data[at + int(rng.integers(1, 600)) :]
        case 4:
            return data[:at] + rng.bytes(int(rng.integers(1, 400))) + data[at:]
        case 5:
            return data[at:]
        case 6:
            return data + data[:at]
        case 7:
            return b""
        case _:
            return (b"\xff\xfe" + data.decode("latin-1").encode("utf-16-le"))[:200_000]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value of a JSON tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in list(inner):
            found.append((node, key))
            waiting.append(value)
    return found


def some_json(rng: Rng, data: bytes) -> bytes:
    """One to three values of a JSON text replaced, removed, doubled, renamed; sometimes nested without end."""
    try:
        tree = json.loads(data)
    except ValueError:
        return some_bytes(rng, data)
    if rng.random() < 0.03:
        return deep(opening="[" if rng.random() < 0.5 else "{")
    if rng.random() < 0.02:
        return data.replace(b": 1", b": " + b"9" * 5000, 1)
    for _ in range(int(rng.integers(1, 4))):
        places = _places(tree)
        if not places:
            break
        node, key = places[int(rng.integers(len(places)))]
        value = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        match rng.integers(5):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[str(value)[:50]] = node.pop(key)
            case 2 if isinstance(node, list):
                node.append(copy.deepcopy(node[key]))
            case 3 if isinstance(node[key], str):
                node[key] = some_bytes(rng, node[key].encode(errors="replace")).decode("utf-8", "replace")
            case _:
                node[key] = value
    text = json.dumps(tree, ensure_ascii=bool(rng.integers(2)))
    return text.encode("utf-8", "surrogatepass")


def some_json_lines(rng: Rng, data: bytes) -> bytes:
    """One line of JSON lines damaged, or removed, or the bytes."""
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    lines[at : at + 1] = [] if rng.random() < 0.2 else [some_json(rng, lines[at])]
    return b"\n".join(lines)


def some_tar(rng: Rng, data: bytes) -> bytes:
    """Members damaged, renamed, removed, doubled or turned into links and devices; or the bytes of the tar."""
    if rng.random() < 0.25:
        return some_bytes(rng, data)
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        members = old.getmembers()
        chosen = set(rng.integers(0, len(members), rng.integers(1, 3)).tolist())
        for number, member in enumerate(members):
            file = old.extractfile(member)
            content = file.read() if file else b""
            if number in chosen:
                match rng.integers(6):
                    case 0:
                        continue
                    case 1:
                        names = ("../../evil.jpg", "/tmp/evil.json", "a/b/c.jpg", ".json", "x", "é木.json", "a" * 300)
                        member.name = str(rng.choice(names))
                    case 2:
                        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
                        member.type, member.linkname = kinds[int(rng.integers(5))], "/etc/passwd"
                        content = b""
                    case 3:
                        new.addfile(member, io.BytesIO(content))
                    case 4 if rng.random() < 0.3:
                        member.pax_headers = {"GNU.sparse.map": "1e9", "size": "x", "path": "evil.json"}
                    case _:
                        content = (some_json if member.name.endswith("json") else some_bytes)(rng, content)
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return out.getvalue()


def some_npz(rng: Rng, data: bytes) -> bytes:
    """One array of an index with other values, type, shape or name; or the bytes."""
    if rng.random() < 0.4:
        return some_bytes(rng, data)
    with np.load(io.BytesIO(data)) as stored:
        arrays = dict(stored)
    name = sorted(arrays)[int(rng.integers(len(arrays)))]
    array = arrays[name].copy()
    match rng.integers(7):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = array[: len(array) // 2]
        case 2:
            arrays[name] = array.astype(np.float64)
        case 3:
            arrays[name] = np.zeros(int(rng.integers(0, 50)), array.dtype)
        case 4:
            arrays["more"] = array
        case _ if array.size:
            info = np.iinfo(array.dtype)
            array.flat[int(rng.integers(array.size))] = rng.choice([info.max, info.min, 0, 1, info.max // 2])
            arrays[name] = array
    out = io.BytesIO()
    (np.savez_compressed if rng.random() < 0.15 else np.savez)(out, **arrays)
    if rng.random() < 0.05:  # a small file that promises gigabytes
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            for each in arrays:
                archive.writestr(f"{each}.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, "
                                 b"'shape': (1000000000,), }".ljust(128) + bytes(10**6))  # fmt: skip
        return bomb.getvalue()
    return out.getvalue()


def some_yaml(rng: Rng, data: bytes) -> bytes:
    """One line of a YAML file with another value, indent or tag; or the bytes."""
    lines = data.decode().split("\n")
    at = int(rng.integers(len(lines)))
    value = VALUES[int(rng.integers(len(VALUES)))]
    odd = ("!!python/object/apply:os.system ['touch pwned']", "*x", "&x [*x]", "[" * 3000, "9" * 5000, ".nan", ".inf",
           "? [a, b]", "1e24", "{}", "---", "\t- a", "!!binary x", "<<: {a: 1}", "{[1]: 2}", "0x", "0o9")  # fmt: skip
    chosen = json.dumps(value)[:70_000] if rng.random() < 0.6 else str(rng.choice(odd))
    match rng.integers(5):
        case 0:
            return some_bytes(rng, data)
        case 1:
            del lines[at]
        case 2:
            lines.insert(at, "  " * int(rng.integers(4)) + f"a{rng.integers(9)}: {chosen}")
        case _:
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {chosen}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def some_xml(rng: Rng, data: bytes) -> bytes:
    """Entity bombs, unclosed tags, external entities; or the bytes."""
    if rng.random() < 0.6:
        return some_bytes(rng, data)
    bomb = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9)) + b"]><a>&j;</a>"  # fmt: skip
    outside = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
    return (bomb, outside, b"<a>" * 100_000, data.replace(b"<", b"<<", 1))[int(rng.integers(4))]


def some_checkpoint(rng: Rng, data: bytes) -> bytes:
    """One to three values of a checkpoint of torch replaced, removed, renamed or of another shape; or the bytes."""
    if rng.random() < 0.3:
        return some_bytes(rng, data)
    tree = torch.load(io.BytesIO(data))
    for _ in range(int(rng.integers(1, 4))):
        places = _places(tree)
        if not places:
            break
        node, key = places[int(rng.integers(min(len(places), 12) if rng.random() < 0.5 else len(places)))]
        match rng.integers(5):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[VALUES[int(rng.integers(24))]] = node.pop(key)
            case 2 if isinstance(node[key], torch.Tensor):
                node[key] = node[key][(0,) * int(rng.integers(1, 1 + node[key].ndim))] if node[key].ndim else None
            case 3 if isinstance(node[key], torch.Tensor):
                node[key] = node[key].reshape(-1)[: int(rng.integers(3))]
            case _:
                node[key] = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    out = io.BytesIO()
    torch.save(tree, out)
    return out.getvalue()


MUTATIONS: dict[str, Callable[[Rng, bytes], bytes]] = {
    ".json": some_json, ".jsonl": some_json_lines, ".tar": some_tar, ".npz": some_npz, ".yaml": some_yaml,
    ".xml": some_xml, ".ckpt": some_checkpoint, ".pth": some_checkpoint,
}  # fmt: skip


def damage(rng: Rng, path: Path) -> None:
    """Damages a file in place, by its kind; one time in five by its bytes alone. Rarely it is replaced by a folder or
    a link to nowhere."""
    if (kind := rng.random()) < 0.02:
        path.unlink()
        path.mkdir() if kind < 0.01 else path.symlink_to("nowhere")
        return
    by_kind = MUTATIONS.get(path.suffix, some_bytes)
    data = (some_bytes if rng.random() < 0.2 else by_kind)(rng, path.read_bytes())
    path.unlink()
    path.write_bytes(data)
