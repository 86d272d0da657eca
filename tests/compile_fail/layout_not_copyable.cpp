// error: a layout must be trivially copyable, because kernels take it by value

#include <headaware/layout/concept.hpp>

#include <cstdint>
#include <vector>

struct Layout {
  std::vector<std::int64_t> offsets;
  std::int64_t offset(std::int64_t, std::int64_t, std::int64_t token, std::int64_t) const {
    return offsets[static_cast<std::size_t>(token)];
  }
};

static_assert(headaware::check_layout<Layout>());
