#include "onnxruntime_engine.hpp"

#include <utility>

#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

using FileTensors = std::map<std::string, std::pair<std::string, std::vector<std::int64_t>>>;

std::string dtype_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return "float32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return "int64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return "uint8";
    default:
      return message("ONNX's type ", static_cast<int>(type));
  }
}

ONNXTensorElementDataType type_of(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case ElementType::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
}

Ort::Value value_of(const Array& array) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
  return Ort::Value::CreateTensor(memory, array.data, array.bytes(), array.shape.data(), array.shape.size(),
                                  type_of(array.type));
}

/// The settings of Python's sessions (runtime/onnxruntime_session.py), so that both give the same images.
Ort::SessionOptions session_options(const Engine& engine, int threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
  // The sessions take turns: one that has finished must not keep a core busy waiting for its next.
  options.AddConfigEntry("session.force_spinning_stop", "1");
  // A product that was joined with its bias first is no longer found to be one of integers.
  if (engine.precision == "int8") {
    options.AddConfigEntry("optimization.disable_specified_optimizers", "MatMulAddFusion");
  }
  // Which it has no fp8 products for: it rounds as Q and DQ say, and computes in float32.
  if (engine.precision == "fp8") options.AddConfigEntry("session.disable_quant_qdq", "1");
  return options;
}

BackendError load_error(const Engine& engine, const Ort::Exception& error) {
  if (error.GetOrtErrorCode() == ORT_NOT_IMPLEMENTED && engine.precision == "bf16") {
    return BackendError(engine.name() + ": ONNX Runtime has no bf16 arithmetic on the CPU; rebuild with " +
                        "--precision onnxruntime=fp32");
  }
  return BackendError(
      message(engine.name(), ": ONNX Runtime cannot load ", engine.file, ": ", one_line(error.what())));
}

Ort::Session open_session(const Ort::Env& environment, const Bundle& bundle, const Engine& engine,
                          int threads) {
  for (const std::string& file : engine.data) bundle.file(file);
  const std::filesystem::path path = bundle.file(engine.file);
  try {
    return Ort::Session(environment, path.c_str(), session_options(engine, threads));
  } catch (const Ort::Exception& error) {
    throw load_error(engine, error);
  }
}

std::pair<std::string, std::vector<std::int64_t>> describe(const Ort::TypeInfo& type) {
  const auto info = type.GetTensorTypeAndShapeInfo();
  return {dtype_of(info.GetElementType()), info.GetShape()};
}

FileTensors inputs_of(const Ort::Session& session) {
  const Ort::AllocatorWithDefaultOptions allocator;
  FileTensors found;
  for (std::size_t index = 0; index < session.GetInputCount(); ++index) {
    found[session.GetInputNameAllocated(index, allocator).get()] = describe(session.GetInputTypeInfo(index));
  }
  return found;
}

FileTensors outputs_of(const Ort::Session& session) {
  const Ort::AllocatorWithDefaultOptions allocator;
  FileTensors found;
  for (std::size_t index = 0; index < session.GetOutputCount(); ++index) {
    found[session.GetOutputNameAllocated(index, allocator).get()] =
        describe(session.GetOutputTypeInfo(index));
  }
  return found;
}

/// A free batch axis serves every batch; ONNX Runtime says -1 for free axes.
bool agrees(const Tensor& described, const std::string& dtype, const std::vector<std::int64_t>& shape) {
  bool same = described.dtype == dtype && described.shape.size() == shape.size();
  for (std::size_t axis = 0; same && axis < shape.size(); ++axis) {
    const bool is_free_batch = axis == 0 && shape[axis] == -1;
    same = is_free_batch || described.shape[axis].value_or(-1) == shape[axis];
  }
  return same;
}

/// Hold a file's inputs or outputs against the manifest's.
void check_interface(const Engine& engine, const std::vector<Tensor>& described, FileTensors found) {
  for (const Tensor& tensor : described) {
    const auto entry = found.find(tensor.name);
    if (entry == found.end() || !agrees(tensor, entry->second.first, entry->second.second)) {
      const std::string in_file =
          entry == found.end() ? "missing" : entry->second.first + " [" + listed(entry->second.second) + "]";
      throw BackendError(message(engine.name(), ": its ", one_line(tensor.name), " is ", in_file, " in ",
                                 engine.file, ", not as the manifest says; rebuild it"));
    }
    found.erase(entry);
  }
  if (!found.empty()) {
    throw BackendError(message(engine.name(), ": ", engine.file, " has ", one_line(found.begin()->first),
                               ", which the manifest does not know; rebuild it"));
  }
}

}  // namespace

Ort::Env make_environment() {
  // Once in a process: other threads read the table while it would be written again.
  static const OrtApi* const api = [] {
    const OrtApi* found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (found != nullptr) Ort::InitApi(found);
    return found;
  }();
  if (api == nullptr) {
    throw BackendError(message("ONNX Runtime ", OrtGetApiBase()->GetVersionString(),
                               " is too old; expected 1.", ORT_API_VERSION, " or newer"));
  }
  return Ort::Env(ORT_LOGGING_LEVEL_ERROR, "flowturbo");
}

OnnxRuntimeCall::OnnxRuntimeCall(Ort::Session& session, const Engine& described, const Arrays& inputs,
                                 const Arrays& outputs)
    : session_(&session), described_(&described), binding_(session) {
  try {
    for (const auto& [name, array] : inputs) binding_.BindInput(name.c_str(), value_of(array));
    for (const auto& [name, array] : outputs) binding_.BindOutput(name.c_str(), value_of(array));
  } catch (const Ort::Exception& error) {
    throw BackendError(described.name() + ": ONNX Runtime refuses its arrays: " + one_line(error.what()));
  }
}

void OnnxRuntimeCall::operator()() {
  try {
    session_->Run(Ort::RunOptions{nullptr}, binding_);
  } catch (const Ort::Exception& error) {
    throw BackendError(described_->name() + ": ONNX Runtime failed: " + one_line(error.what()));
  }
}

OnnxRuntimeEngine::OnnxRuntimeEngine(const Ort::Env& environment, const Bundle& bundle,
                                     const Engine& described, int threads)
    : described_(&described), session_(open_session(environment, bundle, described, threads)) {
  check_interface(described, described.inputs, inputs_of(session_));
  check_interface(described, described.outputs, outputs_of(session_));
}

OnnxRuntimeCall OnnxRuntimeEngine::bind(const Arrays& inputs, const Arrays& outputs) {
  return {session_, *described_, inputs, outputs};
}

}  // namespace flowturbo
