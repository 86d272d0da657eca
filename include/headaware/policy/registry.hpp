#pragma once

/// @file
/// List of policy types: lookup by name, and `visit`, which turns a policy chosen at run time back into its type.

#include <headaware/detail/type_registry.hpp>
#include <headaware/policy/concept.hpp>
#include <headaware/policy/full.hpp>
#include <headaware/policy/keep_list.hpp>
#include <headaware/policy/prune.hpp>
#include <headaware/policy/sink_window.hpp>
#include <headaware/policy/sink_window_scored.hpp>
#include <headaware/policy/window_only.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN

/// @brief A compile-time list of policy types. Add your own with `DefaultRegistry::with<Mine>`.
template <class... Policies>
struct PolicyRegistry : detail::TypeRegistry<Policies...> {
  static_assert((check_policy<Policies>() && ...));

  /// This registry and `More` policies; ids of the ones already listed stay as they are.
  template <class... More>
  using with = PolicyRegistry<Policies..., More...>;

  /// @brief The id of the policy called `name`.
  /// @throws ArgumentError naming the known policies
  static std::uint8_t id_of_name(std::string_view name) {
    return detail::TypeRegistry<Policies...>::id_of_name(name, "policy", "PolicyRegistry");
  }
};

/// Policies of the library.
using DefaultRegistry = PolicyRegistry<Full, SinkWindow, WindowOnly, Prune, KeepList, SinkWindowScored>;

/// @brief One policy of a registry, its type known at run time. Trivially copyable, so a table of
/// them travels to the device as bytes.
template <class Registry = DefaultRegistry>
class AnyPolicy;

template <class... Policies>
class AnyPolicy<PolicyRegistry<Policies...>> : public detail::AnyOf<PolicyRegistry<Policies...>> {
  using Base = detail::AnyOf<PolicyRegistry<Policies...>>;

 public:
  using typename Base::Registry;

  /// The registry's first policy with its default fields.
  AnyPolicy() : AnyPolicy(typename Base::First{}) {}

  /// Implicit on purpose: a policy is an `AnyPolicy`.
  template <class P>
    requires(Registry::template contains<P>)
  AnyPolicy(P const& policy) : Base(std::in_place, policy) {}

  /// Refuses types that are almost policies, or that the registry lacks, by a message.
  template <class P>
    requires(!Registry::template contains<P> && detail::looks_like_policy<P>)
  AnyPolicy(P const&) {
    static_assert(check_policy<P>());
    static_assert(!HeadPolicy<P> || Registry::template contains<P>,
                  "headaware: this policy type is not in the registry; add it with Registry::with<...>");
  }

  friend bool operator==(AnyPolicy const&, AnyPolicy const&) = default;
};

static_assert(std::is_trivially_copyable_v<AnyPolicy<>>);

HEADAWARE_NAMESPACE_END
