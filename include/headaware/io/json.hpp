#pragma once

/// @file
/// All JSON files of per-head statistics, retention, classifications and plans, read and written. Who only reads them
/// includes head_statistics.hpp, head_classifications.hpp or policy_table.hpp and spares the compiler nlohmann/json.

#include <headaware/io/head_classifications.hpp>  // IWYU pragma: export
#include <headaware/io/head_statistics.hpp>       // IWYU pragma: export
#include <headaware/io/plan.hpp>                  // IWYU pragma: export
#include <headaware/io/policy_table.hpp>          // IWYU pragma: export
#include <headaware/io/retention_statistics.hpp>  // IWYU pragma: export
#include <headaware/io/save.hpp>                  // IWYU pragma: export
#include <headaware/io/save_observation.hpp>      // IWYU pragma: export
#include <headaware/io/save_plan.hpp>             // IWYU pragma: export
#include <headaware/io/save_sensitivities.hpp>    // IWYU pragma: export
#include <headaware/io/sensitivities.hpp>         // IWYU pragma: export
