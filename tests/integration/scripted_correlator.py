"""A correlator that answers what a test has written down, to show how the command line presents it."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from choreography.v1 import (
    dead_letter_pb2,
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    saga_diagnosis_pb2,
    saga_pb2,
    saga_service_pb2,
    saga_service_pb2_grpc,
)
from farandole.cli import main
from farandole.rpc import HealthMonitor, Rpc, serve

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Progress = tuple[int, int, int]
"""matched, told, passed over."""


@dataclass
class Script:
    """What the correlator knows; and what it was told."""

    dead_letters: dict[str, dead_letter_pb2.DeadLetter] = field(default_factory=dict)
    groups: Sequence[dead_letter_service_pb2.DeadLetterGroup] = ()
    progress: Sequence[Progress] = ((1, 0, 0), (1, 1, 0))
    breaks_with: Exception | None = None
    """Raised after the progress."""
    sagas: Sequence[saga_pb2.Saga] = ()
    diagnosis: saga_diagnosis_pb2.SagaDiagnosis | None = None
    ambiguous: Exception | None = None
    """Raised where a saga is asked for."""
    page_size: int = 1000
    received: list[Message] = field(default_factory=list)
    """Requests of the verbs."""
    listed: list[dead_letter_service_pb2.ListDeadLettersRequest] = field(default_factory=list)
    address: str = ""

    @property
    def decided(self) -> list[tuple[str, str, str, str]]:
        """(dead letter, filter, actor, reason) of each request of a verb."""
        return [
            (one.dead_letter_id, one.filter, one.actor, one.reason)
            for one in self.received
            if isinstance(
                one,
                (dead_letter_service_pb2.RedriveDeadLettersRequest, dead_letter_service_pb2.DiscardDeadLettersRequest),
            )
        ]


class _DeadLetters(dead_letter_service_pb2_grpc.DeadLetterServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def ListDeadLetters(  # noqa: N802
        self, request: dead_letter_service_pb2.ListDeadLettersRequest, _context: Context
    ) -> dead_letter_service_pb2.ListDeadLettersResponse:
        self._script.listed.append(request)
        first = int(request.page_token or 0)
        end = first + min(request.page_size, self._script.page_size)
        everything = self._script.groups if request.group_by else list(self._script.dead_letters.values())
        token = str(end) if end < len(everything) else ""
        page = dead_letter_service_pb2.ListDeadLettersResponse(next_page_token=token)
        if request.group_by:
            page.groups.extend(self._script.groups[first:end])
        else:
            page.dead_letters.extend(list(self._script.dead_letters.values())[first:end])
        return page

    async def GetDeadLetter(  # noqa: N802
        self, request: dead_letter_service_pb2.GetDeadLetterRequest, context: Context
    ) -> dead_letter_service_pb2.GetDeadLetterResponse:
        letter = self._script.dead_letters.get(request.dead_letter_id)
        if letter is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no dead letter {request.dead_letter_id!r}")
        return dead_letter_service_pb2.GetDeadLetterResponse(dead_letter=letter)

    async def RedriveDeadLetters(  # noqa: N802
        self, request: dead_letter_service_pb2.RedriveDeadLettersRequest, _context: Context
    ) -> AsyncIterator[dead_letter_service_pb2.RedriveDeadLettersResponse]:
        async for progress in self._progress(request):
            yield dead_letter_service_pb2.RedriveDeadLettersResponse(progress=progress)

    async def DiscardDeadLetters(  # noqa: N802
        self, request: dead_letter_service_pb2.DiscardDeadLettersRequest, _context: Context
    ) -> AsyncIterator[dead_letter_service_pb2.DiscardDeadLettersResponse]:
        async for progress in self._progress(request):
            yield dead_letter_service_pb2.DiscardDeadLettersResponse(progress=progress)

    async def _progress(self, request: Message) -> AsyncIterator[dead_letter_service_pb2.DeadLetterProgress]:
        self._script.received.append(request)
        for matched, told, passed_over in self._script.progress:
            yield dead_letter_service_pb2.DeadLetterProgress(matched=matched, told=told, passed_over=passed_over)
        if self._script.breaks_with is not None:
            raise self._script.breaks_with


class _Sagas(saga_service_pb2_grpc.SagaServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def ListSagas(  # noqa: N802
        self, request: saga_service_pb2.ListSagasRequest, _context: Context
    ) -> saga_service_pb2.ListSagasResponse:
        found = [saga for saga in self._script.sagas if f'saga_id = "{saga.saga_id}"' == request.filter]
        return saga_service_pb2.ListSagasResponse(sagas=found)

    async def GetSaga(self, request: saga_service_pb2.GetSagaRequest, _context: Context) -> Any:  # noqa: N802
        if self._script.ambiguous is not None and not request.definition:
            raise self._script.ambiguous
        return saga_service_pb2.GetSagaResponse(saga=self._script.sagas[0])

    async def DiagnoseSaga(self, _request: saga_service_pb2.DiagnoseSagaRequest, _context: Context) -> Any:  # noqa: N802
        return saga_service_pb2.DiagnoseSagaResponse(diagnosis=self._script.diagnosis)


def scripted_sagas(script: Script) -> Rpc[Any]:
    """The half of it that answers about sagas, as far as commands ask."""
    return Rpc(
        saga_service_pb2.DESCRIPTOR.services_by_name["SagaService"],
        saga_service_pb2_grpc.add_SagaServiceServicer_to_server,
        _Sagas(script),  # type: ignore[abstract]
    )


@asynccontextmanager
async def scripted_correlator(script: Script) -> AsyncIterator[Script]:
    """Serves a script; its `address` is then where."""
    rpcs: list[Rpc[Any]] = [
        Rpc(
            dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"],
            dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server,
            _DeadLetters(script),
        ),
        scripted_sagas(script),
    ]
    async with serve("127.0.0.1:0", rpcs, HealthMonitor(), grace_seconds=0.1) as server:
        script.address = server.address
        yield script


def moment(text: str) -> Timestamp:
    """A time, from RFC 3339."""
    stamp = Timestamp()
    stamp.FromJsonString(text)
    return stamp


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


async def run(script: Script, *arguments: str) -> Done:
    """Runs `farandole` with nobody at a terminal. In this process, which saves the time of loading it."""
    return await asyncio.to_thread(_here, [*arguments, "--address", script.address])


def _here(arguments: Sequence[str]) -> Done:
    out, err = io.StringIO(), io.StringIO()
    status = 0
    given = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["farandole", *arguments], io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.argv, sys.stdin = given
    return Done(status, out.getvalue(), err.getvalue())


async def said(script: Script, *arguments: str) -> str:
    """What a command printed, which must succeed."""
    done = await run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def typed(script: Script, *arguments: str, answer: Callable[[str], str] = lambda _seen: "") -> tuple[int, str]:
    """Runs `farandole` at a terminal of 200 columns: its exit status, and all that was seen.

    `answer` is given what was seen so far, and says what is to be typed then.
    """
    command = [sys.executable, "-m", "farandole", *arguments, "--address", script.address]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    return await asyncio.to_thread(_at_a_terminal, command, environment, answer)


def _at_a_terminal(
    command: Sequence[str], environment: dict[str, str], answer: Callable[[str], str]
) -> tuple[int, str]:
    mine, terminal = pty.openpty()
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        seen = ""
        while True:
            try:
                more = os.read(mine, 4096)
            except OSError:  # Linux's way to say that nobody writes any more
                break
            if not more:
                break
            seen += more.decode()
            if typing := answer(seen):
                os.write(mine, typing.encode())
                answer = _nothing_more
        status = process.wait(60)
    os.close(mine)
    return status, seen


def _nothing_more(_seen: str) -> str:
    return ""
