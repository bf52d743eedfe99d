"""The rooms of the house and what they import, as one figure: tools/draw_architecture.py [--out FILE.svg]

The floors are the table below, which tests/test_house.py holds the code to; the lines are read from all import
statements, lazy ones too. One is left out where a longer way says the same (cli -> predict -> tasks, cli -> tasks).
"""

import argparse
import ast
from html import escape
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SOURCES = REPO / "src" / "fiber"
# From the top. A room may import itself and rooms of lower rows, nothing beside it and nothing above it.
FLOORS: tuple[dict[str, str], ...] = (
    {
        "stage1_coarse": "entrypoint, image level",
        "cli": "the fiber command",
        "stage2_fine": "entrypoint, region level",
    },
    {"fiber": "fiber.load, the door of the library", "serve": "a page to try a model by hand"},
    {"predict": "a trained model on one's own images"},
    {"tasks": "one file per task, one table"},
    {"evaluation": "eval loader, reports; metrics: pure numbers"},
    {"training": "run, loop, checkpoints, optimiser, tracking"},
    {"weights": "releases, towers, exports, programs"},
    {"coarse": "stage 1: heads, objectives, decoding", "fine": "stage 2: pyramid, head, assignment"},
    {"backbone": "fusion in the backbone", "data": "shards -> order -> samples -> batches"},
    {"config": "typed configurations", "images": "decode, resize, augment, draw", "dashboards": "W&B, TensorBoard"},
    {
        "distributed": "ranks, gathers, exchanges",
        "cards": "how cards compute, and how fast",
        "processor": "what a CPU is spared",
        "countdown": "what a long job shows",
        "recompute": "activations computed twice",
        "errors": "errors of one line",
    },
)
WIDTH, HEIGHT, GAP, STEP, MARGIN = 270, 44, 40, 84, 20  # of the boxes and between them, pixels


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything in the package; a folder's `__init__` has the folder's name."""
    names = {path: ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts) for path in SOURCES.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in sorted(names.items())}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere in it: at its top, in a function, for the type checker."""
    named: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    out = set()
    for name in named:
        if name.startswith("."):
            raise ValueError(f"{path}: {name} is a relative import; write fiber.…")
        while name and name not in known:  # a name out of a module: fiber.errors.ShardError -> fiber.errors
            name = name.rpartition(".")[0]
        out.add(name)
    return {name for name in out if name and known[name] != path}


def room(module: str) -> str:
    """fiber.data.convert.engine -> data; the package itself is the room `fiber`."""
    return module.split(".")[1] if "." in module else module


def room_imports() -> dict[str, set[str]]:
    """Room -> the other rooms it imports."""
    known = modules()
    out: dict[str, set[str]] = {room(module): set() for module in known}
    for module, path in known.items():
        out[room(module)] |= {room(name) for name in imports(path, known)} - {room(module)}
    return out


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Everything that `start` leads to, itself not counted unless a circle leads back to it."""
    seen: set[str] = set()
    queue = list(graph[start])
    while queue:
        node = queue.pop()
        if node not in seen:
            seen.add(node)
            queue += graph[node]
    return seen


def shortest(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The lines that no longer way replaces, sorted."""
    return sorted(
        (a, b) for a in graph for b in graph[a] if not any(b in reachable(graph, c) for c in graph[a] if c != b)
    )


def way(upper: tuple[int, int], lower: tuple[int, int]) -> str:
    """The line between two boxes (their corners): a curve to the next row, else round the boxes between them."""
    (x0, y0), (x1, y1) = upper, lower
    start, end = x0 + WIDTH // 2, x1 + WIDTH // 2
    if y1 - y0 == STEP:
        return f"M{start} {y0 + HEIGHT} C{start} {y1} {end} {y0 + HEIGHT} {end} {y1}"
    if x0 == x1:
        return f"M{x0} {y0 + HEIGHT // 2} H{x0 - GAP // 2} V{y1 + HEIGHT // 2} H{x1}"
    return f"M{start} {y0 + HEIGHT} V{y1 + HEIGHT // 2} H{x1 if x0 < x1 else x1 + WIDTH}"


def draw() -> str:
    """The figure as SVG: one row per floor, the highest on top."""
    width = 2 * MARGIN + max(len(row) for row in FLOORS) * (WIDTH + GAP) - GAP
    height = 2 * MARGIN + (len(FLOORS) - 1) * STEP + HEIGHT
    corner: dict[str, tuple[int, int]] = {}  # room -> left, top
    for i, row in enumerate(FLOORS):
        left = (width - len(row) * (WIDTH + GAP) + GAP) // 2
        corner |= {name: (left + j * (WIDTH + GAP), MARGIN + i * STEP) for j, name in enumerate(row)}
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for upper, lower in shortest(room_imports()):
        lines.append(
            f'<path d="{way(corner[upper], corner[lower])}" fill="none" stroke="#8a94a6">'
            f"<title>{upper} imports {lower}</title></path>"
        )
    for row in FLOORS:
        for name, text in row.items():
            x, y = corner[name]
            centred = f'x="{x + WIDTH // 2}" text-anchor="middle"'
            lines += [
                f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3fb" stroke="#3b5b92"/>',
                f'<text {centred} y="{y + 18}" font-size="14" font-weight="bold">{name}</text>',
                f'<text {centred} y="{y + 35}" font-size="11">{escape(text)}</text>',
            ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "figures" / "architecture.svg")
    (out := parser.parse_args().out).write_text(draw())
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
