"""`python -m services.demo`: places orders on the running stack, and checks that everything adds up.

Exits with 0 where it does, 1 where it does not or where sagas are stuck, 2 where the stack is not up.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.markup import escape

from farandole import logs
from farandole.errors import FarandoleError
from farandole.rpc import describe
from farandole.stack.plan import make_plan
from farandole.stack.ports import default_nats_url
from farandole.stack.stack_file import STACK_FILE
from services.demo.books import Entry
from services.demo.clients import SERVICES, Addresses, StackDownError, StuckError, connected
from services.demo.plan import Channel, Placement, plan
from services.demo.progress import Progress
from services.demo.run import run
from services.demo.screen import Screen, show_books

PASSED, FAILED, STACK_DOWN = 0, 1, 2


def main(
    orders: Annotated[int, typer.Option(min=1, max=99_999, help="How many orders to place.")] = 300,
    failing: Annotated[int, typer.Option(min=0, help="How many of them can't be fulfilled.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which to give up.")] = 180.0,
) -> None:
    """Places orders on the running stack, watches their sagas to the end, and checks that everything adds up."""
    console = Console(highlight=False, soft_wrap=True)
    logs.configure("demo", "error", "console")
    placements = plan(f"demo-{secrets.token_hex(3)}", orders, min(failing, orders))
    progress = Progress([placement.order.order_id for placement in placements])
    try:
        addresses = _addresses()
        books = asyncio.run(_run(console, addresses, placements, progress, timeout))
    except StackDownError as down:
        _say(console, f"[red]the stack is not up[/]\n{escape(str(down))}\n`make up` starts it, `make status` shows it")
        raise typer.Exit(STACK_DOWN) from None
    except FarandoleError as wrong:
        _say(console, f"[red]the demo can't start[/]\n{escape(str(wrong))}")
        raise typer.Exit(STACK_DOWN) from None
    except grpc.aio.AioRpcError as refused:
        _say(console, f"[red]FAILED[/]: a call was refused: {escape(describe(refused))}")
        raise typer.Exit(FAILED) from None
    except StuckError as stuck:
        _say_what_is_stuck(console, progress, timeout, str(stuck))
        raise typer.Exit(FAILED) from None
    _say(console, "the books")
    show_books(console, books)
    if not all(entry.balances for entry in books):
        _say(console, "[red]FAILED[/]: the books don't balance; `make logs` may say why, or did other orders run?")
        raise typer.Exit(FAILED)
    _say(console, f"[green]PASSED[/]: {orders} sagas have ended, and everything adds up")
    _say_what_next(console, addresses, placements[0].order.order_id)


def _addresses() -> Addresses:
    """Where the stack of the current directory is, with its ports moved as `FARANDOLE_PORT_*` says."""
    stack = make_plan(Path(STACK_FILE), os.environ)
    return Addresses(
        nats_url=default_nats_url(os.environ),
        services={service: stack.service(service).port.address for service in SERVICES},
    )


async def _run(
    console: Console,
    addresses: Addresses,
    placements: Sequence[Placement],
    progress: Progress,
    limit_seconds: float,
) -> list[Entry]:
    async with connected(addresses) as clients:
        if problems := await clients.problems():
            raise StackDownError(problems)
        bare = sum(placement.channel is Channel.BARE_EVENT for placement in placements)
        _say(console, f"placing {len(placements)} orders, {bare} of them as {Channel.BARE_EVENT.value}")
        started = time.monotonic()
        try:
            with Screen(console, len(placements)) as screen:
                async with asyncio.timeout(limit_seconds):
                    return await run(
                        clients, placements, progress, lambda now: screen.show(now, time.monotonic() - started)
                    )
        except TimeoutError:
            raise StuckError(await clients.problems()) from None


def _say(console: Console, text: str) -> None:
    console.print(f"\n{text}")


def _say_what_is_stuck(console: Console, progress: Progress, limit_seconds: float, problems: str) -> None:
    _say(console, f"[red]FAILED[/]: given up after {limit_seconds:.0f} s, {progress.ended} sagas have ended")
    lines = [*progress.obstacles(), *problems.splitlines()]
    console.print(escape("\n".join(lines) or "every saga has ended, but a service was too slow to say what it has"))
    console.print(
        "is a service stopped? `make status`\n"
        "what do they say? `make logs`\n"
        "what does a saga wait for? `.venv/bin/farandole sagas show SAGA_ID`"
    )


def _say_what_next(console: Console, addresses: Addresses, order_id: str) -> None:
    _say(
        console,
        "what to try next\n"
        f"  .venv/bin/farandole sagas show {order_id}\n"
        "  .venv/bin/farandole sagas list\n"
        f'  grpcurl -plaintext -d \'{{"saga_id":"{order_id}"}}\' {addresses.services["correlator"]} '
        "choreography.v1.SagaService/GetSaga\n"
        "  make demo again, and meanwhile: .venv/bin/farandole stop payments; .venv/bin/farandole start payments",
    )


if __name__ == "__main__":
    typer.run(main)
