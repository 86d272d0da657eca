#pragma once

// Folders for results.

#include <headaware/error.hpp>

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <initializer_list>
#include <system_error>

namespace support {

/// Makes a folder and those above it. @throws FileError
inline void make_folder(std::filesystem::path const& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error || !std::filesystem::is_directory(path)) {
    throw headaware::FileError(
        {"cannot make folder", "a writable place", error ? error.message() : "a file of this name", path.string()});
  }
}

/// Before any work: finds what would keep results from being written in the end.
/// @param folder          made later, if it is not there @param files, folders  that results will have in it
/// @throws FileError if it is there and cannot be written, or something else has the name of a result
inline void require_place(std::filesystem::path const& folder, std::initializer_list<char const*> files,
                          std::initializer_list<char const*> folders = {}) {
  std::error_code ignored;
  if (!std::filesystem::exists(folder, ignored)) return;
  if (!std::filesystem::is_directory(folder, ignored)) {
    throw headaware::FileError({"results", "a folder, or nothing yet", "a file of this name", folder.string()});
  }
  if (::access(folder.c_str(), W_OK | X_OK) != 0) {
    throw headaware::FileError(
        {"results", "a writable folder", std::generic_category().message(errno), folder.string()});
  }
  for (char const* const name : files) {
    auto const path = folder / name;
    if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored)) {
      throw headaware::FileError({"results", "a file, or nothing yet", "something else of this name", path.string()});
    }
  }
  for (char const* const name : folders) {
    auto const path = folder / name;
    if (std::filesystem::exists(path, ignored) && !std::filesystem::is_directory(path, ignored)) {
      throw headaware::FileError({"results", "a folder, or nothing yet", "a file of this name", path.string()});
    }
  }
}

/// Before work that takes long: makes the folder, and `require_place`. @throws FileError
inline void prepare_results(std::filesystem::path const& folder, std::initializer_list<char const*> files,
                            std::initializer_list<char const*> folders = {}) {
  make_folder(folder);
  require_place(folder, files, folders);
}

/// @throws FileError unless there is such a folder
inline void require_folder(std::filesystem::path const& path, char const* what, char const* expected) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored)) {
    throw headaware::FileError({what, expected, "no such folder", path.string()});
  }
}

}  // namespace support
