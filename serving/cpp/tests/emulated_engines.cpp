#include "emulated_engines.hpp"

#include <utility>

#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {

class EmulatedEngines::BoundEngine : public DeviceEngine {
 public:
  BoundEngine(EmulatedEngines& engines, OnnxRuntimeEngine& engine, std::int64_t rows)
      : engines_(engines), engine_(engine), rows_(rows) {}

  std::function<void()> bind(const Arrays& inputs, const Arrays& outputs) override {
    Arrays arrays = inputs;
    arrays.insert(outputs.begin(), outputs.end());
    for (const auto& [name, array] : arrays) {
      if (array.shape.at(0) != rows_) {
        throw BackendError(message(name, " of ", array.shape[0], " rows, expected ", rows_));
      }
    }
    const auto call = std::make_shared<OnnxRuntimeCall>(engine_.bind(inputs, outputs));
    return [this, call, arrays = std::move(arrays)] {
      if (!has_run_ && engines_.device_.is_capturing()) throw BackendError("compiling during a capture");
      has_run_ = true;
      if (engines_.calls_left_ >= 0 && engines_.calls_left_-- == 0) throw BackendError("planted failure");
      engines_.device_.ask([this, call, arrays] {
        for (const auto& [name, array] : arrays) engines_.device_.require_device(array.data, array.bytes());
        (*call)();
      });
    };
  }

 private:
  EmulatedEngines& engines_;
  OnnxRuntimeEngine& engine_;
  std::int64_t rows_;
  bool has_run_ = false;
};

EmulatedEngines::EmulatedEngines(const Bundle& bundle, const Manifest& manifest, EmulatedDevice& device)
    : bundle_(bundle), manifest_(manifest), device_(device) {}

void EmulatedEngines::load(const EngineName& name) { open(name, 0); }

std::unique_ptr<DeviceEngine> EmulatedEngines::open(const EngineName& name, std::int64_t rows) {
  const Engine& described = manifest_.engine(name.first, name.second, backend());
  auto found = loaded_.find(described.file);
  if (found == loaded_.end()) {
    found = loaded_.try_emplace(described.file, environment_, bundle_, described, 1).first;
  }
  return std::make_unique<BoundEngine>(*this, found->second, rows);
}

}  // namespace flowturbo
