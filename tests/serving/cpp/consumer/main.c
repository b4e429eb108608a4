/* Generates an image of a bundle through the C interface and prints its bytes' sum; then provokes an error. */

#include <flowturbo/flowturbo.h>

#include <stdio.h>
#include <stdlib.h>

static int fail(void) {
  fprintf(stderr, "%s\n", flowturbo_last_error());
  return 1;
}

int main(int argc, char** argv) {
  const int64_t label = 1;
  const uint64_t seed = 7;
  flowturbo_request request = {1, &label, &seed, NULL, 0, NULL};
  flowturbo_pipeline* pipeline = NULL;
  flowturbo_info info;
  unsigned long sum = 0;

  if (argc != 2 || flowturbo_load(argv[1], NULL, &pipeline) != FLOWTURBO_OK) return fail();
  if (flowturbo_get_info(pipeline, &info) != FLOWTURBO_OK) return fail();
  const size_t size = info.image_height * info.image_width * 3;
  uint8_t* pixels = malloc(size);
  if (flowturbo_generate(pipeline, &request, pixels, size) != FLOWTURBO_OK) return fail();
  for (size_t i = 0; i < size; ++i) sum += pixels[i];
  printf("%lu %s\n", sum, flowturbo_schedule(pipeline, 0));

  request.schedule = "H99";
  const flowturbo_status status = flowturbo_generate(pipeline, &request, pixels, size);
  printf("%d %s\n", (int)status, flowturbo_last_error());
  free(pixels);
  flowturbo_close(pipeline);
  return 0;
}
