#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weightsmith {

/// The opcodes of Python's pickle protocols 2 to 5 that torch's files use.
enum class PickleOp : unsigned char {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyTuple = ')',
  kEmptyList = ']',
  kEmptyDict = '}',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

/// One opcode with its argument: `number` for integers, memo keys and bits of floats, `text` for
/// strings; a global's is "module.name".
struct PickleToken {
  PickleOp op = PickleOp::kStop;
  std::int64_t number = 0;
  std::string_view text;
  std::string global;
};

/// Splits a pickle into opcodes. Throws Error{kInput} naming `where` on an unknown opcode and where
/// the bytes end early.
class PickleTokens {
 public:
  PickleTokens(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  PickleToken next();
  [[noreturn]] void fail(const std::string& what) const;

 private:
  std::string_view take(std::uint64_t count);
  std::string_view take_line();
  std::uint64_t take_unsigned(int width);
  std::int64_t take_long1();

  std::string_view bytes_;
  const std::string& where_;
  std::size_t position_ = 0;
};

}  // namespace weightsmith
