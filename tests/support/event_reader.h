#pragma once

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/files.h"
#include "weightsmith/report/event_file.h"

/// A reader of event files as the documents of the format describe it, written apart from the
/// writer.
namespace weightsmith::testing {

/// Takes a file apart from its start on.
class EventBytes {
 public:
  explicit EventBytes(std::string_view bytes) : left_(bytes) {}

  bool done() const { return left_.empty(); }
  std::string_view take(std::size_t count) {
    REQUIRE(count <= left_.size());
    const std::string_view taken = left_.substr(0, count);
    left_.remove_prefix(count);
    return taken;
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);  // little-endian machines only
    return value;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = number<std::uint8_t>();
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
  }

 private:
  std::string_view left_;
};

inline std::uint32_t masked_crc32c(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

struct ReadEvent {
  double wall_time = 0;
  std::uint64_t step = 0;
  std::string version;
  std::map<std::string, float> values;
};

inline std::pair<std::string, float> parse_event_value(std::string_view bytes) {
  std::pair<std::string, float> value;
  for (EventBytes in(bytes); !in.done();) {
    const std::uint64_t key = in.varint();
    if (key == (1 << 3 | 2)) {
      value.first = in.take(in.varint());
    } else {
      REQUIRE(key == (2 << 3 | 5));
      value.second = in.number<float>();
    }
  }
  return value;
}

inline ReadEvent parse_event(std::string_view bytes) {
  ReadEvent event;
  for (EventBytes in(bytes); !in.done();) {
    switch (in.varint()) {
      case 1 << 3 | 1:
        event.wall_time = in.number<double>();
        break;
      case 2 << 3 | 0:
        event.step = in.varint();
        break;
      case 3 << 3 | 2:
        event.version = in.take(in.varint());
        break;
      case 5 << 3 | 2:
        for (EventBytes summary(in.take(in.varint())); !summary.done();) {
          REQUIRE(summary.varint() == (1 << 3 | 2));
          event.values.insert(parse_event_value(summary.take(summary.varint())));
        }
        break;
      default:
        FAIL("unknown field");
    }
  }
  return event;
}

/// The events of a file, the one with its version first. A test fails where the file is damaged.
inline std::vector<ReadEvent> read_events(const std::filesystem::path& path) {
  const std::string bytes = read_bytes(path);
  std::vector<ReadEvent> events;
  for (EventBytes in(bytes); !in.done();) {
    const std::string_view length = in.take(8);
    CHECK(in.number<std::uint32_t>() == masked_crc32c(length));
    const std::string_view data = in.take(EventBytes(length).number<std::uint64_t>());
    CHECK(in.number<std::uint32_t>() == masked_crc32c(data));
    events.push_back(parse_event(data));
  }
  return events;
}

}  // namespace weightsmith::testing
