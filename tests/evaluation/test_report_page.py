"""The report in a browser: opened from its file, clicked by a script that only the test adds."""

import html
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from report_runs import NASTY, data_of, detection_run

from fiber.evaluation.report import make_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Every step adds what it sees; the page is read when the last one is done.
CLICKS = """
const seen = {}, part = document.querySelector(".part-gallery"), last = document.querySelectorAll(".part-gallery")[1];
const all = (selector, node) => [...(node || part).querySelectorAll(selector)];
const ids = () => all(".tile").map((tile) => tile.item.id);
const button = (name) => part.querySelector(`[data-filter="${name}"]`);
const count = () => part.querySelector(".count").textContent;
const choose = (control, value) => { control.value = value; control.dispatchEvent(new Event("change")); };
function steps() {
  seen.first = ids().slice(0, 5);
  seen.cards = document.querySelectorAll(".card").length;
  seen.marks = [...new Set([...document.querySelectorAll(".mark")].map((node) => node.textContent))];
  seen.curves = document.querySelectorAll("#training path").length;
  const words = document.body.textContent.includes(NASTY);
  seen.nasty = [document.querySelectorAll("img[src=x]").length, words, document.title];
  seen.broken = all(".broken").length;
  for (const tag of ["missed", "false", "confused", "low"]) {
    button(`tag:${tag}`).click();
    seen[tag] = [count(), all(".tile").every((tile) => tile.item.tags[tag] > 0)];
    button(`tag:${tag}`).click();
  }
  seen.cleared = count();
  choose(part.querySelector(".classes"), CLASS);
  seen.class = [ids().length, all(".tile").every((tile) => tile.item.classes.includes(CLASS))];
  choose(part.querySelector(".classes"), "");
  const shown = (selector) => all(selector).filter((node) => getComputedStyle(node).display !== "none").length;
  seen.before = [shown(".found"), shown("rect.true"), shown(".label")].map((n) => n > 0);
  for (const [key, selector] of [["found", ".found"], ["true", "rect.true"], ["labels", ".label"]]) {
    button(`${key}:true`).click();
    seen[`without ${key}`] = shown(selector);
    button(`${key}:true`).click();
  }
  const slider = part.querySelector(".score");
  slider.value = 0.9;
  slider.dispatchEvent(new Event("input"));
  seen.score = [all(".tile").every((tile) => tile.item.score >= 0.9), ids().length];
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  button("worst:true").click();
  seen.best = ids()[0];
  button("worst:true").click();
  const boxes = all(".label").map((node) => node.getBoundingClientRect()).filter((box) => box.width);
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  seen.collisions = boxes.filter((a, i) => boxes.some((b, j) => i < j && meet(a, b))).length;
  seen.labels = boxes.length;
  all(".images")[1].click();
  seen.large = document.querySelector("dialog[open] .large") !== null;
  document.querySelector("dialog button").click();
  document.querySelector("#part0 th:nth-child(4)").click();
  const up = all("td:nth-child(4)", document.querySelector("#part0 table")).map((cell) => Number(cell.textContent));
  seen.sorted = up.every((value, i) => !i || up[i - 1] <= value);
  choose(document.querySelector("#part0 .chart select"), "0");
  seen.curve = document.querySelectorAll("#part0 .chart path").length;
  seen.phrases = last.querySelectorAll(".wrong").length > 0;
  seen.axes = [160, 11, 0.4].map((high) => {  // what the lines of a chart are called, and how high they lie
    const chart = lines({ title: "t", x: "x", series: [{ name: "a", points: [[0, 0], [1, high]] }] });
    const texts = [...chart.querySelectorAll("text[x='41']")];
    return texts.map((text) => [text.textContent, Number(text.getAttribute("y"))]);
  });
}
window.addEventListener("load", () => setTimeout(() => {
  try { steps(); } catch (error) { seen.error = String(error.stack); }
  const result = Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) });
  document.body.replaceChildren(result);
}, 500));
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)")
def test_filters_toggles_and_a_broken_image(tmp_path: Path) -> None:
    run, shards, _ = detection_run(tmp_path)
    report = make_report(run).parent
    data = data_of(report)
    items = data["parts"][0]["items"]
    (report / items[0]["images"][0]).write_bytes(b"not an image")
    name = next(name for item in items for name in item["classes"] if name != NASTY)
    script = f"const NASTY = {json.dumps(NASTY)}, CLASS = {json.dumps(name)};\n{CLICKS}"
    (report / "clicks.js").write_text(script)
    page = (report / "index.html").read_text().replace("</body>", '<script src="clicks.js"></script></body>')
    (report / "clicked.html").write_text(page)
    seen = look_at(report / "clicked.html", tmp_path)

    assert "error" not in seen, seen["error"]
    assert seen["first"] == [item["id"] for item in items[:5]]
    assert seen["cards"] == len(data["headline"]) > 4
    assert seen["marks"] == ["warm-up ends", "matching and masked words begin", "hard negatives begin"]
    assert seen["curves"] == 1
    assert seen["nasty"] == [0, True, "run: report"]  # on the page as words, and nothing of it ran
    assert seen["broken"] == 1
    wanted: Callable[[str], int] = lambda tag: sum(tag in item["tags"] for item in items)  # noqa: E731
    for tag in ("missed", "false", "confused", "low"):
        assert seen[tag] == [f"{wanted(tag)} of {len(shards)}", True], tag
        assert 0 < wanted(tag) < len(shards), tag
    assert seen["cleared"] == f"{len(shards)} of {len(shards)}"
    assert seen["class"] == [sum(name in item["classes"] for item in items), True]
    assert seen["before"] == [True, True, True]
    assert (seen["without found"], seen["without true"], seen["without labels"]) == (0, 0, 0)
    assert seen["score"] == [True, sum(item["score"] >= 0.9 for item in items)]
    assert seen["best"] == items[-1]["id"]
    assert seen["labels"] > 30
    assert seen["collisions"] <= 0.02 * seen["labels"]
    assert seen["large"]
    assert seen["sorted"]
    assert seen["curve"] == 2
    assert seen["phrases"]
    for axis in seen["axes"]:
        values, heights = zip(*((float(text), height) for text, height in axis), strict=True)
        assert len(values) > 2
        slopes = [(b - a) / (values[1] - values[0]) for a, b in itertools.pairwise(values)]
        assert slopes == pytest.approx([1.0] * len(slopes)), values
        assert heights == tuple(sorted(heights, reverse=True))


def look_at(page: Path, scratch: Path) -> dict:
    """What CLICKS saw on a page."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scratch / 'browser'}"]
    command += ["--window-size=1300,1000", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*)</pre>', done.stdout, re.S)
    assert found, (done.stdout[-2000:], done.stderr[-1000:])
    return json.loads(html.unescape(found[1]))
