// Codes of a layer's weights, one after the other or by coordinate descent, for haqsearch/ptq/lattice.py, which says what is
// minimised.
#pragma once

#include <cstdint>

namespace haq {

// Weights of G groups of N output channels with K inputs, and the codes there are; all arrays are contiguous, by group, channel
// and input.
struct Lattice {
  int64_t groups, channels, inputs;
  const double* rows;     // (G, N, K), the weights
  const double* scale;    // (G, N)
  const double* step;     // (G, N, K), a code is level * step; or null: 1 everywhere
  double low, high;       // levels are the integers between, unless there is a list:
  const double* levels;   // ascending; or null
  const double* middles;  // between two levels each
  int64_t level_count;
};

struct Descent : Lattice {
  double* codes;             // (G, N, K), changed
  double* error;             // (G, N, K), changed: weight - code * scale
  double* slope;             // (G, N, K), changed: error * covariance
  const double* covariance;  // (G, K, K), symmetric
};

// Up to `sweeps` over the inputs, fewer where nothing moves. Equal to the last bit to the same in torch, on any machine.
void descend(const Descent& d, int sweeps, int threads);

struct Decision : Lattice {
  double* codes;        // (G, N, K), made
  const double* share;  // (G, K, K): in row k, of the change of each input before it, what weight k is made less by
};

// From the first input to the last, a code for each weight. As `descend`, the same on any machine.
void decide(const Decision& d, int threads);

}  // namespace haq
