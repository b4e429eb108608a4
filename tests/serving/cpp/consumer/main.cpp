// Does in C++ what main.c does in C.

#include <flowturbo/flowturbo.hpp>

#include <iostream>
#include <numeric>

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  auto pipeline = flowturbo::Pipeline::load(argv[1]);
  const auto images = pipeline.generate({1}, {7});
  std::cout << std::accumulate(images.pixels.begin(), images.pixels.end(), 0UL) << ' '
            << pipeline.info().schedules.front() << '\n';
  try {
    pipeline.generate({1}, {7}, {}, "H99");
  } catch (const flowturbo::ScheduleError& error) {
    std::cout << static_cast<int>(error.code()) << ' ' << error.what() << '\n';
  }
  return 0;
}
