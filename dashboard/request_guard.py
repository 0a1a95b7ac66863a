"""Refuses requests that another site's page makes to the server, and forbids other pages to frame the dashboard.

The server has no login: anyone who can send it a request sees prompts and can start benchmarks. It listens on this
machine only, but a page of any site in the user's browser can send it requests. Such a request names another host (DNS
rebinding) or another origin; the port is a part of the origin.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from streamlit import config

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = ((b"content-security-policy", b"frame-ancestors 'none'"), (b"x-frame-options", b"DENY"))
_PORTS = {"http": 80, "https": 443}
_POLICY_VIOLATION = 1008


class RequestGuard:
    """ASGI middleware around Streamlit's server: checks the Host and the Origin of each request, and adds `HEADERS` to
    each answer. Allowed hosts are Streamlit's `server.allowedHosts`."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif reason := refusal(scope["headers"], config.get_option("server.allowedHosts") or ()):
            await _refuse(scope, send, reason)
        else:
            await self.app(scope, receive, _with_headers(send))


def refusal(headers: list[tuple[bytes, bytes]], allowed_hosts: list[str] | tuple[str, ...]) -> str | None:
    """Why a request is refused, in one sentence; None if it is not.

    A request without an Origin is not from a page of another site: browsers send one with every websocket, with every
    request that may change something, and with every request whose answer a script could read.
    """
    hosts = [value for key, value in headers if key == b"host"]
    origins = [value for key, value in headers if key == b"origin"]
    if len(hosts) != 1 or len(origins) > 1:
        return "The request must have one Host, and at most one Origin."
    host = _place("http://" + hosts[0].decode("latin-1"))
    if host is None or (allowed_hosts and host[0] not in {name.lower() for name in allowed_hosts}):
        return f"This server answers to {' and '.join(allowed_hosts)}; open it under one of these names."
    if not origins:
        return None
    text = origins[0].decode("latin-1")
    origin, usual = _place(text), _PORTS.get(text.partition(":")[0])
    # Both leave out the port that is usual for the scheme, which behind a proxy may be another one than the server's.
    same = origin is not None and (origin[0], origin[1] or usual) == (host[0], host[1] or usual)
    if same or text in config.get_option("server.corsAllowedOrigins"):
        return None
    return "The request comes from a page of another site."


def _place(address: str) -> tuple[str, int | None] | None:
    """Host name, in lower case, and port, None if there is none; None for what is not scheme://host:port."""
    try:
        parts = urlsplit(address)
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.path or parts.query or parts.fragment or parts.username is not None:
        return None
    return name, port


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sending


async def _refuse(scope: Message, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": reason})
        return
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
