"""What the pages say is what happens: every session is typed, and every table is held against the code."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from farandole.cli.application import application
from farandole.correlator.settings import CorrelatorSettings
from farandole.correlator.webhook import WebhookSettings
from farandole.settings import ENV_PREFIX
from farandole.stack.embedded_broker import BINARY_VARIABLE
from farandole.stack.home import HOME_VARIABLE
from farandole.stack.ports import OFFSET_VARIABLE, port_variable
from tests.e2e.readme_sessions import ROOT, File, Session, Terminal, difference, read_page
from tests.e2e.running_stack import Tools

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
SESSION_PAGES = [page for page in PAGES if "```console" in page.read_text(encoding="utf-8")]


@pytest.fixture
def terminal(tools: Tools) -> Iterator[Terminal]:
    """A terminal in a checkout of its own."""
    # not under pytest's own directory: where root runs the tests, PostgreSQL's user has to come through
    directory = Path(tempfile.mkdtemp(prefix="farandole-page-"))
    directory.chmod(0o711)
    opened = Terminal.open(directory, [tools.grpcurl, tools.nats])
    try:
        yield opened
    finally:
        opened.close()
        shutil.rmtree(directory)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", SESSION_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_what_happens(page: Path, terminal: Terminal) -> None:
    for part in read_page(page.read_text(encoding="utf-8")):
        match part:
            case File():
                terminal.write(part)
            case Session():
                terminal.play(part)


def test_a_comparison_sees_what_differs() -> None:
    shown = 'status  COMPLETED\n…\n"sequence": "7"\nat 2026-11-22T07:22:53.4Z by …\n'
    assert not difference(shown, 'status  COMPLETED  \na\nb\n"sequence": "12"\nat 2027-01-01T00:00:00Z by ada\n')
    assert difference(shown, 'status  RUNNING\n"sequence": "12"\nat 2027-01-01T00:00:00Z by ada\n')
    assert difference(shown, 'status  COMPLETED\n"sequence": "12"\n')
    assert difference("dead letter payments-7\n", "dead letter shipping-7\n")
    assert not difference("dead letter payments-7\n", "dead letter payments-12\n")
    assert difference("", "something\n")
    assert difference("something\n", "")


@pytest.mark.parametrize("picture", [0, 1])
def test_the_pictures_of_the_flows_have_the_events_and_steps_of_the_definitions(picture: int) -> None:
    drawn = re.findall(r"^```mermaid\n(.*?)^```$", _section("The flows"), re.MULTILINE | re.DOTALL)[picture]
    name = ("order-fulfilment", "drone-delivery")[picture]
    file = ROOT / f"services/correlator/sagas/{name}.yaml"
    definition = yaml.safe_load(file.read_text(encoding="utf-8"))
    events = set(re.findall(r"\.v1\.(\w+)", str(definition)))
    only_after_a_time_out = {"ShipmentCancelled"}
    assert set(re.findall(r"\(\[(\w+)\]\)", drawn)) == events - only_after_a_time_out
    steps = {(step["participant"], step["name"]) for step in definition["steps"]}
    assert set(re.findall(r"\[(\w+): (?:undo )?([\w-]+)\]", drawn)) == steps


def test_the_settings_are_those_of_the_class() -> None:
    shown = dict(re.findall(rf"^\| `({ENV_PREFIX}\w+)` \| (.*?) ?\|", _section("Settings"), re.MULTILINE))
    given_by_code = {"service", "default_grpc_port"}
    names = {
        name: f"{ENV_PREFIX}{name.upper()}" for name in CorrelatorSettings.model_fields if name not in given_by_code
    }
    assert set(names.values()) <= shown.keys()
    defaults = CorrelatorSettings(service="SERVICE", default_grpc_port=50051)
    for name, variable in names.items():
        value = getattr(defaults, name)
        text = "" if value in (None, ()) else f"`{value}`".replace(":50051", ":PORT")
        text = text.replace(f"`{socket.gethostname()}`", "the host's name")
        assert shown[variable] == text, variable


def test_the_webhook_s_settings_are_those_of_its_class() -> None:
    shown = dict(re.findall(r"^\| `FARANDOLE_WEBHOOK_(\w+)` \| (.*?) ?\|", _section("Settings"), re.MULTILINE))
    assert shown == {
        name.upper(): "" if field.is_required() else f"`{field.default}`"
        for name, field in WebhookSettings.model_fields.items()
    }


def test_every_variable_of_the_code_is_a_setting_on_the_page() -> None:
    shown = set(re.findall(r"^\| `(\w+)` \|", _section("Settings"), re.MULTILINE))
    sources = [*(ROOT / "platform").rglob("*.py"), *(ROOT / "services").rglob("*.py")]
    read = {
        variable
        for source in sources
        for variable in re.findall(r"FARANDOLE_[A-Z_]*[A-Z]\b", source.read_text(encoding="utf-8"))
    }
    for_tests_only = {"FARANDOLE_REQUIRE_DOCKER"}
    of_one_service = {variable for variable in read if variable.startswith("FARANDOLE_PORT_")} - {OFFSET_VARIABLE}
    assert read - for_tests_only - of_one_service <= shown
    assert {HOME_VARIABLE, OFFSET_VARIABLE, port_variable("service"), BINARY_VARIABLE} <= shown


def test_the_ports_are_those_of_the_stack_file() -> None:
    services = yaml.safe_load((ROOT / "farandole.yaml").read_text(encoding="utf-8"))["services"]
    ports = [
        (service["name"], str(service[field]))
        for service in services
        for field in ("port", "monitoring_port", "grpc_port")
        if field in service
    ]
    assert re.findall(r"^\| (\w+) \| (\d+) \|", _section("Ports"), re.MULTILINE) == ports


def test_the_make_targets_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## (.*)$", makefile, re.MULTILINE)
    assert sorted(re.findall(r"^\| `make ([a-z-]+)` \| (.*) \|$", _section("make"), re.MULTILINE)) == sorted(targets)


def test_the_commands_are_those_of_the_command_line() -> None:
    shown = re.findall(r"^\| `farandole ([a-z ]+?)(?: [A-Z[].*)?` \|", _section("farandole"), re.MULTILINE)
    commands = typer.main.get_command(application)
    assert sorted(shown) == sorted(_paths(commands))


def test_what_a_page_tells_to_make_can_be_made() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        told = set(re.findall(r"(?:`|^\$? ?)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert told <= targets, page


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            assert not heading or heading in _headings(path), f"{page.name}: {target}#{heading}"


def _headings(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _section(title: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def _paths(command: object, path: str = "") -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path
        return
    for name, child in children.items():
        yield from _paths(child, f"{path} {name}".strip())
