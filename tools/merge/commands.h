#pragma once

#include "common/tool.h"

namespace weightsmith {

/// `mudsc-merge match FILE.safetensors --models N --method align|zip`: matching by itself.
Command match_command();

/// `mudsc-merge explain MODEL --input SHAPE`: the unit groups of a network, and the proof.
Command explain_command();

}  // namespace weightsmith
