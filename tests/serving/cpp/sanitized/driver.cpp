// Goes through the library's interface, mistakes of every kind included, for sanitizers to watch.

#include <flowturbo/flowturbo.h>

#include <cmath>
#include <cstdint>
#include <flowturbo/flowturbo.hpp>
#include <functional>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using flowturbo::Pipeline;

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what + " does not hold");
}

template <typename Kind>
void expect_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const Kind& error) {
    std::cout << "refused: " << error.what() << '\n';
    return;
  }
  throw std::runtime_error("a mistake went through");
}

flowturbo::LoadOptions one_thread() {
  flowturbo::LoadOptions options;
  options.threads = 1;
  return options;
}

void generate(Pipeline& pipeline) {
  const std::size_t image = pipeline.info().image_height * pipeline.info().image_width * 3;
  for (const std::size_t count : {1U, 2U, 5U, 9U}) {
    const std::vector<std::int64_t> labels(count, pipeline.info().label_maximum);
    for (const std::string& schedule : pipeline.info().schedules) {
      expect(pipeline.generate(labels, {}, {}, schedule).pixels.size() == count * image, "the size");
    }
    const std::vector<float> guidance(count, 2.5F);
    expect(pipeline.generate_latents(labels, {}, guidance).count == count, "the count");
  }
  const auto first = pipeline.generate({0, 1}, {5, 6});
  expect(first.pixels == pipeline.generate({0, 1}, {5, 6}).pixels, "that images are the same again");
}

void refuse(Pipeline& pipeline) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  expect_error<flowturbo::RequestError>([&] { pipeline.generate({}); });
  expect_error<flowturbo::RequestError>([&] { pipeline.generate({pipeline.info().label_maximum + 1}); });
  expect_error<flowturbo::RequestError>([&] { pipeline.generate({-1}); });
  expect_error<flowturbo::RequestError>([&] { pipeline.generate({0, 1}, {1}); });
  expect_error<flowturbo::RequestError>([&] { pipeline.generate({0}, {}, {1.0F, 2.0F}); });
  expect_error<flowturbo::RequestError>([&] { pipeline.generate({0}, {}, {nan}); });
  expect_error<flowturbo::ScheduleError>([&] { pipeline.generate({0}, {}, {}, "H99\nR"); });
  expect(pipeline.generate({0}).count == 1, "that it still works");
}

void refuse_to_load(const std::string& bundle) {
  expect_error<flowturbo::BundleError>([] { Pipeline::load("/nowhere"); });
  expect_error<flowturbo::BackendError>([&] { Pipeline::load(bundle, {"mosaic", "", 1}); });
  expect_error<flowturbo::BackendError>([&] { Pipeline::load(bundle, {"", "cuda:0", 1}); });
  expect_error<flowturbo::BackendError>([&] { Pipeline::load(bundle, {"", "", -1}); });
}

void move(Pipeline pipeline, const std::string& bundle) {
  Pipeline taken = std::move(pipeline);
  Pipeline other = Pipeline::load(bundle, one_thread());
  other = std::move(taken);
  expect(other.generate({0}).count == 1, "that a moved pipeline works");
}

void call_from_c(const std::string& bundle) {
  flowturbo_pipeline* pipeline = nullptr;
  expect(flowturbo_load(nullptr, nullptr, &pipeline) != FLOWTURBO_OK, "that no path is refused");
  expect(flowturbo_load(bundle.c_str(), nullptr, nullptr) != FLOWTURBO_OK, "that no place is refused");
  expect(flowturbo_load(bundle.c_str(), nullptr, &pipeline) == FLOWTURBO_OK, "loading");
  const std::int64_t label = 0;
  const flowturbo_request request = {1, &label, nullptr, nullptr, 0, nullptr};
  std::vector<std::uint8_t> pixels(1);
  expect(flowturbo_generate(pipeline, &request, pixels.data(), 1) != FLOWTURBO_OK, "that room is asked for");
  expect(flowturbo_generate(pipeline, nullptr, pixels.data(), 1) != FLOWTURBO_OK, "that a request is needed");
  expect(flowturbo_generate(nullptr, &request, pixels.data(), 1) != FLOWTURBO_OK, "that a pipeline is");
  expect(flowturbo_schedule(pipeline, 1000) == nullptr, "that schedules end");
  flowturbo_close(pipeline);
  flowturbo_close(nullptr);
}

/// Several threads share one pipeline, where calls queue, and make and drop their own beside it.
void share(const std::string& bundle) {
  Pipeline pipeline = Pipeline::load(bundle, one_thread());
  const auto expected = pipeline.generate({0, 1, 0}, {1, 2, 3}).pixels;
  std::vector<int> wrong(3);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int call = 0; call < 3; ++call) count += pipeline.generate({0, 1, 0}, {1, 2, 3}).pixels != expected;
      try {
        pipeline.generate({-1});
      } catch (const flowturbo::RequestError&) {
        Pipeline::load(bundle, one_thread()).generate({0});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : wrong) expect(count == 0, "that threads get their own images");
}

void leak() {
  static int* kept = nullptr;
  kept = new int(1);
  std::cout << *kept << '\n';
  kept = nullptr;
}

/// Two threads write one number unguarded.
void race() {
  int number = 0;
  std::thread other([&] { ++number; });
  ++number;
  other.join();
  std::cout << number << '\n';
}

void run(const std::string& what, const std::string& bundle) {
  if (what == "leak") return leak();
  if (what == "race") return race();
  if (what == "broken") return expect_error<flowturbo::Error>([&] { Pipeline::load(bundle).generate({0}); });
  if (what == "share") return share(bundle);
  Pipeline pipeline = Pipeline::load(bundle, one_thread());
  generate(pipeline);
  refuse(pipeline);
  refuse_to_load(bundle);
  move(std::move(pipeline), bundle);
  call_from_c(bundle);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    for (int word = 2; word < argc; ++word) run(argv[1], argv[word]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "done\n";
  return 0;
}
