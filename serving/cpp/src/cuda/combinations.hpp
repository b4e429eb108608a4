#pragma once

#include <cstdint>
#include <vector>

#include "combine.hpp"
#include "layout.hpp"

namespace flowturbo {

/// Form consecutive sums of a plan over its buffers (`arrays`, by `buffer_name`): in one launch, or in as
/// many as their terms take.
std::vector<Combination> combinations(const std::vector<Sum>& sums, const LaunchPlan& plan,
                                      const Model& model, std::int64_t batch, const Arrays& arrays);

}  // namespace flowturbo
