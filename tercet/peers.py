"""A process of a launch that dies ends all the others within a minute, and they say why.

Collectives wait for a process that has gone: NCCL's for hours. Each process therefore holds a
connection to the main one, which the system closes when a process ends, however it ends. (A
heartbeat would be missed while a library holds Python's lock.) A machine that vanishes without
closing anything is noticed by TCP's own keep-alive.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tercet.errors import LOST, Stopped, UserError
from tercet.processes import on_main, process_count, process_index
from tercet.progress import say
from tercet.secret import masked

GRACE = 20.0  # seconds that a process gets to end by itself once another has gone
NEWS = 5.0  # seconds to wait for news of the others when a collective has failed
PORTS = "TERCET_PORTS"  # environment variable: where firewalls let processes talk
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # 30 s in all
LONGEST = 2**20  # bytes: a stranger may send without end


@contextmanager
def together() -> Iterator[None]:
    """Around the work of all processes: if one ends inside the block, all do. They meet to begin.

    The others raise Stopped, saying which process ended and why, or exit with status `LOST` if
    they are stuck in a collective. A UserError is raised as it is.
    """
    if process_count() == 1:
        yield
        return
    watch = _Watch()
    try:
        yield
    except (UserError, Stopped) as error:
        watch.leave(str(error))
        raise
    except Exception as error:
        if watch.known.wait(NEWS):
            watch.leave(watch.news)
            raise Stopped(watch.news, LOST) from error
        watch.leave(f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:  # Ctrl-C
        watch.leave(type(error).__name__)
        raise
    watch.leave(None)


class _Watch:
    """One process's view: a line to the main process, or, there, a line to each of the others."""

    def __init__(self) -> None:
        self.rank, self.world = process_index(), process_count()
        self.news, self.known = "", threading.Event()
        self.gone = False  # this process has left the block: it does not mind how the others end
        self.told = False  # and they have been told so
        self.selector = selectors.DefaultSelector()
        self.lines: dict[socket.socket, tuple[str, bytes]] = {}  # who is there, what came so far
        self.listener: socket.socket | None = None  # on the main process
        self.host, self.port, self.token = on_main(self._open)
        if self.rank:
            self._call()
        threading.Thread(target=self._listen, daemon=True).start()

    def leave(self, reason: str | None) -> None:
        """Tell the others that this process ends: with a `reason`, or None if all is done."""
        self.gone = True
        for line in list(self.lines):
            _send(line, {"end": reason})
        self.told = True  # not before: the thread closes the lines then

    def _open(self) -> tuple[str, int, str]:
        """Where the main process can be called, and the word by which it knows who may."""
        self.listener = _listener()
        self.selector.register(self.listener, selectors.EVENT_READ)
        return socket.gethostname(), self.listener.getsockname()[1], secrets.token_hex(16)

    def _call(self) -> None:
        """Connect to the main process; without that line nothing is watched."""
        me = {
            "token": self.token,
            "rank": self.rank,
            "who": f"{socket.gethostname()} {os.getpid()}",
        }
        for host in (os.environ.get("MASTER_ADDR", ""), self.host):
            try:
                line = socket.create_connection((host, self.port), timeout=10)
            except OSError:
                continue
            line.settimeout(None)
            _send(line, me)
            self._add(line, f"process 0 of {self.world} on {self.host}")
            return
        print(f"process {self.rank}: no line to process 0 on {self.host}; if a process dies, the "
              "others may not notice", file=sys.stderr)  # fmt: skip

    def _add(self, line: socket.socket, who: str) -> None:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.lines[line] = (who, b"")
        self.selector.register(line, selectors.EVENT_READ)

    def _listen(self) -> None:
        while not self.told:
            for key, _ in self.selector.select(timeout=1.0):
                try:
                    if key.fileobj is self.listener and self.listener is not None:
                        self._add(self.listener.accept()[0], "")
                    elif key.fileobj in self.lines:
                        self._read(key.fileobj)  # type: ignore[arg-type]
                except Exception as error:  # no more files, say: whatever it is, the watch goes on
                    print(f"watching the other processes: {error!r}", file=sys.stderr)
                    time.sleep(1.0)  # it may well come again at once
        for end in (self.listener, *self.lines):
            if end is not None:
                end.close()

    def _read(self, line: socket.socket) -> None:
        who, before = self.lines[line]
        try:
            data = line.recv(65_536)
        except OSError:  # reset, or silent for longer than the keep-alive allows
            data = b""
        *messages, rest = (before + data).split(b"\n")
        self.lines[line] = (who, rest)
        try:
            for message in messages:
                if line in self.lines:  # else what came before it was the end, or a stranger's
                    self._hear(line, json.loads(message))
            if not who and len(rest) > LONGEST:
                self._forget(line)
        except Exception:  # a stranger: nothing that a line may hold ends this thread
            self._forget(line)
        if not data and line in self.lines:
            who = self.lines[line][0]
            self._forget(line)
            if who:
                why = "without a word: killed, out of memory, or its machine is gone"
                self._lost(f"{who} ended {why}")

    def _hear(self, line: socket.socket, message: dict[str, Any]) -> None:
        who = self.lines[line][0]
        if not who:  # not introduced yet
            if message.get("token") == self.token:
                known = f"process {message['rank']} of {self.world} on {message['who']}"
                self.lines[line] = (known, self.lines[line][1])
            else:
                self._forget(line)
        elif "lost" in message:
            self._lost(message["lost"])
        elif message["end"] is None:
            self._forget(line)
        else:
            self._forget(line)
            self._lost(f"{who} ended: {message['end']}")

    def _forget(self, line: socket.socket) -> None:
        if self.lines.pop(line, None) is not None:
            self.selector.unregister(line)
            line.close()

    def _lost(self, news: str) -> None:
        """Pass it on, and end this process if it does not end by itself soon."""
        if self.gone or self.known.is_set():
            return
        self.news = f"{news}; this process ends too, and the same command goes on from the last "
        self.news += "checkpoint"
        self.known.set()
        for line in list(self.lines):
            _send(line, {"lost": news})
        last = threading.Timer(GRACE, self._end)
        last.daemon = True
        last.start()

    def _end(self) -> None:
        if not self.gone:
            print(f"error: {masked(self.news)}", file=sys.stderr, flush=True)
            os._exit(LOST)


def _listener() -> socket.socket:
    """A port that the others call: any free one, or of those that PORTS names; IPv4 and IPv6."""
    both = socket.has_dualstack_ipv6()
    how: Any = {"family": socket.AF_INET6, "dualstack_ipv6": True} if both else {}
    first, _, last = os.environ.get(PORTS, "0").partition("-")
    try:
        ports = range(int(first), int(last or first) + 1)
    except ValueError:
        raise UserError(f"{PORTS}: give a port or a range of them, such as 29600-29699") from None
    for port in ports:
        try:
            return socket.create_server(("", port), backlog=1024, **how)
        except (OSError, OverflowError):  # taken, or no port at all
            continue
    raise UserError(f"{PORTS}: no port of {first}{_}{last} is free on this machine")


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    try:
        line.sendall(json.dumps(message).encode() + b"\n")
    except OSError:  # it has gone; reading from it will say so
        say("a process of the launch has closed its line")
