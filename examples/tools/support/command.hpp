#pragma once

// The frame of a command: options, work, exit code.

#include "tools/support/interrupt.hpp"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <type_traits>

namespace support {

/// Exit code of a job that Ctrl-C interrupted, as shells have it.
inline constexpr int interrupted_code = 130;

/// Runs the work of a command and reports on stderr what ended it.
/// @param work  returns nothing, or the exit code
/// @return the exit code: 1 after an error, 130 after an interruption
template <class Work>
int run_command(char const* name, Work const& work) {
  try {
    if constexpr (std::is_void_v<decltype(work())>) {
      work();
      return 0;
    } else {
      return work();
    }
  } catch (Interrupted const&) {
    std::fprintf(stderr, "interrupted; what was measured is kept: the same command goes on from there\n");
    return interrupted_code;
  } catch (std::bad_alloc const&) {
    std::fprintf(stderr, "%s: not enough memory for what the options ask for\n", name);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
  }
  return 1;
}

/// Reads the command line and runs the work.
/// @tparam Options  has `void add_to(CLI::App&)`, which declares its fields as options
/// @param work      takes the options, by value or reference
/// @return the exit code, as above; CLI11's where the command line is refused
template <class Options, class Work>
int run_command(int argc, char** argv, char const* description, Work const& work) {
  return run_command(std::filesystem::path(argv[0]).filename().c_str(), [&] {
    Options options;
    CLI::App app{description};
    options.add_to(app);
    try {
      app.parse(argc, argv);
    } catch (CLI::ParseError const& error) {
      return app.exit(error);
    }
    if constexpr (std::is_void_v<decltype(work(options))>) {
      work(options);
      return 0;
    } else {
      return work(options);
    }
  });
}

}  // namespace support
