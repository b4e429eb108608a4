#include "host_trajectory.hpp"

#include <memory>
#include <new>

#include "flowturbo/error.hpp"
#include "sums.hpp"
#include "text.hpp"

namespace flowturbo {

HostTrajectory::HostTrajectory(const Program& program, std::int64_t batch, const Manifest& manifest,
                               const std::string& backend, const BindEngine& bind)
    : plan_(plan_launches(program)),
      model_(manifest.model),
      conditionings_(plan_conditioning(manifest, plan_, batch, backend, false)) {
  allocate(batch);
  write_constants(plan_, model_, conditionings_, arrays_);
  bind_engines(bind);
}

void HostTrajectory::allocate(std::int64_t batch) {
  const Layout layout = plan_layout(plan_, batch, model_, conditionings_);
  Block all = layout.inputs;
  all.insert(all.end(), layout.work.begin(), layout.work.end());
  all.insert(all.end(), layout.results.begin(), layout.results.end());
  const std::size_t bytes = block_bytes(all);
  std::size_t space = checked_sum(bytes, alignment);
  try {
    memory_.resize(space);
  } catch (const std::bad_alloc&) {
    throw BackendError(message("no memory for ", bytes, " bytes at batch ", batch, "; free some"));
  }
  void* first = memory_.data();
  std::align(alignment, bytes, first, space);
  arrays_ = place(all, first);
}

void HostTrajectory::bind_engines(const BindEngine& bind) {
  for (const auto& [network, conditioning] : conditionings_) {
    for (const BoundArrays& call : conditioner_arrays(network, false, model_, conditionings_, arrays_)) {
      conditioners_.push_back(bind(call));
    }
    if (!conditioning.guided) continue;
    for (const BoundArrays& call : conditioner_arrays(network, true, model_, conditionings_, arrays_)) {
      null_conditioners_.push_back(bind(call));
    }
  }
  for (const Launch& launch : plan_.launches) {
    const auto* call = std::get_if<Call>(&launch);
    launches_.push_back(call != nullptr ? bind(arrays_of(*call, model_, conditionings_, arrays_))
                                        : Work(HostSum(std::get<Sum>(launch), arrays_)));
  }
  if (model_.image) decode_ = bind(decoder_arrays(plan_.output, arrays_));
}

Inputs HostTrajectory::inputs() {
  Inputs inputs;
  inputs.noise = static_cast<float*>(arrays_.at(buffer_name(plan_.noise)).data);
  for (const Condition& condition : model_.conditions) {
    inputs.conditions.push_back(static_cast<std::int64_t*>(arrays_.at(condition.name).data));
  }
  inputs.guidance = static_cast<float*>(arrays_.at("guidance").data);
  return inputs;
}

void HostTrajectory::run(bool decode) {
  spread_conditions(model_, conditionings_, arrays_);
  for (const Work& work : conditioners_) work();
  if (!has_null_) {
    for (const Work& work : null_conditioners_) work();
    has_null_ = true;
  }
  for (const Work& work : launches_) work();
  if (decode) decode_();
}

const float* HostTrajectory::latents() {
  return static_cast<const float*>(arrays_.at(buffer_name(plan_.output)).data);
}

const std::uint8_t* HostTrajectory::images() {
  return static_cast<const std::uint8_t*>(arrays_.at("image").data);
}

}  // namespace flowturbo
