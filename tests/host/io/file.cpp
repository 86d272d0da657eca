#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/file.hpp>

#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>

namespace ha = headaware;

namespace {

/// Files of this process may not grow beyond a size while this lives: makes writing fail half way.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    struct ::rlimit limit {};
    ::getrlimit(RLIMIT_FSIZE, &old_);
    limit = {bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileSizeLimit(FileSizeLimit const&) = delete;
  FileSizeLimit& operator=(FileSizeLimit const&) = delete;
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  struct ::rlimit old_ {};
  void (*handler_)(int);
};

}  // namespace

TEST_CASE("a file is read as it was written", "[io]") {
  headaware_test::TemporaryFolder const folder;
  std::string const contents =
      GENERATE(std::string(), std::string("x"), std::string("a\0b\r\n", 5), std::string(100000, 'y'));
  ha::write_file(folder / "file", contents);
  CHECK(ha::read_text_file(folder / "file") == contents);
  CHECK(ha::read_binary_file(folder / "file").size() == contents.size());
  ha::write_file(folder / "file", "new");
  CHECK(ha::read_text_file(folder / "file") == "new");
  CHECK(folder.entries() == 1);
}

TEST_CASE("errors of files name the path and the system's reason", "[io]") {
  headaware_test::TemporaryFolder const folder;
  headaware_test::check_error<ha::FileError>(
      [&] { (void)ha::read_text_file(folder / "absent"); },
      {"cannot open", "a readable file", "No such file", (folder / "absent").string()});
  headaware_test::check_error<ha::FileError>([&] { (void)ha::read_text_file(folder.path()); },
                                             {"cannot read", "a readable file", "directory", folder.path().string()});
  ha::write_file(folder / "file", "0123456789");
  headaware_test::check_error<ha::FileError>([&] { (void)ha::read_text_file(folder / "file", 9); },
                                             {"too large", "at most 9 bytes", "10", (folder / "file").string()});
  CHECK(ha::read_text_file(folder / "file", 10) == "0123456789");
  headaware_test::check_error<ha::FileError>([&] { ha::write_file(folder / "absent/file", ""); },
                                             {"cannot create", "a writable folder", "No such file", "absent/file"});
  headaware_test::check_error<ha::FileError>([&] { ha::write_file(folder.path(), ""); },
                                             {"cannot replace", "a regular file", "a folder", folder.path().string()});
}

TEST_CASE("a write that fails leaves the old file and nothing else", "[io]") {
  headaware_test::TemporaryFolder const folder;
  ha::write_file(folder / "file", "old");
  auto write_too_much = [&] {
    FileSizeLimit const limit(1000);  // ends before Catch2 writes anything
    ha::write_file(folder / "file", std::string(2000, 'x'));
  };
  headaware_test::check_error<ha::FileError>(write_too_much,
                                             {"cannot write", "room", "File too large", folder.path().string()});
  CHECK(ha::read_text_file(folder / "file") == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("a replaced file keeps its permissions, and links keep pointing", "[io]") {
  headaware_test::TemporaryFolder const folder;
  ha::write_file(folder / "file", "old");
  auto const mode = std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
  std::filesystem::permissions(folder / "file", mode);
  std::filesystem::create_symlink("file", folder / "link");
  ha::write_file(folder / "link", "new");
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(ha::read_text_file(folder / "file") == "new");
  CHECK(std::filesystem::status(folder / "file").permissions() == mode);
  CHECK(folder.entries() == 2);
}

TEST_CASE("a special file is not replaced by a regular one", "[io]") {
  headaware_test::TemporaryFolder const folder;
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  headaware_test::check_error<ha::FileError>([&] { ha::write_file(folder / "pipe", ""); },
                                             {"cannot replace", "a regular file", "special", "pipe"});
}

TEST_CASE("what killed processes left is removed when it is a day old", "[io]") {
  headaware_test::TemporaryFolder const folder;
  auto const make = [&](char const* name, std::chrono::hours age) {
    std::ofstream(folder / name) << "half";
    std::filesystem::last_write_time(folder / name, std::filesystem::file_time_type::clock::now() - age);
  };
  constexpr std::chrono::hours old(25);
  make(".headaware-1-0.tmp", old);
  make(".headaware-2-types.svg", old);
  make(".headaware-3-0.tmp", std::chrono::hours(23));  // perhaps another machine's, which is writing
  make("headaware-4.tmp", old);
  make("results.json", old);
  std::filesystem::create_directory(folder / ".headaware-5");
  std::filesystem::last_write_time(folder / ".headaware-5", std::filesystem::file_time_type::clock::now() - old);
  ha::write_file(folder / "file", "new");
  CHECK_FALSE(std::filesystem::exists(folder / ".headaware-1-0.tmp"));
  CHECK_FALSE(std::filesystem::exists(folder / ".headaware-2-types.svg"));
  for (char const* const kept : {".headaware-3-0.tmp", "headaware-4.tmp", "results.json", ".headaware-5", "file"}) {
    CAPTURE(kept);
    CHECK(std::filesystem::exists(folder / kept));
  }
  CHECK(folder.entries() == 5);
}
