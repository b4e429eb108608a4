#include "layout.hpp"

#include <algorithm>
#include <utility>

#include "text.hpp"

namespace flowturbo {
namespace {

std::size_t aligned(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

Field buffer_field(const LaunchPlan& plan, std::size_t slot, std::int64_t batch, const Model& model) {
  return {buffer_name(slot), ElementType::float32, buffer_shape(plan.slots[slot], batch, model)};
}

void add_hoisted(Network network, const Conditioning& conditioning, const Model& model, Layout& layout) {
  const std::int64_t rows = conditioning.padded_rows();
  const std::vector<std::int64_t> modulation{rows, conditioning.width};
  const auto add = [&](Block& block, const std::string& kind, ElementType type,
                       std::vector<std::int64_t> shape) {
    block.push_back({hoisted_name(network, kind), type, std::move(shape)});
  };
  add(layout.inputs, "time", ElementType::float32, {rows});
  for (const Condition& condition : model.conditions) {
    add(layout.inputs, condition.name, ElementType::int64, {rows});
  }
  add(layout.work, "modulation", ElementType::float32, modulation);
  if (!conditioning.guided) return;
  add(layout.work, "null_modulation", ElementType::float32, modulation);
  for (const Condition& condition : model.conditions) {
    add(layout.work, "null_" + condition.name, ElementType::int64, {rows});
  }
}

template <typename Element>
Element* begin_of(const Arrays& arrays, const std::string& name) {
  return static_cast<Element*>(arrays.at(name).data);
}

}  // namespace

std::size_t block_bytes(const Block& block) {
  std::size_t bytes = 0;
  for (const Field& field : block) bytes = checked_sum(bytes, aligned(byte_count(field.type, field.shape)));
  return bytes;
}

Arrays place(const Block& block, void* memory) {
  Arrays arrays;
  auto* next = static_cast<std::uint8_t*>(memory);
  for (const Field& field : block) {
    arrays[field.name] = {next, field.type, field.shape};
    next += aligned(byte_count(field.type, field.shape));
  }
  return arrays;
}

Layout plan_layout(const LaunchPlan& plan, std::int64_t batch, const Model& model,
                   const Conditionings& conditionings) {
  Layout layout;
  layout.inputs = {buffer_field(plan, plan.noise, batch, model), {"guidance", ElementType::float32, {batch}}};
  for (const Condition& condition : model.conditions) {
    layout.inputs.push_back({condition.name, ElementType::int64, {batch}});
  }
  for (const Call& call : plan.calls()) {
    const bool is_fused = conditionings.count(call.network) == 0;
    if (is_fused) layout.inputs.push_back({time_name(call.index), ElementType::float32, {batch}});
  }
  for (std::size_t slot = 0; slot < plan.slots.size(); ++slot) {
    if (slot != plan.noise) layout.work.push_back(buffer_field(plan, slot, batch, model));
  }
  for (const auto& [network, conditioning] : conditionings) {
    add_hoisted(network, conditioning, model, layout);
  }
  if (model.image) {
    const auto& [height, width] = *model.image;
    layout.results.push_back({"image", ElementType::uint8, {batch, height, width, 3}});
  }
  return layout;
}

std::string buffer_name(std::size_t slot) { return message("buffer ", slot); }

std::string time_name(std::size_t call) { return message("time ", call); }

std::string hoisted_name(Network network, const std::string& kind) {
  return message(to_string(network), ' ', kind);
}

std::vector<std::int64_t> buffer_shape(RegisterType type, std::int64_t batch, const Model& model) {
  const auto& [channels, height, width] = model.latent;
  if (type == RegisterType::state) return {batch, channels, height, width};
  const std::int64_t halves = type == RegisterType::guided_velocity ? model.guidance.halves : 1;
  return {batch, halves, channels, height, width};
}

void write_constants(const LaunchPlan& plan, const Model& model, const Conditionings& conditionings,
                     const Arrays& arrays) {
  for (const Call& call : plan.calls()) {
    if (conditionings.count(call.network) != 0) continue;
    const Array& time = arrays.at(time_name(call.index));
    std::fill_n(static_cast<float*>(time.data), time.shape[0], static_cast<float>(call.time));
  }
  for (const auto& [network, conditioning] : conditionings) {
    auto* time = begin_of<float>(arrays, hoisted_name(network, "time"));
    for (const double value : conditioning.times) {
      time = std::fill_n(time, conditioning.batch, static_cast<float>(value));
    }
    if (!conditioning.guided) continue;
    const std::vector<std::int64_t> nulls = null_values(model.conditions);
    for (std::size_t index = 0; index < nulls.size(); ++index) {
      const std::string name = hoisted_name(network, "null_" + model.conditions[index].name);
      std::fill_n(begin_of<std::int64_t>(arrays, name), conditioning.padded_rows(), nulls[index]);
    }
  }
}

void spread_conditions(const Model& model, const Conditionings& conditionings, const Arrays& arrays) {
  for (const auto& [network, conditioning] : conditionings) {
    for (const Condition& condition : model.conditions) {
      const auto* from = begin_of<std::int64_t>(arrays, condition.name);
      auto* to = begin_of<std::int64_t>(arrays, hoisted_name(network, condition.name));
      for (std::size_t slot = 0; slot < conditioning.times.size(); ++slot) {
        to = std::copy_n(from, conditioning.batch, to);
      }
    }
  }
}

}  // namespace flowturbo
