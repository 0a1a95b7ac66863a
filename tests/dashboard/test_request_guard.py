"""Requests from other sites' pages to a real server: frames, other hosts, other ports, and what must still work."""

import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from dashboard.cli import serve
from dashboard.request_guard import refusal
from dashboard.session.settings import Settings

LOCAL = ["127.0.0.1", "localhost"]
PATHS = (
    "/",
    "/attention",
    "/_stcore/health",
    "/_stcore/host-config",
    "/app/static/plotly-cartesian-4.1.1.min.js",
    "/x.js",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("server")
    with serve(Settings("demo", folder), log=folder / "server.log") as url:
        yield url, folder / "server.log"


def answer(url: str, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        response.read()
        return response.status, response.headers
    finally:
        connection.close()


@pytest.mark.parametrize("path", PATHS)
def test_no_page_can_frame_an_answer(server: tuple[str, Path], path: str) -> None:
    status, headers = answer(server[0], path, {})
    assert status == 200
    assert headers["X-Frame-Options"] == "DENY" and headers["Content-Security-Policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize("path", PATHS)
def test_a_name_that_was_rebound_to_the_server_gets_nothing(server: tuple[str, Path], path: str) -> None:
    port = urlsplit(server[0]).port
    for host in ("evil.test", f"evil.test:{port}", "127.0.0.1.evil.test", "localhost@evil.test", ""):
        status, headers = answer(server[0], path, {"Host": host})
        assert status in (400, 403) and (status == 400 or headers["X-Frame-Options"] == "DENY"), host
    assert answer(server[0], path, {"Host": f"localhost:{port}"})[0] == 200


def socket_opens(url: str, **headers: str) -> bool:
    port = urlsplit(url).port
    try:
        with connect(f"ws://127.0.0.1:{port}/_stcore/stream", additional_headers=headers, subprotocols=["streamlit"]):
            return True
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
        return False


def test_a_websocket_opens_for_the_servers_own_origin_alone(server: tuple[str, Path]) -> None:
    url, log = server
    port = urlsplit(url).port
    assert socket_opens(url, Origin=url)
    assert socket_opens(url), "a program has no origin"
    for origin in (
        "http://127.0.0.1:1", "http://127.0.0.1", f"http://localhost:{port}", "http://evil.test",
        f"http://evil.test:{port}", "null", f"http://127.0.0.1:{port}.evil.test", "x",
        f"http://127.0.0.1:{port}@evil.test",
    ):  # fmt: skip
        assert not socket_opens(url, Origin=origin), origin
    assert "external IP" not in log.read_text()


def test_a_session_gets_its_page(server: tuple[str, Path]) -> None:
    port, run = urlsplit(server[0]).port, BackMsg()
    run.rerun_script.query_string = ""
    titles, headings = [], []
    with connect(f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=["streamlit"], origin=server[0]) as socket:
        socket.send(run.SerializeToString())
        while True:
            message = ForwardMsg.FromString(socket.recv(timeout=60))
            titles += [page.page_name for page in message.navigation.app_pages]
            headings.append(message.page_config_changed.title)
            if message.WhichOneof("type") == "script_finished":
                break
    assert titles[:2] == ["Overview", "Attention"] and "Overview · Llama workbench" in headings


def test_another_sites_page_cannot_send_a_form(server: tuple[str, Path]) -> None:
    for path in ("/_stcore/upload_file/a/b", "/_stcore/health", "/"):
        assert answer(server[0], path, {"Origin": "http://evil.test"}, "POST")[0] == 403
        assert answer(server[0], path, {"Origin": "http://127.0.0.1:1"})[0] == 403
    assert answer(server[0], "/_stcore/health", {"Origin": server[0]})[0] == 200
    assert "external IP" not in server[1].read_text()


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:9000", "http://localhost:9000", True),  # through a tunnel with another port
        ("LOCALHOST:9000", "http://localhost:9000", True),
        ("localhost", "https://localhost", True),  # behind a proxy with TLS
        ("localhost:443", "https://localhost", True),
        ("localhost:80", "https://localhost", False),
        ("localhost:9000", "http://localhost:9000/", False),
        ("localhost:x", None, False),
        ("[::1]:80", None, False),
    ],
)
def test_tunnels_and_proxies(host: str, origin: str | None, allowed: bool) -> None:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    assert (refusal(headers, LOCAL) is None) == allowed


def test_a_request_with_two_hosts_or_none_is_refused() -> None:
    one = (b"host", b"localhost")
    assert refusal([one], LOCAL) is None
    assert refusal([one, one], LOCAL) and refusal([], LOCAL)
    assert refusal([one, (b"origin", b"http://localhost"), (b"origin", b"http://localhost")], LOCAL)
