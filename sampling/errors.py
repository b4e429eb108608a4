"""The root of every error that a user can cause."""


class FlowTurboError(Exception):
    """A mistake the user can mend; its message is one line: the value, what was expected, the remedy."""
