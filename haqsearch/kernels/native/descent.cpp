#include "descent.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "threads.h"

namespace haq {

namespace {

constexpr int64_t kTogether = 8;

// Halfway between integers to the even one, as torch.round; halfway between levels to the lower one, as torch.bucketize.
double snapped(const Descent& d, double x, int64_t at) {
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

}  // namespace

void descend(const Descent& d, int sweeps, int threads) {
  const int64_t blocks = (d.channels + kTogether - 1) / kTogether;  // of a group
  std::atomic<int64_t> next{0};
  parallel(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, d.groups * blocks))), [&](int) {
    for (int64_t i = next++; i < d.groups * blocks; i = next++) {
      const int64_t first = i % blocks * kTogether;
      channels(d, i / blocks * d.channels + first, std::min<int64_t>(kTogether, d.channels - first), sweeps);
    }
  });
}

}  // namespace haq
