#pragma once

// Matrix products of warps and asynchronous copies, as PTX of sm_80.

#include <headaware/config.hpp>
#include <headaware/detail/cuda/element.cuh>
#include <headaware/element.hpp>

#include <cstdint>
#include <type_traits>
#include <utility>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

__device__ inline std::uint32_t shared_address(void const* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Copies 16 bytes to shared memory; zeroes them where `valid` is false.
__device__ inline void copy_async(void* to, void const* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
/// The same to a shared address, always valid. @tparam From  bytes
template <int Offset, int From = 0>
__device__ void copy_async(std::uint32_t to, void const* from) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;" ::"r"(to), "l"(from), "n"(Offset), "n"(From)
               : "memory");
}
/// The same from an offset, too, if `count` is above `Least`.
template <int Offset, int Least>
__device__ void copy_async_if(std::int32_t count, std::uint32_t to, void const* from) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.gt.s32 p, %2, %3;\n@p cp.async.cg.shared.global [%0 + %4], [%1 + %4], 16;\n}" ::"r"(to),
      "l"(from), "r"(count), "n"(Least), "n"(Offset)
      : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most the last `Pending` of the committed groups are under way.
template <int Pending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// Loads four 8×8 matrices of 2-byte elements; lane l gives the shared address of row l % 8 of matrix l / 8.
template <int Offset = 0>
__device__ void load_matrices(std::uint32_t (&matrices)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row), "n"(Offset)
               : "memory");
}
template <int Offset = 0>
__device__ void load_matrices_transposed(std::uint32_t (&matrices)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(row), "n"(Offset)
               : "memory");
}
/// Two pointers side by side in shared memory.
struct PointerPair {
  char const* first;
  char const* second;
};
template <int Offset>
__device__ PointerPair load_shared_pointers(std::uint32_t at) {
  PointerPair result;
  asm volatile("ld.shared.v2.b64 {%0, %1}, [%2 + %3];"
               : "=l"(result.first), "=l"(result.second)
               : "r"(at), "n"(Offset)
               : "memory");
  return result;
}

/// Transposes an 8×8 matrix of 2-byte elements; lane l holds elements 2 · (l % 4) and the next of row l / 4.
__device__ inline std::uint32_t transpose_matrix(std::uint32_t matrix) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

/// c += a · b, 16×8 += 16×16 · 16×8, sums in float.
template <class E>
__device__ void multiply_add(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<E, float16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// Loads from global memory, past the first cache, which may hold what was there before another block wrote.
template <int Offset>
__device__ float4 load_written(float4 const* from) {
  float4 result;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4 + %5];"
               : "=f"(result.x), "=f"(result.y), "=f"(result.z), "=f"(result.w)
               : "l"(from), "n"(Offset)
               : "memory");
  return result;
}

__device__ inline void store_shared_pointers(std::uint32_t at, void const* first, void const* second) {
  asm volatile("st.shared.v2.b64 [%0], {%1, %2};" ::"r"(at), "l"(first), "l"(second) : "memory");
}
__device__ inline void store_shared_number(std::uint32_t at, std::int64_t number) {
  asm volatile("st.shared.b64 [%0], %1;" ::"r"(at), "l"(number) : "memory");
}

/// (a & b) ^ c, a | (b & c), and b where c has bits, else a.
__device__ inline std::uint32_t and_xor(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
__device__ inline std::uint32_t or_masked(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xf8;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
__device__ inline std::uint32_t select_bits(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xd8;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

/// Keeps a number in a register: it is not read again from where it came from.
__device__ inline void hold(std::int32_t& number) { asm volatile("" : "+r"(number)); }
__device__ inline void hold(std::uint32_t& number) { asm volatile("" : "+r"(number)); }
__device__ inline void hold(float& number) { asm volatile("" : "+f"(number)); }
template <class T>
__device__ void hold(T const*& pointer) {
  asm volatile("" : "+l"(pointer));
}

/// Calls `f.operator()<I>()` with I = 0 … Count - 1.
template <int Count, class F>
__device__ void unrolled(F const& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) { (f.template operator()<I>(), ...); }
  (std::make_integer_sequence<int, Count>{});
}

/// 2^x to 2 units in the last place, 0 below 2^-126.
__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

struct Exp2Fast {
  __device__ float operator()(float x) const { return exp2_fast(x); }
};

/// The largest value of a row's four lanes, in all of them.
__device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0U, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0U, value, 2));
}

/// Keys [begin, end) of a row that count, for each of the two rows that a thread's fragments hold.
struct KeyRanges {
  std::int32_t begin[2];
  std::int32_t end[2];
  __device__ void move(std::int32_t keys) {
    for (int row = 0; row < 2; ++row) {
      begin[row] -= keys;
      end[row] -= keys;
    }
  }
  __device__ bool has(int row, std::int32_t key) const { return key >= begin[row] && key < end[row]; }
};

/// Floats between the rows of a tile's weights.
inline constexpr int weight_pitch = 72;

/// The weights of this lane's two neighbouring keys, `key` + 2 · (lane % 4) on, in its row half.
template <bool Masked>
__device__ float2 pair_of_weights(float const* weights, int half, int key, KeyRanges const& ranges) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  int const own = key + lane % 4 * 2;
  float2 weight = *reinterpret_cast<float2 const*>(weights + (lane / 4 + half * 8) * weight_pitch + own);
  if (Masked && !ranges.has(half, own)) weight.x = 0;
  if (Masked && !ranges.has(half, own + 1)) weight.y = 0;
  return weight;
}

/// @brief The two products of attention over one tile of keys, by warp, in fragments of the m16n8 instructions,
/// whatever computes them: lane l holds rows l / 4 and l / 4 + 8, columns 2 · (l % 4) and the next.
template <class E>
struct WarpProducts {
  static constexpr int padding = 8;  ///< elements that keep rows on different banks
  static constexpr int keys = 64;    ///< of a tile

  /// scores[n] += queries · keys of the 8 keys of tile n. @param queries [16, pitch]; @param keys [8 · Tiles, pitch]
  template <int Tiles>
  static __device__ void scores(float (&scores)[Tiles][4], E const* queries, E const* keys, int pitch, int channels) {
    static_assert(Tiles % 2 == 0);
    int const lane = static_cast<int>(threadIdx.x) % 32;
    std::uint32_t query = shared_address(queries + lane % 16 * pitch + lane / 16 * 8);
    std::uint32_t key = shared_address(keys + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
    auto const tile_bytes = static_cast<std::uint32_t>(16 * pitch * static_cast<int>(sizeof(E)));
    for (int c = 0; c < channels; c += 16) {
      std::uint32_t a[4];
      load_matrices(a, query);
#pragma unroll
      for (int n = 0; n < Tiles; n += 2) {
        std::uint32_t b[4];
        load_matrices(b, key + n / 2 * tile_bytes);
        multiply_add<E>(scores[n], a, b[0], b[1]);
        multiply_add<E>(scores[n + 1], a, b[2], b[3]);
      }
      query += 16 * sizeof(E);
      key += 16 * sizeof(E);
    }
  }

  /// sums[n] += scale · weights · values over 16 keys, for the pairs of 8 channels at `warp`, `warp + warps`, …
  /// A weight is the sum of two elements, so that it keeps its precision.
  /// @param weights at the first key; @param values [16, pitch]; @param ranges counted from the first key
  template <int Tiles, bool Masked>
  static __device__ void accumulate(float (&sums)[Tiles][4], float const* weights, float const (&scale)[2],
                                    E const* values, int pitch, KeyRanges const& ranges, int warp, int warps,
                                    int channels) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    std::uint32_t high[4];
    std::uint32_t low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 const weight = pair_of_weights<Masked>(weights, i % 2, i / 2 * 8, ranges);
      float const a = weight.x * scale[i % 2];
      float const b = weight.y * scale[i % 2];
      high[i] = pack_pair<E>(a, b);
      float2 const rounded = unpack_pair<E>(high[i]);
      low[i] = pack_pair<E>(a - rounded.x, b - rounded.y);
    }
    std::uint32_t const value =
        shared_address(values + (lane / 8 % 2 * 8 + lane % 8) * pitch + lane / 16 * 8 + warp * 16);
    int const ours = channels - warp * 16;
#pragma unroll
    for (int n = 0; n < Tiles; n += 2) {
      if (n * 8 * warps >= ours) break;
      std::uint32_t b[4];
      load_matrices_transposed(b, value + static_cast<std::uint32_t>(n * 8 * warps) * static_cast<int>(sizeof(E)));
      multiply_add<E>(sums[n], high, b[0], b[1]);
      multiply_add<E>(sums[n + 1], high, b[2], b[3]);
      multiply_add<E>(sums[n], low, b[0], b[1]);
      multiply_add<E>(sums[n + 1], low, b[2], b[3]);
    }
  }
};

/// The same without tensor cores, which would round the operands.
template <>
struct WarpProducts<float> {
  static constexpr int padding = 4;
  static constexpr int keys = 32;

  template <int Tiles>
  static __device__ void scores(float (&scores)[Tiles][4], float const* queries, float const* keys, int pitch,
                                int channels) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    float const* const query = queries + lane / 4 * pitch;
    float const* const key = keys + lane % 4 * 2 * pitch;
    for (int c = 0; c < channels; c += 4) {
      float4 const rows[2] = {*reinterpret_cast<float4 const*>(query + c),
                              *reinterpret_cast<float4 const*>(query + 8 * pitch + c)};
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float4 const q = rows[i / 2];
          float4 const k = *reinterpret_cast<float4 const*>(key + (n * 8 + i % 2) * pitch + c);
          scores[n][i] += q.x * k.x + q.y * k.y + q.z * k.z + q.w * k.w;
        }
      }
    }
  }

  template <int Tiles, bool Masked>
  static __device__ void accumulate(float (&sums)[Tiles][4], float const* weights, float const (&scale)[2],
                                    float const* values, int pitch, KeyRanges const& ranges, int warp, int warps,
                                    int channels) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    for (int key = 0; key < 16; ++key) {
      float weight[2];
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        weight[row] = weights[(lane / 4 + row * 8) * weight_pitch + key] * scale[row];
        if (Masked && !ranges.has(row, key)) weight[row] = 0;
      }
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        int const channel = (warp + n / 2 * warps) * 16 + n % 2 * 8 + lane % 4 * 2;
        if (channel >= channels) break;
        float2 const value = *reinterpret_cast<float2 const*>(values + key * pitch + channel);
        sums[n][0] += weight[0] * value.x;
        sums[n][1] += weight[0] * value.y;
        sums[n][2] += weight[1] * value.x;
        sums[n][3] += weight[1] * value.y;
      }
    }
  }
};

}  // namespace detail
HEADAWARE_NAMESPACE_END
