"""Write constraints.txt: the versions of this environment, which the suite has passed with.

    python tools/constraints.py            then: pip install -c constraints.txt -e ".[train,test,lint]"

Listed are the packages that setup.py names, base and extras, and what they need in turn. Left out are CUDA's own,
which torch pins, and what is not installed here.
"""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[1]
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")


def named(setup: Path = REPO / "setup.py") -> list[str]:
    """The requirements that setup.py names, base and extras but those of the site, without running it."""
    calls = [node for node in ast.walk(ast.parse(setup.read_text())) if isinstance(node, ast.Call)]
    words = {word.arg: word.value for call in calls for word in call.keywords}
    extras = ast.literal_eval(words["extras_require"])
    wanted = (need for name, needs in extras.items() if name != "docs" for need in needs)
    return [*ast.literal_eval(words["install_requires"]), *wanted]


def closure(requirements: list[str]) -> dict[str, str]:
    """Name -> installed version, of the requirements and of all that they need here."""
    versions: dict[str, str] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in versions or OF_TORCH.match(name):
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = found.version
        for inner in map(Requirement, found.requires or []):
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in need.extras or {""}):
                waiting.append(inner)
    return versions


def main() -> int:
    """Write the file; -> exit status."""
    lines = [f"{name}=={version}" for name, version in sorted(closure(named()).items())]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    head = f"# Versions that the suite has passed with on Python {python}; written by tools/constraints.py."
    (REPO / "constraints.txt").write_text("\n".join([head, *lines, ""]))
    print(f"{len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
