"""What the emulator raises."""


class EmulationError(Exception):
    """A kernel is wrong, or uses what the emulator does not know; one line says which."""
