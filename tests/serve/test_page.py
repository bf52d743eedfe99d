"""The page of `fiber serve`: in a browser, and what the server refuses."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from chromium import Page

import fiber
from fiber.serve.asking import Asking
from fiber.serve.server import ModelServer
from tiny_exports import coarse_export, fine_export, images

LIMIT = 200_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    images(folder / "images")
    (folder / "notes.txt").write_text("no image <b>at all</b>")
    return folder


def serve(export: Path) -> Iterator[ModelServer]:
    server = ModelServer(Asking(fiber.load(export, device="cpu"), "<tiny>"), "127.0.0.1", 0, LIMIT)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def fine(folder: Path) -> Iterator[ModelServer]:
    yield from serve(fine_export(folder / "fine"))


@pytest.fixture(scope="module")
def coarse(folder: Path) -> Iterator[ModelServer]:
    yield from serve(coarse_export(folder / "coarse", vqa=4))


def request(
    server: ModelServer, path: str, body: bytes | None = None, method: str = "POST", **headers: str
) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def test_a_user_drops_an_image_and_asks(fine: ModelServer, folder: Path, tmp_path: Path) -> None:
    """Upload, classes, a sentence, what each word looked at, and a text file, in a browser."""
    image = folder / "images" / "rgb.jpg"
    predictor = fine.asking.predictor
    with Page(tmp_path) as page:
        page.call("Page.navigate", url=fine.address)
        page.wait_for("document.body && document.body.dataset.state === 'idle'")
        assert page.script("document.getElementById('name').textContent") == "<tiny>"
        assert page.script("[...document.getElementById('verb').options].map((o) => o.value).join()") == (
            "detect,ground,refer"
        )
        assert page.script("document.getElementById('level').value") == f"{predictor.threshold:.2f}"
        ask = "document.getElementById('ask').click()"
        idle = "document.body.dataset.state === 'idle' && document.getElementById('found').rows.length > 0"
        page.script(ask)
        page.wait_for("document.getElementById('error').textContent !== ''")
        assert page.script("document.getElementById('error').textContent") == "choose an image first"
        page.choose_file("#file", image)
        page.wait_for("document.getElementById('shown').naturalWidth === 90")
        page.script("threshold.value = 0.05; text.value = 'square, circle'")
        page.script(ask)
        page.wait_for(idle)
        (expected,) = predictor.detect(image, ["square", "circle"], threshold=0.05)
        assert page.script("document.querySelectorAll('#boxes rect').length") == len(expected) > 0
        assert page.script("[...document.querySelectorAll('.tag')].map((tag) => tag.textContent)") == [
            f"{region.label} {region.score:.2f}" for region in expected
        ]
        # Whole and not distorted: 90 x 60 px.
        assert page.script("shown.clientWidth / shown.clientHeight") == pytest.approx(1.5, rel=0.02)
        drawn = page.script("document.querySelector('#boxes rect').getAttribute('x')")
        assert float(drawn) == pytest.approx(expected[0].box[0], abs=0.06)
        assert page.script("document.getElementById('found').rows[0].innerText").startswith(expected[0].label)

        page.script("verb.value = 'ground'; verb.dispatchEvent(new Event('change')); threshold.value = 0")
        page.script("text.value = '[a red circle] left of [two dogs]'")
        page.script(ask)
        page.wait_for(idle)
        labels = page.script("[...document.getElementById('found').rows].map((r) => r.cells[0].innerText)")
        assert {label.strip() for label in labels} == {"a red circle", "two dogs"}

        page.script("document.getElementById('look').click()")
        page.wait_for("document.querySelectorAll('#words button').length > 0")
        words = page.script("[...document.querySelectorAll('#words button')].map((b) => b.innerText)")
        assert words == ["a", "red", "circle", "left", "of", "two", "dogs"]
        assert page.script("document.getElementById('heat').width") == 24
        assert page.script("document.querySelector('#words button.on').innerText") == "a"
        page.screenshot(tmp_path / "page.png")

        page.choose_file("#file", folder / "notes.txt")
        page.script(ask)
        page.wait_for("document.getElementById('error').textContent !== ''")
        said = page.script("document.getElementById('error').textContent")
        assert "the file" in said
        assert "/tmp" not in said
        assert page.script("document.querySelectorAll('#boxes rect').length") == 0


def test_every_verb_of_a_model_at_image_level_answers(coarse: ModelServer, folder: Path) -> None:
    image = (folder / "images" / "turned.jpg").read_bytes()
    status, about = request(coarse, "/about", method="GET")
    assert (status, about["verbs"], about["limit"]) == (200, ["answer", "caption", "match"], LIMIT)
    status, found = request(coarse, "/ask?verb=answer&text=" + quote("is it red?"), image)
    assert (status, found["width"], found["height"]) == (200, 90, 60)
    expected = coarse.asking.predictor.answer(folder / "images" / "turned.jpg", "is it red?")[0]
    assert [one["text"] for one in found["texts"]] == [one.text for one in expected]
    status, found = request(coarse, "/ask?verb=match&text=" + quote("two dogs; a circle;"), image)
    assert (status, [one["text"] for one in found["matches"]]) == (200, ["two dogs", "a circle"])
    assert request(coarse, "/ask?verb=caption", image)[0] == 200


def test_what_is_refused_is_one_clear_line(coarse: ModelServer, folder: Path, capfd: pytest.CaptureFixture) -> None:
    image, ask = (folder / "images" / "rgb.jpg").read_bytes(), "/ask?verb=match&text=dogs"
    for path, body, headers, status, message in (
        ("/ask?verb=detect&text=dogs", image, {}, 400, "cannot detect; it can:"),
        ("/ask?verb=index&text=dogs", image, {}, 400, "nothing is called 'index' here"),
        ("/ask?verb=match&text=", image, {}, 400, "write a text first"),
        ("/ask?verb=match&text=" + "a" * 2001, image, {}, 400, "2,001 characters"),
        (ask + "&threshold=30", image, {}, 400, "not in 0..1"),
        (ask, b"", {}, 400, "choose an image first"),
        (ask, b"plain text", {}, 400, "the file"),
        (ask, image[:200], {}, 400, "the file"),
        (ask, b"x" * (LIMIT + 1), {}, 413, "0.2 MB are allowed"),
        (ask, image, {"Origin": "http://evil.example"}, 403, "only the page itself may ask"),
        (ask, image, {"Host": "evil.example"}, 403, "only the page itself may ask"),
        ("/etc/passwd", image, {}, 404, "only /ask and /heat"),
    ):
        got, answer = request(coarse, path, body, **headers)
        assert (got, set(answer)) == (status, {"error"}), (path, answer)
        assert message in answer["error"]
        assert "\n" not in answer["error"]
        assert "/tmp" not in answer["error"]
    assert request(coarse, "/../secret", method="GET")[0] == 404
    assert request(coarse, "/about", method="GET", Host="evil.example")[0] == 403
    assert capfd.readouterr().err.count("refused: ") == 14


def test_the_page_asks_nobody_else(coarse: ModelServer) -> None:
    """No address but its own, and scripts that only it has written."""
    connection = http.client.HTTPConnection(urlsplit(coarse.address).netloc, timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    page, rules = answer.read().decode(), answer.headers["Content-Security-Policy"]
    connection.close()
    assert "default-src 'none'" in rules
    nonce = rules.split("script-src 'nonce-")[1].split("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2
    assert [word for word in page.split('"') if word.startswith(("http:", "https:", "//"))] == [
        "http://www.w3.org/2000/svg"
    ]
    assert "innerHTML" not in page
