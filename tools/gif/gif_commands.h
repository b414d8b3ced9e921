#pragma once

#include "common/tool.h"

namespace weightsmith {

/// `modelgif-dist field MODEL --config FILE --out field.safetensors`: the field of one model.
Command field_command();

/// `modelgif-dist distance A.safetensors B.safetensors --distance cosine`: between two such files.
Command distance_command();

}  // namespace weightsmith
