// Several processes observe texts together: each takes every so many of them, and one reduction of plain sums gives the
// statistics of all. On several GPUs it is the same with one observer per GPU (or ncclAllReduce of the sums).
//
//   mpirun -n 4 07_mpi_observe [output folder]

#include <headaware/io/json.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <vector>

namespace ha = headaware;

namespace {

constexpr ha::ModelConfig model{
    .num_hidden_layers = 2, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 32};
constexpr std::int64_t tokens = 128;
constexpr int texts = 10;

/// An engine's tensor of one layer of one text, [tokens, heads, head_dim]; here numbers that look random.
std::vector<float> tensor(int text, std::int32_t layer, std::int32_t heads, std::uint32_t seed) {
  std::vector<float> result(static_cast<std::size_t>(tokens * heads * model.head_dim));
  std::uint32_t state = seed + 977U * static_cast<std::uint32_t>(text) + 131U * static_cast<std::uint32_t>(layer);
  for (float& x : result) {
    state = state * 1664525U + 1013904223U;
    x = static_cast<float>(state >> 8U) / (1U << 23U) - 1;
  }
  return result;
}

/// Observes the texts first, first + step, …
ha::AttentionObserver observe(ha::ObserverParameters const& parameters, int first, int step) {
  ha::AttentionObserver observer(model, parameters);
  for (int text = first; text < texts; text += step) {
    for (std::int32_t layer = 0; layer < model.num_hidden_layers; ++layer) {
      auto const queries = tensor(text, layer, model.num_attention_heads, 1);
      auto const keys = tensor(text, layer, model.num_key_value_heads, 2);
      auto const values = tensor(text, layer, model.num_key_value_heads, 3);
      ha::LayerQkv<float, ha::StridedLayout, ha::StridedLayout> qkv;
      qkv.queries = queries.data();
      qkv.keys = keys.data();
      qkv.values = values.data();
      qkv.query_layout = ha::strided_bshd(1, tokens, model.num_attention_heads, model.head_dim);
      qkv.key_layout = ha::strided_bshd(1, tokens, model.num_key_value_heads, model.head_dim);
      qkv.value_layout = qkv.key_layout;
      qkv.num_query_heads = model.num_attention_heads;
      qkv.num_kv_heads = model.num_key_value_heads;
      qkv.tokens = tokens;
      qkv.head_dim = model.head_dim;
      observer.observe(layer, qkv, {.scale = 1});
    }
  }
  return observer;
}

double largest_difference(std::vector<double> const& a, std::vector<double> const& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(a[i] - b[i]) / std::max(1.0, std::abs(b[i])));
  }
  return most;
}

int run(std::filesystem::path const& output_dir) {
  int rank = 0;
  int ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);

  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid::up_to(tokens);
  std::vector<double> sums = observe(parameters, rank, ranks).sums();
  MPI_Reduce(rank == 0 ? MPI_IN_PLACE : sums.data(), sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM, 0,
             MPI_COMM_WORLD);
  if (rank != 0) return 0;

  ha::AttentionObserver all(model, parameters);
  all.add_sums(sums);
  std::filesystem::create_directories(output_dir);
  ha::save_statistics(output_dir / "head_statistics.json", all.statistics());
  ha::save_retention_statistics(output_dir / "retention_statistics.json", all.retention_statistics());
  std::printf("%d processes, %d texts: wrote head_statistics.json and retention_statistics.json to %s\n", ranks, texts,
              output_dir.c_str());

  // One process over all texts must come to the same.
  double const difference = largest_difference(sums, observe(parameters, 0, 1).sums());
  std::printf("largest relative difference of a sum from one process's: %.1e\n", difference);
  return difference <= 1e-12 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int result = 1;
  try {
    result = run(argc > 1 ? argv[1] : "results/mpi");
  } catch (std::exception const& error) {
    std::fprintf(stderr, "07_mpi_observe: %s\n", error.what());
  }
  if (result != 0) MPI_Abort(MPI_COMM_WORLD, result);
  MPI_Finalize();
  return 0;
}
