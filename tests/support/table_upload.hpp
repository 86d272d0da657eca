#pragma once

// Tables that a view or a layout points to, kept where a back end reads them.

#include <memory>
#include <vector>

namespace headaware_test {

/// Keeps tables where a back end reads them. @tparam Array  made of a vector, with `data()`
template <template <class> class Array>
class TableUpload {
 public:
  template <class I>
  I const* operator()(std::vector<I> const& values) const {
    auto const kept = std::make_shared<Array<I>>(values);
    kept_.push_back(kept);
    return kept->data();
  }

 private:
  mutable std::vector<std::shared_ptr<void>> kept_;
};
template <class I>
using HostArray = std::vector<I>;
using HostUpload = TableUpload<HostArray>;

}  // namespace headaware_test
