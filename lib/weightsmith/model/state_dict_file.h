#pragma once

#include <filesystem>

#include "weightsmith/tensor/tensor_map.h"

namespace weightsmith {

/// Reads weights from a file of any of these kinds, told apart by its contents; nothing in the file
/// is executed:
/// - safetensors;
/// - a TorchScript archive (inspected first, see model/archive_inspection.h): its parameters and
///   buffers;
/// - a Python `torch.save` file of torch 1.6 or later: a state dict, or a checkpoint that holds one
///   (model/pickle_reader.h).
/// Tensors are on the CPU. Throws Error{kInput} naming the file.
TensorMap read_state_dict(const std::filesystem::path& path, bool trust = false);

}  // namespace weightsmith
