#pragma once

// Every form of cache filled by the device, whole buffers compared with what plain loops say.

#include "support/device_cache.cuh"
#include "support/random_cache.hpp"

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
                       Source const& device_layout, ha::DeviceCompaction<Table> const& d_compaction,
                       KeptTokens const& tokens, Places const& places, Make const& make) {
  DeviceVector<T> const arena(guarded<T>(places.elements));
  DeviceUpload const upload;
  run_compress(d_compaction, ha::transfer(source.layers, device_layout, make(arena.data(), upload)));
  REQUIRE(arena_difference(arena.host(), expected_arena(cache, tokens, places), {cache.head_dim, cache.value_dim},
                           tokens, places) == "");
}

/// @brief The same for some forms.
/// @param compaction  the host's, for the same lengths
/// @param tokens      what its policies keep
/// @param forms       calls its argument as `for_each_form` does
template <class T, class Source, class Compaction, class Table, class Forms>
void check_device_forms_of(SourceCache<T, Source> const& cache, Source const& device_layout,
                           Compaction const& compaction, KeptTokens const& tokens, Table const& d_table,
                           std::size_t shift, Forms const& forms) {
  DeviceSource<T, Source> const source(cache, shift);
  auto const lengths = compaction.lengths();
  DeviceVector<std::int32_t> const d_lengths(std::vector<std::int32_t>(lengths.begin(), lengths.end()));
  auto const d_compaction = compaction.on_device(d_table, d_lengths.data());
  forms([&](std::string const& name, Places const& places, auto const& make) {
    INFO(name);
    check_device_form(cache, source, device_layout, d_compaction, tokens, places, make);
  });
}
template <class T, class Source, class Compaction, class Table>
void check_device_forms(SourceCache<T, Source> const& cache, Source const& device_layout, Compaction const& compaction,
                        KeptTokens const& tokens, Table const& d_table, std::int64_t gap, unsigned seed,
                        std::size_t shift = 0) {
  check_device_forms_of(cache, device_layout, compaction, tokens, d_table, shift, [&](auto const& check) {
    for_each_form<T>(compaction, tokens, {cache.head_dim, cache.value_dim}, gap, seed, check);
  });
}

/// Ragged caches and one kind of paged ones: enough where the source is the point.
template <class T, class Source, class Compaction, class Table>
void check_device_ragged_and_paged(SourceCache<T, Source> const& cache, Source const& device_layout,
                                   Compaction const& compaction, KeptTokens const& tokens, Table const& d_table,
                                   std::int64_t gap, unsigned seed) {
  check_device_forms_of(cache, device_layout, compaction, tokens, d_table, 0, [&](auto const& check) {
    Channels const channels{cache.head_dim, cache.value_dim};
    ragged_arenas<T>(compaction, tokens, channels, gap, check);
    paged_arena<T>(compaction, tokens, channels, {.page_size = 8, .csr = true, .shared_pool = true}, gap, seed, check);
  });
}

/// The first difference of tensors on the device from those of a cache; empty: none.
template <class T, class Source>
std::string source_difference(DeviceSource<T, Source> const& got, SourceCache<T, Source> const& expected,
                              std::size_t shift = 0) {
  auto on_host = expected;
  for (std::size_t l = 0; l < expected.keys.size(); ++l) {
    on_host.keys[l] = got.tensor(2 * l, shift);
    on_host.values[l] = got.tensor(2 * l + 1, shift);
  }
  return first_difference(on_host, expected);
}

}  // namespace headaware_test
