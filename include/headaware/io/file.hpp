#pragma once

/// @file
/// Whole files, read at once and written whole or not at all.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// Bytes of text that a reader takes: far above any model's statistics, far below what hurts.
inline constexpr std::size_t max_text_bytes = std::size_t{1} << 30;

namespace detail {

[[noreturn]] inline void throw_file_error(char const* what, char const* expected, std::filesystem::path const& path,
                                          int error) {
  throw FileError({what, expected, std::generic_category().message(error), path.string()});
}

/// Owns a descriptor.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor const&) = delete;
  FileDescriptor& operator=(FileDescriptor const&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

/// @tparam Bytes  std::string or std::vector<std::byte>
template <class Bytes>
[[nodiscard]] Bytes read_whole(std::filesystem::path const& path, std::size_t max_bytes) {
  FileDescriptor const file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw_file_error("cannot open file", "a readable file", path, errno);
  struct ::stat info {};
  if (::fstat(file.get(), &info) != 0) throw_file_error("cannot read file", "a readable file", path, errno);

  // The size is a hint: pipes have none, and a file may grow. The byte beyond it finds the end.
  auto const hint = static_cast<std::size_t>(std::max<decltype(info.st_size)>(info.st_size, 0));
  auto too_large = [&](std::string got) {
    throw FileError(
        {"file too large", "at most " + std::to_string(max_bytes) + " bytes", std::move(got), path.string()});
  };
  if (S_ISREG(info.st_mode) && hint > max_bytes) too_large(std::to_string(hint));
  Bytes bytes;
  bytes.resize(std::max(S_ISREG(info.st_mode) ? hint + 1 : 0, std::size_t{4096}));
  std::size_t used = 0;
  for (;;) {
    if (used == bytes.size()) bytes.resize(bytes.size() + bytes.size() / 2 + 1);
    ::ssize_t const got = ::read(file.get(), bytes.data() + used, bytes.size() - used);
    if (got == 0) break;
    if (got < 0) {
      if (errno == EINTR) continue;
      throw_file_error("cannot read file", "a readable file", path, errno);
    }
    used += static_cast<std::size_t>(got);
    if (used > max_bytes) too_large("more");
  }
  bytes.resize(used);
  return bytes;
}

/// What files are called until they are whole. Readers pass them over.
inline constexpr std::string_view temporary_prefix = ".headaware-";

/// A name for a file that is not whole yet, which no other process takes.
[[nodiscard]] inline std::string temporary_name() {
  static std::atomic<unsigned> counter{0};
  return std::string(temporary_prefix) + std::to_string(::getpid()) + "-" + std::to_string(counter++);
}

/// Removes from a folder what processes left that were killed while they wrote. What is not a day old may be another
/// process's, on another machine too, and stays.
inline void remove_stale_temporaries(std::filesystem::path const& folder) noexcept {
  try {
    std::error_code error;
    auto const now = std::filesystem::file_time_type::clock::now();
    auto entry = std::filesystem::directory_iterator(folder.empty() ? "." : folder, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
      if (!std::string_view(entry->path().filename().native()).starts_with(temporary_prefix)) continue;
      std::error_code ignored;
      if (!entry->is_regular_file(ignored) || entry->is_symlink(ignored)) continue;
      auto const changed = entry->last_write_time(ignored);
      if (!ignored && now - changed > std::chrono::hours(24)) ::unlink(entry->path().c_str());
    }
  } catch (...) {  // out of memory: the next writer tries again
    return;
  }
}

/// Makes a folder's names as durable as its files: else a machine that stops may forget a rename.
/// @throws FileError
inline void require_flushed(std::filesystem::path const& folder) {
  FileDescriptor const opened(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Folders that may be written but not read, and file systems that flush none, leave nothing to do.
  if (opened.get() < 0 || ::fsync(opened.get()) == 0 || errno == EINVAL || errno == ENOTSUP) return;
  throw_file_error("cannot flush folder", "a folder that keeps its names", folder, errno);
}

/// Gives a written file another name: its bytes are on disk before the name is, and the name when this returns.
/// @param fd  open on `from` @throws FileError; `from` is then still there, unless only the folder could not be flushed
inline void rename_durably(int fd, std::filesystem::path const& from, std::filesystem::path const& to) {
  if (::fsync(fd) != 0) throw_file_error("cannot write file", "room for the file", from, errno);
  if (::rename(from.c_str(), to.c_str()) != 0) {
    throw_file_error("cannot rename file", "a replaceable file", to, errno);
  }
  require_flushed(to.parent_path());
}

/// A new file beside `target`, removed again unless it takes the target's place.
class SiblingFile {
 public:
  explicit SiblingFile(std::filesystem::path const& target) : file_(create(target)) {}
  SiblingFile(SiblingFile const&) = delete;
  SiblingFile& operator=(SiblingFile const&) = delete;
  ~SiblingFile() {
    if (!path_.empty()) ::unlink(path_.c_str());  // whose name is another by now, unless something failed
  }

  void set_mode(::mode_t mode) {
    if (::fchmod(file_.get(), mode) != 0) throw_file_error("cannot write file", "a writable folder", path_, errno);
  }

  void append(std::span<std::byte const> bytes) {
    while (!bytes.empty()) {
      ::ssize_t const put = ::write(file_.get(), bytes.data(), bytes.size());
      if (put < 0) {
        if (errno == EINTR) continue;
        throw_file_error("cannot write file", "room for the file", path_, errno);
      }
      bytes = bytes.subspan(static_cast<std::size_t>(put));
    }
  }

  /// After this the target holds what was appended, also if the machine stops.
  void replace(std::filesystem::path const& target) { rename_durably(file_.get(), path_, target); }

 private:
  [[nodiscard]] int create(std::filesystem::path const& target) {
    remove_stale_temporaries(target.parent_path());
    for (;;) {
      path_ = target.parent_path() / (temporary_name() + ".tmp");
      int const fd = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (fd >= 0) return fd;
      if (errno != EEXIST) {
        path_.clear();
        throw_file_error("cannot create file", "a writable folder", target, errno);
      }
    }
  }

  std::filesystem::path path_;
  FileDescriptor file_;
};

/// `write_file` for contents in several pieces.
inline void write_whole(std::filesystem::path const& path, std::span<std::span<std::byte const> const> parts) {
  std::filesystem::path target = path;
  std::error_code ignored;
  if (std::filesystem::is_symlink(path, ignored)) {
    // Replace what the link names, not the link; a dangling one is replaced itself.
    auto const resolved = std::filesystem::canonical(path, ignored);
    if (!ignored) target = resolved;
  }
  struct ::stat old {};
  bool const exists = ::stat(target.c_str(), &old) == 0;
  if (exists && !S_ISREG(old.st_mode)) {
    throw FileError(
        {"cannot replace file", "a regular file", S_ISDIR(old.st_mode) ? "a folder" : "a special file", path.string()});
  }
  if (exists && ::access(target.c_str(), W_OK) != 0) {
    throw_file_error("cannot replace file", "a writable file", path, errno);
  }
  SiblingFile file(target);
  if (exists) file.set_mode(old.st_mode & 07777);
  for (auto const part : parts) file.append(part);
  file.replace(target);
}

}  // namespace detail

/// @brief Reads a whole file as text. @param max_bytes the largest size taken
/// @throws FileError naming the path and the system's reason
[[nodiscard]] inline std::string read_text_file(std::filesystem::path const& path,
                                                std::size_t max_bytes = max_text_bytes) {
  return detail::read_whole<std::string>(path, max_bytes);
}

/// @brief Reads a whole file as bytes, aligned for any element type. @param max_bytes the largest size taken
/// @throws FileError naming the path and the system's reason
[[nodiscard]] inline std::vector<std::byte> read_binary_file(
    std::filesystem::path const& path, std::size_t max_bytes = std::numeric_limits<std::size_t>::max() / 4) {
  return detail::read_whole<std::vector<std::byte>>(path, max_bytes);
}

/// @brief Writes a file whole or not at all: a reader sees the old file or the new one, also when writing
/// fails or the machine stops half way. An existing file keeps its permissions.
/// @throws FileError naming the path and the system's reason; the old file is then as it was, unless only the folder
///         could not be flushed
/// @note   Writes to a file beside the target (`.headaware-…`), flushes it, renames it and flushes the folder. Such
///         files of killed processes are removed a day later, when something is written into their folder.
inline void write_file(std::filesystem::path const& path, std::string_view contents) {
  std::span<std::byte const> const part = std::as_bytes(std::span(contents));
  detail::write_whole(path, std::span(&part, 1));
}

HEADAWARE_NAMESPACE_END
