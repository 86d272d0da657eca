#pragma once

#include <headaware/attention/attention.hpp>
#include <headaware/attention/detail/cuda/attend_parameters.cuh>
#include <headaware/attention/detail/kv_split.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/launch.cuh>
#include <headaware/detail/cuda/temp_storage.cuh>
#include <headaware/error.hpp>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// A call's grid and temporary storage, of kernels whose blocks take KV splits.
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
    constexpr std::int64_t most = max_ticket_count<SignedTicket>;
    require(splits <= most, "KV splits", {"at most ", most}, splits, where);
    blocks_ = blocks;
    rows_of_blocks_ = adjacent ? 1 : kv.tiles;
    std::int64_t const parts = splits * kv.tiles * queries;
    placed_ = place_buffers(d_temp, temp_bytes, where, TempBuffer{arrays_.parts, parts},
                            TempBuffer{arrays_.sums, parts * shape.output_dim()},
                            TempBuffer{arrays_.tickets, segments * kv.tiles});
    if (placed_) arrays_.signature = new_ticket_signature<SignedTicket>();
  }

  /// False in a size query.
  [[nodiscard]] bool placed() const { return placed_; }
  [[nodiscard]] AttendArrays const& arrays() const { return arrays_; }
  /// As many blocks as there is work for, or as fill a device of so many multiprocessors: each has its share of the
  /// splits.
  [[nodiscard]] dim3 grid(std::int64_t processors) const {
    return {static_cast<unsigned>(std::min(processors * blocks_per_processor, blocks_)),
            static_cast<unsigned>(rows_of_blocks_)};
  }

 private:
  static constexpr std::int64_t blocks_per_processor = 8;  ///< at least as many as run at once
  AttendArrays arrays_;
  std::int64_t blocks_ = 0;
  std::int64_t rows_of_blocks_ = 0;
  bool placed_ = false;
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
