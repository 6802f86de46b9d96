"""What the end-to-end tests share: the programs that people type, and a running stack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running_stack import Stack, Tools, find_tool, running


def _tool(name: str) -> Path:
    found = find_tool(name)
    if found is None:
        problem = f"{name} is not installed; `make tools` builds it"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    return found


@pytest.fixture(scope="session")
def tools() -> Tools:
    """The real grpcurl and the real nats: from `make tools`, else from the PATH. In CI they must be there."""
    return Tools(grpcurl=_tool("grpcurl"), nats=_tool("nats"))


@pytest.fixture(scope="session")
def stack(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack for all tests that harm nobody: each has orders of its own, and stops nothing."""
    with running(tmp_path_factory.mktemp("stack"), tools) as shared:
        yield shared


@pytest.fixture(scope="module")
def own_stack(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack for the tests of one module, which may harm it, and leave it running."""
    with running(tmp_path_factory.mktemp("own-stack"), tools) as mine:
        yield mine
