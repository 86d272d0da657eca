// Row formats on the CPU: what they lose against what their definitions allow, their bytes, and their edges.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/format_rows.hpp"

#include <headaware/format/registry.hpp>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

/// The normalised Hadamard matrix's product with blocks of 64 channels, by its definition: signs are parities.
std::vector<double> rotated(std::vector<float> const& row) {
  std::vector<double> result(row.size());
  for (std::size_t i = 0; i < row.size(); ++i) {
    for (std::size_t j = i / 64 * 64; j < i / 64 * 64 + 64; ++j) {
      double const sign = __builtin_parityll((i % 64) & (j % 64)) != 0 ? -1 : 1;
      result[i] += sign * double(row[j]) / 8;
    }
  }
  return result;
}

double half(double x) { return double(ha::to_float(ha::from_float<ha::float16>(static_cast<float>(x)))); }

/// The largest error that a packed block of a row may have, channel by channel before it is turned back: half a step,
/// and what rounding the minimum and the scale to half precision costs at either end.
double allowed_of_block(std::vector<double> const& x, std::size_t first, int bits) {
  double const low = *std::min_element(x.begin() + long(first), x.begin() + long(first) + 64);
  double const high = *std::max_element(x.begin() + long(first), x.begin() + long(first) + 64);
  double const levels = std::exp2(bits) - 1;
  double const scale = half((high - low) / levels);
  double const origin = std::abs(half(low) - low);
  double const end = std::abs(half(low) + levels * scale - high);
  return std::max({scale / 2, origin, end}) * (1 + 1e-5) + 1e-6 * (std::abs(low) + std::abs(high));
}

}  // namespace

TEST_CASE("the rotation of a block is the Hadamard matrix, and its own inverse", "[format]") {
  for (auto const& [name, row] : hard_rows(64)) {
    if (name == "NaN" || name == "inf" || name == "-inf") continue;
    INFO(name);
    std::vector<double> const expected = rotated(row);
    std::vector<float> block = row;
    double size = 0;
    for (float const x : row) size += double(x) * double(x);
    double const close = 1e-6 * std::sqrt(size) + 1e-44;
    ha::rotate_block<64>(block.data());
    for (std::size_t i = 0; i < 64; ++i) REQUIRE(std::abs(double(block[i]) - expected[i]) <= close);
    ha::rotate_block<64>(block.data());
    for (std::size_t i = 0; i < 64; ++i) REQUIRE(std::abs(double(block[i]) - double(row[i])) <= close);
  }
  float two[2] = {3, 1};
  ha::rotate_block<2>(two);
  CHECK(std::abs(two[0] - 4 / std::sqrt(2.0F)) < 1e-6F);
}

TEST_CASE("packed codes lose half a step of their block, and no more", "[format]") {
  auto const check = [](auto const& format, int bits) {
    for (auto const& [name, row] : hard_rows(192)) {
      bool const bad = name == "NaN" || name == "inf" || name == "-inf";
      if (bad || name == "beyond half precision" || name == "near the largest float" || name == "all 7e4") continue;
      INFO(format.name << ", " << name);
      std::vector<double> const x = rotated(row);
      std::vector<std::uint32_t> words(
          static_cast<std::size_t>(ha::row_words<std::remove_cvref_t<decltype(format)>>(192)));
      ha::encode_row(format, row.data(), 192, words.data());
      for (std::size_t b = 0; b < 3; ++b) {
        float block[64];
        format.decode(words.data() + b * static_cast<std::size_t>(format.block_words), block);
        double const allowed = allowed_of_block(x, 64 * b, bits);
        for (std::size_t i = 0; i < 64; ++i) REQUIRE(std::abs(double(block[i]) - x[64 * b + i]) <= allowed);
      }
    }
  };
  check(ha::Packed<3>{}, 3);
  check(ha::Packed<4>{}, 4);
  check(ha::Packed<5>{}, 5);
  check(ha::Packed<6>{}, 6);
}

TEST_CASE("bytes of a packed block are where its description says", "[format]") {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> block(64);
  for (float& x : block) x = normal(random);
  ha::Packed<6> const six;
  std::array<std::uint32_t, 13> words{};
  six.encode(block.data(), words.data());
  unsigned char bytes[52];
  std::memcpy(bytes, words.data(), sizeof(bytes));
  ha::float16 scale;
  ha::float16 minimum;
  std::memcpy(&scale.bits, bytes + 48, 2);
  std::memcpy(&minimum.bits, bytes + 50, 2);
  std::vector<float> decoded(64);
  six.decode(words.data(), decoded.data());
  for (int i = 0; i < 64; ++i) {
    int code = i < 32 ? bytes[i] & 15 : bytes[i - 32] >> 4;
    for (int p = 0; p < 2; ++p) code |= (bytes[32 + 8 * p + i / 8] >> (i % 8) & 1) << (4 + p);
    double const expected = double(ha::to_float(minimum)) + code * double(ha::to_float(scale));
    CHECK(decoded[static_cast<std::size_t>(i)] == static_cast<float>(expected));
    double const step =
        (double(block[static_cast<std::size_t>(i)]) - double(ha::to_float(minimum))) / double(ha::to_float(scale));
    CHECK(std::abs(step - code) <= 0.5001);
  }
}

TEST_CASE("sizes of rows", "[format]") {
  struct Size {
    char const* name;
    std::int64_t bytes;  ///< of 128 channels
  };
  for (Size const& size : {Size{"fp16", 256},
                           {"bf16", 256},
                           {"fp8_e4m3", 128},
                           {"fp8_e5m2", 128},
                           {"int8", 136},
                           {"packed6", 104},
                           {"packed5", 88},
                           {"packed4", 72},
                           {"packed3", 56},
                           {"q8_0", 136},
                           {"q4_0", 72}}) {
    INFO(size.name);
    auto const format = ha::AnyFormat<>::of_name(size.name);
    CHECK(format.name() == size.name);
    CHECK(4 * format.row_words(128) == size.bytes);
    CHECK(format.row_words(0) == 0);
    CHECK(format.rotated() == (format.name().substr(0, 6) == "packed"));
    bool const of_engine = !format.rotated() && !format.is<ha::Int8>();
    CHECK(format.engine_row_bytes(128) == (of_engine ? size.bytes : 0));
    CHECK(format.scale() == 1);
  }
  CHECK(ha::engine_row_bytes<ha::LlamaQ8>(96) == 102);
  CHECK(ha::engine_row_bytes<ha::LlamaQ4>(97) == 72);
  CHECK(ha::engine_row_bytes<ha::Fp8E5M2>(81) == 81);
  CHECK(ha::AnyFormat<>(ha::Fp8E4M3{.scale = 0.5F}).scale() == 0.5F);
  CHECK(ha::AnyFormat<>(ha::Fp8E5M2{}).with_scale(0.5F) == ha::AnyFormat<>(ha::Fp8E5M2{.scale = 0.5F}));
  check_error<ha::ArgumentError>([] { (void)ha::AnyFormat<>(ha::Fp8E5M2{}).with_scale(0); },
                                 {"scale", "> 0 and finite", "0", "Fp8"});
  check_error<ha::ArgumentError>([] { (void)ha::AnyFormat<>(ha::Int8{}).with_scale(2); },
                                 {"format", "a scale of all rows", "int8", "with_scale"});
  CHECK(ha::row_words<ha::Packed<4>>(80) == 18);  // the second block is filled up with zeros
  CHECK(ha::row_words<ha::Fp8E4M3>(81) == 21);
  check_error<ha::ArgumentError>([] { (void)ha::AnyFormat<>::of_name("int3"); },
                                 {"unknown format", "one of fp16, bf16", "'int3'", "FormatRegistry"});
}

TEST_CASE("a block with NaN or an infinity is NaN, other blocks are not", "[format]") {
  for (ha::AnyFormat<> const& format : all_formats()) {
    for (auto const& [name, row] : hard_rows(128)) {
      if (name != "NaN" && name != "inf" && name != "-inf") continue;
      INFO(format.name() << ", " << name);
      CodedRow const coded = code_row(format, row);
      if (format.name() == "fp16" || format.name() == "bf16") {
        CHECK(std::isfinite(coded.decoded[127]) == false);
      } else if (format.name().substr(0, 3) == "fp8") {
        CHECK((std::isnan(coded.decoded[127]) == (name == "NaN")));
      } else {
        for (std::size_t i = 96; i < 128; ++i) CHECK(std::isnan(coded.decoded[i]));
      }
      for (std::size_t i = 0; i < 64; ++i) CHECK(std::isfinite(coded.decoded[i]));
    }
  }
}

TEST_CASE("numbers beyond half precision saturate, and stay numbers", "[format]") {
  for (ha::AnyFormat<> const& format : all_formats()) {
    if (format.name() == "fp16" || format.name() == "bf16") continue;  // these have infinities, or the room
    for (auto const& [name, row] : hard_rows(128)) {
      if (name != "beyond half precision" && name != "all 7e4") continue;
      INFO(format.name() << ", " << name);
      for (float const x : code_row(format, row).decoded) CHECK(std::isfinite(x));
    }
  }
  float const size = code_row(ha::Int8{}, std::vector<float>(64, 1e30F)).decoded[7];
  CHECK(std::abs(size - 65504) < 40);
}

TEST_CASE("rows of one value, zeros and tiny numbers come back", "[format]") {
  for (ha::AnyFormat<> const& format : all_formats()) {
    for (auto const& [name, row] : hard_rows(128)) {
      double allowed = -1;
      if (name == "zeros" || name == "negative zeros") allowed = 0;
      if (name == "denormals" || name == "all -1e-30") allowed = 1e-29;
      // Scales of half precision are multiples of 2^-24.
      if (name == "tiny") allowed = 63 * 6e-8;
      if (name == "all 3.3" && format.name() != "fp8_e5m2") allowed = 0.2;
      if (allowed < 0) continue;
      INFO(format.name() << ", " << name);
      CodedRow const coded = code_row(format, row);
      for (std::size_t i = 0; i < row.size(); ++i) {
        REQUIRE(std::abs(double(coded.decoded[i]) - double(row[i])) <= allowed);
      }
    }
  }
}

TEST_CASE("what has been coded once is coded alike again, but for the packed formats, which turn", "[format]") {
  for (ha::AnyFormat<> const& format : all_formats()) {
    if (format.rotated() || format.name() == "q4_0") continue;  // q4_0's scale has the sign of its largest channel
    for (auto const& [name, row] : hard_rows(128)) {
      if (name.substr(0, 6) != "random") continue;
      INFO(format.name() << ", " << name);
      CodedRow const once = code_row(format, row);
      CodedRow const twice = code_row(format, once.decoded);
      double worst = 0;
      for (std::size_t i = 0; i < row.size(); ++i) {
        double const size = 1e-9 + std::abs(double(once.decoded[i]));
        worst = std::max(worst, std::abs(double(twice.decoded[i]) - double(once.decoded[i])) / size);
      }
      CHECK(worst <= 1e-3);  // half precision's rounding of the scale
    }
  }
}

TEST_CASE("fp8 numbers are the nearest ones", "[format]") {
  auto const check = [](auto const& format, int mantissa, int bias, double largest) {
    std::vector<double> numbers;  // by the definition
    for (int code = 0; code < 128; ++code) {
      int const exponent = code >> mantissa;
      double const fraction = (code & ((1 << mantissa) - 1)) / std::exp2(mantissa);
      double const value = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
      std::uint32_t const word = static_cast<std::uint32_t>(code) * 0x01010101U;
      float decoded[4];
      format.decode(&word, decoded);
      if (value <= largest) {
        CHECK(double(decoded[2]) == value);
        numbers.push_back(value);
      } else {
        CHECK(!std::isfinite(decoded[2]));
      }
    }
    std::mt19937 random(9);
    std::uniform_real_distribution<double> exponent(-22, 18);
    for (int i = 0; i < 20000; ++i) {
      auto x = static_cast<float>(std::exp2(exponent(random)));
      if (i < int(numbers.size()) - 1) x = float((numbers[std::size_t(i)] + numbers[std::size_t(i) + 1]) / 2);  // ties
      float const four[4] = {x, -x, x, -x};
      std::uint32_t word = 0;
      float decoded[4];
      format.encode(four, &word);
      format.decode(&word, decoded);
      double best = std::numeric_limits<double>::infinity();
      for (double const n : numbers) best = std::min(best, std::abs(n - double(x)));
      REQUIRE(std::abs(double(decoded[0]) - double(x)) <= best);
      REQUIRE(decoded[1] == -decoded[0]);
      if (i < int(numbers.size()) - 1) REQUIRE((word & 1U) == 0);  // to even
    }
  };
  check(ha::Fp8E4M3{}, 3, 7, 448);
  check(ha::Fp8E5M2{}, 2, 15, 57344);
  check_error<ha::ArgumentError>([] { ha::AnyFormat<>(ha::Fp8E4M3{.scale = 0}).validate(); },
                                 {"scale", "> 0 and finite", "0", "Fp8"});
}

namespace {

/// llama.cpp's blocks, as its documentation has them: written for this test, byte by byte.
std::vector<unsigned char> naive_q8(std::vector<float> const& row) {
  std::vector<unsigned char> bytes;
  for (std::size_t b = 0; b < row.size(); b += 32) {
    float most = 0;
    for (std::size_t i = b; i < b + 32; ++i) most = std::max(most, std::abs(row[i]));
    float const d = most / 127;
    auto const stored = ha::from_float<ha::float16>(d);
    bytes.push_back(static_cast<unsigned char>(stored.bits & 255));
    bytes.push_back(static_cast<unsigned char>(stored.bits >> 8));
    for (std::size_t i = b; i < b + 32; ++i) {
      auto const code = static_cast<int>(std::round(row[i] * (d != 0 ? 1 / d : 0)));
      bytes.push_back(static_cast<unsigned char>(code & 255));
    }
  }
  return bytes;
}
std::vector<unsigned char> naive_q4(std::vector<float> const& row) {
  std::vector<unsigned char> bytes;
  for (std::size_t b = 0; b < row.size(); b += 32) {
    float most = 0;
    for (std::size_t i = b; i < b + 32; ++i) {
      if (std::abs(row[i]) > std::abs(most)) most = row[i];
    }
    float const d = most / -8;
    auto const stored = ha::from_float<ha::float16>(d);
    bytes.push_back(static_cast<unsigned char>(stored.bits & 255));
    bytes.push_back(static_cast<unsigned char>(stored.bits >> 8));
    for (std::size_t j = b; j < b + 16; ++j) {
      auto const code = [&](float x) { return std::min(15, static_cast<int>(std::fma(x, 1 / d, 8.5F))); };
      bytes.push_back(static_cast<unsigned char>(code(row[j]) | code(row[j + 16]) << 4));
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("llama.cpp's blocks lie as llama.cpp has them", "[format]") {
  for (auto const& [name, row] : hard_rows(128)) {
    if (name.substr(0, 6) != "random" && name != "shifted" && name != "an outlier") continue;
    INFO(name);
    auto const bytes_of = [](CodedRow const& coded) {
      std::vector<unsigned char> bytes(coded.words.size() * 4);
      std::memcpy(bytes.data(), coded.words.data(), bytes.size());
      return bytes;
    };
    CHECK(bytes_of(code_row(ha::LlamaQ8{}, row)) == naive_q8(row));
    CHECK(bytes_of(code_row(ha::LlamaQ4{}, row)) == naive_q4(row));
  }
}

namespace {

/// A format of one's own: signs alone, with the mean magnitude of eight channels.
struct Signs {
  static constexpr std::string_view name = "signs";
  static constexpr std::int32_t group = 8;
  static constexpr std::int32_t block_words = 2;
  static constexpr bool rotated = true;
  HEADAWARE_HOST_DEVICE void encode(float const* x, std::uint32_t* words) const {
    float sum = 0;
    words[0] = 0;
    for (int i = 0; i < group; ++i) {
      sum += x[i] < 0 ? -x[i] : x[i];
      words[0] |= (x[i] < 0 ? 1U : 0U) << i;
    }
    words[1] = ha::detail::bits_as<std::uint32_t>(sum / group);
  }
  HEADAWARE_HOST_DEVICE void decode(std::uint32_t const* words, float* x) const {
    for (int i = 0; i < group; ++i)
      x[i] = ha::detail::bits_as<float>(words[1]) * ((words[0] >> i & 1U) != 0 ? -1.0F : 1.0F);
  }
  friend constexpr bool operator==(Signs const&, Signs const&) { return true; }
};

}  // namespace

TEST_CASE("a format of one's own is a small struct", "[format]") {
  using Mine = ha::DefaultFormats::with<Signs>;
  auto const format = ha::AnyFormat<Mine>::of_name("signs");
  CHECK(format.is<Signs>());
  CHECK(format.row_words(16) == 4);
  CHECK(ha::AnyFormat<Mine>(ha::Int8{}).id() == ha::AnyFormat<>(ha::Int8{}).id());
  CHECK(ha::AnyFormat<Mine>(ha::Int8{}) != format);
  std::vector<float> row(16);
  row[0] = 8;  // spread over its block
  std::vector<std::uint32_t> words(4);
  std::vector<float> decoded(16);
  format.visit([&](auto const& f) {
    ha::encode_row(f, row.data(), 16, words.data());
    ha::decode_row(f, words.data(), 16, decoded.data());
  });
  CHECK(std::abs(decoded[0] - 8) < 1e-5F);
  for (std::size_t i = 1; i < 16; ++i) CHECK(std::abs(decoded[i]) < 1e-5F);
}
