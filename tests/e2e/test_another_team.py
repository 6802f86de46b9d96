"""The correlator alone follows the sagas of a team that it has never seen: its descriptors, its definitions, no code.

The team has protos of its own, a bare nats-server, and services in whatever language; here `nats pub` speaks for them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from farandole.stack.embedded_broker import find_nats_server
from tests.e2e.running_stack import (
    DEAD_LETTERS,
    JSON,
    ROOT,
    SAGAS,
    Grpcurl,
    Nats,
    Tools,
    dispositions,
    eventually,
    free_ports,
)

FARANDOLE = Path(sys.executable).with_name("farandole")
RIDER_PHONE = "+49-secret-phone"

PROTO = """\
syntax = "proto3";

package rides.v1;

import "choreography/v1/options.proto";

message RideRequested {
  option (choreography.v1.event) = true;
  string ride_id = 1 [(choreography.v1.correlation_key) = true];
  string rider = 2;
  string phone = 3 [debug_redact = true];
}

message DriverAssigned {
  option (choreography.v1.event) = true;
  string ride_id = 1 [(choreography.v1.correlation_key) = true];
  string driver = 2;
}

message NoDriver {
  option (choreography.v1.event) = true;
  option (choreography.v1.failure) = true;
  string ride_id = 1 [(choreography.v1.correlation_key) = true];
  string reason = 2;
}

message RideFinished {
  option (choreography.v1.event) = true;
  option (choreography.v1.commit) = true;
  string ride_id = 1 [(choreography.v1.correlation_key) = true];
  int32 metres = 2;
}

message RideCancelled {
  option (choreography.v1.event) = true;
  string ride_id = 1 [(choreography.v1.correlation_key) = true];
}
"""

DEFINITION = """\
name: city-ride
version: 3
description: A rider is driven home.
deadline: "7200s"
initiating_event: rides.v1.RideRequested
commit_event: rides.v1.RideFinished

steps:
  - name: request
    participant: riders
    kind: COMPENSATABLE
    success: rides.v1.RideRequested
    compensation:
      triggers: [rides.v1.NoDriver]
      completion: rides.v1.RideCancelled

  - name: assign
    participant: dispatch
    kind: COMPENSATABLE
    triggers: [rides.v1.RideRequested]
    success: rides.v1.DriverAssigned
    failures: [rides.v1.NoDriver]

  - name: drive
    participant: drivers
    kind: PIVOT
    triggers: [rides.v1.DriverAssigned]
    success: rides.v1.RideFinished
"""


@dataclass(frozen=True)
class Team:
    """A team's directory, with a broker and a correlator that serve it."""

    directory: Path
    environment: dict[str, str]
    nats: Nats
    grpcurl: Grpcurl

    def publish(self, event_type: str, ride: str, **fields: object) -> None:
        """As one of the team's services."""
        self.nats.publish(f"events.{ride}.rides.v1.{event_type}", {"rideId": ride, **fields})

    def ended(self, ride: str) -> JSON:
        """The saga once it has ended."""
        saga: JSON = self.grpcurl.answers(f"{SAGAS}/WatchSaga", {"saga_id": ride})[-1]["saga"]
        return saga


def write_team(directory: Path) -> None:
    """Protos, the descriptor set made of them with `protoc`, and a definition."""
    (directory / "proto/rides/v1").mkdir(parents=True)
    (directory / "proto/rides/v1/rides.proto").write_text(PROTO)
    (directory / "sagas").mkdir()
    (directory / "sagas/city-ride.yaml").write_text(DEFINITION)
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"-I{directory / 'proto'}", f"-I{ROOT / 'proto'}", f"-I{ROOT / 'third_party/proto'}"),
            *("--include_imports", f"--descriptor_set_out={directory / 'rides.binpb'}", "rides/v1/rides.proto"),
        ],
        check=True,
        timeout=60,
    )


def environment_of(directory: Path, nats_url: str, address: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")},
        "FARANDOLE_NATS_URL": nats_url,
        "FARANDOLE_DESCRIPTORS": "rides.binpb",
        "FARANDOLE_SAGAS": "sagas",
        "FARANDOLE_DATABASE_URL": f"sqlite:///{directory / 'correlator.db'}",
        "FARANDOLE_GRPC_ADDRESS": address,
        "FARANDOLE_CORRELATOR_ADDRESS": address,
    }


@pytest.fixture(scope="module")
def team(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A bare nats-server with its own defaults, the streams of `farandole provision`, and `farandole correlator`."""
    directory = tmp_path_factory.mktemp("rides")
    write_team(directory)
    port = free_ports(2)
    environment = environment_of(directory, f"nats://127.0.0.1:{port}", f"127.0.0.1:{port + 1}")
    nats = Nats(tools.nats, environment["FARANDOLE_NATS_URL"])
    grpcurl = Grpcurl(tools.grpcurl, environment["FARANDOLE_GRPC_ADDRESS"])
    server = [
        str(find_nats_server(os.environ)),
        "-a",
        "127.0.0.1",
        "-p",
        str(port),
        "-js",
        "-sd",
        str(directory / "js"),
    ]
    with (directory / "nats.log").open("wb") as log, (directory / "correlator.log").open("wb") as correlator_log:
        processes = [subprocess.Popen(server, stdout=log, stderr=log)]
        try:
            eventually(lambda: run(directory, environment, "provision").returncode == 0, "the streams are made")
            processes.append(
                subprocess.Popen(
                    [FARANDOLE, "correlator"],
                    cwd=directory,
                    env=environment,
                    stdout=correlator_log,
                    stderr=correlator_log,
                )
            )
            eventually(lambda: grpcurl.health().status == "SERVING", "the correlator serves")
            yield Team(directory, environment, nats, grpcurl)
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
                process.wait(20)
    assert processes[1].returncode == 0, "an orderly stop"


def run(directory: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FARANDOLE, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def running(team: Team) -> list[str]:
    [page] = team.grpcurl.answers(f"{SAGAS}/ListSagas", {"filter": "status = RUNNING"})
    return [saga["saga_id"] for saga in page.get("sagas", [])]


def test_a_ride_is_followed_to_its_end(team: Team) -> None:
    team.publish("RideRequested", "ride-1", rider="grace", phone=RIDER_PHONE)
    eventually(lambda: running(team) == ["ride-1"], "it runs")
    team.publish("DriverAssigned", "ride-1", driver="ida")
    team.publish("RideFinished", "ride-1", metres=4200)
    saga = team.ended("ride-1")

    assert running(team) == []
    assert (saga["definition"], saga["version"], saga["status"]) == ("city-ride", 3, "SAGA_STATUS_COMPLETED")
    assert dispositions(saga) == [
        ("rides.v1.RideRequested", "APPLIED"),
        ("rides.v1.DriverAssigned", "APPLIED"),
        ("rides.v1.RideFinished", "APPLIED"),
        ("choreography.v1.SagaCompleted", "APPLIED"),
    ]
    assert [(step["name"], step["participant"], step["status"]) for step in saga["steps"]] == [
        ("request", "riders", "STEP_STATUS_SUCCEEDED"),
        ("assign", "dispatch", "STEP_STATUS_SUCCEEDED"),
        ("drive", "drivers", "STEP_STATUS_SUCCEEDED"),
    ]
    assert saga["history"][0]["payload"] == {"rideId": "ride-1", "rider": "grace", "phone": "[REDACTED]"}
    assert saga["history"][2]["payload"]["metres"] == 4200
    assert RIDER_PHONE not in (team.directory / "correlator.log").read_text()


def test_a_ride_that_fails_is_compensated(team: Team) -> None:
    team.publish("RideRequested", "ride-2", rider="grace")
    team.publish("NoDriver", "ride-2", reason="it rains")
    team.publish("RideCancelled", "ride-2")
    saga = team.ended("ride-2")
    assert (saga["status"], saga["cause"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_CAUSE_STEP_FAILURE")
    assert "it rains" in saga["cause_detail"]


def test_the_command_line_works_for_the_team_too(team: Team) -> None:
    body = json.dumps({"rideId": "ride-3", "rider": "grace"})
    done = run(team.directory, team.environment, "pub", "rides.v1.RideRequested", body)
    assert done.returncode == 0, done.stderr
    team.publish("NoDriver", "ride-3", reason="late")
    team.publish("RideCancelled", "ride-3")
    watched = run(team.directory, team.environment, "sagas", "watch", "ride-3", "--timeout", "20")
    assert watched.returncode == 0, watched.stderr
    assert "city-ride ride-3 is COMPENSATED" in watched.stdout
    shown = run(team.directory, team.environment, "sagas", "show", "ride-3")
    assert "rides.v1.RideCancelled" in shown.stdout


def test_what_is_not_the_teams_is_a_dead_letter(team: Team) -> None:
    """Nothing of the samples is known here, and the broker's own limit of 1 MiB holds."""
    event = {"orderId": "ord-1"}
    unknown = team.nats.store("events.ord-1.orders.v1.OrderCreated", event)
    largest = team.nats.store("events.ride-9.rides.v1.RideRequested", b"x" * 1024 * 1024)
    eventually(lambda: len(dead_letters(team)) == 2, "both are dead letters")
    assert {int(letter["sequence"]): letter["reason"] for letter in dead_letters(team)} == {
        unknown.sequence: "DEAD_LETTER_REASON_UNKNOWN_TYPE",
        largest.sequence: "DEAD_LETTER_REASON_TOO_LARGE",
    }
    eventually(lambda: team.nats.stream("DEADLETTERS")["state"]["messages"] == 2, "both copies are published")
    team.publish("RideRequested", "ride-after")
    team.publish("DriverAssigned", "ride-after")
    team.publish("RideFinished", "ride-after")
    assert team.ended("ride-after")["status"] == "SAGA_STATUS_COMPLETED"


def dead_letters(team: Team) -> list[JSON]:
    [page] = team.grpcurl.answers(f"{DEAD_LETTERS}/ListDeadLetters", {})
    found: list[JSON] = page.get("dead_letters", [])
    return found


def test_only_the_teams_definition_is_followed(team: Team) -> None:
    [listed] = team.grpcurl.answers(f"{SAGAS}/ListSagaDefinitions", {})
    assert [(one["name"], one["version"]) for one in listed["definitions"]] == [("city-ride", 3)]


def test_provisioning_again_changes_nothing(team: Team) -> None:
    done = run(team.directory, team.environment, "provision")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is there already, and as it should be") == 2


WRONG = [
    ("success: rides.v1.RideFinished", "success: rides.v1.RideFinnished", "", "did you mean rides.v1.RideFinished?"),
    (
        "commit_event: rides.v1.RideFinished",
        "commit_event: rides.v1.DriverAssigned",
        "success: rides.v1.RideFin",
        "PIVOT",
    ),
    ("kind: PIVOT", "kind: PIVOTAL", "", "PIVOTAL"),
    ("name: drive", "name: assign", "", "assign is the name of"),
    (
        "triggers: [rides.v1.DriverAssigned]",
        "triggers: [rides.v1.RideFinished]",
        "- name: drive",
        "drive can never start",
    ),
    ('deadline: "7200s"', "deadline: two hours", "", "two hours"),
    ("participant: drivers", "participants: drivers", "", "did you mean participant?"),
    ("version: 3", "version: 0", "", "version"),
    ("steps:", "steps: [", "- name: request", ""),
]
"""What is right, what is wrong, where that is told if not there, and what is said."""


@pytest.mark.parametrize(("right", "wrong", "at", "said"), WRONG, ids=[row[1] for row in WRONG])
def test_a_wrong_definition_is_refused(tmp_path: Path, right: str, wrong: str, at: str, said: str) -> None:
    """With file, line and reason, before anything is touched; the exit code says so."""
    write_team(tmp_path)
    text = wrong.join(DEFINITION.rsplit(right, 1))
    assert text != DEFINITION
    (tmp_path / "sagas/city-ride.yaml").write_text(text)
    place = text.rindex(at or wrong)
    line = text.count("\n", 0, place) + 1
    done = run(tmp_path, environment_of(tmp_path, "nats://127.0.0.1:4", "127.0.0.1:5"), "correlator")
    assert done.returncode != 0
    assert f"sagas/city-ride.yaml:{line}: " in done.stderr, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "correlator.db").exists()


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    write_team(tmp_path)
    file = tmp_path / "sagas/city-ride.yaml"
    file.write_text(DEFINITION.replace("name: drive", "name: assign").replace("[rides.v1.NoDriver]", "[rides.v1.No]"))
    (tmp_path / "sagas/second.yaml").write_text("name: Second\n")
    environment = environment_of(tmp_path, "nats://127.0.0.1:4", "127.0.0.1:5")
    done = run(tmp_path, environment, "correlator")
    assert done.returncode != 0
    for fault in ("assign is the name of", "rides.v1.No ", "sagas/second.yaml:1: version"):
        assert fault in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FARANDOLE_DESCRIPTORS", "nothing.binpb"), ("FARANDOLE_SAGAS", "nowhere"), ("FARANDOLE_NATS_URL", "localhost")],
)
def test_a_setting_that_leads_nowhere_is_named(tmp_path: Path, variable: str, value: str) -> None:
    write_team(tmp_path)
    environment = environment_of(tmp_path, "nats://127.0.0.1:4", "127.0.0.1:5") | {variable: value}
    done = run(tmp_path, environment, "correlator")
    assert done.returncode != 0
    assert variable in done.stderr
    assert "Traceback" not in done.stderr
