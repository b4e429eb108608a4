"""Which array goes into which input of an engine: the same in host memory and on a device."""

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from flowturbo_trt.bundle.manifest import Model, conditioner_of
from flowturbo_trt.runtime.buffers import register_name, time_name
from flowturbo_trt.runtime.conditioning import Conditioning
from flowturbo_trt.runtime.launch_plan import OUTPUTS, Call

Array = TypeVar("Array")
Bound = TypeVar("Bound")
Bound_co = TypeVar("Bound_co", covariant=True)
Array_contra = TypeVar("Array_contra", contravariant=True)


class Bindable(Protocol[Array_contra, Bound_co]):
    """An engine whose calls are bound to arrays by name."""

    def bind(self, inputs: Mapping[str, Array_contra], outputs: Mapping[str, Array_contra]) -> Bound_co: ...


class Binder(Generic[Array, Bound]):
    """Binds the engines of a trajectory; `array` gives an array of the layout, or some of its rows."""

    def __init__(
        self,
        model: Model,
        conditionings: Mapping[str, Conditioning],
        array: Callable[[str, slice | None], Array],
        engine: Callable[[str, str | None], Bindable[Array, Bound]],
    ) -> None:
        self._conditions = tuple(condition.name for condition in model.conditions)
        self._conditionings = conditionings
        self._array = array
        self._engine = engine

    def call(self, call: Call) -> Bound:
        """Bind an evaluation of predictor or refiner."""
        inputs = {"state": self._array(register_name(call.state), None)}
        conditioning = self._conditionings.get(call.network)
        if conditioning is None:
            inputs["time"] = self._array(time_name(call.index), None)
            inputs |= {name: self._array(name, None) for name in self._conditions}
        else:
            rows = conditioning.rows_at(call.time_slot)
            halves = ("modulation", "null_modulation") if call.variant == "guided" else ("modulation",)
            inputs |= {half: self._array(f"{call.network}.{half}", rows) for half in halves}
        if call.variant == "guided":
            inputs["guidance"] = self._array("guidance", None)
        if call.velocity is not None:
            inputs["velocity"] = self._array(register_name(call.velocity), None)
        out = self._array(register_name(call.out), None)
        return self._engine(call.network, call.variant).bind(inputs, {OUTPUTS[call.network]: out})

    def conditioner(self, conditioning: Conditioning, *, null: bool) -> list[Bound]:
        """Bind the calls that compute a network's modulations, of a request or of the null condition."""
        engine = self._engine(conditioner_of(conditioning.network), None)
        prefix = f"{conditioning.network}.{'null_' if null else ''}"
        bound = []
        for index in range(conditioning.calls):
            rows = conditioning.call_rows(index)
            inputs = {name: self._array(prefix + name, rows) for name in self._conditions}
            inputs["time"] = self._array(f"{conditioning.network}.time", rows)
            bound.append(engine.bind(inputs, {"modulation": self._array(f"{prefix}modulation", rows)}))
        return bound

    def decoder(self, state: int) -> Bound:
        """Bind the decoder to a register."""
        inputs = {"state": self._array(register_name(state), None)}
        return self._engine("decoder", None).bind(inputs, {"image": self._array("image", None)})
