// error: layouts of single layers go in as ha::per_layer(layouts)
#include <headaware/cache/compact.hpp>
#include <headaware/layout/strided.hpp>

#include <vector>

int main() {
  namespace ha = headaware;
  std::vector<std::int32_t> const lengths{4};
  ha::Compaction const compaction(ha::PolicyTable(1, 1), lengths);
  std::vector<float> data(64);
  std::vector<ha::LayerKv<float>> const layers{{data.data(), data.data() + 16}};
  std::vector<ha::StridedLayout> const layouts{ha::strided_bhsd(1, 1, 4, 4)};
  ha::compress(compaction, layers, layouts, ha::ragged(compaction, data.data() + 32, data.data() + 48, 4));
}
