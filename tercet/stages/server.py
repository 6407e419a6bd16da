"""The HTTP side of the search page: standard library, this machine only unless asked otherwise."""

import errno
import ipaddress
import json
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from tercet.errors import UserError
from tercet.report.search import SECURITY_POLICY

MOST_CHARACTERS = 2_000  # of a query; more than any model reads
MOST_HITS = 100
HITS = 10
LONGEST_LINE = 32_768  # of the address asked for: a query may take 12 bytes a character
PATIENCE = 10.0  # seconds that a connection may stay silent
LONGEST_WAIT = 30.0  # seconds for the whole of a request to arrive


class Answers(Protocol):
    """What the server asks."""

    def answer(self, query: str, k: int) -> dict[str, Any]: ...
    def page(self, query: str, k: int) -> str: ...


class SearchServer(ThreadingTCPServer):
    """Listens at once; answers when `search` is set and `serve_forever` runs.

    `/?q=QUERY&k=10` is the page, `/search.json?q=QUERY&k=10` the same as JSON. No request changes
    anything. Raises UserError if the port is taken or the host is not one of this machine.
    """

    daemon_threads = True
    request_queue_size = 64  # connections that wait while models are loaded
    allow_reuse_address = sys.platform != "win32"  # there it would let two servers share a port
    search: Answers

    def __init__(self, host: str, port: int) -> None:
        self.host = host.strip("[]")
        if ":" in self.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((self.host, port), Handler)
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            reason = "is in use" if taken else f"cannot be listened on ({error})"
            raise UserError(
                f"port {port} of {host} {reason}; choose another with --port, or --port 0 for any"
            ) from None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.server_address[1]}/"

    def is_own(self, host: str | None) -> bool:
        """Whether a Host header names this server by an address, as localhost or as --host.

        A page elsewhere whose name is made to point here (DNS rebinding) has a name of its own.
        """
        name = urlsplit(f"//{host or ''}").hostname
        if not name:
            return False
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break off are no news; anything else is."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request: GET or HEAD, no body is ever read."""

    server: SearchServer  # type: ignore[assignment]
    server_version = "tercet"
    sys_version = ""
    timeout = PATIENCE

    def setup(self) -> None:
        """What arrives byte by byte is never silent: after a while nothing more is read."""
        super().setup()
        self.late = threading.Timer(LONGEST_WAIT, _hear_no_more, [self.connection])
        self.late.daemon = True
        self.late.start()

    def finish(self) -> None:
        self.late.cancel()
        super().finish()

    def do_GET(self) -> None:
        """Refuse what is not ours to answer, then answer."""
        try:
            own = self.server.is_own(self.headers.get("Host"))
            target = urlsplit(self.path)
            fields = parse_qs(target.query, max_num_fields=8)
        except ValueError:
            return self._refuse(HTTPStatus.BAD_REQUEST, "not an address this server understands")
        if not own:
            return self._refuse(
                HTTPStatus.MISDIRECTED_REQUEST, "unknown Host; open it as localhost"
            )
        if len(self.path) > LONGEST_LINE:
            return self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long")
        if target.path not in ("/", "/search.json"):
            return self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        query = fields.get("q", [""])[-1]
        if len(query) > MOST_CHARACTERS:
            return self._refuse(
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"a query has at most {MOST_CHARACTERS:,} characters",
            )
        try:
            k = int(fields.get("k", [str(HITS)])[-1])
            if not 1 <= k <= MOST_HITS:
                raise ValueError
        except ValueError:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"k is a number from 1 to {MOST_HITS}")
        if target.path == "/":
            return self._send(HTTPStatus.OK, "text/html", self.server.search.page(query, k))
        if not query.strip():
            return self._refuse(HTTPStatus.BAD_REQUEST, "no query: ask with ?q=")
        found = json.dumps(self.server.search.answer(query, k), ensure_ascii=False)
        return self._send(HTTPStatus.OK, "application/json", found)

    do_HEAD = do_GET

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, "text/plain", reason + "\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": SECURITY_POLICY,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: what people search for is theirs."""


def _hear_no_more(connection: socket.socket) -> None:
    with suppress(OSError):  # closed in the meantime
        connection.shutdown(socket.SHUT_RD)
