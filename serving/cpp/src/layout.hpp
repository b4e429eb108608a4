#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "array.hpp"
#include "conditioning.hpp"
#include "launch_plan.hpp"
#include "manifest.hpp"

namespace flowturbo {

struct Field {
  std::string name;
  ElementType type = ElementType::float32;
  std::vector<std::int64_t> shape;
};

/// Every array of a block starts at a multiple of this.
inline constexpr std::size_t alignment = 256;

/// Arrays that are allocated together.
using Block = std::vector<Field>;
std::size_t block_bytes(const Block& block);
/// The arrays of a block whose memory begins at `memory`.
Arrays place(const Block& block, void* memory);

/// The memory of a trajectory: `inputs`, what a request and its program bring; `work`, what only engines and
/// sums touch; `results`, what decoding writes.
struct Layout {
  Block inputs;
  Block work;
  Block results;
};

/// Lay out what a program needs at a batch size.
Layout plan_layout(const LaunchPlan& plan, std::int64_t batch, const Model& model,
                   const Conditionings& conditionings);

/// The names of fields: a buffer of the plan; the time of a call of a fused network (`times` N calls);
/// `KIND` of a hoisted network: time, modulation, null_modulation, a condition, or null_ and a condition.
/// Beside these there are `guidance`, `image`, and every condition by its own name.
std::string buffer_name(std::size_t slot);
std::string time_name(std::size_t call);
std::string hoisted_name(Network network, const std::string& kind);

/// (B,C,H,W) of a state, (B,G,C,H,W) of a velocity.
std::vector<std::int64_t> buffer_shape(RegisterType type, std::int64_t batch, const Model& model);

/// Write what a program's runs have in common into the arrays of its layout, in host memory: the times, and
/// the null conditions of hoisted networks.
void write_constants(const LaunchPlan& plan, const Model& model, const Conditionings& conditionings,
                     const Arrays& arrays);

/// Repeat the conditions of a request for every time of the hoisted networks, in host memory.
void spread_conditions(const Model& model, const Conditionings& conditionings, const Arrays& arrays);

}  // namespace flowturbo
