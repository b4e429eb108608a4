"""What precision is calibrated for, and how strict its gate is: the defaults."""

from dataclasses import dataclass, field

from flowturbo_trt.calibration.precision.ranges import METHODS
from flowturbo_trt.evaluation.speed.latency import Stability

# Images that the gate compares: for errors, which are averages, and to count those that are recognised.
ROWS, RECOGNISED_ROWS = 64, 512


@dataclass(frozen=True)
class GateOptions:
    """How strict the gate is, and how long it may take.

    `rows` images are compared (None: ROWS, with an extractor RECOGNISED_ROWS); class agreement may fall by
    `agreement_drop` (0.01: one point).
    """

    rows: int | None = None
    agreement_drop: float = 0.01
    stability: Stability = field(default_factory=lambda: Stability(seconds=20.0))
    threads: int = 0

    def judged_rows(self, *, recognised: bool) -> int:
        """Return how many images are compared, where an extractor is to recognise them or not."""
        return self.rows or (RECOGNISED_ROWS if recognised else ROWS)


@dataclass(frozen=True)
class PrecisionOptions:
    """What precision is calibrated for, on what, and what is tried.

    Trajectories of `schedules` (none: the bundle's default) from `rows` noises are recorded, with scales of
    `guidance` in turn (none: the bundle's own). Ranges are chosen on all of them; sensitivity, and which
    layers run in 8 bits, on `trial_rows`. Of all `methods` (ranges.METHODS) and strengths of `smoothing`
    (None: without) the best by measurement is taken. Candidates are linear layers of the kinds `layers` in
    `networks`, in at most `groups` groups; of them `tries` are tried before one is put back.

    `budget_error` bounds the mean trajectory error, the relative L2 of the latents against the float32
    engines. None: for every schedule, `budget_share` of its own distance from the `reference` schedule in
    float32, guided at the same times. With a half, 8 bits move images half as far as the schedule does;
    where these errors are independent, both together are an eighth farther off than the schedule alone.
    Layers are chosen for `margin` less than the budget, because the gate measures on other noise.
    """

    kind: str
    schedules: tuple[str, ...] = ()
    rows: int = 64
    trial_rows: int = 16
    guidance: tuple[float, ...] = ()
    seed: int = 0
    methods: tuple[str, ...] = tuple(METHODS)
    smoothing: tuple[float | None, ...] = (None, 0.5)
    layers: tuple[str, ...] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    networks: tuple[str, ...] = ("predictor",)
    budget_error: float | None = None
    budget_share: float = 0.5
    reference: str = "H25"
    margin: float = 0.1
    groups: int = 48
    tries: int = 3
    gate: GateOptions = field(default_factory=GateOptions)
