#pragma once

#include <map>
#include <memory>
#include <string>

#include "emulated_device.hpp"
#include "onnxruntime_engine.hpp"

namespace flowturbo {

/// A bundle's ONNX Runtime engines, as engines on an emulated device: calls read and write its memory in
/// their turn. Like TensorRT's they compile in their first call, which no capture can hold.
class EmulatedEngines : public DeviceEngines {
 public:
  /// The bundle, the device and the manifest, the bundle's or one like it, outlive the engines.
  EmulatedEngines(const Bundle& bundle, const Manifest& manifest, EmulatedDevice& device);

  /// Let the call after so many fail.
  void fail_after(int calls) { calls_left_ = calls; }

  std::size_t loaded() const { return loaded_.size(); }

  std::string backend() const override { return "onnxruntime"; }
  void load(const EngineName& name) override;
  std::unique_ptr<DeviceEngine> open(const EngineName& name, std::int64_t rows) override;

 private:
  class BoundEngine;

  const Bundle& bundle_;
  const Manifest& manifest_;
  EmulatedDevice& device_;
  Ort::Env environment_ = make_environment();
  std::map<std::string, OnnxRuntimeEngine> loaded_;
  int calls_left_ = -1;
};

}  // namespace flowturbo
