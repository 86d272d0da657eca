#pragma once

/// @file
/// All JSON documents, read and written.

#include <headaware/io/attention_sums.hpp>        // IWYU pragma: export
#include <headaware/io/head_classifications.hpp>  // IWYU pragma: export
#include <headaware/io/head_statistics.hpp>       // IWYU pragma: export
#include <headaware/io/plan.hpp>                  // IWYU pragma: export
#include <headaware/io/policy_table.hpp>          // IWYU pragma: export
#include <headaware/io/retention_statistics.hpp>  // IWYU pragma: export
#include <headaware/io/sensitivities.hpp>         // IWYU pragma: export
