#include "descent.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "threads.h"

namespace haq {

namespace {

constexpr int64_t kTogether = 8;

// Halfway between integers to the even one, as torch.round; halfway between levels to the lower one, as torch.bucketize.
double snapped(const Lattice& d, double x, int64_t at) {
  const double step = d.step ? d.step[at] : 1.0;
  const double unit = d.step ? x / step : x;
  double level;
  if (d.levels) {
    const double* end = d.middles + d.level_count - 1;
    level = d.levels[std::lower_bound(d.middles, end, unit) - d.middles];
  } else {
    level = std::min(std::max(std::nearbyint(unit), d.low), d.high);
  }
  return d.step ? level * step : level;
}

// `count` output channels of a group from `index` on, each by itself; together, so that a row of the covariance is read once.
void channels(const Descent& d, int64_t index, int64_t count, int sweeps) {
  const int64_t size = d.inputs;
  const double* covariance = d.covariance + index / d.channels * size * size;
  bool done[kTogether] = {};
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    bool moving[kTogether] = {};
    for (int64_t k = 0; k < size; ++k) {
      const double* row = covariance + k * size;
      for (int64_t c = 0; c < count; ++c) {
        if (done[c]) continue;
        const double scale = d.scale[index + c];
        double* slope = d.slope + (index + c) * size;
        const int64_t at = (index + c) * size + k;
        const double wanted = (d.rows[at] - d.error[at]) + slope[k] / row[k];
        const double code = snapped(d, wanted / scale, at);
        if (code == d.codes[at]) continue;
        const double moved = (d.codes[at] - code) * scale;
        d.codes[at] = code;
        d.error[at] += moved;
        for (int64_t j = 0; j < size; ++j) slope[j] += moved * row[j];
        moving[c] = true;
      }
    }
    bool all = true;
    for (int64_t c = 0; c < count; ++c) all &= done[c] = !moving[c];
    if (all) return;
  }
}

// Codes of `count` channels from `index` on. `changes`: room for those of all inputs, kTogether channels side by side, which is
// what makes vectors of them.
void decide_channels(const Decision& d, int64_t index, int64_t count, double* changes) {
  const int64_t size = d.inputs;
  const double* share = d.share + index / d.channels * size * size;
  for (int64_t k = 0; k < size; ++k) {
    double wanted[kTogether] = {};
    for (int64_t c = 0; c < count; ++c) wanted[c] = d.rows[(index + c) * size + k];
    for (int64_t j = 0; j < k; ++j)
      for (int64_t c = 0; c < kTogether; ++c) wanted[c] -= share[k * size + j] * changes[j * kTogether + c];
    for (int64_t c = 0; c < kTogether; ++c) changes[k * kTogether + c] = 0.0;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = (index + c) * size + k;
      const double scale = d.scale[index + c];
      d.codes[at] = snapped(d, wanted[c] / scale, at);
      changes[k * kTogether + c] = wanted[c] - d.codes[at] * scale;
    }
  }
}

// `work` on every block of channels of every group, by its first channel and their number.
template <typename Work>
void by_blocks(const Lattice& d, int threads, const Work& work) {
  const int64_t blocks = (d.channels + kTogether - 1) / kTogether;  // of a group
  std::atomic<int64_t> next{0};
  parallel(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, d.groups * blocks))), [&](int) {
    for (int64_t i = next++; i < d.groups * blocks; i = next++) {
      const int64_t first = i % blocks * kTogether;
      work(i / blocks * d.channels + first, std::min<int64_t>(kTogether, d.channels - first));
    }
  });
}

}  // namespace

void descend(const Descent& d, int sweeps, int threads) {
  by_blocks(d, threads, [&](int64_t index, int64_t count) { channels(d, index, count, sweeps); });
}

void decide(const Decision& d, int threads) {
  by_blocks(d, threads, [&](int64_t index, int64_t count) {
    std::vector<double> changes(d.inputs * kTogether);
    decide_channels(d, index, count, changes.data());
  });
}

}  // namespace haq
