"""A whole stack of its own, driven as people drive it: by `farandole`, `grpcurl` and `nats`."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
ORDER_SERVICES = ("orders", "inventory", "payments", "shipping")
PARCEL_SERVICES = ("parcels", "packaging", "drones", "delivery")
SAMPLES = (*ORDER_SERVICES, *PARCEL_SERVICES)
SERVICES = ("correlator", *SAMPLES)
PARTS = ("nats", *SERVICES)

SAGAS = "choreography.v1.SagaService"
DEAD_LETTERS = "choreography.v1.DeadLetterService"
ORDERS = "orders.v1.OrderService"
INVENTORY = "inventory.v1.InventoryService"
PAYMENTS = "payments.v1.PaymentService"
SHIPPING = "shipping.v1.ShippingService"
PARCELS = "parcels.v1.ParcelService"
PACKAGING = "packaging.v1.PackagingService"
DRONES = "drones.v1.DroneService"
DELIVERY = "delivery.v1.DeliveryService"
HEALTH = "grpc.health.v1.Health"
SERVED_BY = {
    SAGAS: "correlator",
    DEAD_LETTERS: "correlator",
    ORDERS: "orders",
    INVENTORY: "inventory",
    PAYMENTS: "payments",
    SHIPPING: "shipping",
    PARCELS: "parcels",
    PACKAGING: "packaging",
    DRONES: "drones",
    DELIVERY: "delivery",
}

CARD = "card-4111-secret"
ADDRESS = "7 Hidden Lane"
SECRETS = (CARD, ADDRESS)

PATIENCE_SECONDS = 30.0
COMMAND_SECONDS = 90.0

JSON = dict[str, Any]
Value = TypeVar("Value")

_OF_OTHER_SHAPES = (
    "postgres",
    "nats_routes",
    *(f"nats_{number}{port}" for number in (2, 3) for port in ("", "_monitoring", "_routes")),
)
"""What else has a port where the stack runs on PostgreSQL, or with a cluster of brokers."""
_GRPCURL_CODE_BASE = 64
"""grpcurl exits with this and the gRPC status code added up."""
_PORTS = range(20_000, 32_000, 20)
"""Below what Linux gives to outgoing connections: one of those would hold a service's port for a minute."""


@dataclass(frozen=True)
class Tools:
    """The programs that people type."""

    grpcurl: Path
    nats: Path


@dataclass(frozen=True)
class Refusal:
    """A gRPC call that ended with an error."""

    code: int
    """A `google.rpc.Code`, such as 5 for NOT_FOUND."""
    message: str
    details: Sequence[JSON]

    @property
    def info(self) -> JSON:
        """Its `ErrorInfo`."""
        return next(detail for detail in self.details if detail["@type"].endswith("google.rpc.ErrorInfo"))

    @property
    def fields(self) -> list[str]:
        """The fields that its `BadRequest` names."""
        return [
            violation["field"]
            for detail in self.details
            if detail["@type"].endswith("google.rpc.BadRequest")
            for violation in detail["field_violations"]
        ]


class RefusedError(Exception):
    """Raised where an answer was expected."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code}: {refusal.message}")
        self.refusal = refusal


@dataclass(frozen=True)
class Stored:
    """What the stream answered to a publication."""

    sequence: int
    is_duplicate: bool


@dataclass(frozen=True)
class Health:
    """What a service says of itself, or that it says nothing."""

    status: str
    reason: str


def find_tool(name: str) -> Path | None:
    """A program from `make tools`, else from the PATH."""
    made = ROOT / ".tools" / "bin" / name
    if made.exists():
        return made
    found = shutil.which(name)
    return Path(found) if found else None


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    starts = list(_PORTS)
    begin = os.getpid() * 7 % len(starts)
    for start in starts[begin:] + starts[:begin]:
        if all(_is_free(port) for port in range(start, start + count)):
            return start
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def eventually(look: Callable[[], Value | None], what: str, seconds: float = PATIENCE_SECONDS) -> Value:
    """What `look` returns as soon as it is true."""
    until = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


def order(order_id: str, **changes: Any) -> JSON:
    """An order of two widgets for 25.00 EUR, as ProtoJSON."""
    body = {
        "orderId": order_id,
        "customerId": "ada",
        "currency": "EUR",
        "card": CARD,
        "address": ADDRESS,
        "lines": [{"sku": "widget", "quantity": 2, "unitPriceCents": 1250}],
    }
    return body | changes


def order_subject(order_id: str) -> str:
    """Where an order is published."""
    return f"events.{order_id}.orders.v1.OrderCreated"


def parcel(parcel_id: str, **changes: Any) -> JSON:
    """A parcel with a book of 500 g, as ProtoJSON."""
    return {"parcelId": parcel_id, "item": "book", "weightGrams": 500, "address": ADDRESS} | changes


def parcel_subject(parcel_id: str) -> str:
    """Where a parcel's order is published."""
    return f"events.{parcel_id}.parcels.v1.ParcelOrdered"


def json_values(text: str) -> list[JSON]:
    """The JSON values that stand one after the other in a text, as grpcurl prints a stream."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while (at := _next_value(text, at)) < len(text):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
    return values


def _next_value(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


class Nats:
    """The `nats` command on one broker."""

    def __init__(self, tool: Path, url: str) -> None:
        self.tool = tool
        self.url = url

    def __call__(self, *arguments: str, stdin: bytes = b"") -> str:
        """Runs it, which must succeed; returns all that it printed."""
        done = subprocess.run(
            [self.tool, "-s", self.url, *arguments],
            input=stdin,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        said = (done.stdout + done.stderr).decode()
        assert done.returncode == 0, said
        return said

    def publish(self, subject: str, body: JSON | str | bytes, headers: Mapping[str, str] | None = None) -> None:
        """`nats pub`, without waiting for the stream: with no headers, this is all that a producer needs."""
        self("pub", subject, *self._body(body), *_header_options(headers), stdin=_stdin(body))

    def store(self, subject: str, body: JSON | str | bytes, headers: Mapping[str, str] | None = None) -> Stored:
        """`nats pub --jetstream`: the stream's receipt."""
        said = self("pub", "--jetstream", subject, *self._body(body), *_header_options(headers), stdin=_stdin(body))
        receipt = re.search(r"Stored in Stream: EVENTS Sequence: ([\d,]+)( Duplicate: true)?", said)
        assert receipt, said
        return Stored(int(receipt[1].replace(",", "")), bool(receipt[2]))

    def stream(self, name: str) -> JSON:
        """`nats stream info --json`."""
        info: JSON = json.loads(self("stream", "info", name, "--json"))
        return info

    @staticmethod
    def _body(body: JSON | str | bytes) -> tuple[str, ...]:
        match body:
            case bytes():
                return ("--force-stdin", "--no-templates")
            case str():
                return (body,)
            case _:
                return (json.dumps(body),)


def _header_options(headers: Mapping[str, str] | None) -> Iterator[str]:
    for name, value in (headers or {}).items():
        yield from ("-H", f"{name}:{value}")


def _stdin(body: JSON | str | bytes) -> bytes:
    return body if isinstance(body, bytes) else b""


class Grpcurl:
    """The `grpcurl` command on one address."""

    def __init__(self, tool: Path, address: str) -> None:
        self._tool = tool
        self.address = address

    def run(self, method: str, request: JSON, *options: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Calls `package.Service/Method`; it may fail."""
        return subprocess.run(
            [*self.command(method, request, *options, seconds=seconds)],
            capture_output=True,
            text=True,
            timeout=seconds + 30,
            check=False,
        )

    def command(self, method: str, request: JSON, *options: str, seconds: float) -> list[str]:
        """What to type for a call that takes no longer than so many seconds."""
        timing = ("-max-time", f"{seconds:g}", "-connect-timeout", "5")
        return [str(self._tool), "-plaintext", *timing, *options, "-d", json.dumps(request), self.address, method]

    def answers(self, method: str, request: JSON, *, seconds: float = PATIENCE_SECONDS) -> list[JSON]:
        """Every answer of a call. Raises `RefusedError` where it ends with an error."""
        done = self.run(method, request, "-format-error", seconds=seconds)
        if done.returncode >= _GRPCURL_CODE_BASE:
            error = json.loads(done.stderr)
            raise RefusedError(Refusal(error["code"], error.get("message", ""), error.get("details", [])))
        assert done.returncode == 0, done.stderr
        return json_values(done.stdout)

    def health(self) -> Health:
        """`grpc.health.v1.Health/Check`, with the reason that comes behind the answer."""
        done = self.run(f"{HEALTH}/Check", {}, "-v", seconds=5)
        status = re.search(r'"status": "(\w+)"', done.stdout)
        reason = re.search(r"^farandole-health-reason: (.*)$", done.stdout, re.MULTILINE)
        return Health(status[1] if status else "UNREACHABLE", unquote(reason[1]) if reason else "")


class Stack:
    """The stack of `farandole.yaml` with a home and ports of its own."""

    def __init__(
        self, home: Path, tools: Tools, environment: Mapping[str, str] | None = None, *, checkout: Path = ROOT
    ) -> None:
        """`checkout` is where that file is."""
        self.home = home
        self.checkout = checkout
        self.tools = tools
        names = (*PARTS, "nats_monitoring", *_OF_OTHER_SHAPES)
        first = free_ports(len(names))
        self.ports = {name: first + number for number, name in enumerate(names)}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")},
            "FARANDOLE_HOME": str(home),
            **{f"FARANDOLE_PORT_{name.upper()}": str(port) for name, port in self.ports.items()},
            "PATH": os.pathsep.join(
                [
                    str(tools.grpcurl.parent),
                    str(tools.nats.parent),
                    str(Path(sys.executable).parent),
                    os.environ["PATH"],
                ]
            ),
            "COLUMNS": "200",
            **(environment or {}),
        }
        self.nats = Nats(tools.nats, f"nats://{self.address('nats')}")

    def address(self, part: str) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.ports[part]}"

    # The command line

    def try_farandole(
        self, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Runs `farandole`, which may fail."""
        return subprocess.run(
            [Path(sys.executable).with_name("farandole"), *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd=self.checkout,
            env={**self.environment, **(environment or {})},
        )

    def farandole(self, *arguments: str) -> str:
        """Runs `farandole`, which must succeed; returns its standard output."""
        done = self.try_farandole(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        """Runs `make`, with the environment taken as it is: tests don't install anything."""
        return subprocess.run(
            ["make", "--no-print-directory", "-o", ".venv/runtime", target],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            cwd=self.checkout,
            env=self.environment,
        )

    def status(self) -> dict[str, JSON]:
        """How each part stands, by name: `farandole status --json`."""
        found = json.loads(self.farandole("status", "--json"))
        return {service["name"]: service for service in found["services"]}

    def pids(self) -> dict[str, int]:
        """The process ids in `run/`."""
        return {part: self.pid(part) for part in PARTS}

    def pid(self, part: str) -> int:
        """The process id in `run/`."""
        return int((self.home / "run" / f"{part}.pid").read_text())

    def logs(self) -> str:
        """Everything that was ever logged."""
        return "".join(log.read_text(errors="replace") for log in sorted((self.home / "logs").iterdir()))

    # gRPC

    def grpcurl(self, service: str) -> Grpcurl:
        """`grpcurl` on a service of the stack."""
        return Grpcurl(self.tools.grpcurl, self.address(service))

    def answers(self, method: str, request: JSON | None = None, *, seconds: float = PATIENCE_SECONDS) -> list[JSON]:
        """Every answer to a call. Raises `RefusedError`."""
        service = SERVED_BY[method.partition("/")[0]]
        return self.grpcurl(service).answers(method, request or {}, seconds=seconds)

    def ask(self, method: str, request: JSON | None = None) -> JSON:
        """The one answer to a call. Raises `RefusedError`."""
        [answer] = self.answers(method, request)
        return answer

    def refusal(self, method: str, request: JSON | None = None) -> Refusal:
        """How a call is refused."""
        try:
            answer = self.ask(method, request)
        except RefusedError as refused:
            return refused.refusal
        raise AssertionError(f"{method} answered {answer}")

    def health(self) -> dict[str, Health]:
        """What every service says of itself now."""
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            found = pool.map(lambda service: self.grpcurl(service).health(), SERVICES)
            return dict(zip(SERVICES, found, strict=True))

    # Sagas

    def saga(self, saga_id: str) -> JSON:
        """One saga with its history. Raises `RefusedError`."""
        saga: JSON = self.ask(f"{SAGAS}/GetSaga", {"saga_id": saga_id})["saga"]
        return saga

    def ended(self, saga_id: str) -> JSON:
        """A saga once it has ended, also one that has not started yet."""
        saga: JSON = self.answers(f"{SAGAS}/WatchSaga", {"saga_id": saga_id})[-1]["saga"]
        return saga

    def with_history_of(self, saga_id: str, count: int) -> JSON:
        """A saga once it has ended and so many events are in its history."""
        self.ended(saga_id)

        def look() -> JSON | None:
            saga = self.saga(saga_id)
            return saga if len(saga["history"]) >= count else None

        return eventually(look, f"{count} events in the history of {saga_id}")

    def completed(self, saga_id: str) -> JSON:
        """A saga once it has ended, which must be well."""
        saga = self.ended(saga_id)
        assert saga["status"] == "SAGA_STATUS_COMPLETED", saga
        return saga

    def all_taken_in(self, marker: str) -> None:
        """Waits until every service has dealt with all that was published before, by the end of an order behind it.

        Each takes the stream in order, so it is past everything that stood before its own part of that order.
        """
        self.nats.store(order_subject(marker), order(marker))
        self.completed(marker)

    def sagas(self, filter_: str = "", page_size: int = 1000) -> list[JSON]:
        """Every saga that matches, page by page."""
        return list(self.pages(f"{SAGAS}/ListSagas", "sagas", {"filter": filter_, "page_size": page_size}))

    def dead_letters(self, filter_: str = "", page_size: int = 1000) -> list[JSON]:
        """Every dead letter that matches, page by page."""
        listed = self.pages(
            f"{DEAD_LETTERS}/ListDeadLetters", "dead_letters", {"filter": filter_, "page_size": page_size}
        )
        return list(listed)

    def pages(self, method: str, items: str, request: JSON) -> Iterator[JSON]:
        """What a list has on all its pages."""
        token = ""
        while True:
            page = self.ask(method, request | {"page_token": token})
            found = page.get(items, [])
            assert len(found) <= request["page_size"]
            yield from found
            token = page.get("next_page_token", "")
            if not token:
                return

    # The services' own books

    def stock(self, sku: str = "widget") -> tuple[int, int]:
        """(available, reserved) pieces."""
        answer = self.ask(f"{INVENTORY}/GetStock", {"sku": sku})
        return int(answer.get("available", 0)), int(answer.get("reserved", 0))

    def order(self, order_id: str) -> JSON:
        """The order. Raises `RefusedError`."""
        found: JSON = self.ask(f"{ORDERS}/GetOrder", {"order_id": order_id})["order"]
        return found

    def payment(self, order_id: str) -> JSON:
        """The payment for an order. Raises `RefusedError`."""
        found: JSON = self.ask(f"{PAYMENTS}/GetPayment", {"order_id": order_id})["payment"]
        return found

    def shipment(self, order_id: str) -> JSON:
        """The shipment of an order. Raises `RefusedError`."""
        found: JSON = self.ask(f"{SHIPPING}/GetShipment", {"order_id": order_id})["shipment"]
        return found


def definitions(directory: Path, **durations: str) -> Path:
    """The sample's definitions in a directory of their own, with each duration replaced by another.

    `definitions(path, s1800="10s")` makes every `"1800s"` ten seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for file in (ROOT / "services/correlator/sagas").glob("*.yaml"):
        text = file.read_text()
        for was, becomes in durations.items():
            assert f'"{was[1:]}s"' in text, f"{file.name} has no duration {was[1:]}s"
            text = text.replace(f'"{was[1:]}s"', f'"{becomes}"')
        (directory / file.name).write_text(text)
    return directory


@contextmanager
def running(
    home: Path, tools: Tools, environment: Mapping[str, str] | None = None, *, checkout: Path = ROOT
) -> Iterator[Stack]:
    """A stack that is up, and down again after. `environment` is added to what its processes get."""
    stack = Stack(home, tools, environment, checkout=checkout)
    try:
        stack.farandole("up")
        yield stack
    finally:
        stack.farandole("down")


def dispositions(saga: JSON) -> list[tuple[str, str]]:
    """(event type, disposition) of each event in a saga's history."""
    return [(entry["event_type"], entry["disposition"].removeprefix("DISPOSITION_")) for entry in saga["history"]]


def assert_no_secrets(*texts: Any) -> None:
    """Neither the card nor the address stands in any of these."""
    for text in texts:
        written = text if isinstance(text, str) else json.dumps(text)
        for secret in SECRETS:
            assert secret not in written, f"{secret!r} is shown: {written[:2000]}"


def in_parallel(work: Callable[[Any], Value], items: Iterable[Any], workers: int = 16) -> list[Value]:
    """The results, in order."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))
