"""The plan of the house, held by reading the sources: floors, sizes, names, words, and a test for every room.

Every test names all offenders at once. The floors are the table of tools/draw_architecture.py, which draws them too.
"""

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import draw_architecture as house

REPO = Path(__file__).resolve().parents[1]
SOURCES = REPO / "src" / "fiber"
ENTRYPOINTS = ("stage1_coarse.py", "stage2_fine.py")
CORE = ("backbone", "coarse", "fine", "training", "data", "config", "distributed.py", "errors.py", *ENTRYPOINTS)
PERIPHERY = (
    "data/convert/",
    "data/shapes/",
)  # of a core room, but not core: one file per data set, and the toy world
CORE_LINES, FILE_LINES, REASONED_LINES, FUNCTION_LINES, ENTRYPOINT_LINES, TOOL_LINES = 8500, 300, 400, 60, 80, 150
# Tools above the limit, each with its reason.
LONG_TOOLS = {
    "parity_coarse.py": "one recorded case of the release after the other: a table written as code",
    "parity_fine.py": "as parity_coarse",
    "parity_common.py": "what both share",
    "gpu_check_sections.py": "ten measurements of a card in one process each, which share their small models",
}
# Module names that several rooms have: the same part of another whole, which the room's name tells apart.
NAMESAKES = {
    "model": "the model of stage 1 in coarse/, of stage 2 in fine/",
    "image": "the image tower in backbone/, the predictor at image level in predict/",
    "text": "the text tower in backbone/, tokens and masks in data/, text samples in data/samples/",
    "base": "what both stages share, of configurations in config/, of predictors in predict/",
    "loader": "batches of training in data/, of evaluation in evaluation/",
    "regions": "samples, evaluation and tasks at region level",
    "retrieval": "evaluation and tasks of retrieval",
}
SAME_FUNCTION = 3  # modules that may define a public function of one name


def sources() -> list[Path]:
    return sorted(SOURCES.rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(REPO))


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def none(offenders: list[str], rule: str) -> None:
    assert not offenders, f"{rule}; {len(offenders)} offenders:\n  " + "\n  ".join(offenders)


def test_every_room_has_one_floor_and_imports_from_floors_below() -> None:
    floor = {room: len(house.FLOORS) - i for i, row in enumerate(house.FLOORS) for room in row}
    known = house.modules()
    none(sorted({house.room(module) for module in known} ^ set(floor)), "rooms and the table of floors differ")
    upward = [
        f"{module} imports {target}"
        for module, path in known.items()
        for target in sorted(house.imports(path, known))
        if house.room(module) != house.room(target) and floor[house.room(target)] >= floor[house.room(module)]
    ]
    none(upward, "a room imports from floors below it or from itself")


def test_no_circle_of_imports_lazy_ones_included() -> None:
    known = house.modules()
    graph = {module: house.imports(path, known) for module, path in known.items()}
    none([module for module in graph if module in house.reachable(graph, module)], "modules on a circle of imports")


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    """The reading itself, on a file that has one of every kind."""
    source = tmp_path / "kinds.py"
    source.write_text(
        "import fiber.a\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from fiber.b import Name\n"
        "def late():\n    from fiber import c\n    import numpy\n"
    )
    known = {module: tmp_path / module for module in ("fiber", "fiber.a", "fiber.b", "fiber.c", "fiber.d")}
    assert house.imports(source, known) == {"fiber.a", "fiber.b", "fiber.c"}
    assert house.reachable({"a": {"b"}, "b": {"c"}, "c": {"b"}}, "a") == {"b", "c"}


def test_the_core_stays_small() -> None:
    sizes: dict[str, int] = defaultdict(int)
    for path in sources():
        inner = str(path.relative_to(SOURCES))
        if not inner.startswith(PERIPHERY) and inner.split("/")[0] in CORE:
            sizes[inner.split("/")[0]] += lines(path)
    table = ", ".join(f"{room} {size:,}" for room, size in sorted(sizes.items()))
    assert sum(sizes.values()) <= CORE_LINES, f"core: {sum(sizes.values()):,} lines of {CORE_LINES:,} ({table})"


def test_files_and_functions_are_short() -> None:
    offenders = []
    for path in sources():
        tree = ast.parse(path.read_text())
        reason = re.search(r"\blines\b", ast.get_docstring(tree) or "")
        limit = ENTRYPOINT_LINES if path.name in ENTRYPOINTS else REASONED_LINES if reason else FILE_LINES
        if lines(path) > limit:
            offenders.append(f"{name(path)}: {lines(path)} lines of {limit}")
    for path in sorted((REPO / "tools").glob("*.py")):
        limit = REASONED_LINES + 50 if path.name in LONG_TOOLS else TOOL_LINES
        if lines(path) > limit:
            offenders.append(f"{name(path)}: {lines(path)} lines of {limit}")
    for path in [*sources(), *sorted((REPO / "tools").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > FUNCTION_LINES:
                    offenders.append(f"{name(path)}: {node.name} has {size} lines of {FUNCTION_LINES}")
    none(offenders, f"files have {FILE_LINES} lines ({REASONED_LINES} where the docstring says why so many lines)")


def test_one_public_name_for_one_thing() -> None:
    """No two classes and no two modules of one name; a function's name at most a few times.

    Left out: what every file of a row of files has to define (data sets and their `read`, tasks and their
    `build_sample`, metrics and their `evaluate`, verbs and their `arguments` and `run`; a verb's module has the
    verb's name), and the few modules of NAMESAKES."""
    classes, functions, files = (defaultdict[str, list[str]](list) for _ in range(3))
    for path in sources():
        rows = {"convert", "tasks", "metrics", "cli"} & set(path.parts)
        if path.name != "__init__.py" and not rows & {"convert", "cli"} and NAMESAKES.get(path.stem) is None:
            files[path.stem].append(name(path))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(name(path))
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not rows:
                functions[node.name] += [name(path)] * (name(path) not in functions[node.name])  # overloads are one
    offenders = [
        f"{kind} {word}: {', '.join(places)}"
        for kind, table, most in (("class", classes, 1), ("module", files, 1), ("function", functions, SAME_FUNCTION))
        for word, places in sorted(table.items())
        if len(places) > most
    ]
    none(offenders, "one word, one thing")
    stems = Counter(path.stem for path in sources())
    none([word for word in NAMESAKES if stems[word] < 2], "names that only one module has left")


# Words that the field does not use, and what stands for them.
PRIVATE = {
    r"(?i:pictures?)": "image",
    r"class (Marks|Share|Asked|Contrast|Meter|Search|Picture)": "SpecialTokens, EvalLoader, EvalContext, ...",
    r"(draw_negatives|mean_items|evaluate_search)": "sample_columns, loss_normalisers, evaluate_retrieval",
    r"(?i:anew|afresh)": "again, new",
    r"(?i:whosever)": "whose, of any",
    r"(?i:turned round|lies on its side)": "reversed, is rotated",
    r"(?i:(samples|pairs|images|tokens|steps|blocks|batches) an? (second|minute|hour|stage|rank|node|worker))": "per",
}
# What is data: sentences of the toy world and of prompts, and a key of old runs.
EXCEPT_FILES = ("src/fiber/data/shapes/language.py", "tests/test_house.py")
EXCEPT_TEXT = re.compile(r"a picture of|regions\.pictures|regions: \{pictures")


def test_private_words_stay_away() -> None:
    suffixes = (".py", ".md", ".yaml", ".sh", ".slurm")
    texts = [
        path for room in ("src", "tools", "tests", "docs", "configs", "launch") for path in (REPO / room).rglob("*")
    ]
    pattern = re.compile("|".join(rf"\b(?:{word})\b" for word in PRIVATE))
    offenders = [
        f"{name(path)}:{number}: {found.group()}"
        for path in sorted([*texts, REPO / "README.md", REPO / "CHANGELOG.md"])
        if path.suffix in suffixes and name(path) not in EXCEPT_FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for found in pattern.finditer(EXCEPT_TEXT.sub("", line))
    ]
    none(offenders, "plain words (tests/test_house.py lists what stands for each)")


def test_tests_mirror_the_sources() -> None:
    """Every folder of sources has its folder of tests with a test in it, and every other folder of tests is known."""
    rooms = {path.relative_to(SOURCES) for path in SOURCES.rglob("*") if path.is_dir() and any(path.glob("*.py"))}
    tested = {path.parent.relative_to(REPO / "tests") for path in (REPO / "tests").rglob("test_*.py")}
    none(sorted(str(room) for room in rooms - tested), "every room has its tests")
    beyond = {Path(room) for room in (".", "e2e", "golden", "fuzz", "gpu", "tools", "docs", "launch")}
    none(sorted(str(room) for room in tested - rooms - beyond), "every folder of tests is named after a room")


def test_docstrings_give_batches_the_shapes_of_the_list_of_keys() -> None:
    """ "images (B,3,S,S), ids and mask (B,L)" in a docstring is what data/batches.py says of these keys."""
    declared = defaultdict(set)
    batches = (SOURCES / "data/batches.py").read_text()
    for key, shape, more in re.findall(
        r"^    (\w+): Tensor  # (\([A-Z][^)]*\))(?:[^;\n]*; (\(\S*\)))?", batches, re.M
    ):
        declared[key] |= {shape, more}
    assert len(declared) > 15
    wrong = []
    for path in [*(SOURCES / "tasks").glob("*.py"), *(SOURCES / "data").glob("*.py")]:
        for words, shape in re.findall(r"((?:\w+(?:,\s+|\s+and\s+))*\w+)\s+(\([BN],[^)]*\))", path.read_text()):
            keys = [key for key in re.findall(r"\w+", words) if key in declared]
            wrong += [f"{name(path)}: {key} {shape}" for key in keys if shape not in declared[key]]
    none(wrong, "shapes of batches are those of data/batches.py")
