"""A page on this machine to try a model by hand, with the standard library: three addresses, no state, no files.

Why no web framework: the page asks two questions with an image each, of one user. What matters is what it refuses:
other machines (loopback unless told), other sites (Host and Origin are checked, so that no page of the internet can
ask through the user's browser), and files that are too big. A connection carries one request and is closed: a body
that was not read is never taken for the next request, which would pass the checks under a made-up origin.
"""

from __future__ import annotations

import io
import json
import secrets
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fiber.errors import KnownError
from fiber.serve.asking import Asking
from fiber.serve.page import PAGE

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS_S = 10.0  # until a request has said what it wants; its image may take longer, at MB_PER_S
MB_PER_S = 0.5
ANSWER_S = 30.0  # until an answer is taken
LINGER_S = 2.0  # what is still sent is thrown away for so long: a client that writes reads no answer
CONNECTIONS = 32  # answered side by side, each by a thread


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
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((host, port), Answering)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, unless too many are at work: then the connection is closed at once."""
        if not self._free.acquire(blocking=False):
            print(f"refused: {CONNECTIONS} connections are open", file=sys.stderr)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Frees its place at the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, or says nothing, is no fault."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """Where the page is."""
        shown = "127.0.0.1" if self.open_host in ("", "0.0.0.0") else self.open_host
        return f"http://{shown}:{self.server_address[1]}/"


class Timed(io.RawIOBase):
    """What a socket receives until `deadline` (of time.monotonic): a client that sends a byte now and then does not
    hold a thread for ever. Raises TimeoutError."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, into: Any) -> int:
        """Bytes put into a buffer, 0 at the end."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request takes too long")
        self.connection.settimeout(left)
        return self.connection.recv_into(into)


class Answering(BaseHTTPRequestHandler):
    """One request."""

    server: ModelServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fiber", ""

    def setup(self) -> None:
        """Reads against the clock."""
        super().setup()
        self.rfile.close()
        self.received = Timed(self.connection, time.monotonic() + HEADERS_S)
        self.rfile = io.BufferedReader(self.received)

    def handle(self) -> None:
        """One request of the connection, and what is left of it thrown away."""
        self.handle_one_request()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.received.deadline = time.monotonic() + LINGER_S
            while self.rfile.read1(2**16):
                pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library itself refuses (an unknown method, a first line that is none), in our form."""
        self._refuse(Refused(HTTPStatus(code), message or HTTPStatus(code).phrase))

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
        try:
            if not self._from_here():
                raise Refused(HTTPStatus.FORBIDDEN, "only the page itself may ask")
            address = urlsplit(self.path)
            asked = {key: values[0] for key, values in parse_qs(address.query).items()}
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
        origin = self.headers.get("Origin")
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            same = origin is None or urlsplit(origin).netloc == self.headers.get("Host")
        except ValueError:  # no addresses, such as "["
            return False
        return same and (host in LOOPBACK or self.server.open_host not in LOOPBACK)

    def _body(self) -> bytes:
        """The image. Raises Refused."""
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "how long the image is must be said") from None
        if size > self.server.limit or size < 0:
            limit = self.server.limit / 2**20
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the image has {size / 2**20:.1f} MB, {limit:.1f} MB are allowed",
            )
        if not size:
            raise Refused(HTTPStatus.BAD_REQUEST, "choose an image first")
        self.received.deadline += size / 2**20 / MB_PER_S
        try:
            image = self.rfile.read(size)
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the image takes too long to arrive") from None
        if len(image) < size:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the image ends after {len(image):,} of {size:,} bytes")
        return image

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
        self.request_version = self.protocol_version  # the library writes no head for a line without a version
        self.send_response(status)
        more = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        more |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Connection": "close"}
        for name, value in (more | (headers or {})).items():
            self.send_header(name, value)
        with suppress(OSError):  # the client has gone meanwhile
            self.connection.settimeout(ANSWER_S)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError(f"threshold {text[:20]!r} is not in 0..1")
    return number
