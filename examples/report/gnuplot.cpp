#include "report/gnuplot.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>
#include <system_error>

namespace report {

namespace ha = headaware;

std::optional<std::filesystem::path> find_gnuplot() {
  char const* const path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    std::filesystem::path program = std::filesystem::path(folder.empty() ? "." : folder) / "gnuplot";
    std::error_code ignored;
    if (std::filesystem::is_regular_file(program, ignored) && ::access(program.c_str(), X_OK) == 0) {
      return std::filesystem::absolute(program);
    }
  }
  return std::nullopt;
}

namespace {

/// Runs the program in a folder with both outputs in one file; returns its status as `waitpid` gives it.
int run_in(std::filesystem::path const& program, std::filesystem::path const& folder, std::string const& argument,
           std::string const& script, std::string const& log) {
  // Everything that allocates comes before the fork: another thread may hold the allocator's lock.
  char const* const arguments[] = {"gnuplot", "-d", "-e", argument.c_str(), script.c_str(), nullptr};
  ::pid_t const child = ::fork();
  if (child < 0) throw ha::Error({"gnuplot", "a new process", std::generic_category().message(errno), folder.string()});
  if (child == 0) {
    int const file = ::chdir(folder.c_str()) == 0 ? ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
    if (file >= 0 && ::dup2(file, STDOUT_FILENO) >= 0 && ::dup2(file, STDERR_FILENO) >= 0) {
      ::execv(program.c_str(), const_cast<char* const*>(arguments));
    }
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

}  // namespace

void draw(std::filesystem::path const& gnuplot, std::filesystem::path const& folder, std::string const& name) {
  std::string const target = ".headaware-" + std::to_string(::getpid()) + "-" + name;
  auto const drawn = [&](char const* extension) { return folder / (target + extension); };
  int const status = run_in(gnuplot, folder, "target = \"" + target + "\"", name + ".gp", target + ".log");

  std::error_code error;
  bool const whole = WIFEXITED(status) && WEXITSTATUS(status) == 0 && std::filesystem::exists(drawn(".svg"), error) &&
                     std::filesystem::exists(drawn(".png"), error);
  std::string words;
  if (whole) {
    for (char const* const extension : {".svg", ".png"}) {
      if (!error) std::filesystem::rename(drawn(extension), folder / (name + extension), error);
    }
    if (error) words = error.message();
  } else {
    words = std::filesystem::exists(drawn(".log"), error) ? ha::read_text_file(drawn(".log")) : "no output";
  }
  for (char const* const extension : {".svg", ".png", ".log"}) {
    std::error_code ignored;
    std::filesystem::remove(drawn(extension), ignored);
  }
  if (!words.empty() || !whole) throw ha::Error({"gnuplot", "a picture", words, (folder / (name + ".gp")).string()});
}

void remove_pictures(std::filesystem::path const& folder, std::string const& name) {
  for (char const* const extension : {".svg", ".png"}) {
    std::error_code ignored;
    std::filesystem::remove(folder / (name + extension), ignored);
  }
}

}  // namespace report
