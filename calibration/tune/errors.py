"""What can go wrong in a search."""

from flowturbo_trt.sampling.errors import FlowTurboError


class TuneError(FlowTurboError):
    """A search that cannot start."""


class JournalError(FlowTurboError):
    """A search's journal that cannot be read, or is of another search."""
