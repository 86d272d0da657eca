#pragma once

// Folders for results.

#include <headaware/error.hpp>

#include <filesystem>
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

/// @throws FileError unless there is such a folder
inline void require_folder(std::filesystem::path const& path, char const* what, char const* expected) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored)) {
    throw headaware::FileError({what, expected, "no such folder", path.string()});
  }
}

}  // namespace support
