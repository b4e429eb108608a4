// Generates one image per label and writes them side by side as a PPM file.

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <flowturbo/flowturbo.hpp>

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::int64_t parse_label(std::string_view text) {
  std::int64_t label = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), label);
  if (error != std::errc{} || end != text.data() + text.size()) {
    throw std::invalid_argument("label '" + std::string(text) + "' is no number");
  }
  return label;
}

void write_ppm(const flowturbo::Images& images, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  file << "P6\n" << images.count * images.width << ' ' << images.height << "\n255\n";
  const std::size_t row = images.width * 3;
  for (std::size_t y = 0; y < images.height; ++y) {
    for (std::size_t i = 0; i < images.count; ++i) {
      const std::uint8_t* pixels = images.pixels.data() + (i * images.height + y) * row;
      file.write(reinterpret_cast<const char*>(pixels), static_cast<std::streamsize>(row));
    }
  }
  if (!file.flush()) {
    throw std::runtime_error(path + ": cannot be written");
  }
}

void run(const std::string& bundle, const std::string& path, const std::vector<std::int64_t>& labels) {
  const auto started = Clock::now();
  auto pipeline = flowturbo::Pipeline::load(bundle);
  const double load = milliseconds_since(started);

  // Seeds 0, 1, … and the bundle's own guidance and schedule, as none are given.
  const auto asked = Clock::now();
  const flowturbo::Images images = pipeline.generate(labels);
  const double generate = milliseconds_since(asked);

  write_ppm(images, path);
  std::cout << path << ": " << images.count << " images of " << images.width << "x" << images.height << ", "
            << pipeline.info().schedules.front() << " on " << pipeline.info().backend << "; loaded in " << load
            << " ms, generated in " << generate << " ms\n";
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() < 3) {
    std::cerr << "usage: generate BUNDLE IMAGES.ppm LABEL...\n";
    return 2;
  }
  try {
    std::vector<std::int64_t> labels;
    std::transform(words.begin() + 2, words.end(), std::back_inserter(labels), parse_label);
    run(words[0], words[1], labels);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
