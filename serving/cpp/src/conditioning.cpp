#include "conditioning.hpp"

#include <algorithm>
#include <set>

#include "array.hpp"
#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

/// Whether the variants of a network that a program evaluates are hoisted: all of them, or none.
bool is_hoisted(const Manifest& manifest, Network network, const std::set<Variant>& variants,
                const std::string& backend) {
  const auto is_variant_hoisted = [&](Variant variant) {
    return manifest.engine(to_string(network), to_string(variant), backend).is_hoisted();
  };
  const auto count = std::count_if(variants.begin(), variants.end(), is_variant_hoisted);
  if (count != 0 && static_cast<std::size_t>(count) != variants.size()) {
    throw BundleError(message(to_string(network), ": some of its variants have their conditioning hoisted, ",
                              "others not; rebuild the bundle"));
  }
  return count != 0;
}

std::int64_t width_of(const Engine& conditioner) {
  const std::vector<Tensor>& outputs = conditioner.outputs;
  const bool is_known = outputs.size() == 1 && outputs[0].shape.size() == 2 && outputs[0].shape[1];
  if (!is_known || *outputs[0].shape[1] < 1) {
    throw BundleError(conditioner.name() + ": its one output is not rows of known width; rebuild the bundle");
  }
  return *outputs[0].shape[1];
}

std::int64_t rows_of_a_call(const Engine& conditioner) {
  const auto largest = std::max_element(conditioner.batches.begin(), conditioner.batches.end());
  if (largest == conditioner.batches.end() || *largest < 1) {
    throw BundleError(conditioner.name() + ": has no batch sizes; rebuild the bundle");
  }
  return *largest;
}

/// The rows of padded calls are fewer than those of one time more, of whichever is larger.
void check_size(const Conditioning& conditioning) {
  const auto times = static_cast<std::int64_t>(conditioning.times.size()) + 1;
  const std::int64_t rows = std::max(conditioning.batch, conditioning.fixed_rows);
  byte_count(ElementType::float32, {times, rows, conditioning.width});
}

}  // namespace

std::int64_t Conditioning::rows() const { return static_cast<std::int64_t>(times.size()) * batch; }

std::int64_t Conditioning::calls() const {
  return fixed_rows == 0 ? 1 : (rows() + fixed_rows - 1) / fixed_rows;
}

std::int64_t Conditioning::rows_per_call() const { return fixed_rows == 0 ? rows() : fixed_rows; }

std::int64_t Conditioning::padded_rows() const { return calls() * rows_per_call(); }

std::string conditioner_of(Network network) { return std::string(to_string(network)) + "_conditioner"; }

Conditionings plan_conditioning(const Manifest& manifest, const LaunchPlan& plan, std::int64_t batch,
                                const std::string& backend, bool pads) {
  std::map<Network, std::set<Variant>> variants;
  for (const Call& call : plan.calls()) variants[call.network].insert(call.variant);
  Conditionings found;
  for (const auto& [network, used] : variants) {
    if (!is_hoisted(manifest, network, used, backend)) continue;
    const Engine& conditioner = manifest.engine(conditioner_of(network), std::nullopt, backend);
    const Conditioning conditioning{plan.times.at(network), batch, width_of(conditioner),
                                    used.count(Variant::guided) != 0, pads ? rows_of_a_call(conditioner) : 0};
    check_size(conditioning);
    found[network] = conditioning;
  }
  return found;
}

std::vector<EngineName> needed_engines(const Manifest& manifest, const Program& program,
                                       const std::string& backend) {
  std::set<EngineName> needed;
  for (const Evaluate& call : program.evaluations()) {
    const char* network = to_string(call.network);
    const char* variant = to_string(call.variant);
    needed.emplace(network, variant);
    if (manifest.engine(network, variant, backend).is_hoisted()) {
      needed.emplace(conditioner_of(call.network), std::nullopt);
    }
  }
  if (manifest.model.image) needed.emplace("decoder", std::nullopt);
  return {needed.begin(), needed.end()};
}

std::vector<std::int64_t> null_values(const std::vector<Condition>& conditions) {
  std::vector<std::int64_t> values;
  for (const Condition& condition : conditions) {
    if (!condition.null) {
      throw BundleError(message("the manifest does not say which ", in_quotes(condition.name),
                                " stands for none; rebuild the bundle"));
    }
    values.push_back(*condition.null);
  }
  return values;
}

}  // namespace flowturbo
