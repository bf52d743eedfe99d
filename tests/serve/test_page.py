"""The page of `fiber serve`: in a browser, and what the server refuses."""

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from chromium import Page

import fiber
from fiber.images.codec import decode
from fiber.serve.asking import Asking
from fiber.serve.server import ModelServer, Timed
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


def test_classes_in_every_way_of_writing(fine: ModelServer, folder: Path) -> None:
    image = (folder / "images" / "rgb.jpg").read_bytes()
    found = [
        request(fine, f"/ask?verb=detect&threshold=0&text={quote(text)}", image)
        for text in ("square, circle", "square . circle .", "square; circle", "circle\nsquare")
    ]
    assert {region["label"] for region in found[0][1]["regions"]} <= {"square", "circle"}
    assert [answer == found[0] for answer in found] == [True] * 4


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
        ("/ask?verb=caption&text=" + "a" * 2001, image, {}, 400, "2,001 characters"),
        ("/ask?verb=match&text=" + quote("a;" * 21), image, {}, 400, "21 texts, 20 are allowed"),
        ("/ask?verb=match&text=" + quote(" ; "), image, {}, 400, "write a text first"),
        ("/heat?text=...", image, {}, 400, "write a text first"),
        (ask + "&threshold=30", image, {}, 400, "not in 0..1"),
        (ask, b"", {}, 400, "choose an image first"),
        (ask, b"plain text", {}, 400, "the file"),
        (ask, image[:200], {}, 400, "the file"),
        (ask, b"x" * (LIMIT + 1), {}, 413, "0.2 MB are allowed"),
        (ask, image, {"Origin": "http://evil.example"}, 403, "only the page itself may ask"),
        (ask, image, {"Origin": "http://["}, 403, "only the page itself may ask"),
        (ask, image, {"Host": "evil.example"}, 403, "only the page itself may ask"),
        (ask, image, {"Host": "["}, 403, "only the page itself may ask"),
        ("/etc/passwd", image, {}, 404, "only /ask and /heat"),
    ):
        got, answer = request(coarse, path, body, **headers)
        assert (got, set(answer)) == (status, {"error"}), (path, answer)
        assert message in answer["error"]
        assert "\n" not in answer["error"]
        assert "/tmp" not in answer["error"]
    assert request(coarse, "/../secret", method="GET")[0] == 404
    assert request(coarse, "/about", method="GET", Host="evil.example")[0] == 403
    assert request(coarse, "/about", method="GET", Host="[")[0] == 403
    assert request(coarse, "/about", method="PUT") == (501, {"error": "Unsupported method ('PUT')"})
    said = capfd.readouterr().err
    assert said.count("refused: ") == 22
    assert "Traceback" not in said


def raw(server: ModelServer, sent: bytes) -> bytes:
    """All that comes back for these bytes until the server ends the connection."""
    with socket.create_connection(server.server_address[:2], timeout=60) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_body_is_never_taken_for_a_request(coarse: ModelServer) -> None:
    """A refused request's body holds another that would pass the checks."""
    hidden = b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"Host: localhost\r\nOrigin: http://evil.example\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    for first in (b"POST /ask HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n", b"PUT / HTTP/1.1\r\n", b"POST /no HTTP/1.1\r\n"):
        answer = raw(coarse, first + head + hidden)
        assert answer.count(b"HTTP/1.1 ") == 1, answer
        assert b"\r\nConnection: close\r\n" in answer
    answer = raw(coarse, b"GET / HTTP/1.1\r\n" + head.replace(b"evil.example", b"localhost") + hidden)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_what_is_no_request_is_answered_in_the_same_form(coarse: ModelServer) -> None:
    for sent in (b"nonsense\r\n\r\n", b"POST http://[/ask HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        answer = raw(coarse, sent)
        assert answer.startswith(b"HTTP/1.1 400")
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}


def test_a_slow_client_and_one_that_leaves(
    coarse: ModelServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("fiber.serve.server.HEADERS_S", 0.1)
    monkeypatch.setattr("fiber.serve.server.LINGER_S", 0.1)
    head = b"POST /ask?verb=caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n"
    assert raw(coarse, head) == b"", "a head that never ends"
    assert b"too long to arrive" in raw(coarse, head + b"\r\nabc")
    # One byte each time that the clock is asked: the deadline is of the whole request.
    ours, theirs = socket.socketpair()
    ticks = iter(range(100))
    monkeypatch.setattr("fiber.serve.server.time.monotonic", lambda: next(ticks))
    with ours, theirs:
        timed = Timed(ours, 3)
        for _ in range(3):  # at 0, 1, 2
            theirs.sendall(b"x")
            assert timed.read(1) == b"x"
        theirs.sendall(b"x")
        with pytest.raises(TimeoutError):
            timed.read(1)
    monkeypatch.undo()
    left = threading.Event()

    def gone(*_: object, **__: object) -> list:
        assert left.wait(60)
        return [[]]

    monkeypatch.setattr(coarse.asking.predictor, "caption", gone, raising=False)
    image = (folder / "images" / "rgb.jpg").read_bytes()
    with socket.create_connection(coarse.server_address[:2], timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        connection.sendall(head.replace(b"500", str(len(image)).encode()) + b"\r\n" + image)
    left.set()
    assert request(coarse, "/about", method="GET")[0] == 200
    with coarse.asking._lock:
        assert "Traceback" not in capfd.readouterr().err


def test_connections_are_bounded(coarse: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one place, a second connection is closed at once, and the place is free again after the first."""
    places = threading.BoundedSemaphore(1)
    monkeypatch.setattr(coarse, "_free", places)
    with socket.create_connection(coarse.server_address[:2], timeout=60) as first:
        with socket.create_connection(coarse.server_address[:2], timeout=60) as second:
            assert second.recv(1) == b""
        first.sendall(b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(12) == b"HTTP/1.1 200"
    assert places.acquire(timeout=60)
    places.release()


def test_an_image_is_decoded_once_and_one_at_a_time(
    coarse: ModelServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, held = (folder / "images" / "rgb.jpg").read_bytes(), []

    def decoding(data: bytes) -> np.ndarray:
        held.append(coarse.asking._lock.locked())
        return decode(data)

    monkeypatch.setattr("fiber.predict.sources.decode", decoding)
    for path in ("/ask?verb=match&text=a;b", "/heat?text=dogs"):
        held.clear()
        assert request(coarse, path, image)[0] == 200
        assert held == [True], path


def test_classes_are_bounded(fine: ModelServer, folder: Path) -> None:
    image = (folder / "images" / "rgb.jpg").read_bytes()
    status, answer = request(fine, "/ask?verb=detect&text=" + ",".join(map(str, range(201))), image)
    assert (status, answer["error"]) == (400, "201 classes, 200 are allowed")


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
