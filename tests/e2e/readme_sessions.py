"""The sessions of a page: what people type at a prompt, what they then see, and whether it is what really happens.

A page is Markdown. A fenced block `console` is a session: lines that begin with `$ ` are typed, what follows is seen.
A block `console beside` holds one command of a second terminal, which runs while the next session is typed. In what
is seen, `…` stands for any text in a line, and alone in a line for any number of lines. A fenced block under a line
that is nothing but a path in backquotes is that file's content.

Only what can't be the same twice is made alike before it is compared: times, durations, process ids, sequences and
inboxes.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from farandole.stack.planning import METRICS_VARIABLE, make_plan
from farandole.stack.ports import BROKER_PORT, LOOPBACK
from farandole.stack.shape import Shape
from farandole.stack.stack_file import STACK_FILE

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
READMES_DIRECTORY = "/home/you/farandole"
"""Where the pages say that the checkout is."""
WAIT_SECONDS = 30.0
COMMAND_SECONDS = 120.0

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH_LINE = re.compile(r"^`(?P<path>[\w./-]+)`\n\n?\Z", re.MULTILINE)
_ASKS = re.compile(
    r"(.* )?(grpcurl (?!.*/(PlaceOrder|RedriveDeadLetters|DiscardDeadLetters))|"
    r"farandole (sagas|deadletters (list|show)|status)|make status|nats (consumer|stream) info)"
)
"""Commands that change nothing: they are typed again until they show what is expected."""
_PORTS = range(12_000, 19_500)
"""Below those of the other end-to-end tests, and of outgoing connections, which would hold a port for a minute."""
_LARGEST = Shape(replicas=3, database="postgres", nats="cluster")
"""A stack of this shape has every port that one of another has."""
_REFUSALS = ("ERROR:", "farandole:")
_DEAD_LETTER = re.compile(
    r"\b(correlator|orders|inventory|payments|shipping|parcels|packaging|drones|delivery|loyalty)-(\d+)\b"
)
"""A dead letter's id: who gave up on the event, and the event's sequence."""
_LEFT_OUT = (STACK_FILE, ".git", ".farandole")
_SHARED_CACHES = re.compile(r"\..*_cache|\.hypothesis")


@dataclass(frozen=True)
class Command:
    """What is typed, and what is then seen."""

    line: int
    typed: str
    seen: str


@dataclass(frozen=True)
class Session:
    """What is typed in one terminal, one after the other."""

    line: int
    commands: tuple[Command, ...]
    beside: bool


@dataclass(frozen=True)
class File:
    """A file that the page gives in full."""

    line: int
    path: str
    text: str


def read_page(text: str) -> list[Session | File]:
    """The sessions and files of a page, in its order. Raises `ValueError` where a session begins with no command."""
    found: list[Session | File] = []
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        words = fence["info"].split()
        if words[:1] == ["console"]:
            commands = tuple(_commands(fence["text"], line + 1))
            found.append(Session(line, commands, beside=words[1:] == ["beside"]))
        elif path := _PATH_LINE.search(text, 0, fence.start()):
            found.append(File(line, path["path"], fence["text"]))
    return found


def _commands(text: str, first_line: int) -> list[Command]:
    commands: list[Command] = []
    for line, content in enumerate(text.splitlines(), first_line):
        if content.startswith("$ "):
            commands.append(Command(line, content.removeprefix("$ "), ""))
        elif commands and commands[-1].typed.endswith("\\") and not commands[-1].seen:
            commands[-1] = Command(commands[-1].line, f"{commands[-1].typed}\n{content}", "")
        elif commands:
            last = commands[-1]
            commands[-1] = Command(last.line, last.typed, f"{last.seen}{content}\n")
        else:
            raise ValueError(f"line {line}: a session begins with `$ `")
    return commands


_ALIKE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"[ \t]+$", ""),
        (r"(?<=\S)  +", "  "),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+\+00:00)?", "TIME"),
        (r"^\d\d:\d\d:\d\d ", "CLOCK "),
        (r"_INBOX[\w.]+", "INBOX"),
        (r"^([\w-]+)  running  \d+  (\d+)  \w+  ", r"\1  running  PID  \2  UPTIME  "),
        (r"\b\d+(\.\d+)?m?s ago", "DURATION ago"),
        (r"^\d+  (?=TIME  )", "SEQUENCE  "),
        (r'"sequence": "\d+"', '"sequence": "SEQUENCE"'),
        (r"([Ss]equence):? \d+", r"\1 SEQUENCE"),
        (r"\bit is at (sequence )?\d+", "it is at SEQUENCE"),
        (r"(?<=TIME  TIME)  \d+  \d+  ", "  SEQUENCE  SEQUENCE  "),
        (_DEAD_LETTER.pattern, r"\1-SEQUENCE"),
        (r"\bevents\.\d+\.", "events.PARTITION."),
    )
)


def alike(text: str) -> str:
    """The text with what differs from run to run made the same."""
    for pattern, replacement in _ALIKE:
        text = pattern.sub(replacement, text)
    return text.strip("\n")


def difference(seen: str, happened: str) -> str:
    """How what happened differs from what the page shows; empty where it does not."""
    wanted, got = alike(seen), alike(happened)
    lines = ["(?:.*\n)*?" if line.strip() == "…" else f"{_pattern(line)}\n" for line in wanted.splitlines()]
    if re.fullmatch("".join(lines), f"{got}\n" if got else ""):
        return ""
    return "\n".join(
        difflib.unified_diff(wanted.splitlines(), got.splitlines(), "the page", "what happened", lineterm="")
    )


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split("…"))


def link_checkout(directory: Path) -> None:
    """Makes a directory like a fresh checkout, but for the stack file."""
    for entry in ROOT.iterdir():
        if entry.name not in _LEFT_OUT and not _SHARED_CACHES.fullmatch(entry.name):
            (directory / entry.name).symlink_to(entry)


@dataclass
class Terminal:
    """A directory like a fresh checkout, with stacks of its own on ports of its own, and a shell in it."""

    directory: Path
    environment: dict[str, str]
    current: Path = field(init=False)
    ports: dict[int, int] = field(default_factory=dict)
    """By the port that a page and a stack file say: the one that it has here."""
    beside: list[tuple[Command, subprocess.Popen[bytes], Path]] = field(default_factory=list)
    sequences: dict[str, str] = field(default_factory=dict)
    """Of dead letters: by the sequence that a page shows the one here."""

    @classmethod
    def open(cls, directory: Path, tools: Sequence[Path]) -> Terminal:
        """A terminal in a checkout-like directory, with these programs. What it starts is ended by `close`."""
        link_checkout(directory)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FARANDOLE_", "NATS_", "MAKE", "MFLAGS"))
        }
        path = [str(tool.parent) for tool in tools] + [str(BIN), kept.get("PATH", "")]
        terminal = cls(
            directory,
            {
                **kept,
                "PATH": ":".join(path),
                "XDG_CONFIG_HOME": str(directory / "config"),  # a context of the user's own may name another broker
            },
        )
        # Where the stack file stands the stack keeps its state: a copy of it, and no link.
        terminal.write(File(0, STACK_FILE, (ROOT / STACK_FILE).read_text(encoding="utf-8")))
        terminal.environment["NATS_URL"] = f"nats://127.0.0.1:{terminal.ports[BROKER_PORT]}"
        return terminal

    def __post_init__(self) -> None:
        self.current = self.directory

    def write(self, file: File) -> None:
        """Makes a file that the page gives."""
        path = self.directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
        if path.name == STACK_FILE:
            self._move_ports(path)

    def play(self, session: Session) -> None:
        """Types a session. Raises `AssertionError` where what happens is not what the page shows."""
        if session.beside:
            self._begin(session)
            return
        for command in session.commands:
            self._type(command)
        for command, process, output in self.beside:
            process.wait(WAIT_SECONDS)
            self._check(command, self._as_the_page_says(output.read_text()), process.returncode)
        self.beside.clear()

    def close(self) -> None:
        """Stops every stack that was started here, and what still runs beside."""
        for _, process, _ in self.beside:
            process.kill()
            process.wait()
        for file in (self.directory / STACK_FILE, *self.directory.glob(f"*/{STACK_FILE}")):
            subprocess.run([BIN / "farandole", "down", "--file", file], env=self.environment, timeout=90, check=False)

    def _move_ports(self, stack_file: Path) -> None:
        for service in make_plan(stack_file, {METRICS_VARIABLE: "on"}, _LARGEST).services:
            for port in service.ports:
                real = self.ports.get(port.number) or _free_port(taken=self.ports.values())
                self.ports[port.number] = real
                self.environment[port.variable] = str(real)

    def _begin(self, session: Session) -> None:
        [command] = session.commands
        output = Path(tempfile.mkstemp(dir=self.directory)[1])
        with output.open("wb") as opened:
            process = subprocess.Popen(
                ["bash", "-c", self._as_here(command.typed)],
                env=self.environment,
                cwd=self.current,
                stdout=opened,
                stderr=subprocess.STDOUT,
            )
        self.beside.append((command, process, output))
        until = time.monotonic() + WAIT_SECONDS
        while command.typed.startswith("nats sub") and "Subscribing on" not in output.read_text():
            assert time.monotonic() < until, f"line {command.line}: it does not subscribe"
            time.sleep(0.02)

    def _type(self, command: Command) -> None:
        if command.typed.startswith("cd "):
            self.current = (self.current / command.typed.removeprefix("cd ")).absolute()
            return
        until = time.monotonic() + WAIT_SECONDS
        while True:
            done = subprocess.run(
                ["bash", "-c", self._as_here(command.typed)],
                env=self.environment,
                cwd=self.current,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            happened = self._as_the_page_says(done.stdout)
            if not difference(command.seen, happened) or not _ASKS.match(command.typed) or time.monotonic() > until:
                break
            time.sleep(0.1)
        self._check(command, happened, done.returncode)
        shown, real = ([found[2] for found in _DEAD_LETTER.finditer(text)] for text in (command.seen, happened))
        self.sequences.update(zip(shown, real, strict=False))

    def _check(self, command: Command, happened: str, status: int) -> None:
        what = f"line {command.line}: $ {command.typed}"
        differs = difference(command.seen, happened)
        assert not differs, f"{what}\n{differs}\n--- all of what happened\n{happened}"
        refused = any(line.startswith(_REFUSALS) or ": error: " in line for line in command.seen.splitlines())
        assert refused == (status != 0), f"{what}\nexit status {status}"

    def _as_here(self, typed: str) -> str:
        """A command of the page as it is typed here: with this stack's ports, and with this environment installed."""
        typed = _DEAD_LETTER.sub(lambda found: f"{found[1]}-{self.sequences.get(found[2], found[2])}", typed)
        typed = re.sub(r'(?<="sequence":)\d+', lambda found: self.sequences.get(found[0], found[0]), typed)
        for shown, real in self.ports.items():
            typed = re.sub(rf":{shown}\b", f":{real}", typed)
        return re.sub(r"^((?:\w+=\w+ )*)make ", r"\1make -o .venv/runtime ", typed)

    def _as_the_page_says(self, happened: str) -> str:
        """What happened with the ports, and in the directory, of which the page speaks."""
        for shown, real in self.ports.items():
            happened = re.sub(rf":{real}\b", f":{shown}", happened)
        return happened.replace(str(self.directory), READMES_DIRECTORY)


def _free_port(taken: Collection[int]) -> int:
    for port in range(_PORTS.start + os.getpid() % 500 * 10, _PORTS.stop):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            if port not in taken:
                return port
    raise AssertionError("no port is free")
