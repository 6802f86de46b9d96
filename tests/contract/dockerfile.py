"""The Dockerfile as instructions, and what of the checkout a build of it may see."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from docker.utils.build import exclude_paths

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
IGNORE_FILE = ROOT / ".dockerignore"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, such as `COPY --from=build /app /app`."""

    name: str
    arguments: str
    """All that follows the name, on one line, flags included."""

    @property
    def flags(self) -> dict[str, str]:
        """`--name=value` in front of the rest."""
        return dict(re.findall(r"(?:^|\s)--([a-z-]+)=(\S+)", self.arguments.split(" CMD ")[0]))

    @property
    def words(self) -> list[str]:
        """The rest, in words."""
        return [word for word in shlex.split(self.arguments) if not word.startswith("--")]


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def only(self, name: str) -> Instruction:
        """Its one instruction of that name."""
        (found,) = (instruction for instruction in self.instructions if instruction.name == name)
        return found

    @property
    def copies(self) -> list[Instruction]:
        """Its COPY instructions."""
        return [instruction for instruction in self.instructions if instruction.name == "COPY"]


def read_stages(text: str) -> list[Stage]:
    """The stages of a Dockerfile."""
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            base, *as_name = instruction.words
            stages.append(Stage(base, as_name[1] if as_name else "", ()))
        else:
            *before, last = stages
            stages = [*before, Stage(last.base, last.name, (*last.instructions, instruction))]
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            yield Instruction(name, re.sub(r"\s+", " ", arguments.strip()))


def build_context(root: Path = ROOT, patterns: Sequence[str] | None = None) -> set[str]:
    """Paths below `root` that a build gets to see, by the rules of `.dockerignore` as Docker's own client has them."""
    if patterns is None:
        lines = IGNORE_FILE.read_text(encoding="utf-8").splitlines()
        patterns = [line for line in lines if line and not line.startswith("#")]
    return {PurePosixPath(path).as_posix() for path in exclude_paths(str(root), list(patterns))}


def copied_files(source: str, context: set[str]) -> list[str]:
    """The files of the context that `COPY source` takes."""
    path = PurePosixPath(source).as_posix()
    return sorted(seen for seen in context if (seen == path or seen.startswith(f"{path}/")) and (ROOT / seen).is_file())
