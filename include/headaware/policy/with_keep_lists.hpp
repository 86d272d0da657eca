#pragma once

/// @file
/// Keep-lists per sequence over a table of policies.

#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/policy/keep_list.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Table whose heads follow a list if one is given, and the underlying table otherwise.
///
/// `Table` is a `PolicyTableView` or a `UniformTable`; `lists` is borrowed and lives where the
/// back end runs: host memory for the CPU and for sizes, device memory for CUDA (there with
/// device pointers in its entries).
template <class Table>
class WithKeepLists {
 public:
  WithKeepLists() = default;

  /// @param table  policies of heads without a list
  /// @param lists  [num_layers, num_sequences, KV heads of the layer]; `KeepList{}`: no list
  HEADAWARE_HOST_DEVICE WithKeepLists(Table const& table, KeepList const* lists, std::int32_t num_sequences)
      : table_(table), lists_(lists), num_sequences_(num_sequences) {}

  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_layers() const { return table_.num_layers(); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_kv_heads() const { return table_.num_kv_heads(); }
  [[nodiscard]] HEADAWARE_HOST_DEVICE LayerHeads heads() const { return detail::layer_heads(table_); }
  /// Sequences that the lists were made for.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int32_t num_sequences() const { return num_sequences_; }

  /// @brief Checks the lists' counts; they must be in host memory. `Compaction` does this.
  /// @throws ArgumentError if there are no lists, or one has a count but no tokens
  void validate() const {
    std::int64_t const count = heads().total() * num_sequences_;
    require(lists_ != nullptr || count == 0, "keep-lists", "a pointer", "nullptr", "WithKeepLists");
    for (std::int64_t i = 0; i < count; ++i) {
      if (lists_[i] == KeepList{}) continue;
      lists_[i].validate();
    }
  }

  HEADAWARE_EXEC_CHECK_DISABLE
  template <class F>
  HEADAWARE_HOST_DEVICE auto visit(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head, F&& f) const {
    LayerHeads const of = heads();
    std::int64_t const index = of.first(layer) * num_sequences_ + std::int64_t{sequence} * of.count(layer) + kv_head;
    KeepList const list = lists_[index];
    if (list.count >= 0) return f(list);
    return table_.visit(layer, kv_head, f);
  }

 private:
  Table table_{};
  KeepList const* lists_ = nullptr;
  std::int32_t num_sequences_ = 0;
};

HEADAWARE_NAMESPACE_END
