#include <algorithm>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "flowturbo/flowturbo.h"
#include "flowturbo/pipeline.hpp"
#include "noise.hpp"
#include "text.hpp"

struct flowturbo_pipeline {
  flowturbo::Pipeline pipeline;
};

namespace {

using flowturbo::message;
using flowturbo::RequestError;

std::string& last_error() {
  thread_local std::string text;
  return text;
}

flowturbo_status fail(flowturbo_status status, const char* reason) noexcept {
  try {
    last_error() = reason;
  } catch (...) {
    // Without memory for the reason there is still the status.
    last_error().clear();
  }
  return status;
}

/// Run `work` and turn what it throws into a status.
template <typename Work>
flowturbo_status guarded(Work work) noexcept {
  try {
    work();
    return FLOWTURBO_OK;
  } catch (const flowturbo::Error& error) {
    return fail(static_cast<flowturbo_status>(error.code()), error.what());
  } catch (const std::exception& error) {
    return fail(FLOWTURBO_ERROR_INTERNAL, error.what());
  } catch (...) {
    return fail(FLOWTURBO_ERROR_INTERNAL, "an unknown exception");
  }
}

void require(const void* argument, const char* name) {
  if (argument == nullptr) throw RequestError(message(name, " is NULL, expected a pointer"));
}

std::string text_of(const char* text) { return text == nullptr ? std::string() : std::string(text); }

template <typename Value>
std::vector<Value> values_of(const Value* values, std::size_t count) {
  return values == nullptr ? std::vector<Value>() : std::vector<Value>(values, values + count);
}

/// A request with its arrays as the C++ interface takes them.
struct Arguments {
  explicit Arguments(const flowturbo_request& request)
      : labels(values_of(request.labels, request.count)),
        seeds(values_of(request.seeds, request.count)),
        guidance(values_of(request.guidance, request.guidance_count)),
        schedule(text_of(request.schedule)) {}

  std::vector<std::int64_t> labels;
  std::vector<std::uint64_t> seeds;
  std::vector<float> guidance;
  std::string schedule;
};

void require_room(std::size_t size, std::size_t count, std::size_t per_row, const char* unit) {
  // Divided, since a product of what a caller gave may be more than fits.
  if (per_row != 0 && size / per_row >= count) return;
  throw RequestError(
      message("room for ", size, " ", unit, ", expected ", per_row, " for each of ", count, " labels"));
}

}  // namespace

flowturbo_status flowturbo_load(const char* bundle, const flowturbo_load_options* options,
                                flowturbo_pipeline** pipeline) {
  return guarded([&] {
    require(bundle, "bundle");
    require(pipeline, "pipeline");
    flowturbo::LoadOptions given;
    if (options != nullptr) {
      given = {text_of(options->backend), text_of(options->device), options->threads};
    }
    auto loaded = flowturbo::Pipeline::load(std::filesystem::u8path(bundle), given);
    *pipeline = std::make_unique<flowturbo_pipeline>(flowturbo_pipeline{std::move(loaded)}).release();
  });
}

void flowturbo_close(flowturbo_pipeline* pipeline) {
  const std::unique_ptr<flowturbo_pipeline> closing(pipeline);
}

flowturbo_status flowturbo_get_info(const flowturbo_pipeline* pipeline, flowturbo_info* info) {
  return guarded([&] {
    require(pipeline, "pipeline");
    require(info, "info");
    const flowturbo::Info& known = pipeline->pipeline.info();
    *info = {known.label_minimum,   known.label_maximum, known.schedules.size(),
             known.latent_channels, known.latent_height, known.latent_width,
             known.image_height,    known.image_width,   known.default_guidance};
  });
}

const char* flowturbo_schedule(const flowturbo_pipeline* pipeline, size_t index) {
  if (pipeline == nullptr || index >= pipeline->pipeline.info().schedules.size()) return nullptr;
  return pipeline->pipeline.info().schedules[index].c_str();
}

const char* flowturbo_backend(const flowturbo_pipeline* pipeline) {
  return pipeline == nullptr ? nullptr : pipeline->pipeline.info().backend.c_str();
}

flowturbo_status flowturbo_generate(flowturbo_pipeline* pipeline, const flowturbo_request* request,
                                    uint8_t* pixels, size_t size) {
  return guarded([&] {
    require(pipeline, "pipeline");
    require(request, "request");
    require(pixels, "pixels");
    const flowturbo::Info& info = pipeline->pipeline.info();
    const std::size_t image = info.image_height * info.image_width * 3;
    if (image != 0) require_room(size, request->count, image, "bytes");
    const Arguments given(*request);
    const flowturbo::Images images =
        pipeline->pipeline.generate(given.labels, given.seeds, given.guidance, given.schedule);
    std::copy(images.pixels.begin(), images.pixels.end(), pixels);
  });
}

flowturbo_status flowturbo_generate_latents(flowturbo_pipeline* pipeline, const flowturbo_request* request,
                                            float* latents, size_t size) {
  return guarded([&] {
    require(pipeline, "pipeline");
    require(request, "request");
    require(latents, "latents");
    const flowturbo::Info& info = pipeline->pipeline.info();
    require_room(size, request->count, info.latent_channels * info.latent_height * info.latent_width,
                 "values");
    const Arguments given(*request);
    const flowturbo::Latents made =
        pipeline->pipeline.generate_latents(given.labels, given.seeds, given.guidance, given.schedule);
    std::copy(made.values.begin(), made.values.end(), latents);
  });
}

void flowturbo_noise(uint64_t seed, float* out, size_t count) { flowturbo::fill_noise(seed, out, count); }

void flowturbo_noise_raw(uint64_t seed, uint64_t* out, size_t count) {
  flowturbo::fill_raw(seed, out, count);
}

const char* flowturbo_last_error(void) { return last_error().c_str(); }
