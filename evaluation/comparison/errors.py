"""What can be wrong with a comparison that was asked for."""

from flowturbo_trt.sampling.errors import FlowTurboError


class ComparisonError(FlowTurboError):
    """Schedules, sizes or a place that a comparison cannot be made with."""
