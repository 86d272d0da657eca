#pragma once

/// @file
/// List of row formats: lookup by name, and `visit`, which turns a format chosen at run time back into its type.

#include <headaware/config.hpp>
#include <headaware/detail/type_registry.hpp>
#include <headaware/error.hpp>
#include <headaware/format/concept.hpp>
#include <headaware/format/fp8.hpp>
#include <headaware/format/half.hpp>
#include <headaware/format/int8.hpp>
#include <headaware/format/llama_blocks.hpp>
#include <headaware/format/packed.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A compile-time list of formats. Add your own with `DefaultFormats::with<Mine>`.
template <class... Formats>
struct FormatRegistry : detail::TypeRegistry<Formats...> {
  static_assert((check_format<Formats>() && ...));

  /// This registry and `More` formats; ids of the ones already listed stay as they are.
  template <class... More>
  using with = FormatRegistry<Formats..., More...>;

  /// @brief The id of the format called `name`. @throws ArgumentError naming the known formats
  static std::uint8_t id_of_name(std::string_view name) {
    return detail::TypeRegistry<Formats...>::id_of_name(name, "format", "FormatRegistry");
  }
};

/// Formats of the library, 16 bits first.
using DefaultFormats =
    FormatRegistry<Fp16, Bf16, Fp8E4M3, Fp8E5M2, Int8, Packed<6>, Packed<5>, Packed<4>, Packed<3>, LlamaQ8, LlamaQ4>;

/// @brief One format of a registry, its type known at run time. Trivially copyable, so a table of them travels to the
/// device as bytes.
template <class Registry = DefaultFormats>
class AnyFormat;

template <class... Formats>
class AnyFormat<FormatRegistry<Formats...>> : public detail::AnyOf<FormatRegistry<Formats...>> {
  using Base = detail::AnyOf<FormatRegistry<Formats...>>;

 public:
  using typename Base::Registry;

  /// The registry's first format with its default fields.
  AnyFormat() : AnyFormat(typename Base::First{}) {}

  /// Implicit on purpose: a format is an `AnyFormat`.
  template <class F>
    requires(Registry::template contains<F>)
  AnyFormat(F const& format) : Base(std::in_place, format) {}

  /// Refuses types that are almost formats, or that the registry lacks, by a message.
  template <class F>
    requires(!Registry::template contains<F> && detail::looks_like_format<F>)
  AnyFormat(F const&) {
    static_assert(check_format<F>());
    static_assert(!RowFormat<F> || Registry::template contains<F>,
                  "headaware: this format is not in the registry; add it with Registry::with<...>");
  }

  /// @brief The format called `name`, with its default fields. @throws ArgumentError naming the known formats
  [[nodiscard]] static AnyFormat of_name(std::string_view name) {
    AnyFormat result;
    Registry::visit_type(Registry::id_of_name(name), [&](auto const& format) { result = format; });
    return result;
  }

  /// 32-bit words of a row.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t row_words(std::int64_t channels) const {
    return this->visit(
        [&](auto const& format) { return headaware::row_words<std::remove_cvref_t<decltype(format)>>(channels); });
  }
  /// Bytes of a row in an engine's tensor; 0: no engine has the format.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t engine_row_bytes(std::int64_t channels) const {
    return this->visit([&](auto const& format) {
      return headaware::engine_row_bytes<std::remove_cvref_t<decltype(format)>>(channels);
    });
  }
  /// Bytes to which an engine's rows are aligned; 1: any, or no engine has the format.
  [[nodiscard]] std::int32_t engine_alignment() const {
    return this->visit([](auto const& format) -> std::int32_t {
      using Format = std::remove_cvref_t<decltype(format)>;
      if constexpr (detail::has_engine_rows<Format>) return Format::engine_alignment;
      return 1;
    });
  }
  /// The scale of all rows (fp8); 1: rows have their own, or none.
  [[nodiscard]] float scale() const {
    return this->visit([](auto const& format) -> float {
      if constexpr (requires { float{format.scale}; }) return format.scale;
      return 1;
    });
  }
  /// @brief The same format with a scale. @throws ArgumentError if it has none, or the scale makes no sense
  [[nodiscard]] AnyFormat with_scale(float scale) const {
    AnyFormat result = *this;
    this->visit([&](auto format) {
      if constexpr (requires { format.scale = scale; }) {
        format.scale = scale;
        result = format;
      } else {
        require(false, "format", "one with a scale of all rows (fp8)", this->name(), "with_scale");
      }
    });
    result.validate();
    return result;
  }
  /// Whether rows are multiplied by the Hadamard matrix.
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool rotated() const {
    return this->visit([](auto const& format) { return std::remove_cvref_t<decltype(format)>::rotated; });
  }

  friend bool operator==(AnyFormat const&, AnyFormat const&) = default;
};
static_assert(std::is_trivially_copyable_v<AnyFormat<>>);

HEADAWARE_NAMESPACE_END
