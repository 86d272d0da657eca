// Any bytes: the reader of .npy files returns an array or throws headaware::Error, and nothing else happens. What is
// read can be written, and reads the same again.

#include <headaware/error.hpp>
#include <headaware/io/npy.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

namespace ha = headaware;

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  try {
    auto const array = ha::parse_npy(std::as_bytes(std::span(data, size)), "bytes");
    if (ha::parse_npy(ha::format_npy(array), "again") != array) std::abort();
  } catch (ha::Error const& error) {
    if (error.detail().got.empty() || error.detail().where.empty()) std::abort();
  }
  return 0;
}
