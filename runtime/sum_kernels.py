"""Sums as CUDA kernels: all of a trajectory between two evaluations is one launch.

A thread computes one element of every sum, for all halves of a velocity: sums are elementwise, so the
order within a thread is the order of the program, and buffers may be taken over in place. Products and
sums are rounded one by one, as NumPy rounds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.runtime.buffers import register_shape
from flowturbo_trt.runtime.launch_plan import Fusion, LaunchPlan, Sum

THREADS = 256


@dataclass(frozen=True)
class SumLaunch:
    """One launch of a kernel: its arguments are the coefficients from row `row` on, then these buffers."""

    kernel: str
    row: int
    slots: tuple[int, ...]


class SumKernels:
    """The kernels of a trajectory's fusions; equal ones, as those of repeated steps are, are one kernel."""

    def __init__(self, plan: LaunchPlan, batch: int, model: Model) -> None:
        C, H, W = model.latent
        self._plan = plan
        self._halves = [
            1 if register.kind == "state" else register_shape(register, batch, model)[1]
            for register in plan.slots
        ]
        self._batch = batch
        self._elements = C * H * W
        self._names: dict[str, str] = {}

    @property
    def blocks(self) -> tuple[int, int]:
        """The grid of every launch."""
        return -(-self._elements // THREADS), self._batch

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names.values())

    @property
    def source(self) -> str:
        """CUDA C++ of all kernels asked for so far."""
        constants = f"constexpr long long B = {self._batch}, N = {self._elements};\n"
        return constants + "".join(body.replace("NAME", name, 1) for body, name in self._names.items())

    def launch(self, fusion: Fusion) -> SumLaunch:
        """Return the launch of a fusion, adding its kernel if there is none like it."""
        kernel = _Kernel(fusion, self._halves, [r.kind == "state" for r in self._plan.slots])
        name = self._names.setdefault(kernel.source, f"sums{len(self._names)}")
        return SumLaunch(name, fusion.sums[0].terms[0][0], kernel.slots)


class _Kernel:
    """Writes one kernel: every buffer is read at most once, and written once if anything reads it later."""

    def __init__(self, fusion: Fusion, halves: Sequence[int], is_state: Sequence[bool]) -> None:
        self._fusion = fusion
        self._halves = halves
        self._is_state = is_state
        used = (slot for found in fusion.sums for slot in (*(s for _, s in found.terms), found.out))
        self.slots = tuple(dict.fromkeys(used))
        # The name of the value a buffer has by now, one for each half.
        self._values: dict[int, list[str]] = {}
        self._lines: list[str] = []

    @cached_property
    def source(self) -> str:
        for number, found in enumerate(self._fusion.sums):
            self._sum(number, found)
        for slot in self._stored():
            pointer = self._pointer(slot)
            self._lines += [
                f"{pointer}[{self._index(slot, half)}] = {value};"
                for half, value in enumerate(self._values[slot])
            ]
        parameters = ", ".join(["const float* c", *(f"float* {self._pointer(slot)}" for slot in self.slots)])
        body = "\n    ".join(self._lines)
        return f"""
extern "C" __global__ void NAME({parameters}) {{
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y;
    if (i >= N) return;
    {body}
}}
"""

    def _sum(self, number: int, found: Sum) -> None:
        first = self._fusion.sums[0].terms[0][0]
        names = [f"v{number}_{half}" for half in range(self._halves[found.out])]
        for half, name in enumerate(names):
            total = ""
            for row, slot in found.terms:
                # Into a state a velocity counts with its conditional half.
                value = self._value(slot)[0 if self._is_state[found.out] else half]
                term = f"__fmul_rn(c[{row - first} * B + b], {value})"
                total = f"__fadd_rn({total}, {term})" if total else term
            self._lines.append(f"const float {name} = {total};")
        self._values[found.out] = names

    def _value(self, slot: int) -> list[str]:
        if slot not in self._values:
            pointer = self._pointer(slot)
            names = [f"{pointer}_{half}" for half in range(self._halves[slot])]
            self._lines += [
                f"const float {name} = {pointer}[{self._index(slot, half)}];"
                for half, name in enumerate(names)
            ]
            self._values[slot] = names
        return self._values[slot]

    def _stored(self) -> list[int]:
        """Return the buffers whose last value in this kernel is read after it."""
        sums = self._fusion.sums
        last = {found.out: number for number, found in enumerate(sums)}
        return [slot for slot, number in last.items() if number not in self._fusion.dropped]

    def _pointer(self, slot: int) -> str:
        return f"r{self.slots.index(slot)}"

    def _index(self, slot: int, half: int) -> str:
        halves = self._halves[slot]
        return "b * N + i" if halves == 1 else f"(b * {halves} + {half}) * N + i"
