"""What holds for all of proto/: lint, compatibility, generated code, keys, secrets, and the library's own copies."""

from __future__ import annotations

import enum
import filecmp
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from buf.validate import validate_pb2
from choreography.v1 import dead_letter_pb2, options_pb2, saga_definition_pb2, saga_pb2
from farandole import definition, saga
from farandole.correlator.dead_letters import DeadLetterState
from farandole.reasons import Reason
from farandole.redaction import reachable_types

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BASELINE = ROOT / "proto/baseline.binpb"
REFRESH = f"buf build --as-file-descriptor-set --exclude-source-info -o {BASELINE.relative_to(ROOT)}"
KEY_PATTERN = "^[A-Za-z0-9_-]{1,128}$"
SECRET = re.compile(r"(^|_)(card|address|iban|password|secret|email|phone)(_|$)")


def _descriptor_set(path: Path) -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


def _files() -> list[FileDescriptor]:
    """The files under proto/, from the committed descriptor set, in a pool of their own."""
    pool = descriptor_pool.DescriptorPool()
    ours = []
    for file in _descriptor_set(ROOT / "generated/descriptors.binpb").file:
        pool.Add(file)
        if (ROOT / "proto" / file.name).exists():
            ours.append(pool.FindFileByName(file.name))
    return ours


FILES = _files()
MESSAGES: list[Descriptor] = [message for file in FILES for message in file.message_types_by_name.values()]
EVENTS = [message for message in MESSAGES if message.GetOptions().Extensions[options_pb2.event]]


def _buf(*arguments: str, where: Path = ROOT) -> tuple[int, str]:
    done = subprocess.run([BIN / "buf", *arguments], cwd=where, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the contracts that a test may spoil."""
    for name in ("proto", "third_party"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def _edit(file: Path, change: Callable[[str], str]) -> None:
    before = file.read_text()
    after = change(before)
    assert after != before, f"the edit found nothing to change in {file.name}"
    file.write_text(after)


def test_every_proto_file_is_in_the_descriptor_set() -> None:
    on_disk = {str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")}
    assert {file.name for file in FILES} == on_disk


# lint


def test_the_contracts_are_free_of_lint() -> None:
    """STANDARD, and COMMENTS: every message, field, enumeration, value, service and RPC has one."""
    assert _buf("lint") == (0, "")


@pytest.mark.parametrize("line", [r"\n *// .*(?=\n *string order_id = 1)", r"\n// .*(?=\nmessage GetOrderRequest)"])
def test_a_missing_comment_is_lint(copy: Path, line: str) -> None:
    _edit(copy / "proto/orders/v1/order_service.proto", lambda text: re.sub(line, "", text, count=1))
    code, out = _buf("lint", where=copy)
    assert code != 0
    assert "comment" in out


# compatibility


def _breaking(where: Path) -> tuple[int, str]:
    """Compares image with image: the committed baseline is one, and holds the imports too."""
    code, out = _buf("build", "--as-file-descriptor-set", "-o", "current.binpb", where=where)
    assert code == 0, out
    config = (ROOT / "buf.yaml").read_text()
    return _buf(
        "breaking",
        "current.binpb",
        "--against",
        str(BASELINE),
        "--config",
        config,
        "--exclude-path",
        "buf",
        where=where,
    )


def test_nothing_breaks_what_was_promised(copy: Path) -> None:
    assert _breaking(copy) == (0, "")


BREAKS = {
    "a field is removed": ("shipping/v1/shipping_events.proto", "string tracking_number = 2", "string waybill = 9"),
    "a field has another number": ("orders/v1/order.proto", "string sku = 1", "string sku = 7"),
    "a field has another type": ("orders/v1/order.proto", "string sku = 1", "bytes sku = 1"),
    "a message is renamed": ("payments/v1/payment_events.proto", "message PaymentFailed", "message PaymentDeclined"),
    "an RPC is renamed": ("inventory/v1/inventory_service.proto", "rpc GetStock(", "rpc ReadStock("),
    "a value is renumbered": ("choreography/v1/saga.proto", "SAGA_STATUS_FAILED = 6", "SAGA_STATUS_FAILED = 9"),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_breaking_change_is_caught(copy: Path, broken: str) -> None:
    file, before, after = BREAKS[broken]
    _edit(copy / "proto" / file, lambda text: text.replace(before, after, 1))
    code, out = _breaking(copy)
    assert code != 0
    assert file in out


def test_the_baseline_protects_every_event() -> None:
    promised = {
        f"{file.package}.{message.name}" for file in _descriptor_set(BASELINE).file for message in file.message_type
    }
    missing = {event.full_name for event in EVENTS} - promised
    assert not missing, f"promise them with `{REFRESH}`"


# generated code


def test_generated_code_is_current(copy: Path) -> None:
    shutil.copy(ROOT / "Makefile", copy)
    environment = BIN.parent
    # the Makefile's own commands, with this environment taken as installed
    command = ["make", "-s", "-o", str(environment / "development"), f"VENV={environment}", "generate"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made, committed = copy / "generated", ROOT / "generated"
    names = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    kept = {
        path.relative_to(committed)
        for path in committed.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == kept, "run `make generate`"
    stale = [str(name) for name in sorted(names) if not filecmp.cmp(made / name, committed / name, shallow=False)]
    assert not stale, "run `make generate`"


# correlation keys


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.full_name)
def test_an_event_has_exactly_one_correlation_key_of_the_wire_s_form(event: Descriptor) -> None:
    keys = [field for field in event.fields if field.GetOptions().Extensions[options_pb2.correlation_key]]
    assert len(keys) == 1
    assert keys[0].type == FieldDescriptor.TYPE_STRING
    assert not keys[0].is_repeated
    assert keys[0].GetOptions().Extensions[validate_pb2.field].string.pattern == KEY_PATTERN


def test_only_events_have_marks_of_events() -> None:
    for message in (found for top in MESSAGES for found in _with_nested(top)):
        if message in EVENTS:
            continue
        options = message.GetOptions()
        assert not options.Extensions[options_pb2.commit], message.full_name
        assert not options.Extensions[options_pb2.failure], message.full_name
        for field in message.fields:
            assert not field.GetOptions().Extensions[options_pb2.correlation_key], field.full_name


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.full_name)
def test_a_failure_says_why(event: Descriptor) -> None:
    if event.GetOptions().Extensions[options_pb2.failure]:
        assert event.fields_by_name["reason"].GetOptions().Extensions[validate_pb2.field].string.min_len >= 1


# secrets


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for nested in message.nested_types:
        yield from _with_nested(nested)


def test_what_smells_of_a_secret_is_redacted() -> None:
    secrets = [
        field
        for message in MESSAGES
        for found in _with_nested(message)
        for field in found.fields
        if SECRET.search(field.name)
    ]
    assert len(secrets) >= 6, "the pattern finds the card and address of orders, at the least"
    for field in secrets:
        assert field.GetOptions().debug_redact, f"{field.full_name} must be marked debug_redact"


def test_no_response_can_hold_a_secret() -> None:
    checked = 0
    for file in FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                for held in reachable_types(method.output_type).values():
                    for field in held.fields:
                        checked += 1
                        assert not field.GetOptions().debug_redact, f"{method.full_name} answers {field.full_name}"
                        assert not SECRET.search(field.name), f"{method.full_name} answers {field.full_name}"
    assert checked > 50


# the library's own copies


@pytest.mark.parametrize(
    ("library", "proto", "prefix"),
    [
        (saga.Status, saga_pb2.SagaStatus, "SAGA_STATUS_"),
        (saga.Cause, saga_pb2.SagaCause, "SAGA_CAUSE_"),
        (saga.Health, saga_pb2.SagaHealth, "SAGA_HEALTH_"),
        (saga.StepStatus, saga_pb2.StepStatus, "STEP_STATUS_"),
        (saga.Disposition, saga_pb2.Disposition, "DISPOSITION_"),
        (definition.StepKind, saga_definition_pb2.StepKind, "STEP_KIND_"),
        (Reason, dead_letter_pb2.DeadLetterReason, "DEAD_LETTER_REASON_"),
        (DeadLetterState, dead_letter_pb2.DeadLetterState, "DEAD_LETTER_STATE_"),
    ],
)
def test_an_enumeration_of_the_library_equals_the_contract_s(
    library: type[enum.IntEnum], proto: EnumTypeWrapper, prefix: str
) -> None:
    named = {prefix + member.name: member.value for member in library}
    promised = {name: number for name, number in proto.items() if number != 0 or name in named}
    assert named == promised
