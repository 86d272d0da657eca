#pragma once

/// @file
/// All JSON files of per-head statistics, retention and classifications, read and written. Who only reads them
/// includes head_statistics.hpp or head_classifications.hpp and spares the compiler nlohmann/json.

#include <headaware/io/head_classifications.hpp>  // IWYU pragma: export
#include <headaware/io/head_statistics.hpp>       // IWYU pragma: export
#include <headaware/io/retention_statistics.hpp>  // IWYU pragma: export
#include <headaware/io/save.hpp>                  // IWYU pragma: export
#include <headaware/io/save_observation.hpp>      // IWYU pragma: export
