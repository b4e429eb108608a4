#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend.hpp"
#include "binding.hpp"
#include "layout.hpp"

namespace flowturbo {

/// Fixes the arrays of an engine's call, in host memory; the result runs it, in place.
using BindEngine = std::function<std::function<void()>(const BoundArrays&)>;

/// A program in host memory, over engines that are called on bound arrays.
class HostTrajectory final : public Trajectory {
 public:
  HostTrajectory(const Program& program, std::int64_t batch, const Manifest& manifest,
                 const std::string& backend, const BindEngine& bind);

  Inputs inputs() override;
  void run(bool decode) override;
  const float* latents() override;
  const std::uint8_t* images() override;

 private:
  using Work = std::function<void()>;

  void allocate(std::int64_t batch);
  void bind_engines(const BindEngine& bind);

  LaunchPlan plan_;
  const Model& model_;
  Conditionings conditionings_;
  std::vector<std::uint8_t> memory_;
  Arrays arrays_;
  std::vector<Work> conditioners_;
  // Of the null condition: they depend on the program's times alone, and are kept from run to run.
  std::vector<Work> null_conditioners_;
  bool has_null_ = false;
  std::vector<Work> launches_;
  Work decode_;
};

}  // namespace flowturbo
