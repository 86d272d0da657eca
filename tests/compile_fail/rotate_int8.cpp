// error: keys that turn hold float, float16 or bfloat16

#include <headaware/cache/compact.hpp>
#include <headaware/layout/strided.hpp>

#include <cstdint>
#include <vector>

namespace ha = headaware;

void compress(ha::Compaction<> const& compaction, std::vector<ha::LayerKv<std::int8_t>> const& layers,
              std::int8_t* kept, ha::KeyRotation const& rotation) {
  ha::compress(compaction,
               ha::transfer(layers, ha::strided_bhsd(1, 1, 1, 64), ha::ragged(compaction, kept, kept + 64, 64))
                   .rotate_keys(rotation));
}
