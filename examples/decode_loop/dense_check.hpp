#pragma once

// What the caches must equal: dense attention over every token there ever was, under the policies' masks.

#include "decode_loop/decode.hpp"
#include "decode_loop/prefill.hpp"

#include <headaware/policy/table.hpp>

#include <string>

namespace decode_loop {

/// @brief Compares every output of a decoding run with dense masked attention, in double precision.
/// @param name  of the run, for the message
/// @return the largest absolute difference
/// @throws headaware::Error on the first head of a step that is off by more than `tolerance`, or is not a number
double check_against_dense(headaware::PolicyTable const& table, Prefilled const& prompt, Trace const& trace,
                           double tolerance, std::string const& name);

}  // namespace decode_loop
