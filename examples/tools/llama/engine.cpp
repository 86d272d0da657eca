#include "tools/llama/engine.hpp"

#include "tools/llama/engine_log.hpp"

#include <headaware/error.hpp>
#include <headaware/io/gguf.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <numeric>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// A value of the file's metadata, or an empty string.
std::string metadata(llama_model const* model, std::string const& key) {
  std::string value(256, '\0');
  std::int32_t const length = llama_model_meta_val_str(model, key.c_str(), value.data(), value.size());
  value.resize(static_cast<std::size_t>(std::clamp<std::int32_t>(length, 0, 255)));
  return value;
}

ModelInfo info_of(llama_model const* model) {
  ModelInfo info;
  info.architecture = metadata(model, "general.architecture");
  info.name = metadata(model, "general.name");
  info.hidden_size = llama_model_n_embd(model);
  info.vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
  info.trained_tokens = llama_model_n_ctx_train(model);
  info.recurrent = llama_model_is_recurrent(model) || llama_model_is_hybrid(model);
  return info;
}

/// The file's layers, held against what the engine says of its own.
ha::ModelShape shape_of(llama_model const* model, std::filesystem::path const& path) {
  ha::ModelShape shape = ha::load_gguf_shape(path);
  auto const same = [&](char const* what, std::int64_t engine, std::int64_t file) {
    if (engine == file) return;
    throw ha::FormatError({std::string(what) + " by the file's metadata",
                           std::to_string(engine) + ", as llama.cpp says", std::to_string(file), path.string()});
  };
  same("layers", llama_model_n_layer(model), shape.num_layers());
  std::int64_t window = 0;
  for (ha::LayerShape const& layer : shape.layers()) window = std::max(window, layer.window);
  same("sliding window", llama_model_n_swa(model), window);
  // The engine says more of its first layer alone; of a latent it may count the heads that it unpacks it for.
  ha::LayerShape const& first = shape.layer(0);
  if (first.attends()) same("query heads of layer 0", llama_model_n_head(model), first.num_query_heads);
  if (first.has_cache() && first.kind != ha::LayerKind::latent) {
    same("KV heads of layer 0", llama_model_n_head_kv(model), first.num_kv_heads);
  }
  return shape;
}

/// "org/name" and no file: what other tools take for a name on a hub.
bool looks_like_hub_name(std::filesystem::path const& path) {
  std::string const text = path.string();
  return std::count(text.begin(), text.end(), '/') == 1 && text.front() != '/' && text.front() != '.' &&
         path.extension() != ".gguf" && !std::filesystem::exists(path.parent_path());
}

void require_model_file(std::filesystem::path const& path) {
  constexpr auto where = "Model";
  if (std::filesystem::is_regular_file(path)) return;
  if (looks_like_hub_name(path)) {
    throw ha::ArgumentError({"model", "the path of a GGUF file",
                             "'" + path.string() + "', a name on a hub: download its GGUF file and give that path",
                             where});
  }
  bool const folder = std::filesystem::is_directory(path);
  throw ha::ArgumentError(
      {"model", "the path of a GGUF file", "'" + path.string() + (folder ? "', a folder" : "', no such file"), where});
}

}  // namespace

Model::Model(std::filesystem::path const& path) : path_(path) {
  require_model_file(path);
  keep_engine_log();
  llama_backend_init();
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (!model_) throw ha::FormatError({"model", "a GGUF file that llama.cpp reads", engine_errors(), path.string()});
  info_ = info_of(model_.get());
  shape_ = shape_of(model_.get(), path);
}

std::vector<std::int32_t> Model::tokenize(std::string_view text, bool with_specials) const {
  auto const* const vocabulary = llama_model_get_vocab(model_.get());
  auto const length = static_cast<std::int32_t>(text.size());
  std::vector<std::int32_t> tokens(text.size() / 2 + 8);
  auto attempt = [&] {
    return llama_tokenize(vocabulary, text.data(), length, tokens.data(), static_cast<std::int32_t>(tokens.size()),
                          with_specials, false);
  };
  std::int32_t count = attempt();
  if (count < 0) {
    // It says how much room it needs.
    tokens.resize(static_cast<std::size_t>(-static_cast<std::int64_t>(count)));
    count = attempt();
  }
  if (count < 0) throw ha::Error({"tokens of a text", "at most " + std::to_string(tokens.size()), "more", "tokenize"});
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

bool Model::begins_with_bos() const { return llama_vocab_get_add_bos(llama_model_get_vocab(model_.get())); }

std::int32_t Model::bos() const { return llama_vocab_bos(llama_model_get_vocab(model_.get())); }

std::string Model::piece(std::int32_t token) const {
  ha::require_index(token, info_.vocabulary, "token", "piece");
  auto const* const vocabulary = llama_model_get_vocab(model_.get());
  std::string text(64, '\0');
  auto attempt = [&] {
    return llama_token_to_piece(vocabulary, token, text.data(), static_cast<std::int32_t>(text.size()), 0, true);
  };
  std::int32_t length = attempt();
  if (length < 0) {
    text.resize(static_cast<std::size_t>(-length));
    length = attempt();
  }
  text.resize(static_cast<std::size_t>(std::max(length, 0)));
  return text;
}

std::string Model::detokenize(std::span<std::int32_t const> tokens) const {
  for (std::int32_t const token : tokens) ha::require_index(token, info_.vocabulary, "token", "detokenize");
  auto const* const vocabulary = llama_model_get_vocab(model_.get());
  std::string text(tokens.size() * 8 + 8, '\0');
  auto attempt = [&] {
    return llama_detokenize(vocabulary, tokens.data(), static_cast<std::int32_t>(tokens.size()), text.data(),
                            static_cast<std::int32_t>(text.size()), true, false);
  };
  std::int32_t length = attempt();
  if (length < 0) {
    text.resize(static_cast<std::size_t>(-static_cast<std::int64_t>(length)));
    length = attempt();
  }
  text.resize(static_cast<std::size_t>(std::max(length, 0)));
  return text;
}

/// Keeps exceptions of an observer out of the engine's C code.
struct Context::Watch {
  NodeObserver* observer;
  std::exception_ptr error;

  static bool on_node(ggml_tensor* node, bool asking, void* data) {
    auto& watch = *static_cast<Watch*>(data);
    if (watch.error) return false;
    try {
      return watch.observer->on_node(node, asking);
    } catch (...) {
      // Stops the engine when it is not asking; else the rest is computed unobserved.
      watch.error = std::current_exception();
      return false;
    }
  }
};

void Context::FreeWatch::operator()(Watch* watch) const { delete watch; }

namespace {

ggml_type ggml_type_of(KvType kv) {
  constexpr std::array types{GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};
  return types[static_cast<std::size_t>(kv)];
}

}  // namespace

Context::Context(Model const& model, ContextOptions const& options) : model_(&model), options_(options) {
  constexpr auto where = "ContextOptions";
  ha::require(options.tokens > 0, "tokens", "> 0", options.tokens, where);
  ha::require(options.threads > 0, "threads", "> 0", options.threads, where);
  llama_context_params params = llama_context_default_params();
  auto const tokens = static_cast<std::uint32_t>(options.tokens);
  params.n_ctx = std::max(tokens, static_cast<std::uint32_t>(std::max(options.cells, 0)));
  params.n_batch = tokens;
  params.n_ubatch = tokens;
  params.n_seq_max = 1;
  params.n_outputs_max = options.all_logits ? 0 : 1;
  params.n_threads = options.threads;
  params.n_threads_batch = options.threads;
  params.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = ggml_type_of(options.kv);
  params.offload_kqv = false;
  params.op_offload = false;
  if (options.observer != nullptr) {
    watch_.reset(new Watch{options.observer, nullptr});
    params.cb_eval = Watch::on_node;
    params.cb_eval_user_data = watch_.get();
  }
  context_.reset(llama_init_from_model(model.get(), params));
  if (!context_) {
    throw ha::Error({"context of " + std::to_string(options.tokens) + " tokens", "one that llama.cpp can make",
                     engine_errors(), model.path().string()});
  }
}

void Context::evaluate(std::span<std::int32_t const> tokens, std::int32_t first_position) {
  llama_memory_clear(llama_get_memory(context_.get()), false);
  decode(tokens, first_position);
}

void Context::evaluate_on_states(std::span<std::int32_t const> tokens, std::int32_t first_position) {
  if (!model_->info().recurrent || first_position == 0) return evaluate(tokens, first_position);
  // The memory's parts are not emptied one by one, but the states can be taken out and put back.
  constexpr auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
  states_.resize(llama_state_seq_get_size_ext(context_.get(), 0, flags));
  std::size_t const taken = llama_state_seq_get_data_ext(context_.get(), states_.data(), states_.size(), 0, flags);
  llama_memory_clear(llama_get_memory(context_.get()), false);
  std::size_t const put = llama_state_seq_set_data_ext(context_.get(), states_.data(), states_.size(), 0, flags);
  ha::require(taken == states_.size() && put > 0, "states of recurrent layers", {states_.size(), " bytes"}, taken,
              model_->path().string());
  decode(tokens, first_position);
}

void Context::extend(std::span<std::int32_t const> tokens, std::int32_t first_position) {
  decode(tokens, first_position);
}

void Context::decode(std::span<std::int32_t const> tokens, std::int32_t first_position) {
  constexpr auto where = "Context::evaluate";
  auto const count = static_cast<std::int64_t>(tokens.size());
  ha::require(count > 0 && count <= options_.tokens, "tokens", {"1 to ", options_.tokens}, count, where);
  ha::require(first_position >= 0, "first_position", ">= 0", first_position, where);
  for (std::int32_t const token : tokens) {
    ha::require_index(token, model_->info().vocabulary, "token", where);
  }
  tokens_.assign(tokens.begin(), tokens.end());
  std::vector<llama_pos> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), first_position);
  std::vector<std::int8_t> wanted(tokens.size(), options_.all_logits ? 1 : 0);
  wanted.back() = 1;
  llama_batch batch{};
  batch.n_tokens = static_cast<std::int32_t>(count);
  batch.token = tokens_.data();
  batch.pos = positions.data();
  batch.logits = wanted.data();

  if (watch_) {
    watch_->error = nullptr;
    watch_->observer->begin(positions);
  }
  std::int32_t const status = llama_decode(context_.get(), batch);
  if (watch_ && watch_->error) std::rethrow_exception(std::exchange(watch_->error, nullptr));
  if (status != 0) {
    throw ha::Error({"evaluation of " + std::to_string(count) + " tokens", "success",
                     "llama_decode's " + std::to_string(status) + ": " + engine_errors(), model_->path().string()});
  }
  if (watch_) watch_->observer->finish();
}

std::int64_t engine_kv_bytes(ha::ModelShape const& shape, KvType kv, std::int64_t tokens) {
  ggml_type const type = ggml_type_of(kv);
  std::size_t row = 0;
  for (ha::LayerShape const& layer : shape.layers()) {
    if (!layer.has_cache()) continue;
    row += ggml_row_size(type, layer.num_kv_heads * layer.head_dim);
    if (layer.kind != ha::LayerKind::latent) row += ggml_row_size(type, layer.num_kv_heads * layer.value_dim);
  }
  return tokens * static_cast<std::int64_t>(row);
}

std::span<float const> Context::logits(std::int32_t index) const {
  constexpr auto where = "Context::logits";
  auto const count = static_cast<std::int64_t>(tokens_.size());
  ha::require_index(index, count, "index", where);
  ha::require(options_.all_logits || index + 1 == count, "index", "the last token's, without all_logits", index, where);
  float const* const row = llama_get_logits_ith(context_.get(), index);
  ha::require(row != nullptr, "logits", "those of an evaluation", "none", where);
  return {row, static_cast<std::size_t>(model_->info().vocabulary)};
}

std::vector<double> Context::losses() const {
  std::vector<std::span<float const>> rows;
  for (std::size_t i = 0; i + 1 < tokens_.size(); ++i) rows.push_back(logits(static_cast<std::int32_t>(i)));
  std::vector<double> result(rows.size());
  // Of a large vocabulary one core would take longer for this than many cores for the model.
#pragma omp parallel for
  for (std::size_t i = 0; i < rows.size(); ++i) result[i] = loss_of(rows[i], tokens_[i + 1]);
  return result;
}

double loss_of(std::span<float const> logits, std::int32_t token) {
  float const top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float const logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  return std::log(sum) + top - logits[static_cast<std::size_t>(token)];
}

std::int32_t greedy_token(std::span<float const> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double perplexity(std::span<double const> losses) {
  ha::require(!losses.empty(), "losses", "at least one", "none", "perplexity");
  return std::exp(std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size()));
}

}  // namespace llama_adapter
