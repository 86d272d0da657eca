#pragma once

// What the units of the program are asked, in types that do not come of the library.

#include <cstdint>
#include <vector>

struct Problem {
  std::int64_t head_dim = 0;
  std::int64_t tokens = 0;
  std::vector<float> queries;  ///< [tokens, head_dim]
  std::vector<float> keys;
  std::vector<float> values;
};

struct Answer {
  std::vector<float> attended;  ///< of the last query over all tokens, [head_dim]
  std::vector<float> half;      ///< the same with 16-bit floats
  std::vector<float> masked;    ///< every query over all up to its own, [tokens, head_dim]
  double entropy = 0;           ///< mean over queries
};

Answer baseline(Problem const& problem);
Answer v3(Problem const& problem);
Answer v4(Problem const& problem);
