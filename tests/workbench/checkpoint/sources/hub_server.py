"""A Hugging Face hub on this machine: the part of its HTTP interface that a download uses, and faults on demand."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves the files of one folder as the model `repo`.

    break_off: per file, after how many bytes its next answer ends. down: whether files are answered with status 503.
    refuse: the status and the hub's error code of every answer, where it is set. `requests` are method, path, and the
    first byte asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path, repo: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.repo = folder, repo
        self.break_off: dict[str, int] = {}
        self.down = False
        self.refuse: tuple[int, str] | None = None
        self.requests: list[tuple[str, str, int]] = []
        self.agents: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def downloaded(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {path.rpartition(f"/{COMMIT}/")[2] for method, path, _ in self.requests if method == "GET"} & set(
            self.files()
        )


@contextmanager
def serve(folder: Path, repo: str) -> Iterator[HubServer]:
    with HubServer(folder, repo) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        first = int(re.sub(r"\D", "", self.headers.get("Range", "0").partition("-")[0]) or 0)
        hub.requests.append((self.command, path, first))
        hub.agents.add(self.headers.get("User-Agent", ""))
        if hub.refuse:
            self.send(hub.refuse[0], b"{}", {"X-Error-Code": hub.refuse[1], "X-Error-Message": "refused"})
        elif path in (f"/api/models/{hub.repo}", f"/api/models/{hub.repo}/revision/main"):
            siblings = [{"rfilename": name, **self.sizes(name)} for name in hub.files()]
            self.send_json({"id": hub.repo, "modelId": hub.repo, "sha": COMMIT, "siblings": siblings})
        elif path == f"/api/models/{hub.repo}/tree/{COMMIT}":
            self.send_json([{"type": "file", "path": name, **self.sizes(name)} for name in hub.files()])
        elif match := re.fullmatch(f"/{hub.repo}/resolve/(?:{COMMIT}|main)/(.+)", path):
            self.send_file(match[1], first, body=body)
        elif path.startswith(f"/api/models/{hub.repo}/revision/"):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def sizes(self, name: str) -> dict[str, Any]:
        content = (self.server.folder / name).read_bytes()
        return {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def send_file(self, name: str, first: int, *, body: bool) -> None:
        hub = self.server
        if body and hub.down:
            self.send(503, b"", {})
            return
        content = (hub.folder / name).read_bytes()
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if not body:
            return
        last = hub.break_off.pop(name, len(content))
        self.wfile.write(content[first:last])
        if last < len(content):
            self.wfile.flush()
            self.close_connection = True

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
