#include "manifest.hpp"

#include <algorithm>
#include <set>

#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

template <typename Map>
std::set<std::string> keys(const Map& map) {
  std::set<std::string> found;
  for (const auto& item : map) found.insert(item.first);
  return found;
}

void check_model(const Model& model) {
  const auto is_too_small = [](std::int64_t size) { return size < 1; };
  bool has_sizes = std::none_of(model.latent.begin(), model.latent.end(), is_too_small);
  if (model.image) has_sizes &= std::none_of(model.image->begin(), model.image->end(), is_too_small);
  if (!has_sizes) throw BundleError("manifest: latent or image has a size below 1");
  const Guidance& guidance = model.guidance;
  if ((guidance.halves != 1 && guidance.halves != 2) || guidance.channels < 1 ||
      guidance.channels > model.latent[0]) {
    throw BundleError(message("manifest: guidance of ", guidance.channels, " channels in ", guidance.halves,
                              " halves does not fit latents of ", model.latent[0], " channels"));
  }
}

void check_files(const Engine& engine, const Manifest& manifest) {
  const auto check = [&](const std::string& file) {
    if (manifest.files.count(file) != 0) return;
    throw BundleError(message("manifest: ", one_line(engine.network), " needs ", in_quotes(file),
                              ", which is not among the files"));
  };
  check(engine.file);
  std::for_each(engine.data.begin(), engine.data.end(), check);
}

void check_programs(const Manifest& manifest) {
  const auto by_default = manifest.programs.find(manifest.default_schedule);
  if (by_default == manifest.programs.end()) {
    throw BundleError("manifest: no program for the default schedule " +
                      in_quotes(manifest.default_schedule));
  }
  const std::set<std::string> variants = keys(by_default->second);
  for (const auto& [schedule, programs] : manifest.programs) {
    std::set<std::string> evaluated;
    for (const auto& item : programs) {
      for (const Evaluate& call : item.second.evaluations()) evaluated.insert(to_string(call.variant));
    }
    const std::set<std::string> found = keys(programs);
    const bool has_all = std::includes(variants.begin(), variants.end(), evaluated.begin(), evaluated.end());
    if (found.empty() || found != variants || !has_all) {
      throw BundleError(message("manifest: ", in_quotes(schedule), " has programs for ",
                                one_line(listed(found)), ", evaluating ", listed(evaluated),
                                "; expected one for each variant of the ", "default schedule's, ",
                                one_line(listed(variants))));
    }
  }
}

/// A bundle may come from a stranger: a path in it must lead to one place, and that inside.
void check_path(const std::string& name) {
  const bool is_forbidden = name.find_first_of(std::string("\\:\0", 3)) != std::string::npos;
  bool leaves = name.empty() || is_forbidden;
  for (std::size_t start = 0; start <= name.size() && !leaves;) {
    const std::size_t end = std::min(name.find('/', start), name.size());
    const std::string part = name.substr(start, end - start);
    leaves = part.empty() || part == "." || part == "..";
    start = end + 1;
  }
  if (leaves)
    throw BundleError("the manifest names " + in_quotes(name) + ", which is no path inside the bundle");
}

std::string full_name(const std::string& network, const std::optional<std::string>& variant) {
  return variant && !variant->empty() ? network + " " + *variant : network;
}

}  // namespace

std::string Engine::name() const { return full_name(network, variant); }

bool Engine::is_hoisted() const {
  const auto is_modulation = [](const Tensor& tensor) { return tensor.name == "modulation"; };
  return std::any_of(inputs.begin(), inputs.end(), is_modulation);
}

void validate(const Manifest& manifest, const std::vector<Engine>& graphs) {
  check_model(manifest.model);
  const auto is_too_small = [](std::int64_t size) { return size < 1; };
  const std::vector<std::int64_t>& batches = manifest.batches;
  if (batches.empty() || std::any_of(batches.begin(), batches.end(), is_too_small)) {
    throw BundleError("manifest: batches are [" + one_line(listed(batches)) + "], expected sizes from 1 on");
  }
  for (const Engine& graph : graphs) check_files(graph, manifest);
  for (const Engine& engine : manifest.engines) check_files(engine, manifest);
  check_programs(manifest);
  for (const auto& file : manifest.files) check_path(file.first);
}

const Engine& Manifest::engine(const std::string& network, const std::optional<std::string>& variant,
                               const std::string& backend, std::optional<std::int64_t> batch) const {
  std::set<std::string> held;
  for (const Engine& engine : engines) {
    if (engine.backend != backend) continue;
    held.insert(engine.name());
    const auto& sizes = engine.batches;
    const bool fits = !batch || std::find(sizes.begin(), sizes.end(), *batch) != sizes.end();
    if (engine.network == network && engine.variant == variant && fits) return engine;
  }
  throw BundleError(message("the bundle has no ", full_name(network, variant), " engine for ", backend,
                            " (it has: ", held.empty() ? "none" : one_line(listed(held)),
                            "); rebuild it with --backend ", backend,
                            network == "refiner" ? " --refiner" : ""));
}

}  // namespace flowturbo
