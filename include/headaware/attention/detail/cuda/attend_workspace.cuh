#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A call's grid and temporary storage.
class AttendWorkspace {
 public:
  /// @param queries   query rows of a block
  /// @param adjacent  whether blocks of the same rows follow each other in the grid
  /// @throws ArgumentError on more work than a grid has blocks
  AttendWorkspace(void* d_temp, std::size_t& temp_bytes, AttentionShape const& shape, KvSplit const& kv,
                  std::int32_t queries, std::int64_t max_rows, bool adjacent) {
    constexpr auto where = "attend";
    std::int64_t const segments = shape.segments();
    std::int64_t const splits = max_rows / kv.split_rows + segments;
    require(kv.tiles <= 65535, "tiles of query rows", "at most 65,535", kv.tiles, where);
    std::int64_t const blocks = adjacent ? splits * kv.tiles : splits;
    require(blocks <= max_blocks, "KV splits", max_blocks_text, blocks, where);
    grid_ = dim3(static_cast<unsigned>(blocks), adjacent ? 1U : static_cast<unsigned>(kv.tiles));
    tickets_ = segments * kv.tiles;
    std::int64_t const parts = splits * kv.tiles * queries;
    placed_ = place_buffers(d_temp, temp_bytes, where, TempBuffer{arrays_.parts, parts},
                            TempBuffer{arrays_.sums, parts * shape.output_dim()},
                            TempBuffer{arrays_.split_offsets, segments + 1}, TempBuffer{arrays_.tickets, tickets_});
  }

  /// False in a size query.
  [[nodiscard]] bool placed() const { return placed_; }
  [[nodiscard]] AttendArrays const& arrays() const { return arrays_; }
  [[nodiscard]] std::int64_t tickets() const { return tickets_; }
  [[nodiscard]] dim3 grid() const { return grid_; }

 private:
  AttendArrays arrays_;
  std::int64_t tickets_ = 0;
  dim3 grid_;
  bool placed_ = false;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
