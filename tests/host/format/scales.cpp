// Scales of blocks at the edges of half precision.

#include "support/catch.hpp"
#include "support/format_rows.hpp"

#include <headaware/format/hadamard.hpp>
#include <headaware/format/llama_blocks.hpp>
#include <headaware/format/packed.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

using namespace headaware_test;

TEST_CASE("packed blocks of equal channels, and of ones closer than scales can tell, become their minimum",
          "[format]") {
  auto const decoded = [](std::vector<float> const& rotated) {
    std::uint32_t words[ha::Packed<4>::block_words];
    std::vector<float> result(64);
    ha::Packed<4>{}.encode(rotated.data(), words);
    ha::Packed<4>{}.decode(words, result.data());
    return result;
  };
  float const equal = ha::to_float(ha::from_float<ha::float16>(3.3F));
  CHECK(decoded(std::vector<float>(64, 3.3F)) == std::vector<float>(64, equal));
  std::vector<float> close(64);
  close[5] = 0x1.ep-22F;  // 15 steps of 2^-25
  CHECK(decoded(close) == std::vector<float>(64));
  std::vector<float> apart(64);
  apart[5] = 0x1.fp-22F;
  CHECK(decoded(apart)[5] == 8 * 0x1p-24F);
  CHECK(decoded(apart)[6] == 0);
  std::vector<float> denormals(64);
  for (std::size_t i = 0; i < 64; ++i) denormals[i] = (i % 2 == 0 ? 1e-41F : -2e-39F) * static_cast<float>(i);
  CHECK(decoded(denormals) == std::vector<float>(64));
  // Equal channels of a row are one channel once they are rotated.
  std::vector<float> row(64, 2);
  ha::rotate_block<64>(row.data());
  CHECK(row[0] == 16);
  CHECK(std::vector<float>(row.begin() + 1, row.end()) == std::vector<float>(63));
}

TEST_CASE("llama.cpp's scales: what is encoded saturates, what comes in may have any", "[format]") {
  std::vector<float> row(64, 1e6F);
  row[3] = -3e6F;
  CodedRow const q8 = code_row(ha::LlamaQ8{}, row);
  CHECK((q8.words[0] & 0xffffU) == ha::from_float<ha::float16>(65504.0F / 127).bits);
  CHECK(q8.decoded[3] == -q8.decoded[4]);
  CodedRow q4 = code_row(ha::LlamaQ4{}, row);
  CHECK((q4.words[0] & 0xffffU) == ha::from_float<ha::float16>(65504.0F / 8).bits);
  CHECK(q4.decoded[3] == -65504);
  q4.words[0] = (q4.words[0] & 0xffff0000U) | 0x7bffU;
  std::vector<float> decoded(64);
  ha::decode_row(ha::LlamaQ4{}, q4.words.data(), 64, decoded.data());
  CHECK(decoded[3] == -8 * 65504.0F);
}
