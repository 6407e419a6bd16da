"""The lines by which processes hear of each other: strangers break none, and reasons arrive."""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tercet import peers
from tercet.errors import UserError


@pytest.fixture
def watch() -> Iterator[peers._Watch]:
    """The main process's, in a launch of one, so that the test can be all the others."""
    made = peers._Watch()
    yield made
    if not made.gone:
        made.leave(None)


def call(watch: peers._Watch) -> socket.socket:
    return socket.create_connection(("127.0.0.1", watch.port), timeout=10)


def friend(watch: peers._Watch) -> socket.socket:
    """A line on which process 1 has said who it is."""
    line = call(watch)
    me = {"token": watch.token, "rank": 1, "who": "here 7"}
    line.sendall(json.dumps(me).encode() + b"\n")
    end = time.monotonic() + 10
    while not any(who for who, _ in list(watch.lines.values())):
        assert time.monotonic() < end
        time.sleep(0.01)
    return line


def is_closed(line: socket.socket) -> bool:
    try:
        return line.recv(100) == b""
    except ConnectionError:
        return True


def hears_of_an_end(watch: peers._Watch) -> bool:
    friend(watch).close()
    return watch.known.wait(10) and "process 1 of 1 on here 7 ended without a word" in watch.news


@pytest.mark.parametrize(
    "said",
    [
        b"{}\n{}\n",
        b'{"end": null}\n{"lost": "all"}\n{"token": 1}\n',
        b'{"token": "x", "rank": 1}\n' * 3,
        b"1\n",
        b"\xff\n",
        b"[" * 50_000 + b"\n",
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"x" * (2 * peers.LONGEST),
    ],
)
def test_a_stranger_is_hung_up_on_and_the_watch_goes_on(watch: peers._Watch, said: bytes) -> None:
    with call(watch) as stranger:
        with suppress(ConnectionError):  # it may be hung up on before the end
            stranger.sendall(said)
        assert is_closed(stranger)
    assert not watch.known.is_set() and hears_of_an_end(watch)


def test_a_friend_says_two_things_at_once(watch: peers._Watch) -> None:
    with friend(watch) as line:
        line.sendall(b'{"end": null}\n{"end": "late"}\n')
        assert is_closed(line)
    assert not watch.known.is_set() and hears_of_an_end(watch)


def test_a_line_that_cannot_be_taken_ends_no_watch(
    watch: peers._Watch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system has no file left for it, once."""
    plain, failed = peers._Watch._add, []

    def failing(self: peers._Watch, line: socket.socket, who: str) -> None:
        if not failed:
            failed.append(line)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        plain(self, line, who)

    monkeypatch.setattr(peers._Watch, "_add", failing)
    with call(watch):
        assert hears_of_an_end(watch)
    assert len(failed) == 1 and "Too many open files" in capsys.readouterr().err


def test_a_reason_arrives_before_its_line_is_closed(
    watch: peers._Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = peers._send

    def slow(line: socket.socket, message: dict[str, Any]) -> None:
        time.sleep(1.5)  # longer than the thread sleeps between two looks
        plain(line, message)

    with friend(watch) as line:
        monkeypatch.setattr(peers, "_send", slow)
        watch.leave("a strange thing")
        assert line.recv(100) == b'{"end": "a strange thing"}\n'
        assert is_closed(line)


@pytest.mark.parametrize(
    ("ports", "complaint"),
    [("one", "give a port or a range"), ("99999", "no port of 99999"), ("9-1", "no port of 9-1")],
)
def test_ports_that_cannot_be_used_are_one_line(
    ports: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(peers.PORTS, ports)
    with pytest.raises(UserError, match=f"{peers.PORTS}: {complaint}"):
        peers._Watch()
