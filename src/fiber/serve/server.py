"""A page on this machine to try a model by hand, with the standard library: three addresses, no state, no files.

Why no web framework: the page asks two questions with an image each, of one user. What matters is what it refuses:
other machines (loopback unless told), other sites (Host and Origin are checked, so that no page of the internet can
ask through the user's browser), and files that are too big.
"""

from __future__ import annotations

import json
import secrets
import sys
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fiber.errors import KnownError
from fiber.serve.asking import Asking
from fiber.serve.page import PAGE

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SOCKET_TIMEOUT_S = 30.0


class Refused(Exception):
    """A request that is not answered: an HTTP status and a line for the user."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ModelServer(ThreadingHTTPServer):
    """Serves `asking` on (host, port); port 0 takes a free one. `limit`: bytes of an image."""

    daemon_threads = True

    def __init__(self, asking: Asking, host: str, port: int, limit: int) -> None:
        self.asking, self.limit, self.open_host = asking, limit, host
        super().__init__((host, port), Answering)

    @property
    def address(self) -> str:
        """Where the page is."""
        shown = "127.0.0.1" if self.open_host in ("", "0.0.0.0") else self.open_host
        return f"http://{shown}:{self.server_address[1]}/"


class Answering(BaseHTTPRequestHandler):
    """One request."""

    server: ModelServer
    timeout = SOCKET_TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fiber", ""

    def do_GET(self) -> None:
        """The page, and what it says of the model."""
        if not self._from_here():
            self._refuse(Refused(HTTPStatus.FORBIDDEN, "this page answers under its own address only"))
        elif self.path == "/":
            self._send_page()
        elif self.path == "/about":
            self._send_json(self.server.asking.about() | {"limit": self.server.limit})
        else:
            self._refuse(Refused(HTTPStatus.NOT_FOUND, "there is only one page here: /"))

    def do_POST(self) -> None:
        """/ask?verb=&text=&threshold= and /heat?text=, each with the bytes of an image file."""
        address = urlsplit(self.path)
        asked = {key: values[0] for key, values in parse_qs(address.query).items()}
        try:
            if not self._from_here():
                raise Refused(HTTPStatus.FORBIDDEN, "only the page itself may ask")
            image = self._body()
            asking, text = self.server.asking, asked.get("text", "")
            if address.path == "/ask":
                self._send_json(asking.ask(asked.get("verb", ""), text, _share(asked.get("threshold", "0.3")), image))
            elif address.path == "/heat":
                self._send_json(asking.heat(text, image))
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "there is only /ask and /heat")
        except Refused as refused:
            self._refuse(refused)
        except (KnownError, ValueError) as error:
            self._refuse(Refused(HTTPStatus.BAD_REQUEST, str(error)))
        except Exception:
            traceback.print_exc()
            told = "the model failed; the terminal in which `fiber serve` runs says why"
            self._refuse(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, told))

    def log_message(self, format: str, *args: Any) -> None:
        """Only what was refused is worth a line, see `_refuse`."""

    def _from_here(self) -> bool:
        """Whether the browser was sent to this server by name, and a page of its own asks."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        known = host in LOOPBACK if self.server.open_host in LOOPBACK else True
        origin = self.headers.get("Origin")
        return known and (origin is None or urlsplit(origin).netloc == self.headers.get("Host"))

    def _body(self) -> bytes:
        """The image. Raises Refused."""
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self.close_connection = True
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "how long the image is must be said") from None
        if size > self.server.limit or size < 0:
            self.close_connection = True  # the rest is not read
            limit = self.server.limit / 2**20
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the image has {size / 2**20:.1f} MB, {limit:.1f} MB are allowed",
            )
        if not size:
            raise Refused(HTTPStatus.BAD_REQUEST, "choose an image first")
        return self.rfile.read(size)

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        rules = f"default-src 'none'; img-src blob: data:; connect-src 'self'; script-src 'nonce-{nonce}'; "
        rules += f"style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        body = PAGE.replace("NONCE", nonce).encode()
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", body, {"Content-Security-Policy": rules})

    def _send_json(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, "application/json", json.dumps(value, ensure_ascii=False).encode())

    def _refuse(self, refused: Refused) -> None:
        line = " ".join(str(refused).split())
        print(f"refused: {line}", file=sys.stderr)
        self._send_json({"error": line}, refused.status)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        more = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        more |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} | (headers or {})
        if self.close_connection:
            more["Connection"] = "close"
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"threshold {text[:20]!r} is not in 0..1")
    return number
