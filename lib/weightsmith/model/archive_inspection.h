#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace weightsmith {

/// Looks at a TorchScript archive before torch::jit::load sees it. An archive is a program, and
/// loading can already run parts of it (`__setstate__`, default arguments), so what it may call is
/// decided on its source text, which is split into tokens by TorchScript's own lexer and never
/// compiled.
///
/// Always checked: that the file is a TorchScript archive at all, and the CRC of every record
/// (LibTorch does not look at it: most single-bit errors would pass unnoticed).
///
/// Checked unless `trust`:
/// - no `__setstate__` (so quantised networks with packed weights need `--trust`);
/// - operators: all of `torch.*` (aten) except those that write or map files; of `ops.prim.*` those
///   that look at values; `ops.quantized.*`; the profiler's record_function marks. Every other
///   namespace (torchvision, c10d, custom ones), `fork`, `awaitable` and the rpc calls are refused;
/// - `torch`, `ops` and `__torch__` occur only as the head of a full name, so that no operator can
///   be reached under another name;
/// - no custom C++ classes (`__torch__.torch.classes`), in code or pickles; pickles name no Python
///   object besides those of TorchScript.
///
/// Throws Error{kInput} naming the file, the record and the operator.
void inspect_archive(const std::filesystem::path& path, bool trust);

/// What is wrong with one record of source, as "calls torch.save", or an empty string. Throws
/// std::exception when the text is not TorchScript.
std::string find_unsafe_code(std::string_view source);

}  // namespace weightsmith
