// A decoding loop on rolling caches, from end to end: a small transformer with random weights reads a prompt densely,
// its cache is compressed head by head in one call, and decoding goes on from there, layer by layer, by `append` and
// `attend`. Every output is compared with dense attention over all tokens under the policies' masks, and bytes and time
// with the same loop on a full cache. On the CPU, and on CUDA where there is a device.
//
// Weights are multiplied on the host for both back ends: on CUDA, queries, keys and values of each layer go to the
// device and its attention comes back, and all of that counts as time in the cache.

#include "decode_loop/backend.hpp"
#include "decode_loop/decode.hpp"
#include "decode_loop/dense_check.hpp"
#include "decode_loop/model.hpp"
#include "decode_loop/prefill.hpp"
#include "tools/support/command.hpp"
#include "tools/support/memory.hpp"
#include "tools/support/validators.hpp"

#include <headaware/policy/table.hpp>

#include <CLI/CLI.hpp>

#ifdef _OPENMP
#include <omp.h>
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

namespace ha = headaware;

namespace {

struct Options {
  decode_loop::Shape shape;
  std::int32_t prompt = 256;
  std::int32_t steps = 1000;
  std::uint64_t seed = 1;
  std::int32_t threads = 1;  ///< a model this small is read sooner than other threads wake
  /// Both sides read the same float16 keys and values, so only single precision's rounding differs. Logits reach about
  /// 15 here: rounded by some 1e-6, they change weights by as much, and so outputs, whose values are a few units large;
  /// 6e-6 is the most that was seen. One token too many or too few, of average weight, would change them by 1e-4 and
  /// more.
  double tolerance = 2e-5;
};

/// Policies that differ within each layer. A head that keeps everything is rare, as it is the one that costs.
ha::PolicyTable policies_by_head(decode_loop::Shape const& shape) {
  using Policy = ha::PolicyTable::Policy;
  std::array<Policy, 8> const palette{ha::SinkWindow{.sink = 4, .window = 124},
                                      ha::WindowOnly{.window = 64},
                                      ha::Full{},
                                      ha::SinkWindow{.sink = 4, .window = 60},
                                      ha::SinkWindow{.sink = 16, .window = 240},
                                      ha::WindowOnly{.window = 33},
                                      ha::Prune{},
                                      ha::SinkWindow{.sink = 1, .window = 127}};
  ha::PolicyTable table(shape.layers, shape.num_kv_heads);
  std::size_t next = 0;
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    for (std::int32_t head = 0; head < shape.num_kv_heads; ++head) {
      table.set(layer, head, palette[next++ % palette.size()]);
    }
  }
  return table;
}

void print_policies(ha::PolicyTable const& table) {
  std::map<std::string, int> heads;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(); ++head) {
      ++heads[table.visit(layer, head, [](auto const& policy) { return std::string(policy.name); })];
    }
  }
  std::printf("by head:");
  for (auto const& [name, count] : heads) std::printf(" %d %s", count, name.c_str());
  std::printf("\n");
}

/// What one way to hold the cache costs.
struct Cost {
  double mebibytes = 0;
  double token_us = 0;
  double cache_us = 0;  ///< of a token's time: appending and attending
  double difference = 0;
};

Cost run(decode_loop::Model const& model, decode_loop::Prefilled const& prompt, decode_loop::Backend const& backend,
         ha::PolicyTable const& table, char const* policies, Options const& options) {
  auto const cache = backend.make(table, prompt, options.prompt + options.steps);
  auto decoded = decode_loop::decode(model, prompt, *cache, options.steps, options.seed);
  double const us_a_step = 1e6 / options.steps;
  return {.mebibytes = static_cast<double>(cache->bytes()) / 1048576,
          .token_us = decoded.seconds * us_a_step,
          .cache_us = decoded.cache_seconds * us_a_step,
          .difference = decode_loop::check_against_dense(table, prompt, decoded.trace, options.tolerance,
                                                         backend.name + ", " + policies)};
}

void print_line(decode_loop::Backend const& backend, char const* policies, Cost const& cost, Cost const& full) {
  auto const column = [](double part, double whole) { std::printf("%10.2f %5.1f%%", part, 100 * part / whole); };
  std::printf("%-5s %-8s", backend.name.c_str(), policies);
  column(cost.mebibytes, full.mebibytes);
  column(cost.token_us, full.token_us);
  column(cost.cache_us, full.cache_us);
  std::printf("%13.1e\n", cost.difference);
}

/// About what weights, cache, and the trace that is checked take. In doubles, for sizes from a command line overflow.
double bytes_of(decode_loop::Shape const& shape, double tokens) {
  double const hidden = static_cast<double>(shape.num_query_heads) * static_cast<double>(shape.head_dim);
  double const kv = static_cast<double>(shape.num_kv_heads) * static_cast<double>(shape.head_dim);
  return shape.layers * (4 * hidden * (8 * hidden + 2 * kv) + tokens * (8 * hidden + 16 * kv));
}

void run_all(Options const& options) {
  decode_loop::Shape const& shape = options.shape;
  support::require_memory(bytes_of(shape, static_cast<double>(options.prompt) + options.steps),
                          "a model and a text of these sizes", "--layers, --heads, --head_dim, --prompt, --steps");
  ha::PolicyTable const full(shape.layers, shape.num_kv_heads, ha::Full{});
  ha::PolicyTable const by_head = policies_by_head(shape);
  std::printf("%d layers, %d query heads on %d KV heads of %lld channels, float16 cache; %d tokens read, %d decoded\n",
              shape.layers, shape.num_query_heads, shape.num_kv_heads, static_cast<long long>(shape.head_dim),
              options.prompt, options.steps);
  print_policies(by_head);

  decode_loop::Model const model(shape, options.seed);
  auto const prompt = decode_loop::prefill(model, options.prompt, options.seed);
  std::array const backends{decode_loop::cpu_backend(), decode_loop::cuda_backend()};
  for (auto const& backend : backends) {
    std::printf("%s: %s%s\n", backend.name.c_str(), backend.device.c_str(), backend.make ? "" : "; not run");
  }
  std::printf("\n%14s%17s%17s%17s%13s\n", "cache", "held, MiB", "us a token", "of it in cache", "difference");
  for (auto const& backend : backends) {
    if (!backend.make) continue;
    Cost const full_cost = run(model, prompt, backend, full, "full", options);
    print_line(backend, "full", full_cost, full_cost);
    print_line(backend, "by head", run(model, prompt, backend, by_head, "by head", options), full_cost);
  }
  std::printf("\nevery head of every step is within %g of dense attention over all tokens under its policy's mask\n",
              options.tolerance);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app{"Decodes on a cache compressed head by head, checked against dense attention at every step"};
  app.add_option("--layers", options.shape.layers)->check(support::positive)->capture_default_str();
  app.add_option("--heads", options.shape.num_query_heads, "query heads")
      ->check(support::positive)
      ->capture_default_str();
  app.add_option("--kv_heads", options.shape.num_kv_heads, "KV heads, a divisor of the query heads")
      ->check(support::positive)
      ->capture_default_str();
  app.add_option("--head_dim", options.shape.head_dim, "channels of a head")
      ->check(support::positive)
      ->capture_default_str();
  app.add_option("--prompt", options.prompt, "tokens to read before decoding")
      ->check(support::token_count)
      ->capture_default_str();
  app.add_option("--steps", options.steps, "tokens to decode")->check(support::token_count)->capture_default_str();
  app.add_option("--seed", options.seed, "of weights and tokens")->check(support::non_negative)->capture_default_str();
  app.add_option("--threads", options.threads, "of the CPU's attention")
      ->check(support::thread_range())
      ->capture_default_str();
  app.add_option("--tolerance", options.tolerance, "largest difference from dense attention that is no error")
      ->check(support::non_negative)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
#ifdef _OPENMP
  omp_set_num_threads(options.threads);
#endif
  return support::run_command("decode_loop", [&] {
    run_all(options);
    return 0;
  });
}
