// Several processes observe a text together: each takes every so many pieces of it, and one reduction of plain sums
// gives the statistics of all. On several GPUs it is the same with one observer a GPU (or ncclAllReduce of the sums).
//
//   mpirun -n 4 07_mpi_observe [folder of captured arrays [output folder]]

#include "tools/analysis/captured_source.hpp"

#include <headaware/io/json.hpp>
#include <headaware/stats/attention_observer.hpp>

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <variant>
#include <vector>

namespace ha = headaware;

namespace {

/// The pieces first, first + step, … of a source.
ha::AttentionObserver observe(analysis::AttentionSource& source, ha::ObserverParameters const& parameters,
                              std::size_t first, std::size_t step) {
  ha::AttentionObserver observer(source.model(), parameters);
  for (std::size_t text = first; text < source.texts().size(); text += step) {
    source.run(text, [&](analysis::LayerAttention const& attention) {
      std::visit([&](auto const& qkv) { observer.observe(attention.layer, qkv, attention.score); }, attention.qkv);
    });
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

int run(std::filesystem::path const& capture, std::filesystem::path const& output_dir) {
  int rank = 0;
  int ranks = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);

  analysis::CapturedSource source(capture, 64, 0);
  ha::ObserverParameters parameters;
  parameters.retention = ha::RetentionGrid::up_to(64);
  ha::AttentionObserver const mine =
      observe(source, parameters, static_cast<std::size_t>(rank), static_cast<std::size_t>(ranks));

  std::vector<double> sums = mine.sums();
  MPI_Reduce(rank == 0 ? MPI_IN_PLACE : sums.data(), sums.data(), static_cast<int>(sums.size()), MPI_DOUBLE, MPI_SUM, 0,
             MPI_COMM_WORLD);
  if (rank != 0) return 0;

  ha::AttentionObserver all(source.model(), parameters);
  all.add_sums(sums);
  std::filesystem::create_directories(output_dir);
  ha::save_statistics(output_dir / "head_statistics.json", all.statistics());
  ha::save_retention_statistics(output_dir / "retention_statistics.json", all.retention_statistics());
  std::printf("%d processes, %zu pieces of text: wrote head_statistics.json and retention_statistics.json to %s\n",
              ranks, source.texts().size(), output_dir.c_str());

  // One process over the whole text must come to the same.
  double const difference = largest_difference(sums, observe(source, parameters, 0, 1).sums());
  std::printf("largest relative difference of a sum from one process's: %.1e\n", difference);
  return difference <= 1e-12 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int result = 1;
  try {
    result = run(argc > 1 ? argv[1] : HEADAWARE_EXAMPLE_DATA "/smollm2-135m", argc > 2 ? argv[2] : "results/mpi");
  } catch (std::exception const& error) {
    std::fprintf(stderr, "07_mpi_observe: %s\n", error.what());
  }
  if (result != 0) MPI_Abort(MPI_COMM_WORLD, result);
  MPI_Finalize();
  return 0;
}
