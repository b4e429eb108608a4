#include "emulated_fixture.hpp"

#include <stdexcept>
#include <utility>

#include "request.hpp"

namespace flowturbo {
namespace {

Manifest changed(Manifest manifest, std::int64_t conditioner_rows, const std::vector<std::string>& targets) {
  for (Engine& engine : manifest.engines) {
    const bool is_conditioner = engine.network.find("_conditioner") != std::string::npos;
    if (is_conditioner && conditioner_rows > 0) engine.batches = {conditioner_rows};
    engine.targets = targets;
  }
  return manifest;
}

Request numbered_request(const Model& model, std::int64_t batch, int number) {
  const Condition& label = model.conditions.at(0);
  const std::int64_t labels = label.maximum - label.minimum + 1;
  std::vector<std::int64_t> given;
  std::vector<std::uint64_t> seeds;
  std::vector<float> guidance;
  for (std::int64_t row = 0; row < batch; ++row) {
    given.push_back(label.minimum + (number + 2 * row) % labels);
    seeds.push_back(static_cast<std::uint64_t>(100 * number + row));
    guidance.push_back(1.25F + 0.5F * static_cast<float>(number) + 0.25F * static_cast<float>(row));
  }
  return make_request(model, given, seeds, guidance);
}

}  // namespace

bool Result::operator==(const Result& other) const {
  return latents == other.latents && images == other.images;
}

Fixture::Fixture(const std::filesystem::path& path, Policy policy, std::int64_t conditioner_rows,
                 const std::vector<std::string>& targets)
    : bundle_(Bundle::open(path)),
      manifest_(changed(bundle_.manifest(), conditioner_rows, targets)),
      reference_(open_onnxruntime(bundle_, {"onnxruntime", "cpu", 1})) {
  auto device = std::make_unique<EmulatedDevice>(policy);
  auto engines = std::make_unique<EmulatedEngines>(bundle_, manifest_, *device);
  device_ = device.get();
  engines_ = engines.get();
  backend_ = std::make_unique<DeviceBackend>(manifest_, std::move(device), std::move(engines));
}

std::vector<const Program*> Fixture::programs() const {
  std::vector<const Program*> found;
  for (const auto& [schedule, variants] : manifest_.programs) {
    for (const auto& [variant, program] : variants) found.push_back(&program);
  }
  return found;
}

std::unique_ptr<Trajectory> Fixture::bind(const Program& program, std::int64_t batch) {
  backend_->prepare(program);
  return backend_->bind(program, batch);
}

Result Fixture::run(Trajectory& trajectory, std::int64_t batch, int number, bool decode) const {
  const Model& model = manifest_.model;
  const auto rows = static_cast<std::size_t>(batch);
  const auto latent = static_cast<std::size_t>(model.latent[0] * model.latent[1] * model.latent[2]);
  numbered_request(model, batch, number).write(0, rows, rows, latent, trajectory.inputs());
  trajectory.run(decode);
  Result result;
  result.latents.assign(trajectory.latents(), trajectory.latents() + rows * latent);
  if (decode) {
    const auto [height, width] = model.image.value();
    const std::size_t bytes = rows * static_cast<std::size_t>(height * width * 3);
    result.images.assign(trajectory.images(), trajectory.images() + bytes);
  }
  return result;
}

Result Fixture::expected(const Program& program, std::int64_t batch, int number, bool decode) const {
  return run(*reference_->bind(program, batch), batch, number, decode);
}

void require(bool holds, const std::string& expected) {
  if (!holds) throw std::runtime_error("expected " + expected);
}

}  // namespace flowturbo
