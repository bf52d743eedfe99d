"""The names that a set has for its images, told apart, and whose of them a file is."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np

from fiber.data.convert.image_folder import ImageFolder, bare_parts, hashed, is_image, plain
from fiber.data.convert.items import RawImage


class FileNames:
    """What the names of all images of a set tell together: which repeat, and whose a file is. 32 bytes per name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._read(np.array(array("Q", chain.from_iterable(map(marks, names))), np.uint64).reshape(-1, 4))

    @classmethod
    def of_marks(cls, found: np.ndarray) -> FileNames:
        """Of the `marks` of every image, uint64 (N, 4)."""
        names = cls.__new__(cls)
        names._read(found)
        return names

    def _read(self, found: np.ndarray) -> None:
        stems, bases, wholes, written = found.T
        self._stems, self._bases = _repeated(stems), _repeated(bases)
        self._all_stems, self._wholes, self._written = map(np.unique, (stems, wholes, written))

    def image_id(self, set_name: str, name: str) -> str:
        """SET_STEM; where several images have that stem, SET_ and the whole name."""
        stem = _bare(_base(name))
        return f"{set_name}_{name.replace(chr(92), '/') if marks(name)[0] in self._stems else stem}"

    def find(self, folder: ImageFolder, name: str) -> RawImage:
        """The image's file."""
        return folder.find(name, marks(name)[1] not in self._bases, self._taken(name))

    def find_of(self, folder: ImageFolder, annotation: str, own: str, named: str, trusted: bool = False) -> RawImage:
        """The image of an annotation file: called like it in the same folder, or below a root where the file lies
        below the annotations; else the one that it names, or that ends like the file.

        own: NAME/INNER, the file's path below a folder called NAME without its ending; the set's names are of this
        form. named: what the file says, which many tools leave as it once was. trusted: it comes first.
        """
        inside, inner = os.path.dirname(annotation), own.partition("/")[2]
        stem, base, taken = os.path.basename(own), _base(named), self._taken(own)
        beside = [os.path.join(inside, stem)] if folder.holds(inside) else []
        places = list(dict.fromkeys([*beside, *(os.path.join(root, inner) for root in folder.roots)]))
        same = [os.path.join(os.path.dirname(place), base) for place in places] if _bare(base) == stem else []
        said = (
            [os.path.join(inside, named.replace("\\", "/"))] if beside and plain(named) and "\0" not in named else []
        )
        if (
            there := next((path for path in [*said[: int(trusted)], *same] if os.path.isfile(path)), None)
        ) is not None:
            return RawImage((there,))
        for place in places:
            if len(found := folder.of_stem(place)) == 1:
                return RawImage((found[0],))
        if said and self._is_free(said[0], stem):
            return RawImage((said[0],))
        unique, missing = hashed(stem) not in self._stems, RawImage((*said, *same, *places))
        image = folder.find(own, unique, taken)
        if os.path.isfile(image.paths[0]):
            return image
        if "\0" in named or not plain(named):
            return missing
        other = folder.find(named, unique, taken)
        return other if self._is_free(other.paths[0], stem) else missing

    def _is_free(self, path: str, stem: str) -> bool:
        """Whether a file is there, and not called like another name than that with this stem."""
        other = _bare(_base(path))
        return os.path.isfile(path) and (other == stem or not _is_in(hashed(other), self._all_stems))

    def _taken(self, own: str) -> Callable[[str, int], bool]:
        """Whether another name than ``own`` is the end of a file's path, of at least so many parts."""
        mine, written = plain(own.strip()), _written(own.strip())

        def taken(path: str, common: int) -> bool:
            there = path.split(os.sep)
            for end in ("/".join(there[-count:]) for count in range(common, len(there) + 1)):
                if end != written and _is_in(hashed(end), self._written):
                    return True
            parts = plain(path)
            for form in (parts, bare_parts(path)):
                for count in range(common, len(form) + 1):
                    if form[-count:] != mine and _is_in(hashed("/".join(form[-count:])), self._wholes):
                        return True
            return False

        return taken


def marks(name: str) -> tuple[int, int, int, int]:
    """Hashes of a name's stem, of its last part in one case, and of the whole of it in one form and as written."""
    name = name.strip()
    base = _base(name)
    return hashed(_bare(base)), hashed(base.casefold()), hashed("/".join(plain(name))), hashed(_written(name))


def _written(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _bare(base: str) -> str:
    """Without an image's extension."""
    return os.path.splitext(base)[0] if is_image(base) else base


def _is_in(value: int, ordered: np.ndarray) -> bool:
    row = int(np.searchsorted(ordered, np.uint64(value)))
    return row < len(ordered) and int(ordered[row]) == value


def _repeated(hashes: np.ndarray) -> frozenset[int]:
    """Those that come more than once."""
    found, counts = np.unique(hashes, return_counts=True)
    return frozenset(map(int, found[counts > 1]))
