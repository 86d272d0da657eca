#pragma once

// Files that tests read and write.

#include "support/catch.hpp"

#include <headaware/io/file.hpp>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace headaware_test {

/// The folder of reference data that the environment names, or an empty path.
inline std::filesystem::path shared_data() {
  char const* const folder = std::getenv("HEADAWARE_SHARED_DATA");
  return folder == nullptr ? std::filesystem::path() : std::filesystem::path(folder);
}

/// A new folder, removed with all it holds.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "headaware-test-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  TemporaryFolder(TemporaryFolder const&) = delete;
  TemporaryFolder& operator=(TemporaryFolder const&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::filesystem::path operator/(std::string const& name) const { return path_ / name; }
  [[nodiscard]] std::filesystem::path const& path() const { return path_; }
  [[nodiscard]] int entries() const {
    int count = 0;
    for ([[maybe_unused]] auto const& entry : std::filesystem::directory_iterator(path_)) ++count;
    return count;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace headaware_test

/// Leaves a test case that needs the reference data where there is none.
#define HEADAWARE_REQUIRE_SHARED_DATA() \
  if (headaware_test::shared_data().empty()) HEADAWARE_SKIP("HEADAWARE_SHARED_DATA names no folder")
