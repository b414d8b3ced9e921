#include "weightsmith/report/event_file.h"

#include <catch2/catch.hpp>
#include <map>

#include "support/event_reader.h"
#include "support/expect_error.h"
#include "support/files.h"
#include "support/python.h"
#include "support/temporary_folder.h"

namespace weightsmith {
namespace {

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
  const auto events = testing::read_events(path);
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
