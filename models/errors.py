"""The one exception that is the user's to fix, and how a program ends with it."""

from __future__ import annotations

import sys
from collections.abc import Callable

USER_ERROR = 2  # exit code


class IntswinError(Exception):
    """What the user gave cannot be used.

    The message is one line that says what is wrong and what to do. The command line prints it to
    stderr and exits with code 2. Any other exception is a bug of ours.
    """


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main; the user's mistakes exit with 2 and one line on stderr."""
    try:
        main()
    except IntswinError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
