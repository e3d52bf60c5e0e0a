// Coordinate descent over the codes of a layer's weights, for haqsearch/ptq/lattice.py, which says what is minimised.
#pragma once

#include <cstdint>

namespace haq {

// Codes of G groups of N output channels with K inputs; all arrays are contiguous, by group, channel and input.
struct Descent {
  int64_t groups, channels, inputs;
  double* codes;             // (G, N, K), changed
  double* error;             // (G, N, K), changed: weight - code * scale
  double* slope;             // (G, N, K), changed: error * covariance
  const double* rows;        // (G, N, K), the weights
  const double* scale;       // (G, N)
  const double* covariance;  // (G, K, K), symmetric
  const double* step;        // (G, N, K), a code is level * step; or null: 1 everywhere
  double low, high;          // levels are the integers between, unless there is a list:
  const double* levels;      // ascending; or null
  const double* middles;     // between two levels each
  int64_t level_count;
};

// Up to `sweeps` over the inputs, fewer where nothing moves. Equal to the last bit to the same in torch, on any machine.
void descend(const Descent& d, int sweeps, int threads);

}  // namespace haq
