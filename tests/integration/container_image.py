"""What the Dockerfile makes, made in a directory: its instructions are run one by one, as processes of this machine.

Paths of the image become paths below the directory. All stages share it; what the last stage does not copy is removed.
What this can't show is the base image, another user, and layers.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.contract.dockerfile import DOCKERFILE, ROOT, Stage, build_context, copied_files, read_stages

_PLACES = ("/opt/farandole", "/build", "/app", "/var/lib/farandole")
"""The directories that the Dockerfile makes."""
_BUILD_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is a directory."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """Its ENV, as written."""
    working_directory: str = "/"
    """Its WORKDIR, as written."""

    def placed(self, text: str, mounts: Mapping[str, Path] | None = None) -> str:
        """A text with paths of the image as paths of this machine; `mounts` are other directories at their places."""
        places = {place: self.root / place.removeprefix("/") for place in _PLACES} | dict(mounts or {})
        pattern = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
        return re.sub(rf"(?<![\w.-])({pattern})(?![\w-])", lambda found: str(places[found[1]]), text)

    def files(self) -> dict[str, int]:
        """Every file, with the time in ns when it was changed."""
        return {
            str(path.relative_to(self.root)): path.lstat().st_mtime_ns
            for path in self.root.rglob("*")
            if not path.is_dir()
        }


def build(root: Path) -> Image:
    """Builds the image in an empty directory. Raises `CalledProcessError` with the output where a RUN fails."""
    *stages, runtime = read_stages(DOCKERFILE.read_text(encoding="utf-8"))
    image = Image(root)
    for stage in [*stages, runtime]:
        image = _build_stage(stage, root)
    kept = [Path(image.placed(copy.words[-1])) for copy in runtime.copies]
    for place in _PLACES:
        directory = Path(image.placed(place))
        if directory not in kept and directory.exists():
            shutil.rmtree(directory)
    return image


def _build_stage(stage: Stage, root: Path) -> Image:
    image = Image(root)
    for instruction in stage.instructions:
        match instruction.name:
            case "ENV":
                variables = dict(word.split("=", 1) for word in shlex.split(instruction.arguments))
                image = Image(root, {**image.environment, **variables}, image.working_directory)
            case "WORKDIR":
                image = Image(root, image.environment, instruction.arguments)
                Path(image.placed(instruction.arguments)).mkdir(parents=True, exist_ok=True)
            case "RUN":
                _run(instruction.arguments, image)
            case "COPY" if "from" in instruction.flags:
                source, destination = map(image.placed, instruction.words)
                assert Path(source).exists(), instruction
                if source != destination:
                    shutil.copytree(source, destination)
            case "COPY":
                *sources, destination = instruction.words
                _copy(sources, destination, image)
            case "USER" | "HEALTHCHECK" | "CMD":
                pass
            case other:
                raise AssertionError(f"{other} is an instruction that this build does not know")
    return image


def _run(command: str, image: Image) -> None:
    """Runs a RUN with the ENV of its stage. The downloads of earlier builds are used again, and python is this one."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FARANDOLE_", "PYTHON", "VIRTUAL_ENV", "PYTEST"))
    }
    environment = inherited | {name: image.placed(value) for name, value in image.environment.items()}
    environment.pop("PIP_NO_CACHE_DIR", None)
    environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", image.placed(command)],
        cwd=image.placed(image.working_directory),
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"RUN {command}\n{done.stdout}{done.stderr}"


def _copy(sources: list[str], destination: str, image: Image) -> None:
    """COPY from the checkout, of files that are not ignored: a file into a directory, a directory's content as it."""
    target = PurePosixPath(image.working_directory, destination)
    context = build_context()
    for source in sources:
        files = copied_files(source, context)
        assert files, f"{source} is not there, or ignored"
        for file in files:
            below = Path(file).relative_to(source) if (ROOT / source).is_dir() else Path(file).name
            copied = Path(image.placed(str(target))) / below
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, copied)
