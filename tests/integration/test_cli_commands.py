"""The commands, as people type them, against a real broker and a real correlator."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from farandole.stack.home import Home
from farandole.stack.shape import Shape, keep_shape
from farandole.testing.brokers import BrokerUnderTest, free_port
from tests.integration.stack_under_test import ROOT, StackUnderTest, eventually

ORDER = {
    "customerId": "ada",
    "currency": "EUR",
    "card": "card-1",
    "address": "1 Main Street",
    "lines": [{"sku": "widget", "quantity": 2, "unitPriceCents": 1250}],
}
RESERVED = {
    "reservationId": "r-1", "amountCents": 2500, "currency": "EUR", "card": "card-1", "address": "1 Main Street",
}  # fmt: skip
PAID = {"paymentId": "p-1", "amountCents": 2500, "currency": "EUR", "address": "1 Main Street"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackUnderTest]:
    """The broker and the correlator alone."""
    made = StackUnderTest(tmp_path_factory.mktemp("commands"))
    made.file.write_text(
        """\
services:
  - name: nats
    broker: embedded
  - name: correlator
    command: [farandole, correlator]
    grpc_port: 50051
    depends_on: [nats]
"""
    )
    made.environment |= {
        "FARANDOLE_SAGAS": str(ROOT / "services" / "correlator" / "sagas"),
        "FARANDOLE_PORT_CORRELATOR": str(free_port()),
    }
    try:
        made.up()
        yield made
    finally:
        assert made.farandole("down").returncode == 0
    assert made.leftovers() == []


def said(stack: StackUnderTest, *arguments: str) -> str:
    done = stack.farandole(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(stack: StackUnderTest, *arguments: str, **environment: str) -> tuple[int, str]:
    done = stack.farandole(*arguments, environment=environment)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def publish(stack: StackUnderTest, event_type: str, body: dict[str, Any], key: str) -> str:
    return said(stack, "pub", event_type, json.dumps(body), "--key", key)


def shown(stack: StackUnderTest, saga: str) -> dict[str, Any]:
    """What `sagas show` prints for programs, as soon as the correlator knows the saga."""

    def look() -> dict[str, Any] | None:
        done = stack.farandole("sagas", "show", saga, "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    return eventually(look, f"the correlator knows {saga}")


def test_help_waits_for_no_library() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import farandole.cli.application, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert not {"grpc", "nats", "sqlalchemy", "pydantic", "google.protobuf", "structlog"} & set(loaded)


def test_pub_starts_a_saga_and_says_how_to_follow_it(stack: StackUnderTest) -> None:
    printed = publish(stack, "orders.v1.OrderCreated", ORDER, "ord-pub")
    assert "events.ord-pub.orders.v1.OrderCreated is stored at sequence " in printed
    assert "next: farandole sagas watch ord-pub" in printed
    saga = shown(stack, "ord-pub")
    assert (saga["definition"], saga["status"]) == ("order-fulfilment", "SAGA_STATUS_RUNNING")
    (entry,) = saga["history"]
    assert (entry["eventType"], entry["source"]) == ("orders.v1.OrderCreated", "farandole-cli")
    again = publish(stack, "orders.v1.OrderCreated", ORDER, "ord-pub")
    assert "as a duplicate it is not stored again" in again


def test_pub_reads_standard_input(stack: StackUnderTest) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "farandole", "pub", "orders.v1.OrderCreated", "-", "--source", "test"],
        input=json.dumps({**ORDER, "orderId": "ord-stdin"}),
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "events.ord-stdin.orders.v1.OrderCreated is stored" in done.stdout
    assert shown(stack, "ord-stdin")["history"][0]["source"] == "test"


def test_pub_refuses_what_no_one_could_read(stack: StackUnderTest) -> None:
    created = "orders.v1.OrderCreated"
    code, why = refused(stack, "pub", "orders.v1.OrderCreatd", "{}")
    assert (code, "did you mean orders.v1.OrderCreated?" in why) == (2, True)
    code, why = refused(stack, "pub", created, '{"orderId": "ord-x", "no_such_field": 1}')
    assert (code, "no_such_field" in why) == (2, True)
    code, why = refused(stack, "pub", created, json.dumps({**ORDER, "orderId": "ord-x"}), "--key", "ord-y")
    assert (code, "--key: is ord-y, but the body's order_id is ord-x" in why) == (2, True)
    code, why = refused(stack, "pub", created, json.dumps({**ORDER, "orderId": "ord-x", "lines": []}))
    assert (code, "breaks a rule" in why) == (1, True)
    code, why = refused(stack, "pub", created, "{}", FARANDOLE_DESCRIPTORS="/absent.binpb")
    assert (code, "FARANDOLE_DESCRIPTORS" in why) == (2, True)


def test_watch_follows_a_saga_from_before_it_starts_until_it_has_ended(stack: StackUnderTest) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "farandole", "sagas", "watch", "ord-watch", "--timeout", "60"],
        env=stack.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        for event_type, body in (
            ("orders.v1.OrderCreated", ORDER),
            ("inventory.v1.ItemsReserved", RESERVED),
            ("payments.v1.PaymentProcessed", PAID),
            ("shipping.v1.OrderShipped", {"trackingNumber": "t-1"}),
            ("orders.v1.OrderCompleted", {"trackingNumber": "t-1"}),
        ):
            publish(stack, event_type, body, "ord-watch")
        printed, _ = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert "order-fulfilment ord-watch is COMPLETED" in printed.splitlines()[-1]
    events = [line.split() for line in printed.splitlines() if "APPLIED" in line]
    assert [words[3] for words in events] == [
        "orders.v1.OrderCreated",
        "inventory.v1.ItemsReserved",
        "payments.v1.PaymentProcessed",
        "shipping.v1.OrderShipped",
        "orders.v1.OrderCompleted",
        "choreography.v1.SagaCompleted",
    ]
    table = said(stack, "sagas", "show", "ord-watch")
    assert "take-payment" in table
    assert "card-1" not in table
    changes = [json.loads(line) for line in said(stack, "sagas", "watch", "ord-watch", "--json").splitlines()]
    assert [change["status"] for change in changes] == ["SAGA_STATUS_COMPLETED"]


def test_watch_that_waits_in_vain_gives_up_in_time(stack: StackUnderTest) -> None:
    code, why = refused(stack, "sagas", "watch", "ord-never", "--timeout", "0.5")
    assert (code, "did not answer in time" in why) == (1, True)


def test_diagnose_says_for_whom_a_saga_waits_and_what_to_try(stack: StackUnderTest) -> None:
    publish(stack, "orders.v1.OrderCreated", ORDER, "ord-diagnose")
    shown(stack, "ord-diagnose")
    printed = said(stack, "sagas", "diagnose", "ord-diagnose")
    assert printed.startswith("order-fulfilment ord-diagnose is RUNNING.\nIt waits since ")
    assert "for inventory to carry out reserve-items" in printed
    assert "inventory has never run" in printed
    assert printed.endswith(
        "Try next:\n  farandole start inventory\n  farandole sagas watch ord-diagnose\n",
    )
    diagnosis = json.loads(said(stack, "sagas", "diagnose", "ord-diagnose", "--json"))
    assert [one["participant"] for one in diagnosis["awaited"]] == ["inventory"]
    code, why = refused(stack, "sagas", "diagnose", "ord-nobody")
    assert (code, "there is no saga 'ord-nobody'" in why) == (1, True)


def test_list_filters_orders_and_limits(stack: StackUnderTest) -> None:
    for key in ("ord-list-1", "ord-list-2", "ord-list-3"):
        publish(stack, "orders.v1.OrderCreated", ORDER, key)
        shown(stack, key)
    newest = json.loads(said(stack, "sagas", "list", "--order-by", "start_time desc", "--limit", "2", "--json"))
    assert [saga["sagaId"] for saga in newest["sagas"]] == ["ord-list-3", "ord-list-2"]
    assert newest["more"] is True
    one = json.loads(said(stack, "sagas", "list", "--filter", 'saga_id = "ord-list-1"', "--json"))
    assert [saga["sagaId"] for saga in one["sagas"]] == ["ord-list-1"]
    assert one["more"] is False
    table = said(stack, "sagas", "list", "--filter", 'saga_id = "ord-list-1"').splitlines()
    assert table[1].split()[:5] == ["ord-list-1", "order-fulfilment", "v1", "RUNNING", "ON_TIME"]
    assert "reserve-items (inventory)" in table[1]
    assert said(stack, "sagas", "list", "--filter", "status = COMPENSATION_FAILED") == "no saga matches\n"


def test_errors_say_what_the_correlator_said(stack: StackUnderTest) -> None:
    code, why = refused(stack, "sagas", "show", "ord-absent")
    assert (code, "NOT_FOUND" in why, "ord-absent" in why) == (1, True, True)
    code, why = refused(stack, "sagas", "list", "--filter", "colour = RED")
    assert (code, why.startswith("farandole: filter: "), "colour" in why) == (2, True, True)
    code, why = refused(stack, "sagas", "list", "--order-by", "colour")
    assert (code, why.startswith("farandole: order_by: ")) == (2, True)
    code, why = refused(stack, "deadletters", "show", "correlator-99999")
    assert (code, "NOT_FOUND" in why) == (1, True)
    code, why = refused(stack, "sagas", "list", "--address", f"127.0.0.1:{free_port()}")
    assert (code, "no correlator answers at" in why) == (1, True)


def test_any_replica_of_the_correlator_may_answer(stack: StackUnderTest, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    keep_shape(home, Shape(replicas=2, database="postgres"))
    stopped, there = str(free_port()), stack.environment["FARANDOLE_PORT_CORRELATOR"]
    places = {"FARANDOLE_HOME": str(home.directory), "FARANDOLE_PORT_CORRELATOR": stopped}
    asked = {**places, "FARANDOLE_PORT_CORRELATOR_2": there}
    for command in (("sagas", "list", "--json"), ("deadletters", "list", "--json")):
        assert json.loads(stack.farandole(*command, environment=asked).stdout) == json.loads(said(stack, *command))
    other = str(free_port())
    nobody = stack.farandole("sagas", "list", environment={**places, "FARANDOLE_PORT_CORRELATOR_2": other})
    assert f"no correlator answers at 127.0.0.1:{stopped} or 127.0.0.1:{other}; start it with" in nobody.stderr


def test_the_backup_of_a_stack_is_of_its_own_broker_whatever_the_variable_says(
    stack: StackUnderTest, nats_server: BrokerUnderTest, tmp_path: Path
) -> None:
    backup = str(tmp_path / "backup")
    foreign = {"FARANDOLE_NATS_URL": nats_server.url}
    done = stack.farandole("backup", backup, environment=foreign)
    assert "complete as of" in done.stdout, done.stderr
    home = tmp_path / "home"
    ports = {f"FARANDOLE_PORT_{name}": str(free_port()) for name in ("NATS", "NATS_MONITORING", "CORRELATOR")}
    done = stack.farandole("restore", backup, environment={**foreign, **ports, "FARANDOLE_HOME": str(home)})
    assert "complete as of" in done.stdout, done.stderr
    assert [path.name for path in (home / "data" / "nats").glob("jetstream/*/streams/EVENTS")] == ["EVENTS"]

    async def streams_of_the_other() -> int:
        client = await nats.connect(nats_server.url)
        found = await client.jetstream().streams_info()
        await client.close()
        return len(found)

    assert asyncio.run(streams_of_the_other()) == 0


def test_dead_letters_are_listed_and_shown_with_their_reason(stack: StackUnderTest) -> None:
    async def publish_garbage() -> int:
        client = await nats.connect(f"nats://127.0.0.1:{stack.environment['FARANDOLE_PORT_NATS']}")
        receipt = await client.jetstream().publish("events.ord-bad.orders.v1.OrderCreated", b"\xff garbage")
        await client.close()
        return int(receipt.seq)

    letter = f"correlator-{asyncio.run(publish_garbage())}"

    def look() -> dict[str, Any] | None:
        found = json.loads(said(stack, "deadletters", "list", "--json"))["deadLetters"]
        return next((one for one in found if one["deadLetterId"] == letter), None)

    found = eventually(look, f"the dead letter {letter}")
    assert found["reason"] == "DEAD_LETTER_REASON_UNDECODABLE"
    assert "UNDECODABLE" in said(stack, "deadletters", "list", "--filter", "reason = UNDECODABLE")
    text = said(stack, "deadletters", "show", letter)
    assert "events." in text
    assert "UNDECODABLE" in text
    assert json.loads(said(stack, "deadletters", "show", letter, "--json"))["bodySize"] == "9"


def test_provision_says_what_is_there_what_it_made_and_what_drifted(stack: StackUnderTest) -> None:
    there = "is there already, and as it should be"
    assert said(stack, "provision") == f"EVENTS: {there}\nDEADLETTERS: {there}\n"

    async def change(*, remove: bool) -> None:
        client = await nats.connect(f"nats://127.0.0.1:{stack.environment['FARANDOLE_PORT_NATS']}")
        jetstream = client.jetstream()
        if remove:
            await jetstream.delete_stream("DEADLETTERS")
        else:
            await jetstream.update_stream(name="DEADLETTERS", subjects=["deadletters.>", "other"], max_age=60)
            await jetstream.add_consumer("EVENTS", durable_name="payments-7", description="of long ago")
        await client.close()

    asyncio.run(change(remove=False))
    drifted = stack.farandole("provision")
    assert drifted.returncode == 1
    words = [line.split() for line in drifted.stdout.splitlines()]
    assert words[1] == ["DEADLETTERS:", "is", "there", "already,", "and", "not", "as", "it", "should", "be"]
    assert ["DEADLETTERS", "max_age", "60000000000", "0", "farandole", "provision", "--apply"] in words
    assert "other would be stored no longer" in drifted.stdout
    assert "payments-7  of long ago" in drifted.stdout
    applied = stack.farandole("provision", "--apply")
    assert (applied.returncode, "DEADLETTERS: max_age was 60000000000, and is 0 now\n" in applied.stdout) == (1, True)
    asyncio.run(change(remove=True))
    assert said(stack, "provision").startswith(f"EVENTS: {there}\nDEADLETTERS: made\n")


def test_without_a_broker_commands_say_so_in_time(tmp_path: Path) -> None:
    stack = StackUnderTest(tmp_path)
    for command in (["provision"], ["pub", "orders.v1.OrderCreated", json.dumps({**ORDER, "orderId": "o"})]):
        code, why = refused(stack, *command)
        assert (code, "is not reachable" in why) == (1, True)


def test_wrong_usage_and_wrong_settings_end_with_2(tmp_path: Path) -> None:
    stack = StackUnderTest(tmp_path)
    assert stack.farandole("no-such-command").returncode == 2
    code, why = refused(stack, "status", FARANDOLE_PORT_ALPHA="x", FARANDOLE_PORT_BETA="y")
    assert (code, "FARANDOLE_PORT_ALPHA" in why, "FARANDOLE_PORT_BETA" in why) == (2, True, True)
    stack.file.write_text("services: [{name: till}]")
    code, why = refused(stack, "up")
    assert (code, "farandole.yaml:1 services[0].command" in why, "grpc_port" in why) == (2, True, True)
