#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch_plan.hpp"
#include "manifest.hpp"

namespace flowturbo {

/// The modulations of one hoisted network in a program, which its conditioner computes for all different
/// times and all rows of a batch before the first step, time by time: row slot·batch + b.
///
/// `guided`: whether some evaluations need those of the null condition as well. `fixed_rows` are the rows
/// of a call where engines fix them; 0 where one call takes as many as there are.
struct Conditioning {
  std::vector<double> times;
  std::int64_t batch = 0;
  std::int64_t width = 0;
  bool guided = false;
  std::int64_t fixed_rows = 0;

  std::int64_t rows() const;
  std::int64_t calls() const;
  std::int64_t rows_per_call() const;
  /// Rows that the calls write, and so of all arrays here.
  std::int64_t padded_rows() const;
};

using Conditionings = std::map<Network, Conditioning>;
using EngineName = std::pair<std::string, std::optional<std::string>>;

/// The name of the network that computes a hoisted network's modulations.
std::string conditioner_of(Network network);

/// Return the hoisted networks that a plan calls on a backend; `pads` if its engines fix their rows. Throws
/// BundleError where the bundle lacks a conditioner, or mixes fused and hoisted variants.
Conditionings plan_conditioning(const Manifest& manifest, const LaunchPlan& plan, std::int64_t batch,
                                const std::string& backend, bool pads);

/// Return network and variant of the engines that a program takes, with the decoder if there is one.
std::vector<EngineName> needed_engines(const Manifest& manifest, const Program& program,
                                       const std::string& backend);

/// Return what stands for no condition, in the manifest's order; throws BundleError where it does not say.
std::vector<std::int64_t> null_values(const std::vector<Condition>& conditions);

}  // namespace flowturbo
