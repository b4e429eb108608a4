#include "launch_plan.hpp"

#include <algorithm>
#include <limits>

namespace flowturbo {
namespace {

constexpr std::size_t forever = std::numeric_limits<std::size_t>::max();

/// The last instruction that needs each register: its own where nothing reads it.
std::vector<std::size_t> last_uses(const Program& program) {
  std::vector<std::size_t> last(program.registers().size(), 0);
  for (std::size_t index = 0; index < program.instructions().size(); ++index) {
    const Instruction& instruction = program.instructions()[index];
    last[written_by(instruction)] = index;
    for (const std::size_t source : reads(instruction)) last[source] = index;
  }
  last[program.output()] = forever;
  return last;
}

/// Assigns registers to buffers so that live values never share one.
class Allocator {
 public:
  explicit Allocator(const Program& program) : program_(program), last_(last_uses(program)) {
    slot_of_.resize(last_.size());
  }

  void run() {
    for (const auto& input : program_.inputs()) place(input.second);
    for (std::size_t index = 0; index < program_.instructions().size(); ++index) {
      const Instruction& instruction = program_.instructions()[index];
      const std::size_t out = written_by(instruction);
      std::vector<std::size_t> dying;
      for (const std::size_t source : reads(instruction)) {
        const bool is_new = std::find(dying.begin(), dying.end(), source) == dying.end();
        if (last_[source] == index && is_new) dying.push_back(source);
      }
      if (takes_over_first(instruction, dying)) {
        release(dying.front());
        dying.erase(dying.begin());
      }
      place(out);
      if (last_[out] == index) dying.push_back(out);
      for (const std::size_t dead : dying) release(dead);
    }
  }

  const std::vector<RegisterType>& slots() const { return slots_; }
  std::size_t slot_of(std::size_t index) const { return slot_of_[index]; }

 private:
  /// A sum starts by scaling its first term, in place where that dies; an engine reads while it writes.
  static bool takes_over_first(const Instruction& instruction, const std::vector<std::size_t>& dying) {
    const auto* combine = std::get_if<Combine>(&instruction);
    if (combine == nullptr || dying.empty() || dying.front() != combine->terms.front().source) return false;
    const auto is_first = [&](const Term& term) { return term.source == dying.front(); };
    return std::count_if(combine->terms.begin(), combine->terms.end(), is_first) == 1;
  }

  void place(std::size_t index) {
    const RegisterType type = program_.registers()[index];
    const auto fits = [&](std::size_t slot) { return slots_[slot] == type; };
    const auto found = std::find_if(free_.begin(), free_.end(), fits);
    if (found == free_.end()) {
      slot_of_[index] = slots_.size();
      slots_.push_back(type);
    } else {
      slot_of_[index] = *found;
      free_.erase(found);
    }
  }

  void release(std::size_t index) { free_.push_back(slot_of_[index]); }

  const Program& program_;
  std::vector<std::size_t> last_;
  std::vector<RegisterType> slots_;
  std::vector<std::size_t> slot_of_;
  std::vector<std::size_t> free_;
};

std::size_t number_of(double time, std::vector<double>& times) {
  const auto found = std::find(times.begin(), times.end(), time);
  const auto number = static_cast<std::size_t>(found - times.begin());
  if (found == times.end()) times.push_back(time);
  return number;
}

Call lower(const Evaluate& evaluate, const Allocator& buffers, std::size_t index, LaunchPlan& plan) {
  Call call;
  call.network = evaluate.network;
  call.variant = evaluate.variant;
  call.index = index;
  call.time_slot = number_of(evaluate.time, plan.times[evaluate.network]);
  call.time = evaluate.time;
  call.state = buffers.slot_of(evaluate.state);
  if (evaluate.velocity) call.velocity = buffers.slot_of(*evaluate.velocity);
  call.out = buffers.slot_of(evaluate.out);
  return call;
}

Sum lower(const Combine& combine, const Allocator& buffers) {
  Sum sum{buffers.slot_of(combine.out), {}};
  for (const Term& term : combine.terms) {
    sum.terms.push_back({static_cast<float>(term.coefficient), buffers.slot_of(term.source)});
  }
  return sum;
}

}  // namespace

std::vector<Call> LaunchPlan::calls() const {
  std::vector<Call> found;
  for (const Launch& launch : launches) {
    if (const auto* call = std::get_if<Call>(&launch)) found.push_back(*call);
  }
  return found;
}

LaunchPlan plan_launches(const Program& program) {
  Allocator buffers(program);
  buffers.run();
  LaunchPlan plan;
  plan.slots = buffers.slots();
  plan.noise = buffers.slot_of(program.noise());
  plan.output = buffers.slot_of(program.output());
  std::size_t calls = 0;
  for (const Instruction& instruction : program.instructions()) {
    if (const auto* evaluate = std::get_if<Evaluate>(&instruction)) {
      plan.launches.emplace_back(lower(*evaluate, buffers, calls++, plan));
    } else {
      plan.launches.emplace_back(lower(std::get<Combine>(instruction), buffers));
    }
  }
  return plan;
}

}  // namespace flowturbo
