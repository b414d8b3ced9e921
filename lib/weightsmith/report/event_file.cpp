#include "weightsmith/report/event_file.h"

#include <array>
#include <cstring>
#include <fstream>

#include "weightsmith/core/atomic_file.h"
#include "weightsmith/core/error.h"

namespace weightsmith {
namespace {

constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) * 0x82F63B78U);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<std::uint32_t, 256> kCrcTable = crc_table();

/// Unsigned integers and bit patterns of floats, lowest byte first.
void put_bytes(std::string& out, std::uint64_t value, int count) {
  for (int i = 0; i < count; ++i) out += static_cast<char>(value >> (8 * i));
}

// Protocol buffers: a key (field number and wire type) before every value.
enum WireType : std::uint64_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_key(std::string& out, std::uint64_t field, WireType type) {
  put_varint(out, field << 3 | type);
}

void put_text(std::string& out, std::uint64_t field, std::string_view text) {
  put_key(out, field, kLengthDelimited);
  put_varint(out, text.size());
  out += text;
}

/// Event: wall_time = 1, step = 2, file_version = 3 or summary = 5.
std::string event_start(double wall_time, std::int64_t step) {
  std::string event;
  std::uint64_t bits = 0;
  std::memcpy(&bits, &wall_time, sizeof bits);
  put_key(event, 1, kFixed64);
  put_bytes(event, bits, 8);
  put_key(event, 2, kVarint);
  put_varint(event, static_cast<std::uint64_t>(step));
  return event;
}

std::string version_event(double wall_time) {
  std::string event = event_start(wall_time, 0);
  put_text(event, 3, "brain.Event:2");
  return event;
}

/// Summary: value = 1, repeated; of it tag = 1, simple_value = 2.
std::string scalar_event(const ScalarEvent& e) {
  std::string summary;
  for (const auto& [tag, number] : e.values) {
    const auto single = static_cast<float>(number);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &single, sizeof bits);
    std::string value;
    put_text(value, 1, tag);
    put_key(value, 2, kFixed32);
    put_bytes(value, bits, 4);
    put_text(summary, 1, value);
  }
  std::string event = event_start(e.wall_time, e.step);
  put_text(event, 5, summary);
  return event;
}

/// The mask keeps a CRC of data that hold CRCs themselves from being weak.
std::uint32_t masked_crc(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}

std::string record_of(const std::string& data) {
  std::string record;
  put_bytes(record, data.size(), 8);
  put_bytes(record, masked_crc(record), 4);
  record += data;
  put_bytes(record, masked_crc(data), 4);
  return record;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char byte : bytes)
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(byte)) & 0xFFU];
  return ~crc;
}

EventFile::EventFile(std::filesystem::path path, const std::vector<ScalarEvent>& events)
    : path_(std::move(path)) {
  std::string text = record_of(version_event(events.empty() ? 0 : events.front().wall_time));
  for (const ScalarEvent& event : events) text += record_of(scalar_event(event));
  write_text_atomically(path_, text);
}

void EventFile::append(const ScalarEvent& event) const {
  std::ofstream out(path_, std::ios::binary | std::ios::app);
  out << record_of(scalar_event(event)) << std::flush;
  if (!out)
    throw Error(ErrorKind::kOutput, path_.string(), "cannot be written", "is the disk full?");
}

}  // namespace weightsmith
