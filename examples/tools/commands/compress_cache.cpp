// From classified heads to a smaller cache: table of policies → compression into every form → check of every row.

#include "tools/analysis/about.hpp"
#include "tools/support/capture.hpp"
#include "tools/support/command.hpp"
#include "tools/support/memory.hpp"
#include "tools/support/options.hpp"
#include "tools/support/plan_file.hpp"
#include "tools/support/told_model.hpp"

#include <headaware/compressor.hpp>
#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/io/head_statistics.hpp>
#include <headaware/io/plan.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

struct Options {
  std::filesystem::path results_dir = "results/quickstart";
  std::filesystem::path classifications;
  std::filesystem::path plan;
  std::filesystem::path capture;
  std::string mixed = "conservative";
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t tokens = 4096;
  std::vector<std::int32_t> skip_layers;

  void add_to(CLI::App& app) {
    support::add_results_dir(app, results_dir, "folder of analyze_attention, with classifications");
    auto* const classes = support::add_policies(
        app, classifications, "classifications; default: those of the results, refined ones if there are any",
        "--classifications");
    support::add_policies(app, plan, "a plan.json instead")->excludes(classes);
    app.add_option("--capture", capture,
                   "folder of captured keys and values to compress; default: a cache of the model's shape whose every "
                   "element tells its place");
    app.add_option("--mixed", mixed, "what heads of type mixed keep: all (conservative) or 4 + 64 tokens (aggressive)")
        ->check(CLI::IsMember({"conservative", "aggressive"}));
    app.add_option("--kv_heads", num_kv_heads,
                   "KV heads per layer, where neither arrays nor results tell; default: the query heads")
        ->check(support::non_negative);
    support::add_head_dim(app, head_dim, "channels per head, where neither arrays nor results tell; default: 64");
    app.add_option("--tokens", tokens, "tokens of the cache, where no arrays were captured; also the summary's length")
        ->check(support::token_count);
    support::add_skip_layers(app, skip_layers, "layers left uncompressed");
  }
};

/// A batch in one tensor a layer, [sequences, num_kv_heads, longest, head_dim].
struct Batch {
  std::vector<std::int32_t> lengths;
  std::vector<std::uint16_t> keys;
  std::vector<std::uint16_t> values;
  std::int64_t num_layers = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t longest = 0;
  std::int64_t head_dim = 0;

  [[nodiscard]] ha::StridedLayout layout() const {
    return ha::strided_bhsd(static_cast<std::int64_t>(lengths.size()), num_kv_heads, longest, head_dim);
  }
  [[nodiscard]] std::vector<ha::LayerKv<std::uint16_t>> layers() {
    std::vector<ha::LayerKv<std::uint16_t>> result;
    for (std::int64_t layer = 0; layer < num_layers; ++layer) {
      result.push_back(
          {keys.data() + layer * layout().required_span_size(), values.data() + layer * layout().required_span_size()});
    }
    return result;
  }
};

Batch make_batch(std::vector<std::int32_t> lengths, std::int64_t num_layers, std::int64_t num_kv_heads,
                 std::int64_t head_dim) {
  Batch batch{.lengths = std::move(lengths),
              .keys = {},
              .values = {},
              .num_layers = num_layers,
              .num_kv_heads = num_kv_heads,
              .longest = 0,
              .head_dim = head_dim};
  batch.longest = *std::max_element(batch.lengths.begin(), batch.lengths.end());
  batch.keys.resize(static_cast<std::size_t>(num_layers * batch.layout().required_span_size()));
  batch.values.resize(batch.keys.size());
  return batch;
}

/// The captured sequences as one batch.
Batch captured_batch(capture::Arrays const& capture) {
  std::vector<std::int32_t> lengths;
  for (auto const& sequence : capture.sequences) lengths.push_back(static_cast<std::int32_t>(sequence.length()));
  auto const& shape = capture.sequences.front().keys.shape;
  Batch batch = make_batch(lengths, shape[0], shape[1], shape[3]);
  for (std::size_t b = 0; b < capture.sequences.size(); ++b) {
    auto const& sequence = capture.sequences[b];
    auto const from = ha::strided_bhsd(batch.num_layers, batch.num_kv_heads, sequence.length(), batch.head_dim);
    for (std::int64_t layer = 0; layer < batch.num_layers; ++layer) {
      for (std::int64_t head = 0; head < batch.num_kv_heads; ++head) {
        std::int64_t const target = layer * batch.layout().required_span_size() +
                                    batch.layout().offset(static_cast<std::int64_t>(b), head, 0, 0);
        auto const elements = sequence.length() * batch.head_dim;
        std::copy_n(sequence.keys.as<std::uint16_t>().data() + from.offset(layer, head, 0, 0), elements,
                    batch.keys.data() + target);
        std::copy_n(sequence.values.as<std::uint16_t>().data() + from.offset(layer, head, 0, 0), elements,
                    batch.values.data() + target);
      }
    }
  }
  return batch;
}

/// A cache of the model's shape whose every element tells its place, where no arrays were captured.
Batch numbered_batch(std::int32_t num_layers, std::int32_t num_kv_heads, std::int32_t tokens, std::int32_t head_dim) {
  Batch batch = make_batch({tokens}, num_layers, num_kv_heads, head_dim);
  for (std::size_t i = 0; i < batch.keys.size(); ++i) {
    batch.keys[i] = static_cast<std::uint16_t>(i * 2654435761U >> 7);
    batch.values[i] = static_cast<std::uint16_t>(i * 2246822519U >> 5);
  }
  return batch;
}

using Plan = ha::Compaction<>;
using RowOf = std::function<std::uint16_t const*(ha::Segment const&, std::int64_t slot)>;

/// Compares every kept row with its source, token by token as the policies say. Returns the rows compared.
std::int64_t verify(Plan const& plan, Batch const& batch, std::vector<std::uint16_t> const& source, RowOf const& row) {
  auto const layout = batch.layout();
  std::int64_t rows = 0;
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    ha::Segment segment = plan.segment(s);
    ha::place_in_group(plan.table(), segment);
    plan.table().visit(segment.layer, segment.kv_head, [&](auto const& policy) {
      std::int64_t slot = 0;
      for (std::int64_t token = 0; token < segment.length; ++token) {
        if (!policy.keeps(token, segment.length)) continue;
        auto const* const expected = source.data() + segment.layer * layout.required_span_size() +
                                     layout.offset(segment.sequence, segment.kv_head, token, 0);
        if (!std::equal(expected, expected + batch.head_dim, row(segment, slot))) {
          throw ha::Error({"kept row", "the source's bytes", "others",
                           "layer " + std::to_string(segment.layer) + ", KV head " + std::to_string(segment.kv_head) +
                               ", token " + std::to_string(token)});
        }
        ++slot;
        ++rows;
      }
      if (slot != segment.kept) {
        throw ha::Error({"kept rows", std::to_string(slot), std::to_string(segment.kept), "plan"});
      }
    });
  }
  return rows;
}

void report(char const* form, double seconds, std::int64_t rows_stored, Plan const& plan, Batch const& batch,
            std::int64_t rows_verified) {
  double const row_bytes = 2.0 * static_cast<double>(batch.head_dim) * sizeof(std::uint16_t);
  std::printf("  %-13s %9.2f MiB in %8.2f ms, %lld rows checked against their source\n", form,
              static_cast<double>(rows_stored) * row_bytes / 1048576, seconds * 1e3,
              static_cast<long long>(2 * rows_verified));
  if (rows_verified != plan.kept_total()) {
    throw ha::Error({"rows checked", std::to_string(plan.kept_total()), std::to_string(rows_verified), form});
  }
}

/// Seconds of the fastest of three rounds: the first also starts the threads and touches the pages.
template <class Work>
double best_of_three(Work const& work) {
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    auto const start = std::chrono::steady_clock::now();
    work();
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = round == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

/// Compresses into `rows` rows of one buffer of keys and one of values, and checks both.
template <class MakeDestination>
void run_form(char const* form, Plan const& plan, Batch& batch, std::int64_t rows, MakeDestination const& make) {
  std::vector<std::uint16_t> keys(static_cast<std::size_t>(rows * batch.head_dim));
  std::vector<std::uint16_t> values(keys.size());
  auto const kept = make(keys.data(), values.data());
  auto const layers = batch.layers();
  double const seconds = best_of_three([&] { ha::compress(plan, layers, batch.layout(), kept); });
  auto const row = [&](auto ha::LayerKv<std::uint16_t>::*tensor) {
    return [&, tensor](ha::Segment const& segment, std::int64_t slot) -> std::uint16_t const* {
      auto const layer = static_cast<std::size_t>(segment.layer);
      return kept.layers[layer].*tensor + kept.form.rows(segment, kept.capacities[layer]).offset(slot, batch.head_dim);
    };
  };
  std::int64_t const checked = verify(plan, batch, batch.keys, row(&ha::LayerKv<std::uint16_t>::keys));
  verify(plan, batch, batch.values, row(&ha::LayerKv<std::uint16_t>::values));
  report(form, seconds, rows, plan, batch, checked);
}

void compress_every_form(Plan const& plan, Batch& batch) {
  std::int64_t const dim = batch.head_dim;
  run_form("ragged", plan, batch, plan.kept_total(), [&](auto* k, auto* v) { return ha::ragged(plan, k, v, dim); });
  run_form("padded left", plan, batch, ha::padded_rows(plan),
           [&](auto* k, auto* v) { return ha::padded(plan, k, v, dim, ha::Alignment::left); });
  run_form("padded right", plan, batch, ha::padded_rows(plan),
           [&](auto* k, auto* v) { return ha::padded(plan, k, v, dim, ha::Alignment::right); });
  run_form("grouped", plan, batch, ha::grouped_rows(plan),
           [&](auto* k, auto* v) { return ha::grouped(plan, k, v, dim); });

  constexpr std::int32_t page_size = 16;
  ha::PageIndices const pages = ha::consecutive_pages(plan, page_size);
  ha::PagedForm const form{.block_table = pages.indices.data(), .indptr = pages.indptr.data(), .page_size = page_size};
  run_form("paged", plan, batch, plan.pages_total(page_size) * page_size, [&](auto* k, auto* v) {
    // All layers share one pool.
    std::vector<ha::LayerKv<std::uint16_t>> const pool(static_cast<std::size_t>(batch.num_layers), {k, v});
    return ha::paged(plan, pool, form, dim, plan.pages_total(page_size));
  });

  Batch moved = batch;
  auto const start = std::chrono::steady_clock::now();
  ha::compress_in_place(plan, moved.layers(), moved.layout());
  double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  auto const row = [&](std::vector<std::uint16_t> const& tensor) {
    return [&](ha::Segment const& segment, std::int64_t slot) -> std::uint16_t const* {
      return tensor.data() + segment.layer * moved.layout().required_span_size() +
             moved.layout().offset(segment.sequence, segment.kv_head, slot, 0);
    };
  };
  std::int64_t const checked = verify(plan, batch, batch.keys, row(moved.keys));
  verify(plan, batch, batch.values, row(moved.values));
  report("in place", seconds, plan.kept_total(), plan, batch, checked);
}

/// The classes that are named, else the best of the results.
std::filesystem::path classifications_of(Options const& options) {
  if (!options.classifications.empty()) return options.classifications;
  for (char const* const name : {"validation/refined_classifications.json", "head_classifications.json"}) {
    if (std::filesystem::exists(options.results_dir / name)) return options.results_dir / name;
  }
  throw ha::FileError({"classifications",
                       "head_classifications.json (analyze_attention makes one) or --classifications", "none",
                       options.results_dir.string()});
}

/// The heads and channels of every layer, as far as policies, arrays and options tell it. @param model  what the
/// policies tell
ha::ModelConfig model_of(ha::ModelConfig model, capture::Arrays const& capture, Options const& options) {
  if (options.classifications.empty() && options.plan.empty()) {
    if (auto const about = analysis::load_about(options.results_dir)) {
      model.num_key_value_heads = about->num_key_value_heads;
      model.head_dim = about->head_dim;
    }
  }
  if (!capture.sequences.empty()) {
    auto const mismatch = [&](char const* what, std::int64_t expected, std::int64_t got) {
      throw ha::ArgumentError(
          {what, std::to_string(expected) + " as the policies have", std::to_string(got), options.capture.string()});
    };
    auto const& sequence = capture.sequences.front();
    if (sequence.queries && sequence.queries->shape[1] != model.num_attention_heads) {
      mismatch("query heads of the capture", model.num_attention_heads, sequence.queries->shape[1]);
    }
    bool const whole_model = capture.num_layers > 0 ? capture.num_layers == model.num_hidden_layers
                                                    : capture.layers.back() < model.num_hidden_layers;
    if (sequence.keys.shape[0] != model.num_hidden_layers && !whole_model) {
      mismatch("layers of the capture", model.num_hidden_layers, sequence.keys.shape[0]);
    }
    auto const& keys = capture.sequences.front().keys.shape;
    if (!options.plan.empty() && keys[1] != model.num_key_value_heads) {
      mismatch("KV heads of the capture", model.num_key_value_heads, keys[1]);
    }
    model.num_key_value_heads = static_cast<std::int32_t>(keys[1]);
    model.head_dim = static_cast<std::int32_t>(keys[3]);
    if (options.num_kv_heads > 0 || options.head_dim > 0) {
      std::fprintf(stderr, "note: the arrays tell the KV heads and head_dim; --kv_heads and --head_dim are not used\n");
    }
  } else {
    if (options.num_kv_heads > 0 && !options.plan.empty()) {
      std::fprintf(stderr, "note: the plan tells the KV heads; --kv_heads is not used\n");
    } else if (options.num_kv_heads > 0) {
      model.num_key_value_heads = options.num_kv_heads;
    }
    if (options.head_dim > 0) model.head_dim = options.head_dim;
  }
  model.validate();
  return model;
}

/// Reads the model's shape from the file, or, of classes whose layers slide, from the statistics beside it.
support::Told shape_of(std::filesystem::path const& path, Options const& options) {
  if (!options.plan.empty()) {
    ha::PolicyPlan const plan = ha::load_plan(path);
    if (plan.layers.num_layers() > 0) return support::told_by(plan.layers, path);
    return {{plan.num_layers, plan.num_heads, plan.num_kv_heads, 64}, {}};
  }
  if (options.classifications.empty()) analysis::warn_if_partial(options.results_dir);
  for (auto const& folder : {path.parent_path(), options.results_dir}) {
    auto const statistics = folder / "head_statistics.json";
    if (!std::filesystem::exists(statistics)) continue;
    auto const layers = ha::load_statistics(statistics).model_info.layers;
    if (layers.num_layers() > 0) return support::told_by(layers, statistics);
    break;
  }
  std::vector<ha::HeadClassification> const classes = ha::load_classifications(path);
  auto const shape = ha::grid_shape(std::span<ha::HeadClassification const>(classes));
  return {{shape.layers, shape.heads, shape.heads, 64}, {}};
}

int run(Options const& options) {
  capture::Arrays const capture = options.capture.empty() ? capture::Arrays{} : capture::load_arrays(options.capture);
  bool const captured = !capture.sequences.empty();
  if (!options.capture.empty() && !captured) {
    throw ha::FormatError({"captured arrays", "NAME_k.npy and NAME_v.npy", "none", options.capture.string()});
  }
  std::filesystem::path const path = options.plan.empty() ? classifications_of(options) : options.plan;
  support::Told const told = shape_of(path, options);
  ha::ModelConfig const model = model_of(told.each, capture, options);
  std::printf("%s: %s\nmodel: %d layers, %d query heads, %d KV heads, head_dim %d\n\n",
              options.plan.empty() ? "classes" : "plan", path.c_str(), model.num_hidden_layers,
              model.num_attention_heads, model.num_key_value_heads, model.head_dim);

  auto const types = options.mixed == "aggressive" ? ha::TypePolicies::aggressive() : ha::TypePolicies::conservative();
  auto const compressor = ha::Compressor::from_policies(path, told.shape(model), types);
  std::printf("policies of the KV heads%s, %d tokens:\n%s\n",
              options.plan.empty() ? " (query heads folded by union)" : "", options.tokens,
              to_string(compressor.compression_summary(options.tokens)).c_str());

  // Keys and values in halves, once as they are and once compressed.
  double const elements = static_cast<double>(model.num_hidden_layers) * model.num_key_value_heads *
                          static_cast<double>(options.tokens) * model.head_dim;
  if (!captured) support::require_memory(8 * elements, "a cache of so many tokens", "--tokens");
  Batch batch =
      captured ? captured_batch(capture)
               : numbered_batch(model.num_hidden_layers, model.num_key_value_heads, options.tokens, model.head_dim);
  auto table = compressor.table().skip_layers(options.skip_layers);
  // The classes may be of the captured layers alone, or of the whole model.
  bool const all_layers = batch.num_layers == model.num_hidden_layers;
  if (!all_layers) table = table.select_layers(capture.layers);
  Plan const plan(table, batch.lengths);

  std::printf("compressing %s: %lld layers, %zu sequence%s of",
              captured ? "captured keys and values" : "a numbered cache", static_cast<long long>(batch.num_layers),
              batch.lengths.size(), batch.lengths.size() == 1 ? "" : "s");
  for (std::int32_t const length : batch.lengths) std::printf(" %d", length);
  std::printf(" tokens\n");
  if (captured) {
    std::printf("  (the model's layers");
    for (std::int32_t const layer : capture.layers) std::printf(" %d", layer);
    std::printf(")\n");
  }
  compress_every_form(plan, batch);

  auto const token = ha::TokenBytes::of(batch.head_dim, sizeof(std::uint16_t));
  std::printf("\nbefore\n%s\nafter\n%s", to_string(ha::full_cache_info(plan, token)).c_str(),
              to_string(ha::cache_info(plan, token)).c_str());
  if (support::is_of_a_plan(path)) return 0;
  std::printf(
      "\nnote: rules of head types are for reading a model; at equal memory uniform windows lose less than they "
      "do, and plans that 'analyze_attention --plan' measures lose least\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(
      argc, argv, "Compresses a KV cache head by head into every form, and checks every kept row against its source",
      run);
}
