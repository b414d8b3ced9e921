#include "weightsmith/report/event_file.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <optional>

#include "support/expect_error.h"
#include "support/files.h"
#include "support/python.h"
#include "support/temporary_folder.h"

namespace weightsmith {
namespace {

/// A reader of the format as its documents describe it, written apart from the writer.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

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

std::uint32_t masked(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

struct ReadEvent {
  double wall_time = 0;
  std::uint64_t step = 0;
  std::string version;
  std::map<std::string, float> values;
};

std::pair<std::string, float> parse_value(std::string_view bytes) {
  std::pair<std::string, float> value;
  for (Reader in(bytes); !in.done();) {
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

ReadEvent parse_event(std::string_view bytes) {
  ReadEvent event;
  for (Reader in(bytes); !in.done();) {
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
        for (Reader summary(in.take(in.varint())); !summary.done();) {
          REQUIRE(summary.varint() == (1 << 3 | 2));
          event.values.insert(parse_value(summary.take(summary.varint())));
        }
        break;
      default:
        FAIL("unknown field");
    }
  }
  return event;
}

std::vector<ReadEvent> read_events(const std::filesystem::path& path) {
  const std::string bytes = testing::read_bytes(path);
  std::vector<ReadEvent> events;
  for (Reader in(bytes); !in.done();) {
    const std::string_view length = in.take(8);
    CHECK(in.number<std::uint32_t>() == masked(length));
    const std::string_view data = in.take(Reader(length).number<std::uint64_t>());
    CHECK(in.number<std::uint32_t>() == masked(data));
    events.push_back(parse_event(data));
  }
  return events;
}

TEST_CASE("CRC-32C has its published values", "[report]") {
  // RFC 3720, appendix B.4.
  CHECK(crc32c("123456789") == 0xE3069283U);
  CHECK(crc32c(std::string(32, '\0')) == 0x8A9136AAU);
  CHECK(crc32c(std::string(32, '\xFF')) == 0x62A8AB43U);
  CHECK(crc32c("") == 0);
}

TEST_CASE("event files hold what was written and grow at the end", "[report]") {
  const testing::TemporaryFolder folder;
  const auto path = folder / "events.out.tfevents.test";
  const EventFile file(path, {{3, 1.7e9, {{"train/loss", 2.25}, {"lr", 1e-3}}}});
  const std::string before = testing::read_bytes(path);
  file.append({1LL << 40, 1.7e9 + 0.5, {{std::string(300, 't'), -0.1}}});
  CHECK(testing::read_bytes(path).starts_with(before));
  const auto events = read_events(path);
  REQUIRE(events.size() == 3);
  CHECK(events[0].version == "brain.Event:2");
  CHECK(events[1].step == 3);
  CHECK(events[1].wall_time == 1.7e9);
  CHECK(events[1].values == std::map<std::string, float>{{"train/loss", 2.25F}, {"lr", 1e-3F}});
  CHECK(events[2].step == 1ULL << 40);
  CHECK(events[2].values.at(std::string(300, 't')) == -0.1F);
  testing::expect_error(ErrorKind::kOutput, {"none"},
                        [&] { EventFile(folder / "none" / "e", {}); });
}

TEST_CASE("TensorBoard's own reader finds the scalars of an event file", "[report]") {
  if (!testing::python_has("tensorboard")) {
    WARN("skipped: " << testing::python() << " cannot import tensorboard");
    return;
  }
  const testing::TemporaryFolder folder;
  const EventFile file(folder / "events.out.tfevents.0.weightsmith",
                       {{3, 1.7e9, {{"train/loss", 2.25}, {"lr", 1e-3}}}});
  file.append({1LL << 40, 1.7e9 + 0.5, {{"train/loss", -0.1}}});
  const bool read = testing::run_python(folder.path(), R"(
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator('events.out.tfevents.0.weightsmith')
events.Reload()
scalars = {tag: [(e.wall_time, e.step, e.value) for e in events.Scalars(tag)]
           for tag in events.Tags()['scalars']}
print(events.file_version, scalars)
assert events.file_version == 2
assert set(scalars) == {'train/loss', 'lr'}
assert scalars['lr'][0][:2] == (1.7e9, 3) and abs(scalars['lr'][0][2] - 1e-3) < 1e-9
assert [s[:2] for s in scalars['train/loss']] == [(1.7e9, 3), (1.7e9 + 0.5, 1 << 40)]
assert scalars['train/loss'][0][2] == 2.25 and abs(scalars['train/loss'][1][2] + 0.1) < 1e-7
)");
  INFO(testing::python_log(folder.path()));
  CHECK(read);
}

}  // namespace
}  // namespace weightsmith
