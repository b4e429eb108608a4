// Runs one case on a bundle: emulated_cases CASE BUNDLE. Exit status 1 and a line say what did not hold.

#include <cmath>
#include <functional>
#include <iostream>
#include <map>

#include "cuda/combinations.hpp"
#include "emulated_fixture.hpp"
#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

using Path = std::filesystem::path;

constexpr Policy policies[] = {Policy::eager, Policy::lazy};

/// Every program at every batch size gives what ONNX Runtime gives, bit for bit.
void equality(const Path& bundle) {
  for (const Policy policy : policies) {
    Fixture fixture(bundle, policy);
    for (const Program* program : fixture.programs()) {
      for (const std::int64_t batch : fixture.manifest().batches) {
        const auto trajectory = fixture.bind(*program, batch);
        require(fixture.run(*trajectory, batch, 0, true) == fixture.expected(*program, batch, 0, true),
                message("ONNX Runtime's images and latents at batch ", batch));
      }
    }
  }
}

/// Requests in turn, with and without decoding: none gives anything of the one before.
void requests_in_turn(const Path& bundle) {
  for (const Policy policy : policies) {
    Fixture fixture(bundle, policy);
    const std::int64_t batch = fixture.largest_batch();
    const Program& program = *fixture.programs().front();
    const auto trajectory = fixture.bind(program, batch);
    const Result one = fixture.expected(program, batch, 1, true);
    const Result other = fixture.expected(program, batch, 2, true);
    require(!(one == other) && !one.latents.empty(), "two requests that differ");
    require(fixture.run(*trajectory, batch, 1, true) == one, "the first request's images");
    require(fixture.run(*trajectory, batch, 2, true) == other, "the second's images");
    require(fixture.run(*trajectory, batch, 1, true) == one, "the first's images again");
    require(fixture.run(*trajectory, batch, 2, false).latents == other.latents, "latents without images");
    require(fixture.run(*trajectory, batch, 1, true) == one, "images after latents");
  }
}

/// Programs and batch sizes in turn, all of them bound at once.
void programs_in_turn(const Path& bundle) {
  Fixture fixture(bundle, Policy::lazy);
  struct Bound {
    const Program* program;
    std::int64_t batch;
    std::unique_ptr<Trajectory> trajectory;
  };
  std::vector<Bound> all;
  for (const Program* program : fixture.programs()) {
    for (const std::int64_t batch : fixture.manifest().batches) {
      all.push_back({program, batch, fixture.bind(*program, batch)});
    }
  }
  require(all.size() >= 4, "two programs at two batch sizes");
  for (int number = 0; number < 2; ++number) {
    for (const auto& [program, batch, trajectory] : all) {
      const Result expected = fixture.expected(*program, batch, number, true);
      require(fixture.run(*trajectory, batch, number, true) == expected,
              message("the images of request ", number, " at batch ", batch));
    }
  }
}

/// Once graphs are captured, of latents and of images, a run asks the device for one thing: its graph.
void one_graph(const Path& bundle) {
  Fixture fixture(bundle, Policy::lazy);
  const std::int64_t batch = fixture.largest_batch();
  const Program& program = *fixture.programs().front();
  const auto trajectory = fixture.bind(program, batch);
  for (const bool decode : {false, true}) {
    require(fixture.run(*trajectory, batch, 0, decode) == fixture.expected(program, batch, 0, decode),
            "what was asked for");
  }
  const Counters before = fixture.device().counters();
  require(before.captures == 2, "a graph without decoding and one with it");
  for (const bool decode : {false, true}) fixture.run(*trajectory, batch, 1, decode);
  const Counters after = fixture.device().counters();
  require(after.pieces == before.pieces + 2, "one piece of work in a run");
  require(after.graph_launches == before.graph_launches + 2, "a launch of the graph");
  require(after.allocations == before.allocations && after.captures == before.captures, "nothing made anew");
}

/// Conditioners whose calls take few rows are called often, and the last call is padded.
void conditioner_rows(const Path& bundle) {
  Fixture fixture(bundle, Policy::lazy, 5);
  const std::int64_t batch = fixture.largest_batch();
  const Program& program = *fixture.programs().front();
  const auto trajectory = fixture.bind(program, batch);
  const Result found = fixture.run(*trajectory, batch, 3, false);
  const Result expected = fixture.expected(program, batch, 3, false);
  double difference = 0;
  double size = 0;
  for (std::size_t index = 0; index < found.latents.size(); ++index) {
    difference += std::pow(found.latents[index] - expected.latents[index], 2);
    size += std::pow(expected.latents[index], 2);
  }
  // Of other numbers of rows matrices are multiplied in another order.
  require(std::sqrt(difference / size) < 1e-5, "ONNX Runtime's latents but for rounding");
}

/// What fails is an error, and what comes after it is right: another run, or another trajectory.
void failures(const Path& bundle) {
  for (const int calls : {1, 8}) {
    Fixture fixture(bundle, Policy::lazy);
    const std::int64_t batch = fixture.largest_batch();
    const Program& program = *fixture.programs().front();
    const Result expected = fixture.expected(program, batch, 1, true);
    fixture.engines().fail_after(1);
    require_error([&] { fixture.bind(program, batch); }, "planted failure");
    auto trajectory = fixture.bind(program, batch);
    fixture.engines().fail_after(calls);
    require_error([&] { fixture.run(*trajectory, batch, 0, true); }, "planted failure");
    require(fixture.run(*trajectory, batch, 1, true) == expected, "the images after a failure");
    trajectory = fixture.bind(program, batch);
    fixture.engines().fail_after(calls);
    require_error([&] { fixture.run(*trajectory, batch, 0, true); }, "planted failure");
    trajectory.reset();
    trajectory = fixture.bind(program, batch);
    require(fixture.run(*trajectory, batch, 1, true) == expected, "another trajectory's images");
  }
}

/// Trajectories and backends free what they allocated.
void memory(const Path& bundle) {
  Fixture fixture(bundle, Policy::lazy);
  const int before = fixture.device().counters().live_allocations;
  {
    const auto trajectory = fixture.bind(*fixture.programs().front(), fixture.largest_batch());
    fixture.run(*trajectory, fixture.largest_batch(), 0, true);
    require(fixture.device().counters().live_allocations > before, "memory in use");
  }
  require(fixture.device().counters().live_allocations == before, "all memory freed");
  fixture.close();
}

/// A bundle without a decoder gives latents, and says so when asked for images.
void no_decoder(const Path& bundle) {
  Fixture fixture(bundle, Policy::lazy);
  const std::int64_t batch = fixture.largest_batch();
  const Program& program = *fixture.programs().front();
  const auto trajectory = fixture.bind(program, batch);
  require_error([&] { trajectory->run(true); }, "no decoder");
  require(fixture.run(*trajectory, batch, 1, false) == fixture.expected(program, batch, 1, false), "latents");
}

/// Engines for other GPUs are refused before any is loaded; their own GPU is not.
void targets(const Path& bundle) {
  Fixture fixture(bundle, Policy::lazy, 0, {"8.0", "sm_120"});
  const Program& program = *fixture.programs().front();
  require_error([&] { fixture.bind(program, 1); }, "compute capability 8.0, 12.0, and emulated GPU has 9.0");
  require(fixture.engines().loaded() == 0, "nothing loaded");
  Fixture other(bundle, Policy::lazy, 0, {"8.0", "SM90"});
  other.bind(program, 1);
}

/// Sums one after the other in one launch, and more terms than a launch takes.
void sums(const Path&) {
  constexpr std::int64_t batch = 2;
  Model model;
  model.latent = {2, 3, 5};
  model.guidance.halves = 2;
  constexpr std::size_t row = 30;
  std::vector<float> state(batch * row);
  std::vector<float> velocity(batch * 2 * row);
  std::vector<float> out(batch * row);
  for (std::size_t index = 0; index < velocity.size(); ++index) {
    velocity[index] = std::sin(static_cast<float>(index));
    if (index < state.size()) state[index] = std::cos(static_cast<float>(index));
  }
  LaunchPlan plan;
  plan.slots = {RegisterType::state, RegisterType::guided_velocity, RegisterType::state};
  const Arrays arrays{{buffer_name(0), {state.data(), ElementType::float32, {}}},
                      {buffer_name(1), {velocity.data(), ElementType::float32, {}}},
                      {buffer_name(2), {out.data(), ElementType::float32, {}}}};
  Sum many{2, {{1.0F, 0}}};
  for (int term = 1; term < 250; ++term) many.terms.push_back({0.01F * static_cast<float>(term), 1});
  const auto launches = combinations({{1, {{0.5F, 1}}}, many}, plan, model, batch, arrays);
  require(launches.size() == 3, "three launches for 251 terms");
  const std::vector<float> before = velocity;
  for (const Combination& launch : launches) {
    for (std::int64_t index = 0; index < batch * static_cast<std::int64_t>(row); ++index) {
      combine_element(launch, index / launch.elements, index % launch.elements);
    }
  }
  for (std::size_t index = 0; index < velocity.size(); ++index) {
    require(velocity[index] == 0.5F * before[index], "both halves of the velocity scaled");
  }
  for (std::size_t index = 0; index < out.size(); ++index) {
    const float conditional = velocity[index / row * 2 * row + index % row];
    float expected = state[index];
    for (int term = 1; term < 250; ++term) expected += 0.01F * static_cast<float>(term) * conditional;
    require(out[index] == expected, "the sum of the terms from the left");
  }
}

const std::map<std::string, std::function<void(const Path&)>> cases{
    {"equality", equality},
    {"requests_in_turn", requests_in_turn},
    {"programs_in_turn", programs_in_turn},
    {"one_graph", one_graph},
    {"conditioner_rows", conditioner_rows},
    {"failures", failures},
    {"memory", memory},
    {"no_decoder", no_decoder},
    {"targets", targets},
    {"sums", sums},
};

}  // namespace
}  // namespace flowturbo

int main(int count, char** arguments) {
  try {
    flowturbo::require(count == 3, "emulated_cases CASE BUNDLE");
    flowturbo::cases.at(arguments[1])(arguments[2]);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
