#pragma once

#include <string>
#include <vector>

#include "conditioning.hpp"
#include "launch_plan.hpp"
#include "layout.hpp"

namespace flowturbo {

/// Which engine a call runs, and the arrays of its inputs and outputs by their names.
struct BoundArrays {
  EngineName engine;
  Arrays inputs;
  Arrays outputs;
};

/// Choose from a layout's arrays those of an evaluation.
BoundArrays arrays_of(const Call& call, const Model& model, const Conditionings& conditionings,
                      const Arrays& arrays);

/// Choose those of the calls that compute a network's modulations, of a request or of the null condition.
std::vector<BoundArrays> conditioner_arrays(Network network, bool null, const Model& model,
                                            const Conditionings& conditionings, const Arrays& arrays);

/// Choose those of the decoder, reading a buffer.
BoundArrays decoder_arrays(std::size_t slot, const Arrays& arrays);

}  // namespace flowturbo
