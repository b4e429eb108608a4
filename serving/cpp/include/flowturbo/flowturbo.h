/* The C interface, for every language that can call C.
 *
 * No exception crosses it: a function that can fail returns a status, and flowturbo_last_error says why. A
 * pipeline may be used from several threads, where calls queue; it is closed when no call is under way. */
#ifndef FLOWTURBO_H
#define FLOWTURBO_H

#include <stddef.h>
#include <stdint.h>

#include "flowturbo/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Kinds of failure: a bundle that cannot be used; an argument of the wrong length or range; a schedule that
 * the bundle has no program for; a backend, device or engine; anything else, such as memory. */
typedef enum flowturbo_status {
  FLOWTURBO_OK = 0,
  FLOWTURBO_ERROR_BUNDLE = 1,
  FLOWTURBO_ERROR_REQUEST = 2,
  FLOWTURBO_ERROR_SCHEDULE = 3,
  FLOWTURBO_ERROR_BACKEND = 4,
  FLOWTURBO_ERROR_INTERNAL = 5
} flowturbo_status;

typedef struct flowturbo_pipeline flowturbo_pipeline;

/* NULL or empty texts leave the choice to the bundle and the backend; threads 0 takes all cores. */
typedef struct flowturbo_load_options {
  const char* backend;
  const char* device;
  int32_t threads;
} flowturbo_load_options;

/* Sizes and ranges of a loaded bundle; the image's sizes are 0 without a decoder. */
typedef struct flowturbo_info {
  int64_t label_minimum;
  int64_t label_maximum;
  size_t schedule_count;
  size_t latent_channels;
  size_t latent_height;
  size_t latent_width;
  size_t image_height;
  size_t image_width;
  float default_guidance;
} flowturbo_info;

/* One image per label. `seeds` has `count` values, or is NULL for 0, 1, ...; `guidance` has `guidance_count`
 * values, 1 or `count`, or is NULL for the bundle's default; `schedule` is NULL for the default. */
typedef struct flowturbo_request {
  size_t count;
  const int64_t* labels;
  const uint64_t* seeds;
  const float* guidance;
  size_t guidance_count;
  const char* schedule;
} flowturbo_request;

/* Open a bundle (a path in UTF-8); `options` may be NULL. *pipeline is to be closed. */
FLOWTURBO_API flowturbo_status flowturbo_load(const char* bundle, const flowturbo_load_options* options,
                                              flowturbo_pipeline** pipeline);

/* Close a pipeline; NULL is ignored. */
FLOWTURBO_API void flowturbo_close(flowturbo_pipeline* pipeline);

FLOWTURBO_API flowturbo_status flowturbo_get_info(const flowturbo_pipeline* pipeline, flowturbo_info* info);

/* Return a schedule's text, the default's for index 0, as long as the pipeline lives; NULL past the last. */
FLOWTURBO_API const char* flowturbo_schedule(const flowturbo_pipeline* pipeline, size_t index);

/* Return the name of the backend that a pipeline runs on, as long as the pipeline lives. */
FLOWTURBO_API const char* flowturbo_backend(const flowturbo_pipeline* pipeline);

/* Write count * image_height * image_width * 3 bytes of RGB; `size` is what `pixels` has room for. */
FLOWTURBO_API flowturbo_status flowturbo_generate(flowturbo_pipeline* pipeline,
                                                  const flowturbo_request* request, uint8_t* pixels,
                                                  size_t size);

/* Write count * latent_channels * latent_height * latent_width values without decoding them; `size` is how
 * many `latents` has room for. */
FLOWTURBO_API flowturbo_status flowturbo_generate_latents(flowturbo_pipeline* pipeline,
                                                          const flowturbo_request* request, float* latents,
                                                          size_t size);

/* Write the first `count` values of a seed's noise, as the bundle format defines it. */
FLOWTURBO_API void flowturbo_noise(uint64_t seed, float* out, size_t count);

/* Write the first `count` raw values that a seed's noise is made of: the same bits in every language. */
FLOWTURBO_API void flowturbo_noise_raw(uint64_t seed, uint64_t* out, size_t count);

/* Return why the last call of this thread that failed did so, until the next one that fails. */
FLOWTURBO_API const char* flowturbo_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
