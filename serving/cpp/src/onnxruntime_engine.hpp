#pragma once

#include <onnxruntime_cxx_api.h>

#include <memory>
#include <string>

#include "array.hpp"
#include "bundle.hpp"

namespace flowturbo {

/// A session's call with its arrays fixed: runs in place, without allocating of ours.
class OnnxRuntimeCall {
 public:
  OnnxRuntimeCall(Ort::Session& session, const Engine& described, const Arrays& inputs,
                  const Arrays& outputs);

  /// Throws BackendError with what ONNX Runtime says.
  void operator()();

 private:
  Ort::Session* session_;
  const Engine* described_;
  Ort::IoBinding binding_;
};

/// What sessions share in a process; throws BackendError where the library at hand is too old.
Ort::Env make_environment();

/// One session of a network variant, serving every batch size. The environment and the manifest outlive it.
class OnnxRuntimeEngine {
 public:
  /// Load an engine's file and hold it against the manifest; throws BundleError, BackendError. `threads`
  /// bounds the CPU's (0: all cores).
  OnnxRuntimeEngine(const Ort::Env& environment, const Bundle& bundle, const Engine& described, int threads);

  /// Fix the arrays of a call, which outlive it.
  OnnxRuntimeCall bind(const Arrays& inputs, const Arrays& outputs);

 private:
  const Engine* described_;
  Ort::Session session_;
};

}  // namespace flowturbo
