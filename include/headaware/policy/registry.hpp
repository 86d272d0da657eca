#pragma once

/// @file
/// List of policy types: lookup by name, and `visit`, which turns a policy chosen at run time back into its type.

#include <headaware/error.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/window_only.hpp>

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

/// @brief A compile-time list of policy types. Add your own with `DefaultRegistry::with<Mine>`.
template <class... Policies>
struct PolicyRegistry {
  static_assert((check_policy<Policies>() && ...));
  static_assert(sizeof...(Policies) > 0 && sizeof...(Policies) < 256, "headaware: a registry holds 1 to 255 policies");

  /// This registry and `More` policies; ids of the ones already listed stay as they are.
  template <class... More>
  using with = PolicyRegistry<Policies..., More...>;

  static constexpr std::size_t size = sizeof...(Policies);
  static constexpr std::array<std::string_view, size> names{std::string_view(Policies::name)...};

  template <class P>
  static constexpr bool contains = (std::is_same_v<P, Policies> || ...);

  /// The id of policy type `P`, its place in the list.
  template <class P>
  HEADAWARE_HOST_DEVICE static constexpr std::uint8_t id_of() {
    static_assert(contains<P>, "headaware: this policy type is not in the registry; add it with Registry::with<...>");
    std::uint8_t id = 0;
    (void)((std::is_same_v<P, Policies> || (++id, false)) || ...);
    return id;
  }

  /// @brief The id of the policy called `name`.
  /// @throws ArgumentError naming the known policies
  static std::uint8_t id_of_name(std::string_view name) {
    auto const found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      std::string known;
      for (auto const& each : names) known += (known.empty() ? "one of " : ", ") + std::string(each);
      throw ArgumentError({"unknown policy", known, "'" + std::string(name) + "'", "PolicyRegistry"});
    }
    return static_cast<std::uint8_t>(found - names.begin());
  }

  /// @brief Calls `f` with a default-constructed policy of the type whose id is `id`.
  /// @pre  id < size
  template <class F>
  static void visit_type(std::uint8_t id, F&& f) {
    (void)((id == id_of<Policies>() && (f(Policies{}), true)) || ...);
  }

  static constexpr std::size_t storage_bytes = std::max({sizeof(Policies)...});
  static constexpr std::size_t storage_align = std::max({alignof(Policies)...});
  static constexpr bool names_differ = [] {
    for (std::size_t i = 0; i < size; ++i) {
      for (std::size_t j = i + 1; j < size; ++j) {
        if (names[i] == names[j]) return false;
      }
    }
    return true;
  }();
  static_assert(names_differ, "headaware: two policies of a registry have the same name");
};

/// Policies of the library.
using DefaultRegistry = PolicyRegistry<Full, SinkWindow, WindowOnly, Prune, KeepList>;

/// @brief One policy of a registry, its type known at run time. Trivially copyable, so a table of
/// them travels to the device as bytes.
template <class Registry = DefaultRegistry>
class AnyPolicy;

template <class... Policies>
class AnyPolicy<PolicyRegistry<Policies...>> {
 public:
  using Registry = PolicyRegistry<Policies...>;

  /// The registry's first policy with its default fields.
  AnyPolicy() : AnyPolicy(first()) {}

  /// Implicit on purpose: a policy is an `AnyPolicy`.
  template <class P>
    requires(Registry::template contains<P>)
  AnyPolicy(P const& policy) : id_(Registry::template id_of<P>()) { ::new (static_cast<void*>(bytes_)) P(policy); }

  /// Refuses types that are almost policies, or that the registry lacks, by a message.
  template <class P>
    requires(!Registry::template contains<P> && detail::looks_like_policy<P>)
  AnyPolicy(P const&) {
    static_assert(check_policy<P>());
    static_assert(!HeadPolicy<P> || Registry::template contains<P>,
                  "headaware: this policy type is not in the registry; add it with Registry::with<...>");
  }

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::uint8_t id() const { return id_; }
  [[nodiscard]] std::string_view name() const { return Registry::names[id_]; }

  template <class P>
  [[nodiscard]] HEADAWARE_HOST_DEVICE bool is() const {
    return id_ == Registry::template id_of<P>();
  }

  /// The policy itself. @pre is<P>()
  template <class P>
  [[nodiscard]] HEADAWARE_HOST_DEVICE P get() const {
    // Not memcpy: device code would load byte by byte.
    return *reinterpret_cast<P const*>(bytes_);
  }

  /// @brief Calls `f` with the policy in its own type and returns what `f` returns, which must be
  /// default constructible and of one type for all policies, or void.
  HEADAWARE_EXEC_CHECK_DISABLE
  template <class F>
  HEADAWARE_HOST_DEVICE auto visit(F&& f) const {
    using First = decltype(first());
    using Result = decltype(f(std::declval<First>()));
    if constexpr (std::is_void_v<Result>) {
      (void)((is<Policies>() && (f(get<Policies>()), true)) || ...);
    } else {
      Result result{};
      (void)((is<Policies>() && (result = f(get<Policies>()), true)) || ...);
      return result;
    }
  }

  /// @throws ArgumentError if the policy's fields make no sense
  void validate() const {
    visit([](auto const& policy) {
      if constexpr (requires { policy.validate(); }) policy.validate();
    });
  }

  friend bool operator==(AnyPolicy const& a, AnyPolicy const& b) {
    if (a.id_ != b.id_) return false;
    return a.visit([&](auto const& policy) { return policy == b.get<std::remove_cvref_t<decltype(policy)>>(); });
  }

 private:
  static constexpr auto first() {
    return []<class P, class... Rest>(PolicyRegistry<P, Rest...>*) { return P{}; }(static_cast<Registry*>(nullptr));
  }

  alignas(Registry::storage_align) std::byte bytes_[Registry::storage_bytes] = {};
  std::uint8_t id_ = 0;
};

static_assert(std::is_trivially_copyable_v<AnyPolicy<>>);

HEADAWARE_NAMESPACE_END
