"""The memory of a trajectory, laid out before anything is allocated.

Three blocks: `inputs`, what a request and its program bring, copied to a device as one; `work`, what
only engines and sums touch; `results`. Of a block every array starts at a multiple of ALIGNMENT.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.runtime.conditioning import Conditioning
from flowturbo_trt.runtime.device import ALIGNMENT, DeviceArray
from flowturbo_trt.runtime.launch_plan import LaunchPlan
from flowturbo_trt.sampling.program import Register


@dataclass(frozen=True)
class Field:
    """An array of a block."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Block:
    """Arrays that are allocated together."""

    fields: tuple[Field, ...]

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Where each array begins, in bytes from the block's start."""
        starts = accumulate((_aligned(field.nbytes) for field in self.fields), initial=0)
        return dict(zip((field.name for field in self.fields), starts, strict=False))

    @cached_property
    def by_name(self) -> Mapping[str, Field]:
        return {field.name: field for field in self.fields}

    @property
    def nbytes(self) -> int:
        return sum(_aligned(field.nbytes) for field in self.fields)


@dataclass(frozen=True)
class Layout:
    """The blocks of a trajectory."""

    inputs: Block
    work: Block
    results: Block

    @property
    def blocks(self) -> tuple[Block, ...]:
        return (self.inputs, self.work, self.results)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)


class HostBlock:
    """A block in host memory, zeros at first; `memory` may be given, of `block.nbytes` bytes."""

    def __init__(self, block: Block, memory: NDArray[np.uint8] | None = None) -> None:
        self.block = block
        self.memory = _empty(block.nbytes) if memory is None else memory
        self.memory[...] = 0
        self.arrays = {field.name: self._view(field) for field in block.fields}

    def _view(self, field: Field) -> NDArray[Any]:
        start = self.block.offsets[field.name]
        return self.memory[start : start + field.nbytes].view(field.dtype).reshape(field.shape)


class DeviceBlock:
    """A block at an address in device memory, which it does not own."""

    def __init__(self, block: Block, address: int) -> None:
        self.address = address
        self.nbytes = block.nbytes
        self.arrays = {
            field.name: DeviceArray(address + block.offsets[field.name], field.shape, field.dtype)
            for field in block.fields
        }


def plan_layout(
    plan: LaunchPlan, batch: int, model: Model, conditionings: Mapping[str, Conditioning]
) -> Layout:
    """Lay out what a program needs at a batch size."""
    inputs = [
        _register(plan, plan.noise, batch, model),
        Field("guidance", (batch,)),
        *(Field(condition.name, (batch,), condition.dtype) for condition in model.conditions),
        Field("coefficients", (plan.coefficients, batch)),
        *(Field(time_name(c.index), (batch,)) for c in plan.calls if c.network not in conditionings),
    ]
    slots = (slot for slot in range(len(plan.slots)) if slot != plan.noise)
    work = [_register(plan, slot, batch, model) for slot in slots]
    for network, conditioning in conditionings.items():
        P = conditioning.padded_rows
        inputs.append(Field(f"{network}.time", (P,)))
        inputs += (Field(f"{network}.{c.name}", (P,), c.dtype) for c in model.conditions)
        work.append(Field(f"{network}.modulation", (P, conditioning.width)))
        if conditioning.guided:
            work.append(Field(f"{network}.null_modulation", (P, conditioning.width)))
            work += (Field(f"{network}.null_{c.name}", (P,), c.dtype) for c in model.conditions)
    image = () if model.image is None else (_image(batch, model.image),)
    return Layout(Block(tuple(inputs)), Block(tuple(work)), Block(image))


def plan_results(plan: LaunchPlan, batch: int, model: Model) -> Block:
    """Lay out what a run gives, for copies of it beside the layout."""
    latents = Field("latents", register_shape(plan.slots[plan.output], batch, model))
    images = () if model.image is None else (_image(batch, model.image),)
    return Block((latents, *images))


def sum_fields(plan: LaunchPlan, batch: int, model: Model) -> tuple[Field, ...]:
    """Return the arrays that sums are formed with on the host: of each register type one, by its name."""
    types = dict.fromkeys(plan.slots)
    return tuple(Field(str(register), register_shape(register, batch, model)) for register in types)


def register_name(slot: int) -> str:
    return f"register{slot}"


def time_name(call: int) -> str:
    return f"time{call}"


def register_shape(register: Register, batch: int, model: Model) -> tuple[int, ...]:
    """Return (B,C,H,W) of a state, (B,G,C,H,W) of a velocity."""
    if register.kind == "state":
        return (batch, *model.latent)
    return (batch, model.guidance.halves if register.variant == "guided" else 1, *model.latent)


def _register(plan: LaunchPlan, slot: int, batch: int, model: Model) -> Field:
    return Field(register_name(slot), register_shape(plan.slots[slot], batch, model))


def _image(batch: int, size: tuple[int, int]) -> Field:
    return Field("image", (batch, *size, 3), "uint8")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _empty(size: int) -> NDArray[np.uint8]:
    """Allocate bytes whose first is aligned."""
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]
