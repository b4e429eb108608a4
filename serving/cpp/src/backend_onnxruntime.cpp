#include <map>
#include <memory>
#include <utility>

#include "backend.hpp"
#include "host_trajectory.hpp"
#include "onnxruntime_engine.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

constexpr const char* backend_name = "onnxruntime";

/// On the CPU: one session per network variant, serving every batch size.
class OnnxRuntimeBackend final : public Backend {
 public:
  OnnxRuntimeBackend(const Bundle& bundle, int threads)
      : bundle_(bundle), threads_(threads), environment_(make_environment()) {}

  void prepare(const Program& program) override {
    for (const EngineName& name : needed_engines(bundle_.manifest(), program, backend_name)) engine(name);
  }

  std::unique_ptr<Trajectory> bind(const Program& program, std::int64_t batch) override {
    const auto bind_engine = [this](const BoundArrays& call) -> std::function<void()> {
      // Calls cannot be copied, functions must be.
      const auto bound =
          std::make_shared<OnnxRuntimeCall>(engine(call.engine).bind(call.inputs, call.outputs));
      return [bound] { (*bound)(); };
    };
    return std::make_unique<HostTrajectory>(program, batch, bundle_.manifest(), backend_name, bind_engine);
  }

 private:
  OnnxRuntimeEngine& engine(const EngineName& name) {
    const auto found = engines_.find(name);
    if (found != engines_.end()) return found->second;
    const Engine& described = bundle_.manifest().engine(name.first, name.second, backend_name);
    return engines_.try_emplace(name, environment_, bundle_, described, threads_).first->second;
  }

  const Bundle& bundle_;
  int threads_;
  Ort::Env environment_;
  std::map<EngineName, OnnxRuntimeEngine> engines_;
};

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const LoadOptions& options) {
  if (!options.device.empty() && options.device != "cpu") {
    throw BackendError(message("device ", in_quotes(options.device),
                               ": this library runs ONNX Runtime on the ",
                               "CPU alone; use cpu, or a bundle for TensorRT"));
  }
  return std::make_unique<OnnxRuntimeBackend>(bundle, options.threads);
}

}  // namespace flowturbo
