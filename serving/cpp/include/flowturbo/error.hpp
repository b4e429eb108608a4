#pragma once

#include <stdexcept>
#include <string>

#include "flowturbo/export.h"

namespace flowturbo {

/// Kinds of failure; the numbers are those of flowturbo_status in flowturbo.h.
enum class ErrorCode : int { bundle = 1, request = 2, schedule = 3, backend = 4 };

/// The root of every error that a user can cause; its message is one line: the value, what was expected,
/// the remedy.
class FLOWTURBO_API Error : public std::runtime_error {
 public:
  ErrorCode code() const noexcept { return code_; }

 protected:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}

 private:
  ErrorCode code_;
};

/// A bundle that is missing, damaged, unsafe, of another format, or lacks what is asked of it.
class FLOWTURBO_API BundleError : public Error {
 public:
  explicit BundleError(const std::string& message) : Error(ErrorCode::bundle, message) {}
};

/// An argument of the wrong length or range.
class FLOWTURBO_API RequestError : public Error {
 public:
  explicit RequestError(const std::string& message) : Error(ErrorCode::request, message) {}
};

/// A schedule that the bundle has no program for, or one that generation cannot use.
class FLOWTURBO_API ScheduleError : public Error {
 public:
  explicit ScheduleError(const std::string& message) : Error(ErrorCode::schedule, message) {}
};

/// A backend or device that is unknown or not available, or an engine it cannot run.
class FLOWTURBO_API BackendError : public Error {
 public:
  explicit BackendError(const std::string& message) : Error(ErrorCode::backend, message) {}
};

}  // namespace flowturbo
