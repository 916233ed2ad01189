"""The command line: `unmask demo | generate | chat | trace | compare | methods | info | train | distil | ...`.

Also as `python -m unmask`. Thin on purpose: a command reads its arguments, calls the library and prints. torch and the
library are imported inside the commands, so that `unmask --help` answers at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point. Exit codes: 0 done, 2 a mistake in what was given (one line on stderr), 130 interrupted."""
    try:
        from unmask.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
