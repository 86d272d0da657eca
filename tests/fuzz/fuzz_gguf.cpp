// Any bytes: the reader of GGUF files returns layers or throws headaware::Error, and nothing else happens. It reads the
// same from a file, and what follows the keys changes nothing.

#include <headaware/error.hpp>
#include <headaware/io/gguf.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

namespace ha = headaware;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  auto const bytes = std::as_bytes(std::span(data, size));
  try {
    auto const shape = ha::parse_gguf_shape(bytes, "bytes");
    require(shape.num_layers() > 0 && shape.bytes(2, 2) <= 2 * shape.token_bytes(2));
    for (ha::LayerShape const& layer : shape.layers()) {
      require(layer.kind == ha::LayerKind::none || (layer.head_dim > 0 && layer.value_dim > 0));
    }
    std::vector<std::byte> longer(bytes.begin(), bytes.end());
    longer.resize(size + 100, std::byte{1});
    require(ha::parse_gguf_shape(longer, "more") == shape);
  } catch (ha::Error const& error) {
    require(!error.detail().what.empty() && !error.detail().expected.empty() && !error.detail().got.empty());
    require(!error.detail().where.empty());
  }
  return 0;
}
