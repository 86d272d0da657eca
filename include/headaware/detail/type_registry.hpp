#pragma once

// Lists of types that are data with a name, and one of them whose type is known at run time: what registries of
// policies and of formats have in common.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// What registries have in common. Ids are places in the list.
template <class... Types>
struct TypeRegistry {
  static_assert(sizeof...(Types) > 0 && sizeof...(Types) < 256, "headaware: a registry holds 1 to 255 types");

  static constexpr std::size_t size = sizeof...(Types);
  static constexpr std::array<std::string_view, size> names{std::string_view(Types::name)...};

  template <class T>
  static constexpr bool contains = (std::is_same_v<T, Types> || ...);

  /// The id of type `T`, its place in the list.
  template <class T>
  HEADAWARE_HOST_DEVICE static constexpr std::uint8_t id_of() {
    static_assert(contains<T>, "headaware: this type is not in the registry; add it with Registry::with<...>");
    std::uint8_t id = 0;
    (void)((std::is_same_v<T, Types> || (++id, false)) || ...);
    return id;
  }

  /// @brief Calls `f` with a default-constructed value of the type whose id is `id`. @pre  id < size
  template <class F>
  static void visit_type(std::uint8_t id, F&& f) {
    (void)((id == id_of<Types>() && (f(Types{}), true)) || ...);
  }

  static constexpr std::size_t storage_bytes = std::max({sizeof(Types)...});
  static constexpr std::size_t storage_align = std::max({alignof(Types)...});
  static constexpr bool names_differ = [] {
    for (std::size_t i = 0; i < size; ++i) {
      for (std::size_t j = i + 1; j < size; ++j) {
        if (names[i] == names[j]) return false;
      }
    }
    return true;
  }();
  static_assert(names_differ, "headaware: two types of a registry have the same name");

 protected:
  /// The id of the type called `name`. @throws ArgumentError naming those that there are
  static std::uint8_t id_of_name(std::string_view name, char const* kind, char const* where) {
    auto const found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      std::string known;
      for (auto const& each : names) known += (known.empty() ? "one of " : ", ") + std::string(each);
      throw ArgumentError({std::string("unknown ") + kind, known, "'" + std::string(name) + "'", where});
    }
    return static_cast<std::uint8_t>(found - names.begin());
  }
};

/// A value of one of a registry's types, its type known at run time. Trivially copyable, so a table of them travels to
/// the device as bytes. @tparam Reg  with members of `TypeRegistry`
template <class Reg>
class AnyOf;

template <template <class...> class Reg, class... Types>
class AnyOf<Reg<Types...>> {
 public:
  using Registry = Reg<Types...>;

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::uint8_t id() const { return id_; }
  [[nodiscard]] std::string_view name() const { return Registry::names[id_]; }

  template <class T>
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool is() const {
    return id_ == Registry::template id_of<T>();
  }

  /// The value itself. @pre is<T>()
  template <class T>
  [[nodiscard]] HEADAWARE_HOST_DEVICE T get() const {
    // Not memcpy: device code would load byte by byte.
    return *reinterpret_cast<T const*>(bytes_);
  }

  /// @brief Calls `f` with the value in its own type and returns what `f` returns, which must be
  /// default constructible and of one type for all, or void.
  HEADAWARE_EXEC_CHECK_DISABLE
  template <class F>
  HEADAWARE_HOST_DEVICE auto visit(F&& f) const {
    using Result = decltype(f(std::declval<First>()));
    if constexpr (std::is_void_v<Result>) {
      (void)((is<Types>() && (f(get<Types>()), true)) || ...);
    } else {
      Result result{};
      (void)((is<Types>() && (result = f(get<Types>()), true)) || ...);
      return result;
    }
  }

  /// @throws ArgumentError if the value's fields make no sense
  void validate() const {
    visit([](auto const& value) {
      if constexpr (requires { value.validate(); }) value.validate();
    });
  }

  friend bool operator==(AnyOf const& a, AnyOf const& b) {
    if (a.id_ != b.id_) return false;
    return a.visit([&](auto const& value) { return value == b.template get<std::remove_cvref_t<decltype(value)>>(); });
  }

 protected:
  using First = decltype([]<class T, class... Rest>(std::type_identity<Reg<T, Rest...>>) {
    return T{};
  }(std::type_identity<Registry>{}));

  AnyOf() = default;
  template <class T>
  AnyOf(std::in_place_t, T const& value) : id_(Registry::template id_of<T>()) {
    ::new (static_cast<void*>(bytes_)) T(value);
  }

 private:
  alignas(Registry::storage_align) std::byte bytes_[Registry::storage_bytes] = {};
  std::uint8_t id_ = 0;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
