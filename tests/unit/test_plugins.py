"""Finding plug-ins by their entry points, and what is said where there is none, or one too many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farandole.correlator.plugins_in_use import use_plugins
from farandole.correlator.settings import CorrelatorSettings
from farandole.errors import ConfigurationError, PluginError
from farandole.plugins import Kind, find, installed, names


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FARANDOLE_")]:
        monkeypatch.delenv(name)


class Packages:
    """Packages that seem to be installed, while a test runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, kind: Kind, *, module: str = "", **entry_points: str) -> None:
        info = self._directory / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = [f"{point} = {value}\n" for point, value in entry_points.items()]
        (info / "entry_points.txt").write_text(f"[{kind.value}]\n{''.join(lines)}")
        if module:
            (self._directory / f"{name.replace('-', '_')}.py").write_text(module)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    monkeypatch.syspath_prepend(tmp_path)
    return Packages(tmp_path)


def refused(settings: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        CorrelatorSettings.load("correlator", grpc_port=50051, **settings)
    return {fault.where: fault.reason for fault in caught.value.faults}


def test_what_ships_is_found_as_what_others_install_is(packages: Packages) -> None:
    packages.add("cassandra-store", Kind.STORE, cassandra="cassandra_store:store")
    found = {plugin.name: plugin.package for plugin in installed(Kind.STORE)}
    assert found["cassandra"] == "cassandra-store"
    assert found["sqlite"] == found["memory"] == "farandole"
    assert find(Kind.DEADLINE_ACTION, "webhook").package == "farandole"


def test_every_plugin_that_ships_can_be_loaded() -> None:
    shipped = [plugin for kind in Kind for plugin in installed(kind) if plugin.package == "farandole"]
    assert len(shipped) >= 3
    assert all(callable(plugin.load()) for plugin in shipped)


def test_a_name_that_is_not_installed_is_told_with_those_that_are() -> None:
    with pytest.raises(PluginError) as caught:
        find(Kind.DEADLINE_ACTION, "webhok")
    assert str(caught.value) == ("there is no deadline action 'webhok'; did you mean webhook?; installed: webhook")


def test_a_name_that_two_packages_offer_is_refused_by_both_their_names(packages: Packages) -> None:
    packages.add("one", Kind.OBSERVER, audit="one:Audit")
    packages.add("two", Kind.OBSERVER, audit="two:Audit")
    with pytest.raises(PluginError, match="one and two both offer the observer 'audit'; uninstall one"):
        find(Kind.OBSERVER, "audit")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise ValueError('no licence')", "ValueError: no licence"),
        ("raise SystemExit('enough')", "SystemExit: enough"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("audit = None", "can't be called"),
        ("other = 1", "AttributeError"),
    ],
)
def test_one_that_cannot_be_loaded_is_told_with_its_error(packages: Packages, module: str, said: str) -> None:
    name = f"bad-{abs(hash(module))}"
    packages.add(name, Kind.OBSERVER, module=module, audit=f"{name.replace('-', '_')}:audit")
    with pytest.raises(PluginError) as caught:
        find(Kind.OBSERVER, "audit").load()
    assert said in str(caught.value)
    assert f"the observer audit of {name} 1.2" in str(caught.value)


def test_names_in_a_setting() -> None:
    assert names(" webhook,audit , ,webhook") == ("webhook", "audit")
    assert names("") == ()


def test_a_store_is_named_by_the_scheme_of_the_databases_url(packages: Packages) -> None:
    packages.add("cassandra-store", Kind.STORE, cassandra="cassandra_store:store")
    settings = CorrelatorSettings.load("correlator", grpc_port=50051, database_url="cassandra://ring/sagas")
    assert settings.database_url == "cassandra://ring/sagas"
    assert refused({"database_url": "cassandr://ring"})["FARANDOLE_DATABASE_URL"].startswith(
        "there is no store 'cassandr'; did you mean cassandra?; installed: cassandra, memory"
    )


def test_all_that_is_wrong_with_names_is_told_at_once() -> None:
    faults = refused(
        {
            "nats_url": "http://x",
            "database_url": "sqlite:relative",
            "observers": "audit, diary",
            "deadline_actions": "webhok",
            "deadline_action_tries": 0,
        }
    )
    assert set(faults) == {
        "FARANDOLE_NATS_URL",
        "FARANDOLE_DATABASE_URL",
        "FARANDOLE_OBSERVERS",
        "FARANDOLE_DEADLINE_ACTIONS",
        "FARANDOLE_DEADLINE_ACTION_TRIES",
    }
    assert "'audit'" in faults["FARANDOLE_OBSERVERS"]
    assert "'diary'" in faults["FARANDOLE_OBSERVERS"]


async def test_all_that_is_wrong_with_plugins_themselves_is_told_at_once(
    packages: Packages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packages.add("unfinished", Kind.OBSERVER, module="import no_such_module", audit="unfinished:Audit")
    packages.add(
        "picky",
        Kind.STORE,
        module="def store(url, application_name):\n    raise ValueError('must be picky')",
        picky="picky:store",
    )
    secrets = tmp_path / "secrets"
    secrets.write_text("whsec_c2hvcnQ=\n")
    monkeypatch.setenv("FARANDOLE_WEBHOOK_URL", "http://example.com")
    monkeypatch.setenv("FARANDOLE_WEBHOOK_SECRET_FILE", str(secrets))
    settings = CorrelatorSettings.load(
        "correlator", grpc_port=50051, database_url="picky:", observers="audit", deadline_actions="webhook"
    )
    with pytest.raises(ConfigurationError) as caught:
        await use_plugins(settings, application_name="test")
    assert {fault.where for fault in caught.value.faults} == {
        "FARANDOLE_DATABASE_URL",
        "FARANDOLE_OBSERVERS",
        "FARANDOLE_WEBHOOK_URL",
    }
    assert "must be picky" in str(caught.value)
    assert "No module named 'no_such_module'" in str(caught.value)
