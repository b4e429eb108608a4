#include "trajectory.hpp"

#include <cstring>
#include <utility>

#include "combinations.hpp"
#include "flowturbo/error.hpp"

namespace flowturbo {
namespace {

constexpr const char* latents_name = "latents";
constexpr const char* image_name = "image";

/// The results of a run on the host.
Block result_block(const LaunchPlan& plan, std::int64_t batch, const Model& model, const Layout& layout) {
  Block block{{latents_name, ElementType::float32, buffer_shape(plan.slots[plan.output], batch, model)}};
  block.insert(block.end(), layout.results.begin(), layout.results.end());
  return block;
}

/// The null conditions of hoisted networks, which no request brings.
Block null_block(const Model& model, const Conditionings& conditionings) {
  Block block;
  for (const auto& [network, conditioning] : conditionings) {
    if (!conditioning.guided) continue;
    for (const Condition& condition : model.conditions) {
      const std::string name = hoisted_name(network, "null_" + condition.name);
      block.push_back({name, ElementType::int64, {conditioning.padded_rows()}});
    }
  }
  return block;
}

}  // namespace

DeviceTrajectory::DeviceTrajectory(Device& device, DeviceEngines& engines, const Manifest& manifest,
                                   const Program& program, std::int64_t batch)
    : device_(device),
      manifest_(manifest),
      batch_(batch),
      plan_(plan_launches(program)),
      conditionings_(plan_conditioning(manifest, plan_, batch, engines.backend(), true)),
      layout_(plan_layout(plan_, batch, manifest.model, conditionings_)) {
  device_.make_current();
  allocate_blocks();
  try {
    prepare_constants(engines);
    bind_launches(engines);
  } catch (...) {
    wait();
    throw;
  }
}

DeviceTrajectory::~DeviceTrajectory() { wait(); }

/// Wait for what a failure may have left behind, and memory has to outlive.
void DeviceTrajectory::wait() noexcept {
  try {
    device_.make_current();
    device_.synchronize();
  } catch (const Error&) {
    // On a device that is lost nothing is under way.
  }
}

Inputs DeviceTrajectory::inputs() {
  Inputs inputs;
  inputs.noise = static_cast<float*>(host_.at(buffer_name(plan_.noise)).data);
  inputs.guidance = static_cast<float*>(host_.at("guidance").data);
  for (const Condition& condition : manifest_.model.conditions) {
    inputs.conditions.push_back(static_cast<std::int64_t*>(host_.at(condition.name).data));
  }
  return inputs;
}

void DeviceTrajectory::run(bool decode) {
  if (decode && !decode_) {
    throw BackendError("the bundle has no decoder; ask for latents, or build it with --decoder");
  }
  device_.make_current();
  spread_conditions(manifest_.model, conditionings_, host_);
  std::unique_ptr<DeviceGraph>& graph = graphs_[decode];
  if (!graph) {
    // Engines compile and allocate when they first run, which a capture cannot hold.
    enqueue(decode);
    device_.synchronize();
    graph = device_.capture([&] { enqueue(decode); });
  }
  device_.launch(*graph);
  device_.synchronize();
}

const float* DeviceTrajectory::latents() { return static_cast<const float*>(host_.at(latents_name).data); }

const std::uint8_t* DeviceTrajectory::images() {
  return static_cast<const std::uint8_t*>(host_.at(image_name).data);
}

void DeviceTrajectory::allocate_blocks() {
  const Block results = result_block(plan_, batch_, manifest_.model, layout_);
  pinned_inputs_ = allocate_pinned(device_, block_bytes(layout_.inputs));
  pinned_results_ = allocate_pinned(device_, block_bytes(results));
  // Rows that only fill up a conditioner's calls are read as well, and have to be valid.
  std::memset(pinned_inputs_.get(), 0, block_bytes(layout_.inputs));
  host_ = place(layout_.inputs, pinned_inputs_.get());
  host_.merge(place(results, pinned_results_.get()));
  const std::array<const Block*, 3> blocks{&layout_.inputs, &layout_.work, &layout_.results};
  for (std::size_t index = 0; index < blocks.size(); ++index) {
    if (!blocks[index]->empty()) {
      blocks_[index] = allocate(device_, block_bytes(*blocks[index]));
      arrays_.merge(place(*blocks[index], blocks_[index].get()));
    }
  }
}

/// Write what all runs have in common, and compute the modulations of the null condition: they depend on
/// the times alone, which are the program's.
void DeviceTrajectory::prepare_constants(DeviceEngines& engines) {
  const Block block = null_block(manifest_.model, conditionings_);
  const PinnedMemory pinned = block.empty() ? PinnedMemory() : allocate_pinned(device_, block_bytes(block));
  const Arrays nulls = place(block, pinned.get());
  Arrays constants = host_;
  constants.insert(nulls.begin(), nulls.end());
  write_constants(plan_, manifest_.model, conditionings_, constants);
  upload_inputs();
  for (const auto& [name, array] : nulls) device_.upload(arrays_.at(name).data, array.data, array.bytes());
  device_.synchronize();
  for (const auto& [network, conditioning] : conditionings_) {
    if (!conditioning.guided) continue;
    for (const Work& work : conditioner(engines, network, true)) work();
  }
  device_.synchronize();
}

void DeviceTrajectory::bind_launches(DeviceEngines& engines) {
  for (const auto& [network, conditioning] : conditionings_) {
    for (Work& work : conditioner(engines, network, false)) work_.push_back(std::move(work));
  }
  std::vector<Sum> sums;
  for (const Launch& launch : plan_.launches) {
    if (const auto* sum = std::get_if<Sum>(&launch)) {
      sums.push_back(*sum);
      continue;
    }
    bind_sums(sums);
    const auto& call = std::get<Call>(launch);
    work_.push_back(bind(engines, arrays_of(call, manifest_.model, conditionings_, arrays_)));
  }
  bind_sums(sums);
  if (manifest_.model.image) decode_ = bind(engines, decoder_arrays(plan_.output, arrays_));
}

/// Bind the calls that compute a network's modulations.
std::vector<DeviceTrajectory::Work> DeviceTrajectory::conditioner(DeviceEngines& engines, Network network,
                                                                  bool null) {
  std::vector<Work> calls;
  for (const auto& bound : conditioner_arrays(network, null, manifest_.model, conditionings_, arrays_)) {
    calls.push_back(bind(engines, bound));
  }
  return calls;
}

/// Bind what has gathered since the last evaluation.
void DeviceTrajectory::bind_sums(std::vector<Sum>& sums) {
  for (const Combination& combination : combinations(sums, plan_, manifest_.model, batch_, arrays_)) {
    work_.emplace_back([this, combination] { device_.combine(combination); });
  }
  sums.clear();
}

DeviceTrajectory::Work DeviceTrajectory::bind(DeviceEngines& engines, const BoundArrays& bound) {
  std::unique_ptr<DeviceEngine>& engine = engines_[bound.engine];
  if (!engine) engine = engines.open(bound.engine, rows_of(bound.engine));
  return engine->bind(bound.inputs, bound.outputs);
}

std::int64_t DeviceTrajectory::rows_of(const EngineName& name) const {
  for (const auto& [network, conditioning] : conditionings_) {
    if (name.first == conditioner_of(network)) return conditioning.rows_per_call();
  }
  return batch_;
}

void DeviceTrajectory::upload_inputs() {
  device_.upload(blocks_[0].get(), pinned_inputs_.get(), block_bytes(layout_.inputs));
}

void DeviceTrajectory::enqueue(bool decode) {
  upload_inputs();
  for (const Work& work : work_) work();
  download(latents_name, arrays_.at(buffer_name(plan_.output)));
  if (decode) {
    decode_();
    download(image_name, arrays_.at(image_name));
  }
}

void DeviceTrajectory::download(const char* result, const Array& array) {
  device_.download(host_.at(result).data, array.data, array.bytes());
}

}  // namespace flowturbo
