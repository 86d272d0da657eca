#pragma once

// Rows between an engine's tensors and a packed cache on the device: a thread moves one unit of a packed row, so that
// neighbouring threads have neighbouring bytes on both sides.

#include <headaware/cache/detail/cuda/pack_kernel.cuh>
#include <headaware/cache/detail/engine_rows.hpp>
#include <headaware/cache/engine_rows_plan.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/format/table.hpp>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Rows are those of the tokens that policies keep: on the way in.
template <class Table>
struct TokensKept {
  using Bytes = std::byte const;
  using Units = RowUnit;

  Table table;

  __device__ std::int64_t operator()(EngineRowsSegment const& segment, std::int64_t row) const {
    return visit_policy(table, segment.layer, segment.sequence, segment.kv_head,
                        [&](auto const& policy) { return source_token(policy, row, segment.length); });
  }
};
/// Row i is token i: on the way out.
struct TokensInOrder {
  using Bytes = std::byte;
  using Units = RowUnit const;

  __device__ std::int64_t operator()(EngineRowsSegment const&, std::int64_t row) const { return row; }
};

template <class Of, class Keys, class Values, class Form>
struct EngineRowsParameters {
  using Bytes = typename Of::Bytes;
  using Units = typename Of::Units;

  Of token_of;
  Keys keys;
  Values values;
  Form form;
  EngineRowsSegment const* segments;
  std::int64_t num_segments;
  std::int64_t num_units;
  std::int32_t width;  ///< bytes of an access to the engine's rows
  Bytes* engine_keys[max_layers];
  Bytes* engine_values[max_layers];
  Units* rows[max_layers];
};

template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(pack_threads) engine_rows_kernel(Parameters const __grid_constant__ p) {
  std::int64_t const thread = std::int64_t{blockIdx.x} * pack_threads + threadIdx.x;
  if (thread >= p.num_units) return;
  EngineRowsSegment const& segment = segment_of(p.segments, p.num_segments, &EngineRowsSegment::units_before, thread);
  std::int64_t const local = thread - segment.units_before;
  std::int64_t const row = local / segment.units;
  auto const unit = static_cast<std::int32_t>(local - row * segment.units);
  std::int64_t const token = p.token_of(segment, row);
  auto* const units = p.rows[segment.layer] + unit_of_row(p.form, segment, segment.first_unit, segment.units, row);
  auto* const key = p.engine_keys[segment.layer] + p.keys.offset(segment.sequence, segment.kv_head, token, 0);
  typename Parameters::Bytes* value = nullptr;
  if (segment.row.value.words > 0) {
    value = p.engine_values[segment.layer] + p.values.offset(segment.sequence, segment.kv_head, token, 0);
  }
  move_engine_unit(p.width, segment.row, unit, key, value, units);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
