#pragma once

// The rotary embedding of each layer's keys, as the engine's graph has it.

#include "tools/llama/engine.hpp"

#include <headaware/cache/rotation.hpp>

#include <vector>

namespace llama_adapter {

/// @brief Runs two tokens and looks at how their keys are rotated. @return [layers], of those without keys a rotation
/// of nothing
/// @throws Error naming the node, if a layer's keys are not rotated, or otherwise than by a frequency a pair of
/// channels
[[nodiscard]] std::vector<headaware::KeyRotation> key_rotations(Model const& model);

}  // namespace llama_adapter
