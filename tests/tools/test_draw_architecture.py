"""The figure of docs/architecture.md: what the script draws today, and nothing left out but what it shows anyway."""

from pathlib import Path
from xml.etree import ElementTree

import draw_architecture as house

REPO = Path(__file__).resolve().parents[2]


def test_the_committed_figure_is_drawn_from_these_sources() -> None:
    committed = (REPO / "docs" / "figures" / "architecture.svg").read_text()
    assert committed == house.draw(), "run python tools/draw_architecture.py and commit docs/figures/architecture.svg"


def test_every_room_has_a_box_and_every_import_a_way() -> None:
    root = ElementTree.fromstring(house.draw())
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    graph = house.room_imports()
    assert set(graph) <= texts
    drawn: dict[str, set[str]] = {room: set() for room in graph}
    for title in root.iter("{http://www.w3.org/2000/svg}title"):
        upper, lower = (title.text or "").split(" imports ")
        assert lower in graph[upper]
        drawn[upper].add(lower)
    assert all(house.reachable(drawn, room) == house.reachable(graph, room) for room in graph)


def test_a_line_that_a_longer_way_replaces_is_left_out() -> None:
    assert house.shortest({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]
