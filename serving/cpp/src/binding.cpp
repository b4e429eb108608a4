#include "binding.hpp"

namespace flowturbo {

BoundArrays arrays_of(const Call& call, const Model& model, const Conditionings& conditionings,
                      const Arrays& arrays) {
  BoundArrays bound{{to_string(call.network), to_string(call.variant)}, {}, {}};
  bound.inputs["state"] = arrays.at(buffer_name(call.state));
  const auto conditioning = conditionings.find(call.network);
  if (conditioning == conditionings.end()) {
    bound.inputs["time"] = arrays.at(time_name(call.index));
    for (const Condition& condition : model.conditions) {
      bound.inputs[condition.name] = arrays.at(condition.name);
    }
  } else {
    const std::int64_t batch = conditioning->second.batch;
    const auto rows_of = [&](const std::string& kind) {
      const Array& all = arrays.at(hoisted_name(call.network, kind));
      return all.rows(static_cast<std::int64_t>(call.time_slot) * batch, batch);
    };
    bound.inputs["modulation"] = rows_of("modulation");
    if (call.variant == Variant::guided) bound.inputs["null_modulation"] = rows_of("null_modulation");
  }
  if (call.variant == Variant::guided) bound.inputs["guidance"] = arrays.at("guidance");
  if (call.velocity) bound.inputs["velocity"] = arrays.at(buffer_name(*call.velocity));
  const char* output = call.network == Network::predictor ? "velocity" : "offset";
  bound.outputs[output] = arrays.at(buffer_name(call.out));
  return bound;
}

std::vector<BoundArrays> conditioner_arrays(Network network, bool null, const Model& model,
                                            const Conditionings& conditionings, const Arrays& arrays) {
  const Conditioning& conditioning = conditionings.at(network);
  const std::int64_t rows = conditioning.rows_per_call();
  const std::string prefix = null ? "null_" : "";
  std::vector<BoundArrays> calls;
  for (std::int64_t call = 0; call < conditioning.calls(); ++call) {
    const auto rows_of = [&](const std::string& kind) {
      return arrays.at(hoisted_name(network, kind)).rows(call * rows, rows);
    };
    BoundArrays bound{{conditioner_of(network), std::nullopt}, {}, {}};
    bound.inputs["time"] = rows_of("time");
    for (const Condition& condition : model.conditions) {
      bound.inputs[condition.name] = rows_of(prefix + condition.name);
    }
    bound.outputs["modulation"] = rows_of(prefix + "modulation");
    calls.push_back(bound);
  }
  return calls;
}

BoundArrays decoder_arrays(std::size_t slot, const Arrays& arrays) {
  BoundArrays bound{{"decoder", std::nullopt}, {}, {}};
  bound.inputs["state"] = arrays.at(buffer_name(slot));
  bound.outputs["image"] = arrays.at("image");
  return bound;
}

}  // namespace flowturbo
