// Any bytes: the readers of the commands' own files (capture.json, analysis.json, losses that an earlier run left)
// return what makes sense or throw headaware::Error, and nothing else happens.

#include "tools/analysis/about.hpp"
#include "tools/llama/saved_losses.hpp"
#include "tools/support/capture.hpp"

#include <headaware/error.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

namespace ha = headaware;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

template <class Read>
void attempt(Read const& read) {
  try {
    read();
  } catch (ha::Error const& error) {
    require(!error.detail().what.empty() && !error.detail().got.empty() && !error.detail().where.empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::string_view const text(reinterpret_cast<char const*>(data), size);
  attempt([&] {
    auto const capture = capture::parse_description(text, "capture.json", 2, 64);
    require(capture.scale > 0 && std::isfinite(capture.scale) && capture.soft_cap >= 0 && capture.first_position >= 0);
    require(capture.sliding_windows.size() == capture.layers.size());
    capture::require_layers(capture, 2, capture.num_layers, "folder");
    require(capture.layers.size() == 2);
  });
  attempt([&] {
    auto const about = analysis::parse_about(text, "analysis.json");
    require(about.num_key_value_heads > 0 && about.head_dim > 0 && about.invalid_rows >= 0);
    (void)analysis::about_rows(about);
  });
  attempt([&] {
    auto const evicted = llama_adapter::parse_evicted_text(text, "text.json", 2);
    require(evicted.losses.size() == 2 && evicted.read_seconds >= 0 && evicted.kv_bytes_peak >= 0);
  });
  attempt([&] {
    for (double const loss : llama_adapter::parse_losses(std::as_bytes(std::span(data, size)), "losses.npy", 2)) {
      require(std::isfinite(loss));
    }
  });
  return 0;
}
