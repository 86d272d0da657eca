// The order in which a file is made durable, seen by standing in for the system's fsync and rename.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/file.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

namespace ha = headaware;

namespace {

struct Event {
  enum Kind { flushed_file, flushed_folder, renamed } kind;
  ::ino_t file = 0;        ///< flushed, or that gets another name
  std::int64_t bytes = 0;  ///< that the file had then
};

/// What write_file asks of the system while one lives; `fail` makes the flush of a file or folder fail.
struct Recorder {
  inline static Recorder* active = nullptr;
  Recorder() { active = this; }
  Recorder(Recorder const&) = delete;
  Recorder& operator=(Recorder const&) = delete;
  ~Recorder() { active = nullptr; }
  std::vector<Event> events;
  int file_error = 0;
  int folder_error = 0;
};

int fail_with(int error) {
  errno = error;
  return -1;
}

::ino_t inode(std::filesystem::path const& path) {
  struct ::stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_ino;
}

}  // namespace

// These two stand before the C library's in the whole program.
extern "C" int fsync(int fd) {
  if (Recorder* const recorder = Recorder::active) {
    struct ::stat info {};
    if (::fstat(fd, &info) != 0) return fail_with(errno);
    bool const folder = S_ISDIR(info.st_mode);
    recorder->events.push_back({folder ? Event::flushed_folder : Event::flushed_file, info.st_ino, info.st_size});
    int const error = folder ? recorder->folder_error : recorder->file_error;
    if (error != 0) return fail_with(error);
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}

extern "C" int rename(char const* from, char const* to) noexcept {
  if (Recorder* const recorder = Recorder::active) {
    struct ::stat info {};
    if (::stat(from, &info) == 0) recorder->events.push_back({Event::renamed, info.st_ino, info.st_size});
  }
  return ::renameat(AT_FDCWD, from, AT_FDCWD, to);
}

TEST_CASE("a file is flushed before it is renamed, its folder after", "[io]") {
  headaware_test::TemporaryFolder const folder;
  ha::write_file(folder / "file", "old");
  std::string const contents(5000, 'x');
  Recorder recorder;
  ha::write_file(folder / "file", contents);
  ::ino_t const file = inode(folder / "file");
  auto const& events = recorder.events;
  REQUIRE(events.size() == 3);
  CHECK(events[0].kind == Event::flushed_file);
  CHECK(events[0].file == file);
  CHECK(events[0].bytes == 5000);
  CHECK(events[1].kind == Event::renamed);
  CHECK(events[1].file == file);
  CHECK(events[1].bytes == 5000);
  CHECK(events[2].kind == Event::flushed_folder);
  CHECK(events[2].file == inode(folder.path()));
}

TEST_CASE("a file that cannot be flushed does not take the old one's place", "[io]") {
  headaware_test::TemporaryFolder const folder;
  ha::write_file(folder / "file", "old");
  Recorder recorder;
  recorder.file_error = EIO;
  headaware_test::check_error<ha::FileError>([&] { ha::write_file(folder / "file", "new"); },
                                             {"cannot write file", "", "Input/output error", folder.path().string()});
  CHECK(recorder.events.size() == 1);
  CHECK(ha::read_text_file(folder / "file") == "old");
  CHECK(folder.entries() == 1);
  // What a folder's flush says is no secret, but file systems that know none are no error.
  recorder.file_error = 0;
  recorder.folder_error = EIO;
  headaware_test::check_error<ha::FileError>([&] { ha::write_file(folder / "file", "new"); },
                                             {"cannot flush folder", "", "Input/output error", folder.path().string()});
  recorder.folder_error = EINVAL;
  ha::write_file(folder / "file", "newer");
  CHECK(ha::read_text_file(folder / "file") == "newer");
}

TEST_CASE("files in the working directory are flushed too", "[io]") {
  headaware_test::TemporaryFolder const folder;
  auto const before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  Recorder recorder;
  ha::write_file("file", "new");
  std::filesystem::current_path(before);
  REQUIRE(recorder.events.size() == 3);
  CHECK(recorder.events[2].file == inode(folder.path()));
}
