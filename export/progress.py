"""The progress of a build: pieces weighed by the time they take, so that the time left can be told."""

from collections.abc import Callable, Collection, Mapping

# Told what is being done, how much of the work is done, and how much there is.
Progress = Callable[[str, int, int], None]
# Export and compilation take about as long for each byte of weights, after a start of some 30 MB's worth.
START_BYTES = 30_000_000
PERCENT = 100


class BuildProgress:
    """Counts the pieces of a build by the float32 bytes of weights they handle."""

    def __init__(self, progress: Progress, weight_bytes: Mapping[str, int]) -> None:
        self._progress = progress
        self.weight_bytes = dict(weight_bytes)
        self._total = 0.0
        self._done = 0.0
        self._at = 0.0

    def plan(self, networks: Collection[str], rounds: int) -> None:
        """Take the networks to be exported; each is then compiled in `rounds` rounds."""
        self._total = sum(self._cost(network) for network in networks) * (1 + rounds)

    def begin(self, what: str, network: str, parts: int = 1) -> None:
        """Tell what is being done; it is one of `parts` that a network's round is divided into."""
        self._done += self._at
        self._at = self._cost(network) / parts
        self._progress(what, int(PERCENT * self._done / self._total), PERCENT)

    def end(self, what: str) -> None:
        """Tell the last thing that is done."""
        self._progress(what, PERCENT, PERCENT)

    def _cost(self, network: str) -> float:
        return self.weight_bytes[network] + START_BYTES
