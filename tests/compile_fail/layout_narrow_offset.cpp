// error: a layout needs 'int64_t offset(int64_t sequence, int64_t head, int64_t token, int64_t channel) const'

#include <headaware/layout/concept.hpp>

#include <cstdint>

struct Layout {
  HEADAWARE_HOST_DEVICE int offset(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const { return 0; }
};

static_assert(headaware::check_layout<Layout>());
