// The bytes are a manifest: whatever they are, the library reads them or throws one of its errors.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "conditioning.hpp"
#include "flowturbo/error.hpp"
#include "launch_plan.hpp"
#include "layout.hpp"
#include "manifest.hpp"
#include "mutation.hpp"
#include "request.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

/// Run a step, which may refuse what it is given.
template <typename Step>
void attempt(Step step) {
  try {
    step();
  } catch (const flowturbo::Error&) {
    // A refusal is what hostile bytes should get.
  }
}

/// Do with a program all that comes before its engines are loaded.
void plan(const flowturbo::Manifest& manifest, const flowturbo::Program& program, const std::string& backend) {
  const flowturbo::LaunchPlan launches = flowturbo::plan_launches(program);
  flowturbo::needed_engines(manifest, program, backend);
  for (const bool pads : {false, true}) {
    const std::int64_t batch = manifest.batches.front();
    const auto conditionings = flowturbo::plan_conditioning(manifest, launches, batch, backend, pads);
    const auto layout = flowturbo::plan_layout(launches, batch, manifest.model, conditionings);
    flowturbo::block_bytes(layout.inputs);
    flowturbo::block_bytes(layout.work);
    flowturbo::block_bytes(layout.results);
  }
}

void use(const flowturbo::Manifest& manifest) {
  attempt([&] { flowturbo::make_request(manifest.model, {0, 1, 2}, {}, {}); });
  for (const bool is_unguided : {false, true}) {
    attempt([&] {
      const std::string variant = flowturbo::choose_variant(manifest, is_unguided);
      for (const auto& item : manifest.programs) flowturbo::find_program(manifest, item.first, variant);
    });
  }
  for (const auto& [schedule, programs] : manifest.programs) {
    for (const auto& item : programs) {
      attempt([&, &program = item.second] { plan(manifest, program, "onnxruntime"); });
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  attempt([&] { use(flowturbo::parse_manifest(text)); });
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned seed) {
  // Some inputs stay what bytes happen to be, for the JSON reader itself.
  const bool keeps_json = seed % 4 != 0;
  const std::string text = keeps_json ? mutate_json({reinterpret_cast<char*>(data), size}, seed) : std::string();
  if (text.empty() || text.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  return text.copy(reinterpret_cast<char*>(data), text.size());
}
