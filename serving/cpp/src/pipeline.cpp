#include "flowturbo/pipeline.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "array.hpp"
#include "backend.hpp"
#include "batching.hpp"
#include "request.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

/// A backend that the library was built with.
struct BackendRow {
  const char* name;
  std::unique_ptr<Backend> (*open)(const Bundle&, const LoadOptions&);
};

const std::vector<BackendRow>& backends() {
  static const std::vector<BackendRow> rows = {
      {"onnxruntime", open_onnxruntime},
#ifdef FLOWTURBO_TENSORRT_BACKEND
      {FLOWTURBO_TENSORRT_BACKEND, open_tensorrt},
#endif
  };
  return rows;
}

/// The backend a bundle is run on unless told: the library's first that it was built for.
std::string default_backend(const Manifest& manifest) {
  for (const BackendRow& row : backends()) {
    const auto is_for_it = [&](const Engine& engine) { return engine.backend == row.name; };
    if (std::any_of(manifest.engines.begin(), manifest.engines.end(), is_for_it)) return row.name;
  }
  return backends().front().name;
}

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const LoadOptions& options) {
  std::vector<std::string> known;
  for (const BackendRow& row : backends()) {
    if (row.name == options.backend) return row.open(bundle, options);
    known.emplace_back(row.name);
  }
  throw BackendError(
      message("backend ", in_quotes(options.backend), " is not in this library; use ", listed(known)));
}

LoadOptions checked(LoadOptions options, const Manifest& manifest) {
  if (options.threads < 0) {
    throw BackendError(message("threads is ", options.threads, ", expected 0 (all cores) or more"));
  }
  if (options.backend.empty()) options.backend = default_backend(manifest);
  return options;
}

Info describe(const Manifest& manifest, const std::string& backend) {
  const Model& model = manifest.model;
  Info info;
  info.backend = backend;
  info.schedules.push_back(manifest.default_schedule);
  for (const auto& item : manifest.programs) {
    if (item.first != manifest.default_schedule) info.schedules.push_back(item.first);
  }
  info.batches = manifest.batches;
  if (!model.conditions.empty()) {
    info.label_minimum = model.conditions[0].minimum;
    info.label_maximum = model.conditions[0].maximum;
  }
  info.default_guidance = static_cast<float>(model.guidance.default_scale);
  info.latent_channels = static_cast<std::size_t>(model.latent[0]);
  info.latent_height = static_cast<std::size_t>(model.latent[1]);
  info.latent_width = static_cast<std::size_t>(model.latent[2]);
  if (model.image) {
    info.image_height = static_cast<std::size_t>((*model.image)[0]);
    info.image_width = static_cast<std::size_t>((*model.image)[1]);
  }
  return info;
}

}  // namespace

/// The bundle and its backend do not move: trajectories refer to them.
class Pipeline::Implementation {
 public:
  Implementation(const std::filesystem::path& path, const LoadOptions& given) : bundle_(Bundle::open(path)) {
    const Manifest& manifest = bundle_.manifest();
    const LoadOptions options = checked(given, manifest);
    info_ = describe(manifest, options.backend);
    backend_ = open_backend(bundle_, options);
    const auto& programs = manifest.programs.at(manifest.default_schedule);
    backend_->prepare(programs.begin()->second);
  }

  const Info& info() const { return info_; }
  const Model& model() const { return bundle_.manifest().model; }
  std::size_t latent_size() const {
    const auto& [channels, height, width] = model().latent;
    return byte_count(ElementType::float32, {channels, height, width}) / sizeof(float);
  }

  /// Run a request batch by batch; `read` is called as (trajectory, first row, rows) after every run.
  void run(const Request& request, const std::string& schedule, bool decode,
           const std::function<void(Trajectory&, std::size_t, std::size_t)>& read) {
    const std::string variant = choose_variant(bundle_.manifest(), request.is_unguided());
    const Program& program = find_program(bundle_.manifest(), schedule, variant);
    const std::lock_guard<std::mutex> lock(mutex_);
    std::size_t first = 0;
    for (const std::int64_t batch : split(request.size(), bundle_.manifest().batches)) {
      const std::size_t used = std::min(request.size() - first, static_cast<std::size_t>(batch));
      Trajectory& bound = trajectory(program, batch);
      request.write(first, used, static_cast<std::size_t>(batch), latent_size(), bound.inputs());
      bound.run(decode);
      read(bound, first, used);
      first += used;
    }
  }

 private:
  /// Trajectories are kept: there are no more than programs and batch sizes in the bundle.
  Trajectory& trajectory(const Program& program, std::int64_t batch) {
    std::unique_ptr<Trajectory>& bound = trajectories_[{&program, batch}];
    if (bound == nullptr) bound = backend_->bind(program, batch);
    return *bound;
  }

  Bundle bundle_;
  Info info_;
  std::unique_ptr<Backend> backend_;
  std::map<std::pair<const Program*, std::int64_t>, std::unique_ptr<Trajectory>> trajectories_;
  std::mutex mutex_;
};

Pipeline::Pipeline(std::unique_ptr<Implementation> implementation) noexcept
    : implementation_(std::move(implementation)) {}

Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;
Pipeline::~Pipeline() = default;

Pipeline Pipeline::load(const std::filesystem::path& bundle, const LoadOptions& options) {
  return Pipeline(std::make_unique<Implementation>(bundle, options));
}

const Info& Pipeline::info() const noexcept { return implementation_->info(); }

Images Pipeline::generate(const std::vector<std::int64_t>& labels, const std::vector<std::uint64_t>& seeds,
                          const std::vector<float>& guidance, const std::string& schedule) {
  const Info& known = info();
  if (known.image_height == 0) {
    throw RequestError("the bundle has no decoder; ask for latents, or build it with --decoder");
  }
  const Request request = make_request(implementation_->model(), labels, seeds, guidance);
  const auto& [height, width] = *implementation_->model().image;
  const std::size_t size = byte_count(ElementType::uint8, {height, width, 3});
  Images images{labels.size(), known.image_height, known.image_width, {}};
  images.pixels.resize(labels.size() * size);
  implementation_->run(request, schedule, true, [&](Trajectory& run, std::size_t first, std::size_t used) {
    std::copy_n(run.images(), used * size, images.pixels.data() + first * size);
  });
  return images;
}

Latents Pipeline::generate_latents(const std::vector<std::int64_t>& labels,
                                   const std::vector<std::uint64_t>& seeds,
                                   const std::vector<float>& guidance, const std::string& schedule) {
  const Info& known = info();
  const Request request = make_request(implementation_->model(), labels, seeds, guidance);
  const std::size_t size = implementation_->latent_size();
  Latents latents{labels.size(), known.latent_channels, known.latent_height, known.latent_width, {}};
  latents.values.resize(labels.size() * size);
  implementation_->run(request, schedule, false, [&](Trajectory& run, std::size_t first, std::size_t used) {
    std::copy_n(run.latents(), used * size, latents.values.data() + first * size);
  });
  return latents;
}

}  // namespace flowturbo
