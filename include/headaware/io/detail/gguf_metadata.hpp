#pragma once

// The keys and values at the beginning of a GGUF file.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/detail/text.hpp>
#include <headaware/io/file.hpp>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Bytes from memory or from a file, one after the other, and no more of them than are asked for.
class GgufBytes {
 public:
  GgufBytes(std::span<std::byte const> bytes, std::string source)
      : source_(std::move(source)), window_(bytes), size_(bytes.size()) {}
  /// @throws FileError
  explicit GgufBytes(FilePath const& path, FileDescriptor const& file) : source_(path.string()), file_(&file) {
    if (file.get() < 0) throw_file_error("cannot open file", "a readable file", path, errno);
    struct ::stat info {};
    if (::fstat(file.get(), &info) != 0) throw_file_error("cannot read file", "a readable file", path, errno);
    size_ =
        S_ISREG(info.st_mode) ? static_cast<std::uint64_t>(info.st_size) : std::numeric_limits<std::uint64_t>::max();
    buffer_.resize(std::size_t{1} << 16U);
  }

  [[nodiscard]] std::uint64_t offset() const { return offset_; }
  [[nodiscard]] std::string const& source() const { return source_; }

  /// A number as it lies there, little-endian. @param of  what it belongs to, for messages. @throws FormatError
  template <class T>
  [[nodiscard]] T number(Text const& of) {
    static_assert(std::endian::native == std::endian::little);
    T value;
    take(sizeof value, of, [&](std::byte const* from, std::size_t bytes, std::size_t at) {
      std::memcpy(reinterpret_cast<std::byte*>(&value) + at, from, bytes);
    });
    return value;
  }
  [[nodiscard]] std::string text(std::uint64_t length, Text const& of) {
    std::string result;
    take(length, of, [&](std::byte const* from, std::size_t bytes, std::size_t) {
      result.append(reinterpret_cast<char const*>(from), bytes);
    });
    return result;
  }
  void skip(std::uint64_t length, Text const& of) {
    take(length, of, [](std::byte const*, std::size_t, std::size_t) {});
  }
  [[noreturn]] void fail(Text const& what, Text const& expected, Text const& got) const {
    throw FormatError({what.str(), expected.str(), got.str(), Text{source_, ", offset ", offset_}.str()});
  }

 private:
  template <class Sink>
  void take(std::uint64_t length, Text const& of, Sink const& sink) {
    if (length > size_ - offset_) truncated(length, of, size_ - offset_);
    for (std::uint64_t done = 0; done < length;) {
      if (window_.empty() && !refill()) truncated(length, of, done);
      std::size_t const piece = static_cast<std::size_t>(std::min<std::uint64_t>(length - done, window_.size()));
      sink(window_.data(), piece, static_cast<std::size_t>(done));
      window_ = window_.subspan(piece);
      done += piece;
      offset_ += piece;
    }
  }
  [[noreturn]] void truncated(std::uint64_t length, Text const& of, std::uint64_t left) const {
    fail({"truncated GGUF file at ", of}, {length, " bytes"}, left);
  }
  [[nodiscard]] bool refill() {
    if (file_ == nullptr) return false;
    ::ssize_t got = -1;
    do {
      got = ::read(file_->get(), buffer_.data(), buffer_.size());
    } while (got < 0 && errno == EINTR);
    if (got < 0) throw_file_error("cannot read file", "a readable file", source_, errno);
    window_ = std::span<std::byte const>(buffer_.data(), static_cast<std::size_t>(got));
    return got > 0;
  }

  std::string source_;
  FileDescriptor const* file_ = nullptr;
  std::vector<std::byte> buffer_;
  std::span<std::byte const> window_;
  std::uint64_t size_ = 0;
  std::uint64_t offset_ = 0;
};

/// A value of a key: numbers, true and false as 1 and 0; or text; or something that no shape is made of.
struct GgufValue {
  enum class Kind : std::uint8_t { number, list, text, other };
  Kind kind = Kind::other;
  std::vector<std::int64_t> numbers{};
  std::string text{};
  std::uint64_t offset = 0;
};

/// The types of values, by their numbers in a file.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

/// @brief Keys and values of a GGUF file, but for what belongs to its tokenizer.
/// @par Source  https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
class GgufMetadata {
 public:
  static constexpr std::uint64_t max_keys = 1U << 16U;
  static constexpr std::uint64_t max_key_bytes = (1U << 16U) - 1;
  static constexpr std::uint64_t max_list = 1U << 20U;
  static constexpr std::uint64_t max_text = 1U << 16U;

  /// @throws FormatError naming key and offset, if this is no GGUF file of version 2 or 3, little-endian, it ends
  /// early,
  ///         has a key twice, or a value is of a type that there is none of
  explicit GgufMetadata(GgufBytes& bytes) : source_(bytes.source()) {
    std::string const magic = bytes.text(4, "the magic number");
    if (magic != "GGUF") bytes.fail("magic number", "\"GGUF\"", detail::quoted(magic));
    auto const version = bytes.number<std::uint32_t>("the version");
    if (version != 2 && version != 3) bytes.fail("version of GGUF", "2 or 3, little-endian", version);
    bytes.skip(8, "the number of tensors");
    auto const count = bytes.number<std::uint64_t>("the number of keys");
    if (count > max_keys) bytes.fail("number of keys", {"at most ", max_keys}, count);
    for (std::uint64_t i = 0; i < count; ++i) {
      auto const length = bytes.number<std::uint64_t>({"key ", i});
      if (length > max_key_bytes) bytes.fail({"length of key ", i}, {"at most ", max_key_bytes}, length);
      std::string key = bytes.text(length, {"key ", i});
      std::string const name = detail::quoted(key);
      GgufValue value = read_value(bytes, key, name);
      if (!values_.emplace(std::move(key), std::move(value)).second)
        bytes.fail("key", "each key once", {name, " again"});
    }
  }

  [[nodiscard]] std::string const& source() const { return source_; }
  [[nodiscard]] GgufValue const* find(std::string_view key) const {
    auto const found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
  }
  [[nodiscard]] auto const& values() const { return values_; }

 private:
  static GgufValue read_value(GgufBytes& bytes, std::string_view key, std::string const& name) {
    GgufValue value;
    value.offset = bytes.offset();
    auto const type = read_type(bytes, name);
    bool const keep = !key.starts_with("tokenizer.");
    if (type == GgufType::string) {
      auto const length = bytes.number<std::uint64_t>(name);
      if (!keep || length > max_text) {
        bytes.skip(length, name);
      } else {
        value.kind = GgufValue::Kind::text;
        value.text = bytes.text(length, name);
      }
      return value;
    }
    if (type != GgufType::array) {
      if (read_number(bytes, type, name, &value.numbers)) value.kind = GgufValue::Kind::number;
      return value;
    }
    auto const of = read_type(bytes, name);
    if (of == GgufType::array) bytes.fail(name, "an array of numbers or strings", "an array of arrays");
    auto const size = bytes.number<std::uint64_t>(name);
    if (of == GgufType::string) {
      for (std::uint64_t i = 0; i < size; ++i) bytes.skip(bytes.number<std::uint64_t>(name), name);
      return value;
    }
    std::uint64_t const width = width_of(of);
    if (!keep || size > max_list) {
      if (size > std::numeric_limits<std::uint64_t>::max() / width) bytes.fail(name, "an array within the file", size);
      bytes.skip(size * width, name);
      return value;
    }
    bool whole = true;
    for (std::uint64_t i = 0; i < size; ++i) whole &= read_number(bytes, of, name, &value.numbers);
    if (whole) value.kind = GgufValue::Kind::list;
    return value;
  }

  static GgufType read_type(GgufBytes& bytes, std::string const& name) {
    auto const type = bytes.number<std::uint32_t>(name);
    if (type > static_cast<std::uint32_t>(GgufType::f64)) bytes.fail({"type of ", name}, "a type from 0 to 12", type);
    return static_cast<GgufType>(type);
  }
  [[nodiscard]] static std::uint64_t width_of(GgufType type) {
    switch (type) {
      case GgufType::u8:
      case GgufType::i8:
      case GgufType::boolean: return 1;
      case GgufType::u16:
      case GgufType::i16: return 2;
      case GgufType::u64:
      case GgufType::i64:
      case GgufType::f64: return 8;
      default: return 4;
    }
  }
  /// Whether it is a whole number; those beyond int64 are its largest one.
  [[nodiscard]] static bool read_number(GgufBytes& bytes, GgufType type, std::string const& name,
                                        std::vector<std::int64_t>* to) {
    auto const put = [&]<class T>(T) {
      auto const number = bytes.number<T>(name);
      bool const fits = std::in_range<std::int64_t>(number);
      to->push_back(fits ? static_cast<std::int64_t>(number) : std::numeric_limits<std::int64_t>::max());
      return true;
    };
    switch (type) {
      case GgufType::u8:
      case GgufType::boolean: return put(std::uint8_t{});
      case GgufType::i8: return put(std::int8_t{});
      case GgufType::u16: return put(std::uint16_t{});
      case GgufType::i16: return put(std::int16_t{});
      case GgufType::u32: return put(std::uint32_t{});
      case GgufType::i32: return put(std::int32_t{});
      case GgufType::u64: return put(std::uint64_t{});
      case GgufType::i64: return put(std::int64_t{});
      default: bytes.skip(width_of(type), name); return false;
    }
  }

  std::string source_;
  std::map<std::string, GgufValue, std::less<>> values_;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
