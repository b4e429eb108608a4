#include "request.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "flowturbo/error.hpp"
#include "noise.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

void check_labels(const Model& model, const std::vector<std::int64_t>& labels) {
  if (model.conditions.size() != 1 || model.conditions[0].name != "label") {
    std::vector<std::string> names;
    for (const Condition& condition : model.conditions) names.push_back(condition.name);
    throw RequestError("conditions are label, the model takes " + one_line(listed(names)));
  }
  if (labels.empty()) throw RequestError("no labels, expected one or more");
  const Condition& known = model.conditions[0];
  for (const std::int64_t label : labels) {
    if (label < known.minimum || label > known.maximum) {
      throw RequestError(message("label ", label, " is out of range; the model knows ", known.minimum, " to ",
                                 known.maximum));
    }
  }
}

std::vector<std::uint64_t> check_seeds(const std::vector<std::uint64_t>& seeds, std::size_t rows) {
  if (!seeds.empty() && seeds.size() != rows) {
    throw RequestError(message(seeds.size(), " seeds for ", rows, " images; give one seed per image"));
  }
  std::vector<std::uint64_t> checked = seeds;
  checked.resize(rows);
  if (seeds.empty()) std::iota(checked.begin(), checked.end(), std::uint64_t{0});
  return checked;
}

std::vector<float> check_guidance(const std::vector<float>& guidance, std::size_t rows, double by_default) {
  if (guidance.size() > 1 && guidance.size() != rows) {
    throw RequestError(
        message(guidance.size(), " guidance scales for ", rows, " images; give one, or one per image"));
  }
  std::vector<float> checked = guidance;
  if (guidance.size() != rows) {
    checked.assign(rows, guidance.empty() ? static_cast<float>(by_default) : guidance.front());
  }
  for (const float scale : checked) {
    if (!std::isfinite(scale))
      throw RequestError(message("guidance is ", scale, ", expected a finite number"));
  }
  return checked;
}

}  // namespace

bool Request::is_unguided() const {
  return std::all_of(guidance.begin(), guidance.end(), [](float scale) { return scale == 1; });
}

void Request::write(std::size_t first, std::size_t used, std::size_t batch, std::size_t latent,
                    const Inputs& inputs) const {
  for (std::size_t row = 0; row < used; ++row) {
    fill_noise(seeds[first + row], inputs.noise + row * latent, latent);
    inputs.guidance[row] = guidance[first + row];
    inputs.conditions[0][row] = labels[first + row];
  }
  std::fill(inputs.noise + used * latent, inputs.noise + batch * latent, 0.0F);
  std::fill(inputs.guidance + used, inputs.guidance + batch, 1.0F);
  std::fill(inputs.conditions[0] + used, inputs.conditions[0] + batch, labels[first]);
}

Request make_request(const Model& model, const std::vector<std::int64_t>& labels,
                     const std::vector<std::uint64_t>& seeds, const std::vector<float>& guidance) {
  check_labels(model, labels);
  return {labels, check_seeds(seeds, labels.size()),
          check_guidance(guidance, labels.size(), model.guidance.default_scale)};
}

std::string choose_variant(const Manifest& manifest, bool is_unguided) {
  const auto& variants = manifest.programs.at(manifest.default_schedule);
  if (is_unguided && variants.count("unguided") != 0) return "unguided";
  if (variants.count("guided") == 0) {
    throw RequestError(
        "the bundle has unguided engines only; use guidance 1, or build it with --variant guided");
  }
  return "guided";
}

const Program& find_program(const Manifest& manifest, const std::string& schedule,
                            const std::string& variant) {
  const std::string& name = schedule.empty() ? manifest.default_schedule : schedule;
  const auto found = manifest.programs.find(name);
  if (found == manifest.programs.end()) {
    std::vector<std::string> held;
    for (const auto& item : manifest.programs) held.push_back(item.first);
    throw ScheduleError(message("schedule ", in_quotes(name), " is not in the bundle, which has ",
                                one_line(listed(held)), "; build it with --schedule"));
  }
  const Program& program = found->second.at(variant);
  if (program.inputs().size() != 1) {
    throw ScheduleError(in_quotes(name) + ": its program needs more inputs than noise");
  }
  const auto [start, end] = program.span();
  if (start != 0 || end != 1) {
    throw ScheduleError(
        message(in_quotes(name), ": runs from ", start, " to ", end, "; generation needs 0 to 1"));
  }
  return program;
}

}  // namespace flowturbo
