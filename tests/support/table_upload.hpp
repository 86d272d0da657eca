#pragma once

// Tables that a view or a layout points to, kept where a back end reads them.

#include <headaware/cache/rolling_head.hpp>

#include <cstdint>
#include <list>
#include <type_traits>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

/// Keeps tables where a back end reads them. @tparam Array  made of a vector, with `data()`
template <template <class> class Array>
class TableUpload {
 public:
  template <class I>
  I const* operator()(std::vector<I> const& values) const {
    if constexpr (std::is_same_v<I, std::int32_t>) return narrow_.emplace_back(values).data();
    if constexpr (std::is_same_v<I, std::int64_t>) return wide_.emplace_back(values).data();
    if constexpr (std::is_same_v<I, float>) return floats_.emplace_back(values).data();
    if constexpr (std::is_same_v<I, ha::RollingHead>) return heads_.emplace_back(values).data();
  }

 private:
  mutable std::list<Array<std::int32_t>> narrow_;
  mutable std::list<Array<std::int64_t>> wide_;
  mutable std::list<Array<float>> floats_;
  mutable std::list<Array<ha::RollingHead>> heads_;
};
template <class I>
using HostArray = std::vector<I>;
using HostUpload = TableUpload<HostArray>;

}  // namespace headaware_test
