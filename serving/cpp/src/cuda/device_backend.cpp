#include "device_backend.hpp"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <utility>

#include "flowturbo/error.hpp"
#include "text.hpp"
#include "trajectory.hpp"

namespace flowturbo {
namespace {

/// A compute capability as CUDA writes it: "SM89" → "8.9".
std::string dotted(const std::string& target) {
  std::string digits;
  std::copy_if(target.begin(), target.end(), std::back_inserter(digits),
               [](unsigned char character) { return std::isdigit(character) != 0; });
  return digits.size() < 2 ? target : digits.insert(digits.size() - 1, ".");
}

/// Refuse an engine for other GPUs before its gigabytes are read.
void require_target(const Engine& engine, const Device& device) {
  std::vector<std::string> targets;
  std::transform(engine.targets.begin(), engine.targets.end(), std::back_inserter(targets), dotted);
  const std::string has = device.capability();
  if (targets.empty() || std::count(targets.begin(), targets.end(), has) > 0) return;
  throw BackendError(message(engine.name(), ": ", engine.file, " was compiled for compute capability ",
                             listed(targets), ", and ", device.name(), " has ", has,
                             "; rebuild the bundle with --target ", has));
}

}  // namespace

DeviceBackend::DeviceBackend(const Manifest& manifest, std::unique_ptr<Device> device,
                             std::unique_ptr<DeviceEngines> engines)
    : manifest_(manifest), device_(std::move(device)), engines_(std::move(engines)) {}

void DeviceBackend::prepare(const Program& program) {
  const std::vector<EngineName> needed = needed_engines(manifest_, program, engines_->backend());
  for (const Engine& engine : manifest_.engines) {
    const EngineName name(engine.network, engine.variant);
    const bool is_needed = std::count(needed.begin(), needed.end(), name) > 0;
    if (is_needed && engine.backend == engines_->backend()) require_target(engine, *device_);
  }
  device_->make_current();
  for (const EngineName& name : needed) engines_->load(name);
}

std::unique_ptr<Trajectory> DeviceBackend::bind(const Program& program, std::int64_t batch) {
  prepare(program);
  return std::make_unique<DeviceTrajectory>(*device_, *engines_, manifest_, program, batch);
}

}  // namespace flowturbo
