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
  [[nodiscard]] int close() { return ::close(std::exchange(fd_, -1)); }

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

/// A new file beside `target`, removed again unless it takes the target's place.
class SiblingFile {
 public:
  explicit SiblingFile(std::filesystem::path const& target) : file_(create(target)) {}
  SiblingFile(SiblingFile const&) = delete;
  SiblingFile& operator=(SiblingFile const&) = delete;
  ~SiblingFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
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
  void replace(std::filesystem::path const& target) {
    if (::fsync(file_.get()) != 0 || file_.close() != 0) {
      throw_file_error("cannot write file", "room for the file", path_, errno);
    }
    if (::rename(path_.c_str(), target.c_str()) != 0) {
      throw_file_error("cannot rename file", "a replaceable file", target, errno);
    }
    path_.clear();
  }

 private:
  [[nodiscard]] int create(std::filesystem::path const& target) {
    static std::atomic<unsigned> counter{0};
    for (;;) {
      path_ = target.parent_path() /
              (".headaware-" + std::to_string(::getpid()) + "-" + std::to_string(counter++) + ".tmp");
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
/// @throws FileError naming the path and the system's reason; the old file is then as it was
/// @note   Writes to a file beside the target, flushes it and renames it.
inline void write_file(std::filesystem::path const& path, std::string_view contents) {
  std::span<std::byte const> const part = std::as_bytes(std::span(contents));
  detail::write_whole(path, std::span(&part, 1));
}

HEADAWARE_NAMESPACE_END
