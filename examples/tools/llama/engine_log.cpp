#include "tools/llama/engine_log.hpp"

#include <llama.h>

#include <mutex>
#include <string>
#include <utility>

namespace llama_adapter {

namespace {

struct Log {
  std::mutex mutex;
  std::string errors;
  bool continues = false;  ///< whether a piece without a level of its own belongs to an error
};

Log& engine_log() {
  static Log instance;
  return instance;
}

void note(ggml_log_level level, char const* text, void*) {
  Log& log = engine_log();
  std::lock_guard const lock(log.mutex);
  if (level != GGML_LOG_LEVEL_CONT) log.continues = level == GGML_LOG_LEVEL_ERROR;
  if (!log.continues) return;
  constexpr std::size_t enough = 2000;
  if (log.errors.size() < enough) log.errors += text;
}

}  // namespace

void keep_engine_log() {
  static std::once_flag once;
  std::call_once(once, [] { llama_log_set(note, nullptr); });
}

std::string engine_errors() {
  Log& log = engine_log();
  std::lock_guard const lock(log.mutex);
  std::string text = std::exchange(log.errors, {});
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (char& c : text) {
    if (c == '\n') c = ';';
  }
  return text.empty() ? "no reason given" : text;
}

}  // namespace llama_adapter
