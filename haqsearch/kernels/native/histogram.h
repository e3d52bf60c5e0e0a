// Counts in equal bins, for haqsearch/calibrate/histogram.py.
#pragma once

#include <cstdint>

namespace haq {

// Adds `count` values from `low` on to `bins` counts of bins `step` wide; those at the upper edge, or beyond, to the last.
void histogram(const float* values, int64_t count, float low, float step, int64_t* counts, int bins, int threads);

}  // namespace haq
