// error: an engine's encoded rows are bytes: LayerKv<std::byte>, or LayerKv<std::byte const>
#include <headaware/cache/engine_rows.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/policy/table.hpp>

#include <vector>

namespace ha = headaware;

void move(ha::Compaction<> const& compaction, std::vector<ha::LayerKv<float const>> const& layers,
          ha::PackedDestination<ha::RaggedForm> const& kept) {
  ha::import_rows(compaction, layers, ha::strided_shd(8, 2, 64), kept);
}
