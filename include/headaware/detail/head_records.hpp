#pragma once

// Records of all KV heads of a model, and where each layer's begin.

#include <headaware/config.hpp>
#include <headaware/detail/zero_when_moved.hpp>
#include <headaware/layer_heads.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Heads of all layers before each, [counts + 1]; empty where all layers have as many.
template <class Count>
std::vector<Count> first_heads_of(std::span<Count const> counts) {
  if (std::all_of(counts.begin(), counts.end(), [&](Count count) { return count == counts.front(); })) return {};
  std::vector<Count> first{0};
  for (Count const count : counts) first.push_back(first.back() + count);
  return first;
}

/// The numbers of KV heads of all layers, on the host. Empty once moved from.
class HeadCounts {
 public:
  HeadCounts() = default;
  HeadCounts(std::int32_t num_layers, std::int32_t num_kv_heads) : num_layers_(num_layers), most_(num_kv_heads) {}
  template <class = void>
  explicit HeadCounts(std::span<std::int32_t const> counts)
      : num_layers_(static_cast<std::int32_t>(counts.size())),
        most_(counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end())),
        first_(first_heads_of(counts)) {}
  /// A copy of what a table has.
  explicit HeadCounts(LayerHeads const& heads) : num_layers_(heads.num_layers), most_(heads.num_kv_heads) {
    if (heads.first_heads == nullptr) return;
    for (std::int32_t layer = 0; layer <= heads.num_layers; ++layer) first_.push_back(heads.first_heads[layer]);
  }

  /// Valid while these live unchanged.
  [[nodiscard]] LayerHeads view() const { return view_at(first_.data()); }
  /// @param first_heads  a copy of `first_heads()`, where the back end runs
  [[nodiscard]] LayerHeads view_at(std::int32_t const* first_heads) const {
    if (first_.empty()) return {num_layers_, most_};
    return {num_layers_, most_, first_heads, first_.back()};
  }
  /// [num_layers + 1]; empty where all layers have as many.
  [[nodiscard]] std::span<std::int32_t const> first_heads() const { return {first_.data(), first_.size()}; }

  friend bool operator==(HeadCounts const& a, HeadCounts const& b) {
    return a.num_layers_ == b.num_layers_ && a.most_ == b.most_ && a.first_ == b.first_;
  }

 private:
  ZeroWhenMoved<std::int32_t> num_layers_;
  ZeroWhenMoved<std::int32_t> most_;
  std::vector<std::int32_t> first_;
};

/// Bytes of one record per KV head, and of where the layers begin, as one upload: records first. `HeadCounts` that are
/// all alike need nothing but the records.
template <class Record>
class HeadRecords {
  static_assert(std::is_trivially_copyable_v<Record>);

 public:
  HeadRecords() = default;
  HeadRecords(HeadCounts counts, Record const& record) : counts_(std::move(counts)) {
    auto const first = std::as_bytes(counts_.first_heads());
    std::size_t const bytes = first.empty() ? 0 : first_heads_offset() + first.size();
    records_.assign(std::max(size(), (bytes + sizeof(Record) - 1) / sizeof(Record)), record);
    if (first.empty()) return;
    std::memcpy(reinterpret_cast<std::byte*>(records_.data()) + first_heads_offset(), first.data(), first.size());
  }

  [[nodiscard]] HeadCounts const& counts() const { return counts_; }
  [[nodiscard]] LayerHeads heads() const { return counts_.view(); }
  [[nodiscard]] std::span<Record> records() { return {records_.data(), size()}; }
  [[nodiscard]] std::span<Record const> records() const { return {records_.data(), size()}; }
  /// The record of a head. @pre there is such a head
  [[nodiscard]] Record& at(std::int32_t layer, std::int32_t kv_head) { return records_[index(layer, kv_head)]; }
  [[nodiscard]] Record const& at(std::int32_t layer, std::int32_t kv_head) const {
    return records_[index(layer, kv_head)];
  }
  /// What a device needs.
  [[nodiscard]] std::span<std::byte const> bytes() const {
    return std::as_bytes(std::span(records_.data(), records_.size()));
  }
  /// Where the layers' heads begin in a copy of `bytes()`.
  [[nodiscard]] LayerHeads heads_at(void const* copy) const {
    auto const* const first = static_cast<std::byte const*>(copy) + first_heads_offset();
    return counts_.view_at(reinterpret_cast<std::int32_t const*>(first));
  }

  friend bool operator==(HeadRecords const& a, HeadRecords const& b) {
    return a.counts_ == b.counts_ && std::equal(a.records().begin(), a.records().end(), b.records().begin());
  }

 private:
  [[nodiscard]] std::size_t size() const { return static_cast<std::size_t>(counts_.view().total()); }
  [[nodiscard]] std::size_t first_heads_offset() const {
    return (size() * sizeof(Record) + sizeof(std::int32_t) - 1) / sizeof(std::int32_t) * sizeof(std::int32_t);
  }
  [[nodiscard]] std::size_t index(std::int32_t layer, std::int32_t kv_head) const {
    return static_cast<std::size_t>(counts_.view().first(layer) + kv_head);
  }

  HeadCounts counts_;
  std::vector<Record> records_;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
