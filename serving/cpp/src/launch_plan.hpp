#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <variant>
#include <vector>

#include "program.hpp"

namespace flowturbo {

/// An evaluation over buffers, at the `time_slot`-th of its network's different times.
struct Call {
  Network network = Network::predictor;
  Variant variant = Variant::guided;
  std::size_t index = 0;
  std::size_t time_slot = 0;
  double time = 0;
  std::size_t state = 0;
  std::optional<std::size_t> velocity;
  std::size_t out = 0;
};

struct ScaledBuffer {
  float coefficient = 0;
  std::size_t slot = 0;
};

/// A combination over buffers, whose result may take the place of its first term only.
struct Sum {
  std::size_t out = 0;
  std::vector<ScaledBuffer> terms;
};

using Launch = std::variant<Call, Sum>;

/// What a program does over the fewest buffers: `slots` are their types, `noise` and `output` those of the
/// initial state and the result, `times` the different times of each network, in the order of their slots.
struct LaunchPlan {
  std::vector<RegisterType> slots;
  std::vector<Launch> launches;
  std::size_t noise = 0;
  std::size_t output = 0;
  std::map<Network, std::vector<double>> times;

  std::vector<Call> calls() const;
};

/// Lower a program to calls and sums over buffers that live values never share.
LaunchPlan plan_launches(const Program& program);

}  // namespace flowturbo
