"""`healthy`: one service's own word, for a container's health check."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from farandole.errors import ConfigurationError, Fault, InvalidArgumentError

ADDRESS_VARIABLE = "FARANDOLE_GRPC_ADDRESS"

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")
_HIGHEST_PORT = 65535
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - what a service may be told to listen on
_UNHEALTHY = 1


def healthy(
    address: Annotated[
        str | None,
        typer.Argument(metavar="ADDRESS", help=f"HOST:PORT; else {ADDRESS_VARIABLE}.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, max=60, help="How many seconds to wait.")] = 2.0,
) -> None:
    """Ask one service whether it serves; exits with 0 where it does, with 1 and the reason where it does not."""
    from farandole.stack.health import ask_service

    target = reachable(address) if address is not None else _own_address()
    found = ask_service(target, timeout)
    typer.echo(f"{target} {found.status}: {found.reason}" if found.reason else f"{target} {found.status}")
    if not found.is_serving:
        raise typer.Exit(_UNHEALTHY)


def reachable(address: str) -> str:
    """Where to ask a service that listens on `address` (HOST:PORT): on this machine, where it listens everywhere.

    Raises `InvalidArgumentError` where it is no such address.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) <= _HIGHEST_PORT:
        raise InvalidArgumentError("ADDRESS", f"must be HOST:PORT with a port from 1 to {_HIGHEST_PORT}, not {address}")
    return f"{_EVERY_INTERFACE.get(match['host'], match['host'])}:{match['port']}"


def _own_address() -> str:
    given = os.environ.get(ADDRESS_VARIABLE)
    if not given:
        raise ConfigurationError([Fault(ADDRESS_VARIABLE, "is not set; set it, or give an ADDRESS")])
    return reachable(given)
