"""The command line. Commands load what they need when they run: `farandole --help` waits for no library."""

from __future__ import annotations

import sys

from farandole.errors import ConfigurationError, ContractError, DefinitionError, FarandoleError, InvalidArgumentError

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130

_WRONG_INPUT = (ConfigurationError, DefinitionError, ContractError, InvalidArgumentError)


def main() -> None:
    """Runs a command and exits: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    from farandole.cli.application import application

    try:
        application()
    except FarandoleError as error:
        sys.stderr.write(f"farandole: {error}\n")
        sys.exit(WRONG_USAGE if isinstance(error, _WRONG_INPUT) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output, such as `head`, has seen enough
        sys.exit(FAILED)
