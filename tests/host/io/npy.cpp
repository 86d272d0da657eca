#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/npy.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace ha = headaware;

namespace {

/// A file with the header as given, padded as NumPy pads it.
std::vector<std::byte> file(std::string header, std::string_view payload, char major = 1) {
  header += '\n';
  std::string text = std::string("\x93NUMPY", 6) + major + '\0';
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) text += static_cast<char>((header.size() >> (8 * i)) & 255U);
  text += header;
  text += payload;
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

void check_rejected(std::vector<std::byte> const& bytes, ha::ErrorDetail const& parts) {
  headaware_test::check_error<ha::FormatError>([&] { (void)ha::parse_npy(bytes, "x.npy"); }, parts);
}

template <class T>
void check_round_trip(ha::NpyType type) {
  std::vector<T> elements(6);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    if constexpr (std::is_same_v<T, ha::float16>) {
      elements[i].bits = static_cast<std::uint16_t>(0x3c00U + i);
    } else {
      elements[i] = static_cast<T>(i * 3);
    }
  }
  auto const array = ha::NpyArray::of<T>({2, 3}, elements);
  CHECK(array.dtype == type);
  CHECK(array.size() == 6);
  auto const read = ha::parse_npy(ha::format_npy(array), "again");
  CHECK(read == array);
  auto const view = read.template as<T>();
  CHECK(std::vector<T>(view.begin(), view.end()) == elements);
}

}  // namespace

TEST_CASE("arrays of every type are read as they were written", "[tools][npy]") {
  check_round_trip<ha::float16>(ha::NpyType::f2);
  check_round_trip<float>(ha::NpyType::f4);
  check_round_trip<double>(ha::NpyType::f8);
  check_round_trip<std::int32_t>(ha::NpyType::i4);
  check_round_trip<std::int64_t>(ha::NpyType::i8);
  check_round_trip<std::uint8_t>(ha::NpyType::u1);
  check_round_trip<std::uint16_t>(ha::NpyType::u2);
}

TEST_CASE("arrays of every shape are read as they were written", "[tools][npy]") {
  headaware_test::TemporaryFolder const folder;
  auto const shape = GENERATE(std::vector<std::int64_t>{}, std::vector<std::int64_t>{0}, std::vector<std::int64_t>{7},
                              std::vector<std::int64_t>{2, 3, 4}, std::vector<std::int64_t>{5, 0, 2},
                              std::vector<std::int64_t>(64, 1));
  std::vector<float> elements(static_cast<std::size_t>(std::accumulate(
      shape.begin(), shape.end(), std::int64_t{1}, [](std::int64_t a, std::int64_t b) { return a * b; })));
  std::iota(elements.begin(), elements.end(), 0.5F);
  auto const array = ha::NpyArray::of<float>(shape, elements);
  ha::save_npy(folder / "a.npy", array);
  CHECK(ha::load_npy(folder / "a.npy") == array);
  auto const bytes = ha::read_binary_file(folder / "a.npy");
  CHECK(bytes == ha::format_npy(array));
  CHECK((bytes.size() - array.bytes.size()) % 64 == 0);
}

TEST_CASE("the header is as NumPy writes it", "[tools][npy]") {
  auto header = [](std::vector<std::int64_t> shape) {
    std::int64_t const size = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
    auto const bytes = ha::format_npy(
        ha::NpyArray::of<std::uint8_t>(shape, std::vector<std::uint8_t>(static_cast<std::size_t>(size))));
    std::string text(reinterpret_cast<char const*>(bytes.data()), 128);
    return text.substr(10, text.find('}') - 9);
  };
  CHECK(header({}) == "{'descr': '|u1', 'fortran_order': False, 'shape': (), }");
  CHECK(header({3}) == "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }");
  CHECK(header({3, 4}) == "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4), }");
}

TEST_CASE("headers of both versions, in any order of keys, are read", "[tools][npy]") {
  for (char const version : {'\1', '\2'}) {
    auto const array = ha::parse_npy(file(R"({ "shape" : (2 ,1), 'fortran_order':False,'descr': '<u2'}    )",
                                          std::string_view("\1\0\2\0", 4), version),
                                     "x");
    CHECK(array.shape == std::vector<std::int64_t>{2, 1});
    CHECK(array.as<std::uint16_t>()[1] == 2);
  }
  CHECK(ha::parse_npy(file("{'descr': '<u1', 'fortran_order': False, 'shape': (1,)}", "x"), "x").dtype ==
        ha::NpyType::u1);
}

TEST_CASE("half precision is float16 or its bits, and nothing else", "[tools][npy]") {
  auto const array = ha::parse_npy(
      file("{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }", std::string_view("\x00\x3c\x00\xc0", 4)), "x");
  CHECK(array.as<std::uint16_t>()[0] == 0x3c00);
  CHECK(ha::to_float(array.as<ha::float16>()[1]) == -2.0F);
  headaware_test::check_error<ha::ArgumentError>([&] { (void)array.as<float>(); },
                                                 {"element type", "4-byte", "<f2", "NpyArray::as"});
}

TEST_CASE("files that are no .npy, or not ours to read, are one error", "[tools][npy]") {
  std::string const good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
  auto header = [&](std::string_view from, std::string_view to) {
    return file(headaware_test::replaced(good, from, to), "abcd");
  };
  CHECK_NOTHROW(ha::parse_npy(file(good, "abcd"), "x"));

  check_rejected({}, {"not a .npy file", "NUMPY", "the end", "x.npy, byte 0"});
  check_rejected(std::vector<std::byte>(100), {"not a .npy file", "NUMPY", "\\x00", "x.npy, byte 0"});
  auto bytes = file(good, "abcd");
  check_rejected({bytes.begin(), bytes.begin() + 7},
                 {"truncated header", "another byte", "the end of the file", "byte 7"});
  check_rejected({bytes.begin(), bytes.begin() + 9},
                 {"truncated header", "another byte", "the end of the file", "byte 9"});
  check_rejected({bytes.begin(), bytes.begin() + 30}, {"truncated header", "58 bytes", "20", "x.npy"});
  check_rejected({bytes.begin(), bytes.end() - 1}, {"size of the elements", "4 bytes", "3 bytes", "x.npy"});
  bytes.push_back(std::byte{0});
  check_rejected(bytes, {"size of the elements", "4 bytes", "5 bytes", "x.npy"});
  check_rejected(file(good, "abcd", 3), {"version", "1.0 or 2.0", "3.0", "x.npy"});
  check_rejected(file(good, "abcd", 0), {"version", "1.0 or 2.0", "0.0", "x.npy"});

  check_rejected(header("False", "True"), {"Fortran order", "C order", "True", "x.npy"});
  check_rejected(header("False", "Maybe"), {"malformed header", "'False'", "'M'", "x.npy"});
  check_rejected(header("<f4", ">f4"), {"element type", "one of <f2, <f4", "'>f4'", "x.npy"});
  check_rejected(header("<f4", "|O"), {"element type", "one of <f2, <f4", "'|O'", "x.npy"});
  check_rejected(header("'<f4'", "[('a', '<f4')]"), {"malformed header", "'''", "'['", "x.npy"});
  check_rejected(header("{", ""), {"malformed header", "'{'", "'''", "byte 10"});
  check_rejected(header("}", ""), {"malformed header", "'''", "the end of the header", "x.npy"});
  check_rejected(header("}", "} x"), {"malformed header", "blanks", "'x'", "x.npy"});
  check_rejected(header("(1,)", "(-1,)"), {"malformed shape", "[0, 2^63)", "'-1", "x.npy"});
  check_rejected(header("(1,)", "(1.0,)"), {"malformed header", "','", "'.'", "x.npy"});
  check_rejected(header("(1,)", "(1)"), {"malformed header", "','", "')'", "x.npy"});
  check_rejected(header("(1,)", "1"), {"malformed header", "'('", "'1'", "x.npy"});
  check_rejected(header("(1,)", "(1, 2"), {"malformed shape", "[0, 2^63)", "'}", "x.npy"});
  check_rejected(header("(1,)", "(99999999999999999999,)"), {"malformed shape", "[0, 2^63)", "'9999", "x.npy"});
  check_rejected(header("(1,)", "(4294967296, 4294967296)"),
                 {"shape too large", "2^63 bytes", "4294967296 x 4294967296", "x.npy"});
  check_rejected(header("(1,)", "(4611686018427387904,)"),
                 {"shape too large", "2^63 bytes", "4611686018427387904", "x.npy"});
  check_rejected(header("(1,)", "(1000000000,)"), {"size of the elements", "4000000000 bytes", "4 bytes", "x.npy"});
  std::string many = "(";
  for (int i = 0; i < 65; ++i) many += "1,";
  check_rejected(header("(1,)", many + ")"), {"too many dimensions", "64", "more", "x.npy"});
  check_rejected(header("'descr'", "'dsecr'"),
                 {"malformed header", "'descr', 'fortran_order' or 'shape'", "'dsecr'", "x.npy"});
  check_rejected(header(", 'shape': (1,)", ""), {"malformed header", "a key 'shape'", "none", "x.npy"});
  check_rejected(header("'fortran_order'", "'shape': (1,), 'fortran_order'"),
                 {"malformed header", "each key once", "'shape' again", "x.npy"});
  check_rejected(header("'descr': '<f4'", "'descr': '<f4"), {"element type", "one of", "'<f4, '", "x.npy"});
  check_rejected(header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", "{'descr"),
                 {"malformed header", "a closing quote", "'descr\\x0a'", "byte 12"});
}

TEST_CASE("an array whose parts do not fit together is not written", "[tools][npy]") {
  headaware_test::TemporaryFolder const folder;
  ha::NpyArray array = ha::NpyArray::of<float>({2}, std::vector<float>{1, 2});
  array.shape = {3};
  headaware_test::check_error<ha::ArgumentError>([&] { ha::save_npy(folder / "a.npy", array); },
                                                 {"bytes", "12", "8", "save_npy"});
  array.shape = {-1};
  headaware_test::check_error<ha::ArgumentError>([&] { ha::save_npy(folder / "a.npy", array); },
                                                 {"shape", ">= 0", "", "save_npy"});
  CHECK(folder.entries() == 0);
  CHECK_THROWS_AS(ha::NpyArray::of<float>({3}, std::vector<float>{1, 2}), ha::ArgumentError);
}

TEST_CASE("a captured cache is read", "[tools][npy][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const path = headaware_test::shared_data() / "smollm2-135m" / "chunk0_k.npy";
  auto const keys = ha::load_npy(path);
  CHECK(keys.shape == std::vector<std::int64_t>{30, 3, 512, 64});
  CHECK(keys.dtype == ha::NpyType::f2);
  CHECK(keys.as<std::uint16_t>().size() == 30UL * 3 * 512 * 64);
  CHECK(ha::format_npy(keys) == ha::read_binary_file(path));
}
