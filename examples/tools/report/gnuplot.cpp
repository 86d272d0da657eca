#include "tools/report/gnuplot.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>
#include <string_view>
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

/// True if a picture has its end: gnuplot does not mind a full disk.
bool is_whole(std::string_view picture, std::string_view extension) {
  if (extension == ".svg") {
    picture = picture.substr(0, picture.find_last_not_of(" \r\n") + 1);
    return picture.ends_with("</svg>");
  }
  constexpr std::string_view end("\0\0\0\0IEND\xae\x42\x60\x82", 12);  // a chunk of no bytes, and its checksum
  return picture.ends_with(end);
}

/// Reads what gnuplot drew. @throws Error if it is not whole
std::string drawn_picture(std::filesystem::path const& file, char const* extension, std::string const& script) {
  std::string picture = ha::read_text_file(file);
  if (is_whole(picture, extension)) return picture;
  throw ha::Error({"gnuplot", "a whole picture", "one without its end; is the disk full?", script});
}

}  // namespace

void draw(std::filesystem::path const& gnuplot, std::filesystem::path const& folder, std::string const& name) {
  std::string const target(ha::unfinished_path(folder / name).filename());
  std::string const script = (folder / (name + ".gp")).string();
  auto const drawn = [&](char const* extension) { return folder / (target + extension); };
  int const status = run_in(gnuplot, folder, "target = \"" + target + "\"", name + ".gp", target + ".log");

  // Whatever happens, gnuplot's own files do not stay.
  struct Cleared {
    decltype(drawn) const& file;
    ~Cleared() {
      for (char const* const extension : {".svg", ".png", ".log"}) {
        std::error_code ignored;
        std::filesystem::remove(file(extension), ignored);
      }
    }
  } const cleared{drawn};
  std::error_code ignored;
  bool const ended = WIFEXITED(status) && WEXITSTATUS(status) == 0 && std::filesystem::exists(drawn(".svg"), ignored) &&
                     std::filesystem::exists(drawn(".png"), ignored);
  if (!ended) {
    bool const told = std::filesystem::exists(drawn(".log"), ignored);
    throw ha::Error({"gnuplot", "a picture", told ? ha::read_text_file(drawn(".log")) : "no output", script});
  }
  std::string const svg = drawn_picture(drawn(".svg"), ".svg", script);
  std::string const png = drawn_picture(drawn(".png"), ".png", script);
  ha::write_file(folder / (name + ".svg"), svg);
  ha::write_file(folder / (name + ".png"), png);
}

void remove_drawings(std::filesystem::path const& folder, std::string const& name) {
  for (char const* const extension : {".svg", ".png"}) {
    std::error_code ignored;
    std::filesystem::remove(folder / (name + extension), ignored);
  }
}

void remove_picture(std::filesystem::path const& folder, std::string const& name) {
  remove_drawings(folder, name);
  for (char const* const extension : {".gp", ".tsv"}) {
    std::error_code ignored;
    std::filesystem::remove(folder / (name + extension), ignored);
  }
}

}  // namespace report
