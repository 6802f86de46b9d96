"""One validated object of settings, read from `FARANDOLE_*` variables; every fault is reported at once."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from farandole.errors import ConfigurationError, Fault
from farandole.partitions import PARTITIONS

S = TypeVar("S", bound=BaseSettings)

ENV_PREFIX = "FARANDOLE_"

_NOT_REACHED = "default_factory_not_called"
"""A default that pydantic did not work out, since another setting is wrong: no fault of its own."""

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):(\d{1,5})")


def _nats_url(value: str) -> str:
    for url in value.split(","):
        if "@" in url:
            raise ValueError("must hold no user or password; set FARANDOLE_NATS_USER and FARANDOLE_NATS_PASSWORD")
        if not _is_server(url):
            raise ValueError("must be nats://HOST:PORT or tls://HOST:PORT, several of them separated by commas")
    return value


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"nats", "tls"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no number as a port, or one above 65535, or half an IPv6 address
        return False


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or not 0 < int(match[2]) <= 65535:
        raise ValueError("must be HOST:PORT with a port from 1 to 65535")
    return value


def _metrics_address(value: str) -> str:
    return _address(f"127.0.0.1:{value}" if value.isascii() and value.isdigit() else value)


def sql_database_url(value: str, info: ValidationInfo) -> str:
    """The URL of a SQL database, where it is one, with its password put in where another setting has that.

    A validator of pydantic: raises `ValueError` that says what it must be.
    """
    if not _is_sqlite_file(value) and not _is_postgresql(value):
        raise ValueError(
            "must be sqlite:///PATH, a file, since readers and the writer have connections of their own; or "
            "postgresql://USER@HOST:PORT/NAME"
        )
    if (password_file := info.data.get("database_password_file")) is not None:
        return with_password(value, password_file)
    return value


def with_password(url: str, file: Path) -> str:
    """The URL of a server's database with the password that is in a file. Raises `ValueError` that says what is wrong:
    `must be …`, or that the file can't be read."""
    parts = urlsplit(url)
    if parts.scheme != "postgresql" or parts.password is not None:
        raise ValueError("must be a postgresql:// without a password, which FARANDOLE_DATABASE_PASSWORD_FILE has")
    try:
        password = file.read_text().strip()
    except OSError as error:
        raise ValueError(f"has no password: {file} can't be read: {error.strerror}") from None
    user, _, server = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{server}").geturl()


def _is_sqlite_file(url: str) -> bool:
    path = url.removeprefix("sqlite:///")
    return path != url and bool(path) and not path.startswith((":memory:", "?"))


def _is_postgresql(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme == "postgresql"
            and bool(parts.hostname)
            and bool(parts.username)
            and bool(parts.path.strip("/"))
            and parts.port != 0
        )
    except ValueError:  # as in `_is_server`
        return False


class Settings(BaseSettings):
    """What a Farandole process is told from outside."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True)

    service: str
    """The name of this process: the participant's, or `correlator`. Given by the code, not by the environment."""
    default_grpc_port: int
    """The port of `grpc_address` where that is not set. Given by the code too."""
    nats_url: Annotated[str, AfterValidator(_nats_url)] = "nats://127.0.0.1:4222"
    nats_user: str | None = None
    nats_password: SecretStr | None = None
    database_password_file: Path | None = None
    """Of `database_url`, where that is a server's: a file with the password, as orchestrators hand secrets over."""
    database_url: Annotated[str, AfterValidator(sql_database_url)] = Field(
        default_factory=lambda known: f"sqlite:///.farandole/data/{known['service']}.db",
        repr=False,  # it may hold a password
        validate_default=True,
    )
    """`sqlite:///PATH`, by default `.farandole/data/<service>.db` under the current directory; or
    `postgresql://USER@HOST:PORT/NAME`, whose password is in `database_password_file`, in the URL, in `PGPASSWORD` or in
    the file that `PGPASSFILE` names."""
    grpc_address: Annotated[str, AfterValidator(_address)] = Field(
        default_factory=lambda known: f"127.0.0.1:{known['default_grpc_port']}"
    )
    """Where this process serves gRPC."""
    metrics_address: Annotated[str, AfterValidator(_metrics_address)] | None = None
    """Where this process shows its metrics over HTTP, HOST:PORT, or a PORT of 127.0.0.1; None for nowhere."""
    replica: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = Field(
        default_factory=socket.gethostname
    )
    """The name of this process among those that share the service's database."""
    lanes: Annotated[int, Field(ge=1, le=PARTITIONS)] = 1
    """In how many lanes the service's replicas share out its work; all of them have the same number."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 500
    """How many events one transaction handles at most."""
    descriptors: Path = Path("generated/descriptors.binpb")
    """Of the correlator and the CLI: the descriptor set that holds the events."""
    sagas: Path = Path("services/correlator/sagas")
    """Of the correlator: the directory of saga definitions."""

    @classmethod
    def load(cls, service: str, *, grpc_port: int, **overrides: Any) -> Self:  # noqa: ANN401 - pydantic's own fields
        """The settings of one process. Raises `ConfigurationError` that lists every fault."""
        return load_settings(cls, service=service, default_grpc_port=grpc_port, **overrides)


def load_settings(settings: type[S], **given: Any) -> S:  # noqa: ANN401 - pydantic's own fields
    """Settings from the environment, and what is given over it. Raises `ConfigurationError` that lists every fault by
    its variable."""
    try:
        return settings(**given)
    except ValidationError as error:
        prefix = settings.model_config["env_prefix"]
        raise ConfigurationError(
            [
                Fault(prefix + "_".join(str(part) for part in fault["loc"]).upper(), _reason(fault))
                for fault in error.errors()
                if fault["type"] != _NOT_REACHED
            ]
        ) from None


def _reason(fault: ErrorDetails) -> str:
    return "must be set" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
