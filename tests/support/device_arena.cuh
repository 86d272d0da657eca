#pragma once

// Every form of cache filled by the device, whole buffers compared with what plain loops say.

#include "support/cache_arena.hpp"
#include "support/device_cache.cuh"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace headaware_test {

/// A table on the device; the view is borrowed from it.
template <class Registry>
class DeviceTable {
 public:
  explicit DeviceTable(ha::BasicPolicyTable<Registry> const& table)
      : table_(table), bytes_(std::vector<std::byte>(table.bytes().begin(), table.bytes().end())) {}
  [[nodiscard]] auto view() const { return table_.view_at(bytes_.data()); }

 private:
  ha::BasicPolicyTable<Registry> table_;
  DeviceVector<std::byte> bytes_;
};

/// @brief Compresses on the device into one form and compares the buffer, gaps included.
/// @param make  of `for_each_form`
template <class T, class Source, class Table, class Make>
void check_device_form(SourceCache<T, Source> const& cache, DeviceSource<T, Source> const& source,
                       Source const& device_layout, ha::DeviceCompaction<Table> const& d_plan, KeptTokens const& tokens,
                       Places const& places, Make const& make) {
  DeviceVector<T> const arena(guarded<T>(places.elements));
  DeviceUpload const upload;
  run_compress(d_plan, ha::transfer(source.layers, device_layout, make(arena.data(), upload)));
  REQUIRE(first_difference(arena.host(), expected_arena(cache, tokens, places)) == "");
}

/// The same for every form.
/// @param plan    the host's, for the same lengths
/// @param tokens  what its policies keep
template <class T, class Source, class Plan, class Table>
void check_device_forms(SourceCache<T, Source> const& cache, Source const& device_layout, Plan const& plan,
                        KeptTokens const& tokens, Table const& d_table, std::int64_t gap, unsigned seed,
                        std::size_t shift = 0) {
  DeviceSource<T, Source> const source(cache, shift);
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(plan.lengths().begin(), plan.lengths().end()));
  auto const d_plan = plan.on_device(d_table, d_lengths.data());
  for_each_form<T>(plan, tokens, {cache.head_dim, cache.value_dim}, gap, seed,
                   [&](std::string const& name, Places const& places, auto const& make) {
                     INFO(name);
                     check_device_form(cache, source, device_layout, d_plan, tokens, places, make);
                   });
}

/// Ragged caches and one kind of paged ones: enough where the source is the point.
template <class T, class Source, class Plan, class Table>
void check_device_ragged_and_paged(SourceCache<T, Source> const& cache, Source const& device_layout, Plan const& plan,
                                   KeptTokens const& tokens, Table const& d_table, std::int64_t gap, unsigned seed) {
  DeviceSource<T, Source> const source(cache);
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(plan.lengths().begin(), plan.lengths().end()));
  auto const d_plan = plan.on_device(d_table, d_lengths.data());
  Channels const channels{cache.head_dim, cache.value_dim};
  auto const check = [&](std::string const& name, Places const& places, auto const& make) {
    INFO(name);
    check_device_form(cache, source, device_layout, d_plan, tokens, places, make);
  };
  dense_arenas<T>(
      "ragged", tokens, naive_ragged(tokens), channels, gap,
      [&](T* keys, T* values) { return ha::ragged(plan, keys, values, channels.key, channels.value); },
      [&](auto const& layers) { return ha::ragged(plan, layers, channels.key, channels.value); }, check);
  paged_arena<T>(plan, tokens, channels, {.page_size = 8, .csr = true, .shared_pool = true}, gap, seed, check);
}

}  // namespace headaware_test
