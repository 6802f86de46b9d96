"""What a process is told from outside, and what it says of what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import make_url

from farandole.errors import ConfigurationError
from farandole.settings import Settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FARANDOLE_")]:
        monkeypatch.delenv(name)


def _faults(**overrides: object) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load("payments", grpc_port=50054, **overrides)
    return {fault.where: fault.reason for fault in caught.value.faults}


def test_the_defaults_need_no_environment() -> None:
    settings = Settings.load("payments", grpc_port=50054)
    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.database_url == "sqlite:///.farandole/data/payments.db"
    assert settings.grpc_address == "127.0.0.1:50054"
    assert (settings.log_level, settings.log_format, settings.batch_size) == ("info", "json", 500)


def test_the_environment_rules_over_defaults_and_the_code_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARANDOLE_GRPC_ADDRESS", "[::1]:9000")
    monkeypatch.setenv("FARANDOLE_BATCH_SIZE", "7")
    monkeypatch.setenv("FARANDOLE_DESCRIPTORS", "other.binpb")
    monkeypatch.setenv("FARANDOLE_SERVICE", "someone-else")
    settings = Settings.load("payments", grpc_port=50054, batch_size=9)
    assert settings.grpc_address == "[::1]:9000"
    assert settings.batch_size == 9
    assert settings.descriptors == Path("other.binpb")
    assert settings.service == "payments"


def test_an_empty_variable_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARANDOLE_NATS_URL", "")
    assert Settings.load("payments", grpc_port=50054).nats_url == "nats://127.0.0.1:4222"


def test_a_fault_brings_no_faults_of_settings_that_nobody_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARANDOLE_NATS_URL", "foo")
    assert list(_faults()) == ["FARANDOLE_NATS_URL"]


def test_every_fault_is_told_at_once_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "FARANDOLE_NATS_URL": "http://127.0.0.1:4222",
        "FARANDOLE_DATABASE_URL": "mysql://x",
        "FARANDOLE_GRPC_ADDRESS": "50054",
        "FARANDOLE_LOG_LEVEL": "loud",
        "FARANDOLE_LOG_FORMAT": "xml",
        "FARANDOLE_BATCH_SIZE": "many",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    assert _faults().keys() == wrong.keys()


@pytest.mark.parametrize(
    "url",
    [
        "nats://127.0.0.1:4222",
        "nats://broker",
        "tls://a.example:4222,tls://b.example:4222",
        "nats://[::1]:4222",
    ],
)
def test_urls_of_brokers(url: str) -> None:
    assert Settings.load("payments", grpc_port=1, nats_url=url).nats_url == url


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:4222",
        "nats://",
        "nats://:4222",
        "nats://host:port",
        "nats://host:99999",
        "nats://host:0",
        "nats://[::1",
        "nats://a:4222,",
        "nats://a:4222, http://b",
    ],
)
def test_what_is_no_url_of_a_broker(url: str) -> None:
    assert "must be nats://HOST:PORT" in _faults(nats_url=url)["FARANDOLE_NATS_URL"]


@pytest.mark.parametrize(
    "url", ["nats://user:hunter2@host:4222", "nats://hunter2@host:4222", "nats://a,nats://b:hunter2@c"]
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load("payments", grpc_port=1, nats_url=url)
    assert "FARANDOLE_NATS_PASSWORD" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARANDOLE_NATS_PASSWORD", "hunter2")
    settings = Settings.load("payments", grpc_port=1)
    assert settings.nats_password is not None
    assert settings.nats_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("address", ["host", ":50051", "host:0", "host:65536", "host:x", "::1:50051", "h ost:1"])
def test_what_is_no_address(address: str) -> None:
    assert "HOST:PORT" in _faults(grpc_address=address)["FARANDOLE_GRPC_ADDRESS"]


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///?mode=memory", "payments.db"]
)
def test_what_is_no_database_file(url: str) -> None:
    assert "sqlite:///PATH" in _faults(database_url=url)["FARANDOLE_DATABASE_URL"]


@pytest.mark.parametrize("size", [0, 10_001])
def test_the_size_of_a_batch_has_limits(size: int) -> None:
    assert _faults(batch_size=size).keys() == {"FARANDOLE_BATCH_SIZE"}


def test_settings_do_not_change() -> None:
    settings = Settings.load("payments", grpc_port=1)
    with pytest.raises(ValueError, match="frozen"):
        settings.batch_size = 3


@pytest.mark.parametrize(
    "url",
    ["postgresql://ada@db:5432/orders", "postgresql://ada:s3cret@db/orders", "postgresql://ada@[::1]:1/orders?a=b"],
)
def test_a_server_is_taken_as_a_database(url: str) -> None:
    assert Settings.load("orders", grpc_port=1, database_url=url).database_url == url


@pytest.mark.parametrize(
    "url",
    ["postgresql://db/orders", "postgresql://ada@db", "postgresql://ada@db:70000/orders", "postgres://ada@db/orders"],
)
def test_a_server_needs_a_user_a_host_and_a_name(url: str) -> None:
    assert "postgresql://USER@HOST:PORT/NAME" in _faults(database_url=url)["FARANDOLE_DATABASE_URL"]


def test_a_password_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/w:rd\n")
    settings = Settings.load(
        "orders", grpc_port=1, database_url="postgresql://ada@db:5432/orders", database_password_file=file
    )
    assert make_url(settings.database_url).password == "p@ss/w:rd"
    assert "ss/w" not in repr(settings)
    assert "ss%2Fw" not in repr(settings)


@pytest.mark.parametrize("url", [None, "sqlite:///orders.db", "postgresql://ada:given@db/orders"])
def test_a_password_file_is_for_a_server_that_has_none_in_its_url(tmp_path: Path, url: str | None) -> None:
    file = tmp_path / "password"
    file.write_text("secret")
    given = {} if url is None else {"database_url": url}
    assert "without a password" in _faults(database_password_file=file, **given)["FARANDOLE_DATABASE_URL"]


def test_a_password_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    faults = _faults(database_url="postgresql://ada@db/orders", database_password_file=tmp_path / "none")
    assert "can't be read: No such file" in faults["FARANDOLE_DATABASE_URL"]
