#pragma once

/// @file
/// NumPy's `.npy` files, versions 1.0 and 2.0: C order, little-endian numbers.

#include <headaware/config.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/io/file.hpp>

#include <array>
#include <bit>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

static_assert(std::endian::native == std::endian::little, "headaware: .npy files are read as they lie");

/// @brief Element types of `.npy` files: floating point, signed and unsigned, with their bytes.
enum class NpyType : std::uint8_t { f2, f4, f8, i4, i8, u1, u2 };

/// Type strings as NumPy writes them, in the enumeration's order.
inline constexpr std::array<std::string_view, 7> npy_type_names{"<f2", "<f4", "<f8", "<i4", "<i8", "|u1", "<u2"};

[[nodiscard]] constexpr std::string_view to_string(NpyType type) {
  return npy_type_names[static_cast<std::size_t>(type)];
}

/// Bytes per element.
[[nodiscard]] constexpr std::size_t element_bytes(NpyType type) {
  return static_cast<std::size_t>(npy_type_names[static_cast<std::size_t>(type)][2] - '0');
}

namespace detail {

/// Elements of a shape, or nothing if they, in bytes, exceed int64.
[[nodiscard]] inline std::optional<std::int64_t> element_count(std::span<std::int64_t const> shape, NpyType type) {
  std::int64_t const most = std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(element_bytes(type));
  std::int64_t count = 1;
  for (std::int64_t const extent : shape) {
    if (extent < 0 || (extent > 0 && count > most / extent)) return std::nullopt;
    count *= extent;
  }
  return count;
}

/// True if elements of a file's type may be viewed as `T`.
template <class T>
[[nodiscard]] constexpr bool npy_matches(NpyType type) {
  if constexpr (std::is_same_v<T, float16>) return type == NpyType::f2;
  if constexpr (std::is_same_v<T, std::uint16_t>) return type == NpyType::f2 || type == NpyType::u2;
  if constexpr (std::is_same_v<T, float>) return type == NpyType::f4;
  if constexpr (std::is_same_v<T, double>) return type == NpyType::f8;
  if constexpr (std::is_same_v<T, std::int32_t>) return type == NpyType::i4;
  if constexpr (std::is_same_v<T, std::int64_t>) return type == NpyType::i8;
  if constexpr (std::is_same_v<T, std::uint8_t>) return type == NpyType::u1;
  return false;
}

template <class T>
inline constexpr bool is_npy_element =
    std::is_same_v<T, float16> || std::is_same_v<T, std::uint16_t> || std::is_same_v<T, float> ||
    std::is_same_v<T, double> || std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t> ||
    std::is_same_v<T, std::uint8_t>;

}  // namespace detail

/// @brief An array with its shape, C order: the last dimension runs fastest.
struct NpyArray {
  std::vector<std::int64_t> shape;  ///< empty: one element
  NpyType dtype = NpyType::f4;
  std::vector<std::byte> bytes;  ///< elements, little-endian

  /// Elements: the product of the shape.
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(bytes.size() / element_bytes(dtype)); }

  /// @brief The elements as `T`: float, double, int32_t, int64_t, uint8_t, uint16_t or float16; half
  /// precision is `float16` or, as bits, `uint16_t`.
  /// @return borrowed; valid until `bytes` changes
  /// @throws ArgumentError if the file's type is another
  template <class T>
  [[nodiscard]] std::span<T const> as() const {
    static_assert(detail::is_npy_element<T>, "headaware: no .npy type has elements of this type");
    require(detail::npy_matches<T>(dtype), "element type", {sizeof(T), "-byte elements of the type asked for"},
            to_string(dtype), "NpyArray::as");
    // The allocator aligns the first byte for any element.
    return {reinterpret_cast<T const*>(bytes.data()), bytes.size() / sizeof(T)};
  }

  /// @brief A copy of `elements` with a shape. `uint16_t` becomes `u2`; use `float16` for `f2`.
  /// @throws ArgumentError if the shape does not hold as many elements
  template <class T>
  [[nodiscard]] static NpyArray of(std::vector<std::int64_t> shape, std::span<T const> elements) {
    static_assert(detail::is_npy_element<T>, "headaware: no .npy type has elements of this type");
    NpyArray array;
    array.shape = std::move(shape);
    array.dtype = std::is_same_v<T, float16>         ? NpyType::f2
                  : std::is_same_v<T, float>         ? NpyType::f4
                  : std::is_same_v<T, double>        ? NpyType::f8
                  : std::is_same_v<T, std::int32_t>  ? NpyType::i4
                  : std::is_same_v<T, std::int64_t>  ? NpyType::i8
                  : std::is_same_v<T, std::uint16_t> ? NpyType::u2
                                                     : NpyType::u1;
    auto const source = std::as_bytes(elements);
    array.bytes.assign(source.begin(), source.end());
    array.validate("NpyArray::of");
    return array;
  }

  /// @throws ArgumentError if shape, type and bytes do not fit together
  void validate(char const* where = "NpyArray") const {
    require(shape.size() <= max_dimensions, "dimensions", "at most 64", shape.size(), where);
    auto const count = detail::element_count(shape, dtype);
    require(count.has_value(), "shape", "extents >= 0 with a product that int64 holds", "another", where);
    require(bytes.size() == static_cast<std::size_t>(*count) * element_bytes(dtype), "bytes of the elements",
            static_cast<std::size_t>(*count) * element_bytes(dtype), bytes.size(), where);
  }

  static constexpr std::size_t max_dimensions = 64;  ///< NumPy's own limit

  friend bool operator==(NpyArray const&, NpyArray const&) = default;
};

namespace detail {

inline constexpr std::string_view npy_magic{"\x93NUMPY", 6};

/// Quotes bytes of a file for an error message: printable, and not long.
[[nodiscard]] inline std::string quoted(std::string_view text) {
  constexpr std::size_t most = 40;
  std::string result(1, '\'');
  for (char const c : text.substr(0, most)) {
    char escaped[8];
    auto const byte = static_cast<unsigned char>(c);
    std::snprintf(escaped, sizeof(escaped), byte >= 0x20 && byte < 0x7f ? "%c" : "\\x%02x", byte);
    result += escaped;
  }
  return result + (text.size() > most ? "...'" : "'");
}

/// Reads the header: magic, version, and a Python dictionary with three keys.
class NpyHeader {
 public:
  NpyHeader(std::span<std::byte const> file, std::string const& source)
      : text_(reinterpret_cast<char const*>(file.data()), file.size()), source_(source) {
    if (text_.substr(0, npy_magic.size()) != npy_magic) fail("not a .npy file", "\\x93NUMPY", found(6));
    at_ = npy_magic.size();
    int const major = byte();
    int const minor = byte();
    if ((major != 1 && major != 2) || minor != 0) {
      fail(".npy version", "1.0 or 2.0", std::to_string(major) + "." + std::to_string(minor));
    }
    std::size_t length = 0;
    for (int i = 0; i < (major == 1 ? 2 : 4); ++i) length |= static_cast<std::size_t>(byte()) << (8 * i);
    if (length > text_.size() - at_) {
      fail("truncated header", std::to_string(length) + " bytes", std::to_string(text_.size() - at_));
    }
    payload_ = at_ + length;
    text_ = text_.substr(0, payload_);
    parse_dictionary();
  }

  [[nodiscard]] std::vector<std::int64_t> const& shape() const { return *shape_; }
  [[nodiscard]] NpyType dtype() const { return *dtype_; }
  /// Offset of the first element.
  [[nodiscard]] std::size_t payload() const { return payload_; }

 private:
  [[noreturn]] void fail(char const* what, std::string expected, std::string got) const {
    throw FormatError({what, std::move(expected), std::move(got), source_ + ", byte " + std::to_string(at_)});
  }
  [[nodiscard]] std::string found(std::size_t length) const {
    return at_ < text_.size() ? quoted(text_.substr(at_, length)) : "the end of the header";
  }

  [[nodiscard]] int byte() {
    if (at_ == text_.size()) fail("truncated header", "another byte", "the end of the file");
    return static_cast<unsigned char>(text_[at_++]);
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  [[nodiscard]] bool consume(std::string_view word) {
    skip_space();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  void expect(std::string_view word) {
    if (!consume(word)) fail("malformed header", "'" + std::string(word) + "'", found(1));
  }

  [[nodiscard]] std::string_view parse_string() {
    char const quote = consume("\"") ? '"' : '\'';
    if (quote == '\'') expect("'");
    std::size_t const begin = at_;
    std::size_t const end = text_.find(quote, begin);
    if (end == std::string_view::npos) fail("malformed header", "a closing quote", found(40));
    at_ = end + 1;
    return text_.substr(begin, end - begin);
  }

  void parse_dictionary() {
    bool order_seen = false;
    expect("{");
    while (!consume("}")) {
      skip_space();
      std::size_t const begin = at_;
      std::string_view const key = parse_string();
      bool const again =
          (key == "descr" && dtype_) || (key == "shape" && shape_) || (key == "fortran_order" && order_seen);
      if (again) fail("malformed header", "each key once", quoted(key) + " again");
      expect(":");
      if (key == "descr") {
        parse_descr();
      } else if (key == "fortran_order") {
        order_seen = true;
        if (consume("True")) fail("Fortran order", "C order (fortran_order: False)", "fortran_order: True");
        expect("False");
      } else if (key == "shape") {
        parse_shape();
      } else {
        at_ = begin;
        fail("malformed header", "'descr', 'fortran_order' or 'shape'", quoted(key));
      }
      if (!consume(",")) {
        expect("}");
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) fail("malformed header", "blanks up to its end", found(1));
    auto present = [&](bool seen, char const* key) {
      if (!seen) fail("malformed header", std::string("a key ") + key, "none");
    };
    present(dtype_.has_value(), "'descr'");
    present(order_seen, "'fortran_order'");
    present(shape_.has_value(), "'shape'");
  }

  void parse_descr() {
    skip_space();
    std::size_t const begin = at_;
    std::string_view const name = parse_string();
    for (std::size_t i = 0; i < npy_type_names.size(); ++i) {
      bool const single = name == "<u1" && npy_type_names[i] == "|u1";  // byte order means nothing to one byte
      if (name == npy_type_names[i] || single) {
        dtype_ = static_cast<NpyType>(i);
        return;
      }
    }
    at_ = begin;
    std::string known;
    for (auto const& each : npy_type_names) known += (known.empty() ? "one of " : ", ") + std::string(each);
    fail("element type", known, quoted(name));
  }

  void parse_shape() {
    shape_.emplace();
    expect("(");
    while (!consume(")")) {
      skip_space();
      std::int64_t extent = 0;
      auto const [last, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), extent);
      if (error != std::errc{} || extent < 0) fail("malformed shape", "an extent in [0, 2^63)", found(20));
      at_ = static_cast<std::size_t>(last - text_.data());
      if (shape_->size() == NpyArray::max_dimensions) {
        fail("too many dimensions", "at most " + std::to_string(NpyArray::max_dimensions), "more");
      }
      shape_->push_back(extent);
      if (!consume(",")) {
        // Python's (3) is a number; one extent needs its comma.
        if (shape_->size() == 1) expect(",");
        expect(")");
        break;
      }
    }
  }

  std::string_view text_;
  std::string const& source_;
  std::size_t at_ = 0;
  std::size_t payload_ = 0;
  std::optional<std::vector<std::int64_t>> shape_;
  std::optional<NpyType> dtype_;
};

/// Checks a file against its header. @return bytes of the elements
inline void require_payload(NpyHeader const& header, std::size_t file_bytes, std::string const& source) {
  auto const count = element_count(header.shape(), header.dtype());
  if (!count) {
    std::string shape;
    for (std::int64_t const extent : header.shape()) shape += (shape.empty() ? "" : " x ") + std::to_string(extent);
    throw FormatError({"shape too large", "less than 2^63 bytes", shape, source});
  }
  std::size_t const expected = static_cast<std::size_t>(*count) * element_bytes(header.dtype());
  std::size_t const got = file_bytes - header.payload();
  if (got != expected) {
    throw FormatError({"size of the elements", std::to_string(expected) + " bytes by the shape",
                       std::to_string(got) + " bytes", source});
  }
}

/// Text before the elements, a multiple of 64 bytes.
[[nodiscard]] inline std::string npy_header(NpyArray const& array) {
  std::string dictionary =
      "{'descr': '" + std::string(to_string(array.dtype)) + "', 'fortran_order': False, 'shape': (";
  for (std::size_t i = 0; i < array.shape.size(); ++i) {
    // Python writes (3,), (3, 4) and (3, 4, 5).
    if (i > 0) dictionary += ' ';
    dictionary += std::to_string(array.shape[i]);
    if (i == 0 || i + 1 < array.shape.size()) dictionary += ',';
  }
  dictionary += "), }";
  constexpr std::size_t prefix = 10;
  std::size_t const blanks = 63 - (prefix + dictionary.size()) % 64;
  dictionary.append(blanks, ' ').append("\n");
  // 64 dimensions of 19 digits stay far below the 64 KiB of version 1.0.
  std::string header(npy_magic);
  header += '\1';
  header += '\0';
  header += static_cast<char>(static_cast<unsigned char>(dictionary.size() & 255U));
  header += static_cast<char>(static_cast<unsigned char>(dictionary.size() >> 8U));
  return header + dictionary;
}

}  // namespace detail

/// @brief An array from the bytes of a `.npy` file.
/// @param source_name  names the bytes in messages, for example their path
/// @throws FormatError naming source and byte, if this is not version 1.0 or 2.0, C order and one of the known
///         types, or the elements are not as many bytes as the shape asks for
/// @par Cost  one copy of the elements
/// @par Source  numpy.lib.format
[[nodiscard]] inline NpyArray parse_npy(std::span<std::byte const> file, std::string const& source_name) {
  detail::NpyHeader const header(file, source_name);
  detail::require_payload(header, file.size(), source_name);
  auto const elements = file.subspan(header.payload());
  return {header.shape(), header.dtype(), {elements.begin(), elements.end()}};
}

/// @brief `parse_npy` of a file, without a second copy of it in memory.
/// @throws FormatError as there, FileError if the file cannot be read
[[nodiscard]] inline NpyArray load_npy(std::filesystem::path const& path) {
  std::vector<std::byte> file = read_binary_file(path);
  std::string const source = path.string();
  detail::NpyHeader const header(file, source);
  detail::require_payload(header, file.size(), source);
  NpyArray array{header.shape(), header.dtype(), {}};
  file.erase(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(header.payload()));
  array.bytes = std::move(file);
  return array;
}

/// @brief The bytes of a `.npy` file, version 1.0.
/// @throws ArgumentError if shape, type and bytes of the array do not fit together
[[nodiscard]] inline std::vector<std::byte> format_npy(NpyArray const& array) {
  array.validate("format_npy");
  std::string const header = detail::npy_header(array);
  auto const head = std::as_bytes(std::span(header));
  std::vector<std::byte> file;
  file.reserve(head.size() + array.bytes.size());
  file.insert(file.end(), head.begin(), head.end());
  file.insert(file.end(), array.bytes.begin(), array.bytes.end());
  return file;
}

/// @brief Writes an array as a `.npy` file, version 1.0, whole or not at all.
/// @throws ArgumentError as `format_npy`, FileError if the file cannot be written
inline void save_npy(std::filesystem::path const& path, NpyArray const& array) {
  array.validate("save_npy");
  std::string const header = detail::npy_header(array);
  std::array<std::span<std::byte const>, 2> const parts{std::as_bytes(std::span(header)), std::span(array.bytes)};
  write_file(path, parts);
}

HEADAWARE_NAMESPACE_END
