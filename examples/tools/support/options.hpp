#pragma once

// Options that several commands have, declared once.

#include "tools/support/validators.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace support {

/// Folder of single-precision copies of models unless a user names one: headaware's in the user's cache.
inline std::filesystem::path default_cache_folder() {
  auto const variable = [](char const* name) {
    char const* const value = std::getenv(name);
    return std::filesystem::path(value == nullptr ? "" : value);
  };
  if (auto const cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache / "headaware";
  if (auto const home = variable("HOME"); !home.empty()) return home / ".cache" / "headaware";
  return std::filesystem::temp_directory_path() / "headaware";
}

/// The model that a command runs, and how.
struct ModelOptions {
  std::filesystem::path model;
  std::filesystem::path cache_dir = default_cache_folder();
  std::int32_t threads = 1;
  bool exact = false;

  /// The file to run: the model's, or with `exact` what `copy(model, folder)` makes of it.
  template <class Copy>
  [[nodiscard]] std::filesystem::path to_run(Copy const& copy) const {
    return exact ? copy(model, cache_dir) : model;
  }

  /// Declares --model. @param files  what it may name
  CLI::Option* add_model(CLI::App& app, char const* files = "GGUF file") {
    auto* const option = app.add_option("--model,--model_id", model, files);
    return model.empty() ? option : option->capture_default_str();
  }
  /// Declares --exact, --cache_dir and --threads.
  void add_ways_to_run(CLI::App& app,
                       char const* exact_means = "run a copy of the model with weights in single precision",
                       char const* threads_are = "cores for the model") {
    app.add_flag("--exact", exact, exact_means);
    app.add_option("--cache_dir", cache_dir, "folder of single-precision copies")->capture_default_str();
    app.add_option("--threads", threads, threads_are)->capture_default_str()->check(thread_range());
  }
};

/// Declares an option that names an existing text file; a default is shown.
inline CLI::Option* add_text(CLI::App& app, std::filesystem::path& file, char const* means,
                             char const* name = "--text") {
  auto* const option = app.add_option(name, file, means)->check(CLI::ExistingFile);
  return file.empty() ? option : option->capture_default_str();
}

/// Declares --max_tokens; without a default it is all of the text.
inline CLI::Option* add_max_tokens(CLI::App& app, std::int64_t& tokens, std::string const& means) {
  auto* const option = app.add_option("--max_tokens", tokens, tokens > 0 ? means : means + "; default: all");
  option->check(positive);
  return tokens > 0 ? option->capture_default_str() : option;
}

/// Declares --output_dir; a default is shown.
inline CLI::Option* add_output_dir(CLI::App& app, std::filesystem::path& folder,
                                   char const* means = "where the results go") {
  auto* const option = app.add_option("--output_dir", folder, means);
  return folder.empty() ? option : option->capture_default_str();
}

/// Declares --results_dir, the folder that a command reads: required unless there is a default, which is shown.
inline CLI::Option* add_results_dir(CLI::App& app, std::filesystem::path& folder, char const* means) {
  auto* const option = app.add_option("--results_dir", folder, means);
  return folder.empty() ? option->required() : option->capture_default_str();
}

/// Declares an option that is a length in tokens; a default is shown. @param least  the shortest
template <class Tokens>
CLI::Option* add_length(CLI::App& app, Tokens& tokens, char const* means, int least, char const* name) {
  auto* const option = app.add_option(name, tokens, means)->check(CLI::Range(least, most_tokens));
  return tokens > 0 ? option->capture_default_str() : option;
}

/// Declares --context, the length of the sequences that sizes refer to.
inline CLI::Option* add_context(CLI::App& app, std::int64_t& tokens, char const* means, int least = 1,
                                char const* name = "--context") {
  return add_length(app, tokens, means, least, name);
}

/// Declares --chunk_size, the length of the pieces that a text is cut into.
template <class Tokens>
CLI::Option* add_chunk_size(CLI::App& app, Tokens& tokens, char const* means, int least) {
  return add_length(app, tokens, means, least, "--chunk_size");
}

/// Declares --pieces of text. @tparam Pieces  an integer, or a vector where there are several kinds
template <class Pieces>
CLI::Option* add_pieces(CLI::App& app, Pieces& pieces, char const* means) {
  return app.add_option("--pieces", pieces, means)->check(positive);
}

/// Declares an option that names an existing file of policies.
/// @tparam Files  std::filesystem::path, or a vector where several may be given
template <class Files>
CLI::Option* add_policies(CLI::App& app, Files& files, char const* means, char const* name = "--plan") {
  return app.add_option(name, files, means)->check(CLI::ExistingFile);
}

/// Declares --scores, the folder of scores by which heads keep tokens.
inline CLI::Option* add_scores(CLI::App& app, std::filesystem::path& folder,
                               char const* means =
                                   "folder of scores.json (analyze_attention --scores writes it), of "
                                   "policies whose heads keep tokens by scores; default: beside these") {
  return app.add_option("--scores", folder, means)->check(CLI::ExistingDirectory);
}

/// Declares --head_dim. @tparam Channels  an integer
template <class Channels>
CLI::Option* add_head_dim(CLI::App& app, Channels& channels, char const* means) {
  return app.add_option("--head_dim", channels, means)->check(positive);
}

/// Declares --budget. @tparam Budgets  std::string, or a vector where several may be given
template <class Budgets>
CLI::Option* add_budget(CLI::App& app, Budgets& budgets, std::string const& before = "",
                        std::string const& after = "") {
  return app.add_option("--budget", budgets,
                        before +
                            "25% (of the context; of the bytes of the 16-bit cache where formats are chosen), 512 "
                            "(tokens per KV head on average) or 64MiB (of the keys and values "
                            "of one sequence)" +
                            after);
}

/// Declares --skip_layers, which become ascending.
inline CLI::Option* add_skip_layers(CLI::App& app, std::vector<std::int32_t>& layers, char const* means) {
  auto const take = [&layers](std::vector<std::int32_t> given) {
    std::sort(given.begin(), given.end());
    layers = std::move(given);
  };
  return app.add_option_function<std::vector<std::int32_t>>("--skip_layers", take, means)
      ->check(layer_index)
      ->delimiter(',');
}

/// Declares --probe_weight. @tparam Weights  double, or a vector where several may be given
template <class Weights>
CLI::Option* add_probe_weight(CLI::App& app, Weights& weights, char const* means) {
  return app.add_option("--probe_weight", weights, means)->capture_default_str()->check(non_negative);
}

/// Declares an option that takes one of several names.
inline CLI::Option* add_choice(CLI::App& app, char const* option, std::string& choice, char const* means,
                               std::vector<std::string> const& names) {
  auto* const added = app.add_option(option, choice, means)->check(CLI::IsMember(names));
  return choice.empty() ? added : added->capture_default_str();
}

}  // namespace support
