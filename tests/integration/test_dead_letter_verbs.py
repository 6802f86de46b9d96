"""`farandole deadletters redrive`, `discard` and `list --group-by`: what is sent, asked, shown and suggested."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from google.protobuf.json_format import ParseDict

from choreography.v1 import dead_letter_pb2, dead_letter_service_pb2, saga_pb2
from farandole.errors import AmbiguousSagaError, UnfinishedError
from tests.integration.scripted_correlator import Script, moment, run, said, scripted_correlator, typed

FILTER = 'participant = "shipping" AND detail = "nobody can read Zoë\'s address"'


def group(count: int = 12, still_open: int = 10, filter_: str = FILTER) -> dead_letter_service_pb2.DeadLetterGroup:
    return dead_letter_service_pb2.DeadLetterGroup(
        filter=filter_,
        count=count,
        open=still_open,
        participant="shipping",
        definition="order-fulfilment",
        step="ship-order",
        event_type="payments.v1.PaymentProcessed",
        reason=dead_letter_pb2.DEAD_LETTER_REASON_REJECTED,
        detail="nobody can read Zoë's address",
        first_time=moment("2026-03-01T09:00:00Z"),
        last_time=moment("2026-03-01T09:05:00Z"),
    )


def letter(participant: str = "shipping", sequence: int = 17, **more: str) -> dead_letter_pb2.DeadLetter:
    made = {
        "deadLetterId": f"{participant}-{sequence}",
        "participant": participant,
        "sequence": str(sequence),
        "state": "DEAD_LETTER_STATE_OPEN",
        "sagaId": "ord-1",
        "definition": "order-fulfilment",
        "step": "ship-order",
    }
    return ParseDict(made | more, dead_letter_pb2.DeadLetter())


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown in the local time zone."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    known = Script(
        dead_letters={
            "shipping-17": letter(),
            "correlator-5": letter("correlator", 5, definition="", step="", sagaId=""),
        },
        groups=[group()],
        progress=[(10, 0, 0), (10, 4, 0), (10, 9, 1)],
        sagas=[saga_pb2.Saga(saga_id="ord-1", definition="order-fulfilment")],
    )
    async with scripted_correlator(known) as served:
        yield served


# ---- one


async def test_one_is_redriven_without_a_question(script: Script) -> None:
    script.progress = [(1, 0, 0), (1, 1, 0)]
    printed = await said(script, "deadletters", "redrive", "shipping-17", "--reason", "it is dry", "--actor", "ada")
    assert script.decided == [("shipping-17", "", "ada", "it is dry")]
    assert isinstance(script.received[0], dead_letter_service_pb2.RedriveDeadLettersRequest)
    assert printed == (
        "1 dead letter is redriven: it is tried again at its place among its saga's events\n"
        "\n"
        "Try next:\n"
        "  farandole sagas watch ord-1\n"
        "  farandole deadletters show shipping-17\n"
    )


async def test_one_is_discarded_by_whoever_runs_the_command(script: Script) -> None:
    script.progress = [(1, 0, 0), (1, 1, 0)]
    printed = await said(script, "deadletters", "discard", "shipping-17", "--reason", "a duplicate of ord-2")
    [(_, _, actor, reason)] = script.decided
    assert isinstance(script.received[0], dead_letter_service_pb2.DiscardDeadLettersRequest)
    assert re.fullmatch(r"[^@\s]+@\S+", actor)
    assert reason == "a duplicate of ord-2"
    assert "1 dead letter is discarded: " in printed
    assert "farandole sagas diagnose ord-1\n" in printed


async def test_a_saga_is_named_with_its_definition_where_its_key_has_several(script: Script) -> None:
    script.progress = [(1, 1, 0)]
    script.sagas = [*script.sagas, saga_pb2.Saga(saga_id="ord-1", definition="loyalty")]
    named = "ord-1 --definition order-fulfilment\n"
    assert f"farandole sagas watch {named}" in await said(
        script, "deadletters", "redrive", "shipping-17", "--reason", "x"
    )
    assert f"farandole sagas diagnose {named}" in await said(script, "deadletters", "show", "shipping-17")


async def test_what_no_one_can_read_has_no_saga_to_look_at(script: Script) -> None:
    script.progress = [(1, 1, 0)]
    printed = await said(script, "deadletters", "discard", "correlator-5", "--reason", "sent anew")
    assert printed == "1 dead letter is discarded\n\nTry next:\n  farandole deadletters show correlator-5\n"


async def test_one_that_is_not_there_is_not_decided(script: Script) -> None:
    done = await run(script, "deadletters", "redrive", "shipping-99", "--reason", "x")
    assert (done.returncode, script.decided) == (1, [])
    assert "there is no dead letter 'shipping-99'" in done.stderr


# ---- many


@pytest.mark.parametrize(
    "arguments", [[], ["shipping-17", "--all"], ["shipping-17", "--filter", "x"], ["--all", "--filter", "x"]]
)
async def test_it_must_be_clear_which_ones_are_meant(script: Script, arguments: list[str]) -> None:
    done = await run(script, "deadletters", "discard", *arguments, "--reason", "x", "--yes")
    assert (done.returncode, script.decided) == (2, [])
    assert "exactly one of them" in done.stderr


async def test_an_empty_filter_does_not_mean_all(script: Script) -> None:
    done = await run(script, "deadletters", "discard", "--filter", " ", "--reason", "x", "--yes")
    assert (done.returncode, script.decided, "--all" in done.stderr) == (2, [], True)


async def test_a_reason_must_be_given(script: Script) -> None:
    done = await run(script, "deadletters", "redrive", "shipping-17")
    assert (done.returncode, script.decided, "--reason" in done.stderr) == (2, [], True)
    done = await run(script, "deadletters", "redrive", "shipping-17", "--reason", "")
    assert (done.returncode, script.decided, "reason" in done.stderr) == (2, [], True)


async def test_many_are_not_decided_unasked(script: Script) -> None:
    for more in ([], ["--json"]):
        done = await run(script, "deadletters", "redrive", "--all", "--reason", "x", *more)
        assert (done.returncode, done.stdout, script.decided) == (2, "", [])
        assert done.stderr == "farandole: --yes: 10 open dead letters match; with it they are redriven unasked\n"


async def test_many_are_decided_where_it_is_said_beforehand(script: Script) -> None:
    printed = await said(script, "deadletters", "redrive", "--filter", FILTER, "--reason", "x", "--yes", "--actor", "a")
    assert script.decided == [("", FILTER, "a", "x")]
    assert {request.filter for request in script.listed} == {FILTER}
    first, *rest = printed.splitlines()
    assert first == "0 of 10 redriven"
    assert rest[-6:-4] == [
        "9 dead letters are redriven: each is tried again at its place among its saga's events",
        "1 passed over: closed, or given up on anew, before it was their turn",
    ]
    suggested = shlex.split(rest[-2])
    assert suggested[:-1] == ["farandole", "deadletters", "list", "--group-by", "failure", "--filter"]
    assert suggested[-1] == f"{FILTER} AND state = OPEN"


async def test_all_means_all_that_are_open(script: Script) -> None:
    printed = await said(script, "deadletters", "discard", "--all", "--reason", "x", "--yes")
    [(_, filter_, _, _)] = script.decided
    assert filter_ == "state = OPEN"
    assert "9 dead letters are discarded: their sagas go on without them" in printed
    assert "--filter 'state = OPEN'\n" in printed


async def test_a_filter_that_matches_one_asks_nothing(script: Script) -> None:
    script.groups, script.progress = [group(3, 0), group(5, 1)], [(1, 1, 0)]
    await said(script, "deadletters", "redrive", "--filter", FILTER, "--reason", "x")
    assert len(script.decided) == 1


async def test_what_is_to_be_asked_about_is_counted_over_all_pages(script: Script) -> None:
    script.groups, script.page_size = [group(2, 1)] * 5, 2
    done = await run(script, "deadletters", "redrive", "--all", "--reason", "x")
    assert (done.returncode, "5 open dead letters match" in done.stderr) == (2, True)


async def test_where_none_is_open_nothing_is_done(script: Script) -> None:
    script.groups = [group(4, 0)]
    assert await said(script, "deadletters", "redrive", "--all", "--reason", "x") == "no open dead letter matches\n"
    assert script.decided == []


async def test_all_may_have_been_closed_meanwhile(script: Script) -> None:
    for progress, printed in (
        ([(0, 0, 0)], "no open dead letter matches"),
        ([(2, 0, 2)], "2 passed over: closed, or given up on anew, before it was their turn"),
    ):
        script.progress = progress
        lines = (await said(script, "deadletters", "redrive", "--all", "--reason", "x", "--yes")).splitlines()
        assert lines[0] == printed


async def test_programs_read_the_progress(script: Script) -> None:
    printed = await said(script, "deadletters", "redrive", "--all", "--reason", "x", "--yes", "--json")
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [(line["matched"], line["told"], line["passedOver"]) for line in lines] == [
        ("10", "0", "0"),
        ("10", "4", "0"),
        ("10", "9", "1"),
    ]


async def test_what_breaks_off_says_how_far_it_had_come(script: Script) -> None:
    script.progress, script.breaks_with = [(10, 0, 0), (10, 3, 0)], RuntimeError("a surprise")
    done = await run(script, "deadletters", "redrive", "--all", "--reason", "x", "--yes")
    assert done.returncode == 1
    first, second, *_ = done.stderr.splitlines()
    assert first == "farandole: broken off: 3 of 10 redriven. Call it again: none counts twice"
    assert "INTERNAL" in second
    assert "Try next" not in done.stdout


async def test_how_far_it_had_come_is_said_once(script: Script) -> None:
    script.progress = [(10, 0, 0), (10, 3, 0)]
    script.breaks_with = UnfinishedError("the broker has 3 of 10 events", metadata={"told": "3", "matched": "10"})
    done = await run(script, "deadletters", "redrive", "--all", "--reason", "x", "--yes")
    assert done.returncode == 1
    assert "the broker has 3 of 10 events" in done.stderr.splitlines()[0]
    assert "broken off" not in done.stderr


# ---- at a terminal


async def test_at_a_terminal_many_are_shown_and_asked_about(script: Script) -> None:
    def answer(seen: str) -> str:
        return "y\n" if "Redrive 10 dead letters? [y/N]" in seen else ""

    script.groups = [group(), group(40, 0)]
    status, seen = await typed(script, "deadletters", "redrive", "--all", "--reason", "x", answer=answer)
    assert (status, len(script.decided)) == (0, 1)
    assert seen.count("nobody can read Zoë's address") == 1, "of what is closed nothing becomes"
    assert seen.index("nobody can read Zoë's address") < seen.index("Redrive 10 dead letters?")
    bar = seen.index("redriving")
    assert "10/10" in seen[bar:]
    assert "9 dead letters are redriven" in seen[bar:]


async def test_at_a_terminal_no_is_no(script: Script) -> None:
    def answer(seen: str) -> str:
        return "\n" if "Discard 10 dead letters? [y/N]" in seen else ""

    status, seen = await typed(script, "deadletters", "discard", "--all", "--reason", "x", answer=answer)
    assert (status, script.decided) == (1, [])
    assert "nothing was done" in seen


# ---- groups


async def test_groups_tell_what_they_have_in_common_and_what_redrives_them(script: Script) -> None:
    script.groups = [group(), group(3, 0, "none open")]
    printed = await said(script, "deadletters", "list", "--group-by", "failure", "--filter", "sequence > 1")
    [request] = script.listed
    assert list(request.group_by) == [dead_letter_service_pb2.DEAD_LETTER_FIELD_FAILURE]
    assert request.filter == "sequence > 1"
    head, line, *_ = printed.splitlines()
    assert re.split("  +", head.strip()) == [
        "COUNT", "OPEN", "NEWEST", "PARTICIPANT", "DEFINITION", "STEP", "EVENT TYPE", "REASON", "DETAIL",
    ]  # fmt: skip
    assert re.split("  +", line.strip()) == [
        "12", "10", "2026-03-01 09:05:00.000+00:00", "shipping", "order-fulfilment",
        "ship-order", "payments.v1.PaymentProcessed", "REJECTED", "nobody can read Zoë's address",
    ]  # fmt: skip
    [command] = [line.strip() for line in printed.splitlines() if line.startswith("  farandole")]
    assert shlex.split(command) == ["farandole", "deadletters", "redrive", "--reason", "WHY", "--filter", FILTER]


@pytest.mark.parametrize(
    ("group_by", "columns", "fields"),
    [
        (["participant"], ["PARTICIPANT"], ["PARTICIPANT"]),
        (["type"], ["EVENT TYPE"], ["EVENT_TYPE"]),
        (["reason"], ["REASON"], ["REASON"]),
        (["saga"], ["SAGA"], ["SAGA"]),
        (["step"], ["DEFINITION", "STEP"], ["STEP"]),
        (["reason", "participant", "reason"], ["REASON", "PARTICIPANT"], ["REASON", "PARTICIPANT"]),
    ],
)
async def test_groups_are_by_what_is_asked_for(
    script: Script, group_by: list[str], columns: list[str], fields: list[str]
) -> None:
    options = [word for one in group_by for word in ("--group-by", one)]
    printed = await said(script, "deadletters", "list", *options)
    assert re.split("  +", printed.splitlines()[0].strip())[3:] == columns
    [request] = script.listed
    names = [dead_letter_service_pb2.DeadLetterField.Name(one) for one in request.group_by]
    assert names == [f"DEAD_LETTER_FIELD_{field}" for field in fields]


async def test_groups_are_limited_and_programs_read_them(script: Script) -> None:
    script.groups, script.page_size = [group(filter_=f"sequence = {n}") for n in range(30)], 7
    found = json.loads(await said(script, "deadletters", "list", "--group-by", "saga", "--limit", "9", "--json"))
    assert [one["filter"] for one in found["groups"]] == [f"sequence = {n}" for n in range(9)]
    assert found["more"] is True
    printed = await said(script, "deadletters", "list", "--group-by", "saga")
    assert printed.count("farandole deadletters redrive") == 10
    assert "--json has the filters of all 30" in printed
    script.groups = []
    assert await said(script, "deadletters", "list", "--group-by", "saga") == "there is no dead letter\n"


# ---- one that is shown


async def test_an_open_one_is_shown_with_what_can_be_decided(script: Script) -> None:
    printed = await said(script, "deadletters", "show", "shipping-17")
    assert printed.endswith(
        "Try next:\n"
        "  farandole sagas diagnose ord-1\n"
        "  farandole deadletters redrive shipping-17 --reason WHY\n"
        "  farandole deadletters discard shipping-17 --reason WHY\n"
    )
    printed = await said(script, "deadletters", "show", "correlator-5")
    assert printed.endswith(
        "Try next:\n"
        "  farandole deadletters discard correlator-5 --reason WHY\n"
        "  farandole deadletters redrive correlator-5 --reason WHY\n"
    )


async def test_a_closed_one_is_shown_with_who_closed_it_and_why(script: Script) -> None:
    closed = letter(
        state="DEAD_LETTER_STATE_DISCARDED",
        closeActor="ada@desk",
        closeReason="the customer has called",
        closeTime="2026-03-01T10:00:00Z",
    )
    script.dead_letters["shipping-17"] = closed
    printed = await said(script, "deadletters", "show", "shipping-17")
    shown = {line[:12].strip(): line[12:].strip() for line in printed.splitlines()}
    assert shown["state"] == "DISCARDED 2026-03-01 10:00:00.000+00:00"
    assert (shown["closed by"], shown["because"]) == ("ada@desk", "the customer has called")
    assert "redrive" not in printed


async def test_a_key_of_several_definitions_asks_for_the_option(script: Script) -> None:
    script.ambiguous = AmbiguousSagaError("ambiguous", metadata={"saga_id": "ord-1", "definitions": "loyalty,orders"})
    done = await run(script, "sagas", "show", "ord-1")
    assert (done.returncode, done.stderr) == (
        2,
        "farandole: --definition: several definitions have a saga ord-1: loyalty, orders; name one of them\n",
    )
    script.sagas[0].health = saga_pb2.SAGA_HEALTH_OVERDUE
    printed = await said(script, "sagas", "show", "ord-1", "--definition", "orders")
    assert printed.endswith("farandole sagas diagnose ord-1 --definition orders\n")
