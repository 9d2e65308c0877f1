"""The one exception that is the user's to fix."""


class IntswinError(Exception):
    """What the user gave cannot be used.

    The message is one line that says what is wrong and what to do. The command line prints it to
    stderr and exits with code 2. Any other exception is a bug of ours.
    """
