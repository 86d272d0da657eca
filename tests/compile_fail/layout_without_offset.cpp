// error: a layout needs 'int64_t offset(int64_t sequence, int64_t head, int64_t token, int64_t channel) const'

#include <headaware/layout/concept.hpp>

struct Layout {};

headaware::KvLayouts<Layout, Layout> const layouts;
