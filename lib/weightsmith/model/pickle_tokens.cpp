#include "weightsmith/model/pickle_tokens.h"

#include <spdlog/fmt/fmt.h>

#include "weightsmith/core/error.h"

namespace weightsmith {

void PickleTokens::fail(const std::string& what) const {
  throw Error(ErrorKind::kInput, where_,
              fmt::format("{}, at byte {} of its pickle", what, position_),
              "save the weights again with torch.save(model.state_dict(), ...)");
}

std::string_view PickleTokens::take(std::uint64_t count) {
  if (count > bytes_.size() - position_) fail("cut short");
  const std::string_view taken = bytes_.substr(position_, count);
  position_ += count;
  return taken;
}

std::string_view PickleTokens::take_line() {
  const std::size_t end = bytes_.find('\n', position_);
  if (end == std::string_view::npos) fail("cut short");
  const std::string_view line = bytes_.substr(position_, end - position_);
  position_ = end + 1;
  return line;
}

std::uint64_t PickleTokens::take_unsigned(int width) {
  std::uint64_t value = 0;
  const std::string_view bytes = take(static_cast<std::uint64_t>(width));
  for (int i = 0; i < width; ++i)
    value |=
        static_cast<std::uint64_t>(static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]))
        << (8 * i);
  return value;
}

/// Two's complement of any length; what does not fit 64 bits is of no use here and reads as 0.
std::int64_t PickleTokens::take_long1() {
  const std::string_view bytes = take(take_unsigned(1));
  if (bytes.empty() || bytes.size() > 8) return 0;
  const bool negative = (static_cast<unsigned char>(bytes.back()) & 0x80u) != 0;
  std::uint64_t value = negative ? ~std::uint64_t{0} : 0;
  for (std::size_t i = bytes.size(); i-- > 0;)
    value = (value << 8) | static_cast<unsigned char>(bytes[i]);
  return static_cast<std::int64_t>(value);
}

PickleToken PickleTokens::next() {
  PickleToken token;
  token.op = static_cast<PickleOp>(take_unsigned(1));
  switch (token.op) {
    case PickleOp::kProto: {
      token.number = static_cast<std::int64_t>(take_unsigned(1));
      if (token.number < 2 || token.number > 5)
        fail(fmt::format("unknown pickle protocol {}", token.number));
      break;
    }
    case PickleOp::kBinInt1:
    case PickleOp::kBinGet:
    case PickleOp::kBinPut:
      token.number = static_cast<std::int64_t>(take_unsigned(1));
      break;
    case PickleOp::kBinInt2:
      token.number = static_cast<std::int64_t>(take_unsigned(2));
      break;
    case PickleOp::kBinInt:
      token.number = static_cast<std::int32_t>(take_unsigned(4));
      break;
    case PickleOp::kLongBinGet:
    case PickleOp::kLongBinPut:
      token.number = static_cast<std::int64_t>(take_unsigned(4));
      break;
    case PickleOp::kFrame:
      token.number = static_cast<std::int64_t>(take_unsigned(8));
      break;
    case PickleOp::kLong1:
      token.number = take_long1();
      break;
    case PickleOp::kBinFloat: {  // the one big-endian argument
      std::uint64_t bits = 0;
      for (const char byte : take(8)) bits = (bits << 8) | static_cast<unsigned char>(byte);
      token.number = static_cast<std::int64_t>(bits);
      break;
    }
    case PickleOp::kShortBinBytes:
    case PickleOp::kShortBinString:
    case PickleOp::kShortBinUnicode:
      token.text = take(take_unsigned(1));
      break;
    case PickleOp::kBinBytes:
    case PickleOp::kBinString:
    case PickleOp::kBinUnicode:
      token.text = take(take_unsigned(4));
      break;
    case PickleOp::kGlobal: {
      const std::string_view module = take_line();
      token.global = fmt::format("{}.{}", module, take_line());
      break;
    }
    case PickleOp::kMark:
    case PickleOp::kStop:
    case PickleOp::kPop:
    case PickleOp::kPopMark:
    case PickleOp::kDup:
    case PickleOp::kNone:
    case PickleOp::kBinPersId:
    case PickleOp::kReduce:
    case PickleOp::kAppend:
    case PickleOp::kBuild:
    case PickleOp::kAppends:
    case PickleOp::kSetItem:
    case PickleOp::kTuple:
    case PickleOp::kSetItems:
    case PickleOp::kEmptyTuple:
    case PickleOp::kEmptyList:
    case PickleOp::kEmptyDict:
    case PickleOp::kNewObj:
    case PickleOp::kTuple1:
    case PickleOp::kTuple2:
    case PickleOp::kTuple3:
    case PickleOp::kNewTrue:
    case PickleOp::kNewFalse:
    case PickleOp::kEmptySet:
    case PickleOp::kAddItems:
    case PickleOp::kStackGlobal:
    case PickleOp::kMemoize:
      break;
    default:
      fail(fmt::format("unknown opcode 0x{:02x}", static_cast<unsigned>(token.op)));
  }
  return token;
}

}  // namespace weightsmith
