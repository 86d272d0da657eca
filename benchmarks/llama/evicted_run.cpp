#include "llama/evicted_run.hpp"

#include "llama/timing.hpp"
#include "tools/llama/cached_model.hpp"
#include "tools/llama/engine_reader.hpp"
#include "tools/llama/loss_store.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/json_text.hpp"
#include "tools/support/progress.hpp"

#include <headaware/cache/compact.hpp>
#include <headaware/cache/compaction.hpp>
#include <headaware/cache/pack.hpp>
#include <headaware/cache/packed_rolling.hpp>
#include <headaware/cache/rolling.hpp>
#include <headaware/classify/builders.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/io/content_hash.hpp>
#include <headaware/io/file.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/per_layer.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/plan/compare.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <limits>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Told how many tokens are done; may throw to leave.
using Advanced = std::function<void(std::int64_t)>;

/// A reader whose reads are timed.
template <class Reader>
struct TimedReader {
  Reader& reader;
  double seconds = 0;
  std::size_t last = 0;  ///< tokens of the last read

  void read(std::span<std::int32_t const> tokens) {
    seconds += seconds_of([&] { reader.read(tokens); });
    last = tokens.size();
  }
  [[nodiscard]] std::span<float const> logits(std::size_t index) const { return reader.logits(index); }
};

/// Reads a job's text and decodes after it. @param mean_kept  () to the tokens that a head keeps of the text
template <class Reader, class MeanKept>
EvictedText read_text(Reader& reader, EvictedOptions const& options, EvictedJob const& job, MeanKept const& mean_kept,
                      Advanced const& advanced) {
  EvictedText result;
  auto const tokens = job.tokens;
  TimedReader<Reader> timed{reader};
  result.losses = losses_of(timed, tokens, static_cast<std::size_t>(options.chunk), advanced);
  result.read_seconds = timed.seconds;
  result.mean_kept = mean_kept();
  std::int32_t token = 0;
  result.first_token_seconds =
      result.read_seconds + seconds_of([&] { token = greedy_token(timed.logits(timed.last - 1)); });
  for (std::int64_t i = 0; i < job.decode_tokens; ++i) {
    result.decode_seconds += seconds_of([&] {
      reader.read(std::span(&token, 1));
      token = greedy_token(reader.logits(0));
    });
    advanced(std::ssize(tokens) + i + 1);
  }
  return result;
}

template <class T>
EvictedText read_evicted(Model const& model, EvictedOptions const& options, EvictedJob const& job,
                         Advanced const& advanced) {
  CachedModel<T> cached(model, job.table, job.formats, std::ssize(job.tokens) + job.decode_tokens,
                        {.chunk = options.chunk, .all_logits = true, .threads = options.threads, .scorer = job.scorer});
  auto result = read_text(
      cached, options, job, [&] { return cached.cache().mean_kept(); }, advanced);
  result.kv_bytes_peak = cached.cache().bytes();
  return result;
}

EvictedText read_by_engine(Model const& model, EvictedOptions const& options, EvictedJob const& job,
                           Advanced const& advanced) {
  std::int64_t const tokens = std::ssize(job.tokens) + job.decode_tokens;
  EngineReader reader(model, {.tokens = options.chunk,
                              .cells = static_cast<std::int32_t>((tokens + 255) / 256 * 256),
                              .flash_attention = *job.engine == KvType::q8_0 || *job.engine == KvType::q4_0,
                              .kv = *job.engine,
                              .all_logits = true,
                              .threads = options.threads});
  auto result = read_text(
      reader, options, job, [&] { return static_cast<double>(reader.length()); }, advanced);
  result.kv_bytes_peak = engine_kv_bytes(model.shape(), *job.engine, reader.length());
  return result;
}

template <class T>
double best_compaction(ha::PolicyTable const& table, ha::FormatTable const& formats, ha::ModelShape const& shape,
                       std::int64_t context) {
  ha::RollingSlots const slots(table, 1, {.max_tokens = context, .slack = 0});
  std::vector<ha::KvLayouts<ha::StridedLayout, ha::StridedLayout>> layouts;
  std::int64_t elements = 0;
  std::int64_t key_elements = 0;
  std::int64_t value_elements = 0;
  for (std::int32_t index = 0; index < shape.num_layers(); ++index) {
    ha::LayerShape const& layer = shape.layer(index);
    layouts.emplace_back();
    if (!layer.has_cache()) continue;
    layouts.back() = {ha::strided_bhsd(1, layer.num_kv_heads, context, layer.head_dim),
                      ha::strided_bhsd(1, layer.num_kv_heads, context, layer.value_dim)};
    elements += layer.num_kv_heads * context * (layer.head_dim + layer.value_dim);
    key_elements += slots.rows_total(index) * layer.head_dim;
    value_elements += slots.rows_total(index) * layer.value_dim;
  }
  std::vector<T> full(static_cast<std::size_t>(elements), ha::from_float<T>(1));
  std::vector<ha::LayerKv<T>> layers;
  T* next = full.data();
  for (ha::LayerShape const& layer : shape.layers()) {
    T* const values = next + layer.num_kv_heads * context * layer.head_dim;
    layers.push_back({next, values});
    next = values + layer.num_kv_heads * context * layer.value_dim;
  }
  ha::Compaction const plan(table, std::array{static_cast<std::int32_t>(context)});
  auto const source = ha::per_layer(layouts);
  auto const best_into = [&](auto const& kept) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 5; ++i) best = std::min(best, seconds_of([&] { ha::compress(plan, layers, source, kept); }));
    return best;
  };
  if (formats.num_layers() > 0) {
    auto const packed = ha::packed_rolling(slots, slots.view(), formats, shape);
    std::vector<ha::RowUnit> units(static_cast<std::size_t>(packed.total_units()));
    return best_into(packed.with_buffer(units.data()));
  }
  std::vector<T> keys(static_cast<std::size_t>(key_elements));
  std::vector<T> values(static_cast<std::size_t>(value_elements));
  return best_into(ha::rolling(slots, slots.view(), keys.data(), values.data(), shape));
}

void save_text(std::filesystem::path const& path, EvictedText const& text) {
  nlohmann::ordered_json const json = {
      {"read_seconds", text.read_seconds},     {"first_token_seconds", text.first_token_seconds},
      {"decode_seconds", text.decode_seconds}, {"mean_kept", text.mean_kept},
      {"kv_bytes_peak", text.kv_bytes_peak},   {"losses", text.losses}};
  ha::write_file(path, support::json_text(json) + "\n");
}

}  // namespace

EvictedStore::EvictedStore(Model const& model, EvictedOptions const& options, std::filesystem::path folder)
    : model_(&model),
      options_(options),
      folder_(std::move(folder)),
      about_(identity_of(model) + " evicted " + std::to_string(element_bytes()) + " " + std::to_string(options.chunk) +
             " " + std::to_string(options.threads)) {
  constexpr auto where = "EvictedStore";
  ha::require(options.chunk > 0 && options.chunk <= 256, "chunk", "in [1, 256]", options.chunk, where);
  ha::require(options.threads > 0, "threads", "> 0", options.threads, where);
  support::make_folder(folder_);
}

std::filesystem::path EvictedStore::path_of(EvictedJob const& job) const {
  ha::ContentHash hash;
  hash.add(about_ + " " + std::to_string(job.decode_tokens));
  hash.add(text_of(job.table));
  if (std::string const formats = text_of(job.formats); !formats.empty()) hash.add(formats);
  if (job.scorer != nullptr) hash.add(job.scorer->saved.weight_hash);
  if (job.engine) hash.add("engine " + std::to_string(static_cast<int>(*job.engine)));
  hash.add(job.tokens);
  return folder_ / (hash.text() + ".json");
}

std::vector<EvictedText> EvictedStore::run(std::string const& what, std::span<EvictedJob const> jobs) {
  constexpr auto where = "EvictedStore::run";
  std::int64_t total = 0;
  std::int64_t done = 0;
  std::size_t known = 0;
  for (EvictedJob const& job : jobs) {
    (void)ha::within_layers(job.table, model_->shape(), where);
    ha::require(job.tokens.size() > 1, "tokens", "at least two", job.tokens.size(), where);
    ha::require(job.decode_tokens >= 0, "decode_tokens", ">= 0", job.decode_tokens, where);
    std::int64_t const tokens = std::ssize(job.tokens) + job.decode_tokens;
    total += tokens;
    if (std::filesystem::exists(path_of(job))) {
      done += tokens;
      ++known;
    }
  }
  if (known > 0) {
    std::fprintf(stderr,
                 "%zu of %zu texts were read in an earlier run, their times are of then (remove %s to measure anew)\n",
                 known, jobs.size(), folder_.c_str());
  }
  Cores const cores(options_.threads);
  support::Interrupt const interrupt;
  support::Progress progress(what, "tokens", total, done);
  auto const advanced = [&](std::int64_t tokens) {
    interrupt.check();
    progress.show(static_cast<double>(done + tokens));
  };
  std::vector<EvictedText> result;
  for (EvictedJob const& job : jobs) {
    auto const path = path_of(job);
    if (!std::filesystem::exists(path)) {
      save_text(path, job.engine                  ? read_by_engine(*model_, options_, job, advanced)
                      : options_.single_precision ? read_evicted<float>(*model_, options_, job, advanced)
                                                  : read_evicted<ha::float16>(*model_, options_, job, advanced));
      done += std::ssize(job.tokens) + job.decode_tokens;
    }
    result.push_back(parse_evicted_text(ha::read_text_file(path), path.string(), std::ssize(job.tokens) - 1));
  }
  progress.finish(static_cast<double>(done));
  return result;
}

double EvictedStore::compaction_seconds(ha::PolicyTable const& table, ha::FormatTable const& formats,
                                        std::int64_t context) const {
  Cores const cores(options_.threads);
  auto const seen = ha::within_layers(table, model_->shape());
  return options_.single_precision ? best_compaction<float>(seen, formats, model_->shape(), context)
                                   : best_compaction<ha::float16>(seen, formats, model_->shape(), context);
}

}  // namespace llama_adapter
