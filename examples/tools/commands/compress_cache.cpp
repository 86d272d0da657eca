// From classified heads to a smaller cache: table of policies → compression into every form → check of every row.

#include "tools/analysis/about.hpp"
#include "tools/analysis/attention_source.hpp"
#include "tools/support/best_time.hpp"
#include "tools/support/cache_batch.hpp"
#include "tools/support/capture.hpp"
#include "tools/support/command.hpp"
#include "tools/support/format_options.hpp"
#include "tools/support/memory.hpp"
#include "tools/support/options.hpp"
#include "tools/support/packed_report.hpp"
#include "tools/support/plan_file.hpp"

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
#include <optional>
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
  std::int32_t tokens = 0;  ///< 0: not given
  std::vector<std::int32_t> skip_layers;
  std::optional<support::FormatsWanted> formats;  ///< else those of the plan

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
    app.add_option("--tokens", tokens,
                   "tokens of the cache, where no arrays were captured; also the summary's length; default: the plan's "
                   "context, else 4096")
        ->check(support::token_count);
    support::add_skip_layers(app, skip_layers, "layers left uncompressed");
    app.add_option_function<std::string>(
        "--formats", [this](std::string const& text) { formats = support::parse_formats({text}); },
        "formats of keys and values of all heads, such as packed5/packed4; 16: none but 16 bits; default: those of the "
        "plan");
  }
};

using Plan = ha::Compaction<>;
using Batch = support::CacheBatch;
using Kv = ha::LayerKv<std::uint16_t>;
using KeyOrValue = std::uint16_t* Kv::*;
using RowOf = std::function<std::uint16_t const*(ha::Segment const&, KeyOrValue, std::int64_t slot)>;

/// Compares every kept row of keys or values with its source, token by token as the policies say. Returns the rows
/// compared: of values none where layers hold latents.
std::int64_t verify(Plan const& plan, Batch const& batch, KeyOrValue which, RowOf const& row) {
  bool const keys = which == &Kv::keys;
  std::int64_t rows = 0;
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    ha::Segment segment = plan.segment(s);
    ha::place_in_group(plan.table(), segment);
    ha::RowChannels const& of_layer = batch.channels().of(static_cast<std::size_t>(segment.layer));
    std::int64_t const channels = keys ? of_layer.head_dim : of_layer.value_dim;
    if (channels == 0) continue;
    plan.table().visit(segment.layer, segment.kv_head, [&](auto const& policy) {
      std::int64_t slot = 0;
      for (std::int64_t token = 0; token < segment.length; ++token) {
        if (!policy.keeps(token, segment.length)) continue;
        auto const* const expected = keys ? batch.key(segment.layer, segment.sequence, segment.kv_head, token)
                                          : batch.value(segment.layer, segment.sequence, segment.kv_head, token);
        if (!std::equal(expected, expected + channels, row(segment, which, slot))) {
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

/// Checks keys and values, and says what the form took. @param stored  bytes of its buffers
void check(char const* form, double seconds, std::int64_t stored, Plan const& plan, Batch const& batch,
           RowOf const& row) {
  std::int64_t const keys = verify(plan, batch, &Kv::keys, row);
  std::int64_t const values = verify(plan, batch, &Kv::values, row);
  std::printf("  %-13s %9.2f MiB in %8.2f ms, %lld rows checked against their source\n", form,
              static_cast<double>(stored) / 1048576, seconds * 1e3, static_cast<long long>(keys + values));
  if (keys != plan.kept_total()) {
    throw ha::Error({"rows checked", std::to_string(plan.kept_total()), std::to_string(keys), form});
  }
}

/// Bytes of one token of every layer.
ha::LayerBytes token_bytes(Batch const& batch) { return {batch.shape(), sizeof(std::uint16_t)}; }

/// Compresses into one buffer of keys and one of values, and checks both.
/// @param stored  bytes that the form's rows take
template <class MakeDestination>
void run_form(char const* form, Plan const& plan, Batch& batch, ha::RowChannels const& elements, std::int64_t stored,
              MakeDestination const& make) {
  std::vector<std::uint16_t> keys(static_cast<std::size_t>(elements.head_dim));
  std::vector<std::uint16_t> values(static_cast<std::size_t>(elements.value_dim));
  auto const kept = make(keys.data(), values.data());
  auto const layers = batch.layers();
  double const seconds =
      support::best_of_three([&] { ha::compress(plan, layers, ha::per_layer(batch.layouts()), kept); });
  check(form, seconds, stored, plan, batch, [&](ha::Segment const& segment, KeyOrValue which, std::int64_t slot) {
    auto const layer = static_cast<std::size_t>(segment.layer);
    ha::RowChannels const& channels = kept.channels.of(layer);
    return kept.layers[layer].*which + kept.form.rows(segment, kept.capacities[layer])
                                           .offset(slot, which == &Kv::keys ? channels.head_dim : channels.value_dim);
  });
}

void compress_every_form(Plan const& plan, Batch& batch) {
  ha::LayerChannels const& channels = batch.channels();
  ha::LayerBytes const token = token_bytes(batch);
  // @param rows  (layer) to the rows of all heads and sequences
  auto const run = [&](char const* form, auto const& rows, auto const& make) {
    auto const elements = ha::buffer_elements(channels, plan.num_layers(), rows);
    auto const bytes = (elements.head_dim + elements.value_dim) * std::int64_t{sizeof(std::uint16_t)};
    run_form(form, plan, batch, elements, bytes, make);
  };
  run(
      "ragged", [&](auto layer) { return plan.kept_total(layer); },
      [&](auto* k, auto* v) { return ha::ragged(plan, k, v, channels); });
  auto const padded_rows = [&](auto layer) { return plan.layer_segments(layer) * plan.max_kept(layer); };
  run("padded left", padded_rows,
      [&](auto* k, auto* v) { return ha::padded(plan, k, v, channels, ha::Alignment::left); });
  run("padded right", padded_rows,
      [&](auto* k, auto* v) { return ha::padded(plan, k, v, channels, ha::Alignment::right); });
  run(
      "grouped", [&](auto layer) { return plan.grouped_capacity(layer).rows; },
      [&](auto* k, auto* v) { return ha::grouped(plan, k, v, channels); });

  constexpr std::int32_t page_size = 16;
  ha::PageIndices const pages = ha::consecutive_pages(plan, page_size);
  // All layers share one pool, whose pages have room for the widest rows.
  std::int64_t const page = channels.page_stride(page_size);
  std::int64_t const pool = plan.pages_total(page_size) * page;
  ha::PagedForm const form{
      .block_table = pages.indices.data(), .indptr = pages.indptr.data(), .page_size = page_size, .page_stride = page};
  run_form("paged", plan, batch, {pool, pool}, plan.bytes_held_paged(page_size, token), [&](auto* k, auto* v) {
    std::vector<Kv> const layers(static_cast<std::size_t>(plan.num_layers()), {k, v});
    return ha::paged(plan, layers, form, channels, plan.pages_total(page_size));
  });

  Batch moved = batch;
  auto const start = std::chrono::steady_clock::now();
  ha::compress_in_place(plan, moved.layers(), ha::per_layer(moved.layouts()));
  double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  check("in place", seconds, plan.bytes_held(token), plan, batch,
        [&](ha::Segment const& segment, KeyOrValue which, std::int64_t slot) {
          return which == &Kv::keys ? moved.key(segment.layer, segment.sequence, segment.kv_head, slot)
                                    : moved.value(segment.layer, segment.sequence, segment.kv_head, slot);
        });
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

/// Checks what a capture holds of a model. @param expected, got  nothing where they agree
void require_same(bool same, char const* what, std::int64_t expected, std::int64_t got, Options const& options,
                  std::string const& where = {}) {
  if (same) return;
  throw ha::ArgumentError({what, std::to_string(expected) + " as the policies have", std::to_string(got),
                           options.capture.string() + where});
}

/// @throws ArgumentError unless the captured layers are all of a model's, or some that they name
void require_layers(capture::Arrays const& capture, std::int32_t num_layers, Options const& options) {
  auto const captured = std::ssize(capture.each);
  bool const whole_model =
      capture.num_layers > 0 ? capture.num_layers == num_layers : capture.layers.back() < num_layers;
  require_same(captured == num_layers || whole_model, "layers of the capture", num_layers, captured, options);
}

/// The shape of a model whose layers are all alike. @param model  what the policies tell
ha::ModelShape uniform_model(ha::ModelConfig model, capture::Arrays const& capture, Options const& options) {
  if (options.classifications.empty() && options.plan.empty()) {
    if (auto const about = analysis::load_about(options.results_dir)) {
      model.num_key_value_heads = about->num_key_value_heads;
      model.head_dim = about->head_dim;
    }
  }
  if (!capture.sequences.empty()) {
    ha::LayerShape const& layer = capture.each.front().shape;
    std::int32_t const heads = layer.num_query_heads;
    bool const asked = capture.sequences.front().has_queries();
    require_same(!asked || heads == model.num_attention_heads, "query heads of the capture", model.num_attention_heads,
                 heads, options);
    require_layers(capture, model.num_hidden_layers, options);
    require_same(options.plan.empty() || layer.num_kv_heads == model.num_key_value_heads, "KV heads of the capture",
                 model.num_key_value_heads, layer.num_kv_heads, options);
    model.num_key_value_heads = layer.num_kv_heads;
    model.head_dim = static_cast<std::int32_t>(layer.head_dim);
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
  return model;
}

/// The shape of a model whose layers differ, its channels as captured where the policies do not tell them.
ha::ModelShape differing_model(ha::ModelShape const& told, capture::Arrays const& capture, Options const& options) {
  std::vector<ha::LayerShape> layers(told.layers().begin(), told.layers().end());
  if (!capture.sequences.empty()) require_layers(capture, told.num_layers(), options);
  bool const all = std::ssize(capture.each) == told.num_layers();
  for (std::size_t i = 0; i < capture.each.size(); ++i) {
    ha::LayerShape const& got = capture.each[i].shape;
    ha::LayerShape& layer = layers[all ? i : static_cast<std::size_t>(capture.layers[i])];
    auto const same = [&](char const* what, std::int64_t a, std::int64_t b, bool known = true) {
      require_same(!known || a == b, what, a, b, options, ", layer " + std::to_string(capture.layers[i]));
    };
    same("KV heads of a captured layer", layer.has_cache() ? layer.num_kv_heads : 0, got.num_kv_heads);
    same("query heads of a captured layer", layer.num_query_heads, got.num_query_heads,
         capture.sequences.front().has_queries());
    same("window of a captured layer", layer.window, got.window);
    bool const latent = layer.kind == ha::LayerKind::latent;
    same("latents of a captured layer", latent ? 1 : 0, got.kind == ha::LayerKind::latent ? 1 : 0);
    same("channels of a key of a captured layer", layer.head_dim, got.head_dim, layer.head_dim > 0);
    same("channels of a value of a captured layer", layer.value_dim, got.value_dim, layer.value_dim > 0);
    layer.head_dim = got.head_dim;
    layer.value_dim = got.value_dim;
  }
  bool used = options.head_dim == 0;
  for (ha::LayerShape& layer : layers) {
    if (layer.attends() && layer.head_dim == 0) {
      layer.head_dim = options.head_dim > 0 ? options.head_dim : 64;
      used = true;
    }
    if (layer.cache_layer < 0) continue;
    layer.head_dim = layers[static_cast<std::size_t>(layer.cache_layer)].head_dim;
    layer.value_dim = layers[static_cast<std::size_t>(layer.cache_layer)].value_dim;
  }
  if (options.num_kv_heads > 0 || !used) {
    std::fprintf(stderr,
                 "note: policies and arrays tell every layer's shape; --kv_heads and --head_dim are not used\n");
  }
  return ha::ModelShape(std::move(layers));
}

/// The model's shape as the file of policies tells it, or, of classes whose layers differ, the statistics beside it; as
/// far as it does not, as the arrays and the options do.
/// @param plan  the file, if it is one
ha::ModelShape model_of(std::filesystem::path const& path, std::optional<ha::PolicyPlan> const& plan,
                        capture::Arrays const& capture, Options const& options) {
  if (plan) {
    if (plan->layers.num_layers() > 0) return differing_model(plan->layers, capture, options);
    auto const channels = static_cast<std::int32_t>(plan->by_bytes() ? plan->options.formats.head_dim : 64);
    return uniform_model({plan->num_layers, plan->num_heads, plan->num_kv_heads, channels}, capture, options);
  }
  if (options.classifications.empty()) analysis::warn_if_partial(options.results_dir);
  for (auto const& folder : {path.parent_path(), options.results_dir}) {
    auto const statistics = folder / "head_statistics.json";
    if (!std::filesystem::exists(statistics)) continue;
    auto const layers = ha::load_statistics(statistics).model_info.layers;
    if (layers.num_layers() > 0) return differing_model(layers, capture, options);
    break;
  }
  std::vector<ha::HeadClassification> const classes = ha::load_classifications(path);
  auto const shape = ha::grid_shape(std::span<ha::HeadClassification const>(classes));
  return uniform_model({shape.layers, shape.heads, shape.heads, 64}, capture, options);
}

/// Formats of the model's heads; empty: 16 bits, moved as they are.
ha::FormatTable formats_of(std::filesystem::path const& path, ha::ModelShape const& model, Options const& options) {
  if (!options.formats) return support::formats_of_file(path, model);
  if (options.formats->measured || options.formats->pairs.size() > 1) {
    throw ha::ArgumentError({"--formats", "one pair, such as packed5/packed4, or 16", "more than one", ""});
  }
  return options.formats->pairs.empty() ? ha::FormatTable{} : ha::FormatTable(model, options.formats->pairs.front());
}

int run(Options const& options) {
  capture::Arrays const capture = options.capture.empty() ? capture::Arrays{} : capture::load_arrays(options.capture);
  bool const captured = !capture.sequences.empty();
  if (!options.capture.empty() && !captured) {
    throw ha::FormatError({"captured arrays", "NAME_k.npy and NAME_v.npy", "none", options.capture.string()});
  }
  std::filesystem::path const path = options.plan.empty() ? classifications_of(options) : options.plan;
  std::optional<ha::PolicyPlan> given;
  if (!options.plan.empty()) given = ha::load_plan(path);
  ha::ModelShape const model = model_of(path, given, capture, options);
  std::int32_t tokens = options.tokens;
  if (tokens == 0) tokens = given ? static_cast<std::int32_t>(given->context) : 4096;
  std::printf("%s: %s\nmodel: %s\n\n", options.plan.empty() ? "classes" : "plan", path.c_str(),
              analysis::shape_text(model).c_str());

  auto const types = options.mixed == "aggressive" ? ha::TypePolicies::aggressive() : ha::TypePolicies::conservative();
  auto const compressor = ha::Compressor::from_policies(path, model, types);
  ha::FormatTable const formats = formats_of(path, model, options);
  std::printf("policies of the KV heads%s, %d tokens:\n%s\n",
              options.plan.empty() ? " (query heads folded by union)" : "", tokens,
              to_string(compressor.compression_summary(tokens)).c_str());

  // Keys and values in halves, once as they are and once compressed.
  double elements = 0;
  for (ha::LayerShape const& layer : model.layers()) {
    elements += static_cast<double>(layer.token_bytes(1).total()) * layer.num_kv_heads * tokens;
  }
  if (!captured) support::require_memory(4 * elements, "a cache of so many tokens", "--tokens");
  Batch batch = captured ? Batch::captured(capture) : Batch::numbered(model, tokens);
  auto table = compressor.table().skip_layers(options.skip_layers);
  // The classes may be of the captured layers alone, or of the whole model.
  bool const some = batch.shape().num_layers() != model.num_layers();
  if (some) table = table.select_layers(capture.layers);
  Plan const plan(table, batch.lengths());

  std::printf("compressing %s: %lld layers, %zu sequence%s of",
              captured ? "captured keys and values" : "a numbered cache",
              static_cast<long long>(batch.shape().num_layers()), batch.lengths().size(),
              batch.lengths().size() == 1 ? "" : "s");
  for (std::int32_t const length : batch.lengths()) std::printf(" %d", length);
  std::printf(" tokens\n");
  if (captured) {
    std::printf("  (the model's layers");
    for (std::int32_t const layer : capture.layers) std::printf(" %d", layer);
    std::printf(")\n");
  }
  if (formats.num_layers() > 0) {
    auto const of_batch = support::batch_formats(
        formats, batch.shape(), some ? capture.layers : std::vector<std::int32_t>{}, options.skip_layers);
    support::compress_packed(plan, batch, of_batch, captured);
  } else {
    compress_every_form(plan, batch);
    ha::LayerBytes const token = token_bytes(batch);
    std::printf("\nbefore\n%s\nafter\n%s", to_string(ha::full_cache_info(plan, token)).c_str(),
                to_string(ha::cache_info(plan, token)).c_str());
  }
  if (support::is_of_a_plan(path)) return 0;
  std::printf(
      "\nnote: rules of head types are for reading a model; at equal memory uniform windows lose less than they "
      "do, and plans that 'analyze_attention --plan' measures lose least\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return support::run_command<Options>(argc, argv,
                                       "Compresses a KV cache head by head into every form (encoded rows: ragged, "
                                       "padded and grouped), and checks every kept row against its source",
                                       run);
}
