#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace weightsmith {

/// The losses of a training's steps, read from the device several at a time: reading one waits
/// until the device has done all that it was given, and it would idle while the next step is given
/// to it. What throws leaves an object that is good for nothing more.
class StepLosses {
 public:
  /// Losses are read when those of `together` steps wait, with 1 as soon as they are added. `where`
  /// names the network in errors.
  StepLosses(std::int64_t together, std::string where);

  /// Begins a step; `at` says which one.
  void begin(std::string at);
  /// Adds the mean loss of a part of the step's batch, a scalar on any device, that counts `share`.
  /// Throws as take() does where losses are read at once.
  void add(const at::Tensor& mean, double share);

  /// The steps' losses that were read and not taken yet, in order: empty while too few wait, unless
  /// `all` are asked for. Throws Error{kNumeric} naming the first step whose loss is not finite, or
  /// Error{kInput} (Error{kNumeric} where memory ran out) naming the steps since the last reading
  /// when one of them failed on the device.
  std::vector<double> take(bool all);

 private:
  struct Part {
    double share;
    std::size_t step;  // in steps_
  };

  at::Tensor read_means() const;
  double checked(double value, std::size_t step) const;

  std::size_t together_;
  std::string where_;
  std::vector<std::string> steps_;  // which are waited for
  std::vector<double> sums_;        // of the parts of each that were read
  std::vector<Part> parts_;         // that wait
  std::vector<at::Tensor> means_;   // of these
};

}  // namespace weightsmith
