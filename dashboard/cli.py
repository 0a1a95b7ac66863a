"""`workbench app`: start the dashboard's server, or check that it starts. Imports no Streamlit itself."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dashboard.session.settings import ROOT, Settings
from workbench.checkpoint.sources.names import resolve
from workbench.errors import MissingExtraError, WorkbenchError

APP = ROOT / "app.py"
HOST = "127.0.0.1"  # as in .streamlit/config.toml, which Streamlit reads from the folder of app.py


class ServerError(WorkbenchError):
    """The dashboard's server could not be started."""


def main(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model, as for `workbench generate`; default: 'demo'. Repeat it for more models."),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder with benchmark runs.")] = Path("results"),
    captures: Annotated[
        Path | None, typer.Option(help="Folder with saved captures; default: the folder 'captures' in --results.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 8501,
    check: Annotated[
        bool, typer.Option("--check", help="Only test that the server starts, then stop it; exit code 0 or 1.")
    ] = False,
) -> None:
    """Serve the dashboard on this machine.

    Example: workbench app --model checkpoints/Llama-3.2-1B --results results --port 8501
    """
    first, *more = (name if name == "demo" else str(resolve(name)) for name in model or ["demo"])
    settings = Settings(first, results, tuple(more), captures)
    _check_settings(settings)
    if check:
        raise typer.Exit(0 if check_server(settings) else 1)
    if not _port_is_free(port):
        raise ServerError(f"Port {port} on {HOST} is in use. Choose another one with --port.")
    typer.echo(f"Dashboard on http://{HOST}:{port} (Ctrl-C stops it)", err=True)
    # Replace this process, so that Ctrl-C and kill reach the server itself.
    os.execve(sys.executable, server_command(port), os.environ | settings.to_env())


def server_command(port: int, app: Path = APP) -> list[str]:
    """The command that serves app.py or another script.

    `-P` keeps the current folder out of the import path: a file named click.py there would hide the package.
    """
    run = [sys.executable, "-P", "-m", "streamlit", "run", str(app)]
    return [*run, "--server.port", str(port), "--server.address", HOST, "--server.headless", "true"]


@contextmanager
def serve(
    settings: Settings, *, log: Path, cwd: Path | None = None, timeout: float = 60, app: Path = APP
) -> Iterator[str]:
    """A server on a free port, in its own process group: healthy on entry, stopped on exit. Yields its URL.

    Raises: ServerError with the end of the log if it ends early or is not healthy in time.
    """
    port = _free_port()
    with log.open("wb") as out:
        server = subprocess.Popen(
            server_command(port, app),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=os.environ | settings.to_env(),
            start_new_session=True,
        )
    url = f"http://{HOST}:{port}"
    try:
        _wait_until_healthy(url, server, timeout=timeout, log=log)
        yield url
    finally:
        _stop(server)


def check_server(settings: Settings) -> bool:
    """Whether the server starts and becomes healthy; prints the result on stderr."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        try:
            with serve(settings, log=Path(folder, "server.log")) as url:
                typer.echo(f"Dashboard healthy at {url} after {time.monotonic() - start:.1f} s; stopped.", err=True)
        except ServerError as error:
            typer.echo(str(error), err=True)
            return False
    return True


def _check_settings(settings: Settings) -> None:
    for package in ("streamlit", "plotly", "pandas"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "app")
    for path in (settings.model, *settings.more):
        resolve(path)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], *, timeout: float, log: Path) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ServerError(f"The server ended with code {server.returncode}. Its log:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.1)
    raise ServerError(f"The server was not healthy within {timeout:.0f} s. Its log:\n{_tail(log)}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is not None:
            return
        os.killpg(server.pid, sign)
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
