#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weightsmith {

/// Values that belong to one step of a run.
struct ScalarEvent {
  std::int64_t step = 0;
  double wall_time = 0;                                ///< seconds since 1970
  std::vector<std::pair<std::string, double>> values;  ///< tag ("test/accuracy") and value
};

/// A file that TensorBoard reads and follows while it grows: records of the TFRecord format
/// (length, its masked CRC-32C, data, their masked CRC-32C; little-endian) that each hold one
/// `Event` (tensorflow/core/util/event.proto), the first one the version "brain.Event:2". Scalars
/// are stored in single precision.
class EventFile {
 public:
  /// Replaces `path`, in one step, by a file of these events. Throws Error{kOutput}.
  EventFile(std::filesystem::path path, const std::vector<ScalarEvent>& events);

  /// Adds an event at the end, so that a reader that holds the file open sees it. A process that is
  /// killed here leaves half a record, which readers ignore; begin the file anew when going on.
  /// Throws Error{kOutput}.
  void append(const ScalarEvent& event) const;

 private:
  std::filesystem::path path_;
};

/// CRC-32C (Castagnoli) of some bytes: 0xE3069283 for "123456789".
std::uint32_t crc32c(std::string_view bytes);

}  // namespace weightsmith
