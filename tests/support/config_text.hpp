#pragma once

// Texts of a model's `config.json`, and what is read of them.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/layer_letters.hpp"

#include <headaware/error.hpp>
#include <headaware/io/model_shape.hpp>

#include <string>

namespace headaware_test {

inline Layers parse(std::string const& text) {
  auto const shape = ha::parse_model_shape(text, "config.json");
  return {shape.layers().begin(), shape.layers().end()};
}

inline void check_rejected(std::string const& text, ha::ErrorDetail const& parts) {
  CAPTURE(text);
  check_error<ha::FormatError>([&] { (void)parse(text); }, parts);
}

/// A plain model of four layers with one field more.
inline std::string with(std::string const& field) {
  return R"({"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16, )" + field +
         "}";
}

}  // namespace headaware_test
