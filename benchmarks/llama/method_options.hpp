#pragma once

// Methods that a benchmark compares, and their sizes. Needs no engine.

#include <headaware/format/table.hpp>

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace llama_adapter {

inline constexpr std::array<char const*, 8> benchmark_methods{"full",    "streaming_llm", "window_only", "head_aware",
                                                              "planned", "duo",           "engine_q8_0", "engine_q4_0"};

struct MethodOptions {
  std::vector<std::string> methods{"full", "streaming_llm"};  ///< of `benchmark_methods`
  std::vector<std::filesystem::path> plans{};                 ///< of planned
  std::filesystem::path classifications{};                    ///< of head_aware
  std::filesystem::path duo_gates{};                          ///< of duo: DuoAttention's folder or its table of gates
  std::optional<std::int32_t> duo_sink{};                     ///< of its streaming heads
  std::optional<std::int32_t> duo_window{};
  std::optional<double> duo_share{};  ///< of KV heads that keep everything, in place of budgets
  /// Mean tokens per KV head of streaming_llm, window_only and duo. Without any: the plans' where there are plans, else
  /// those of the classes, else 256.
  std::vector<std::int64_t> budgets{};
  std::vector<headaware::HeadFormats> formats{};  ///< of which streaming_llm is run, too, at the bytes of the budgets
  std::vector<std::int32_t> skip_layers{};        ///< keep everything, beyond the budgets
  std::int64_t context = 2048;                    ///< tokens that the sizes are of
};

}  // namespace llama_adapter
