#pragma once

#include "common/tool.h"

namespace weightsmith {

/// `mudsc-merge match FILE.safetensors --models N --method align|zip`: matching by itself.
Command match_command();

}  // namespace weightsmith
