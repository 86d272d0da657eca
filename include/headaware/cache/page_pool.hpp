#pragma once

/// @file
/// Free pages of a pool, and the owners of the others.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Numbers pages 0, 1, … and counts their owners; holds no contents. The page freed last is
/// handed out first.
/// @par Cost  Each call is O(1) and allocates nothing; 8 bytes per page
class PagePool {
 public:
  PagePool() = default;
  /// @throws ArgumentError on a negative number
  explicit PagePool(std::int32_t num_pages) {
    require(num_pages >= 0, "pages", ">= 0", num_pages, "PagePool");
    references_.resize(static_cast<std::size_t>(num_pages));
    free_.reserve(references_.size());  // so that nothing below allocates
    for (std::int32_t page = num_pages; page-- > 0;) free_.push_back(page);
  }
  PagePool(PagePool const& other) : references_(other.references_) {
    free_.reserve(references_.size());  // a vector's copy has room for no more than it holds
    free_.insert(free_.end(), other.free_.begin(), other.free_.end());
  }
  PagePool& operator=(PagePool const& other) { return *this = PagePool(other); }
  PagePool(PagePool&&) noexcept = default;
  PagePool& operator=(PagePool&&) noexcept = default;
  ~PagePool() = default;

  [[nodiscard]] std::int32_t num_pages() const { return static_cast<std::int32_t>(references_.size()); }
  [[nodiscard]] std::int64_t free_pages() const { return static_cast<std::int64_t>(free_.size()); }
  /// Owners of a page; 0: free. @throws ArgumentError if there is no such page
  [[nodiscard]] std::int32_t references(std::int32_t page) const {
    require_index(page, num_pages(), "page", "PagePool");
    return references_[static_cast<std::size_t>(page)];
  }

  /// Takes a free page, with one owner. @throws CapacityError if there is none
  std::int32_t take() {
    if (free_.empty())
      throw CapacityError({"pages", "a free page", "none of " + std::to_string(num_pages()), "PagePool"});
    std::int32_t const page = free_.back();
    free_.pop_back();
    references_[static_cast<std::size_t>(page)] = 1;
    return page;
  }
  /// Adds an owner. @throws ArgumentError if the page has none
  void retain(std::int32_t page) {
    require(references(page) > 0, "page", "one with an owner", page, "PagePool::retain");
    ++references_[static_cast<std::size_t>(page)];
  }
  /// Removes an owner; without owners the page is free. @throws ArgumentError if the page has none
  void release(std::int32_t page) {
    require(references(page) > 0, "page", "one with an owner", page, "PagePool::release");
    if (--references_[static_cast<std::size_t>(page)] == 0) free_.push_back(page);
  }

 private:
  std::vector<std::int32_t> references_;
  std::vector<std::int32_t> free_;
};

HEADAWARE_NAMESPACE_END
