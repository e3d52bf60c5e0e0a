#include "descent.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "threads.h"

namespace haq {

namespace {

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

// One output channel: nothing but its own codes depends on it.
void channel(const Descent& d, int64_t index, int sweeps) {
  const int64_t size = d.inputs, first = index * size;
  const double* covariance = d.covariance + index / d.channels * size * size;
  const double scale = d.scale[index];
  double* slope = d.slope + first;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    bool still = true;
    for (int64_t k = 0; k < size; ++k) {
      const int64_t at = first + k;
      const double* row = covariance + k * size;
      const double wanted = (d.rows[at] - d.error[at]) + slope[k] / row[k];
      const double code = snapped(d, wanted / scale, at);
      if (code == d.codes[at]) continue;
      const double moved = (d.codes[at] - code) * scale;
      d.codes[at] = code;
      d.error[at] += moved;
      for (int64_t j = 0; j < size; ++j) slope[j] += moved * row[j];
      still = false;
    }
    if (still) return;
  }
}

}  // namespace

void descend(const Descent& d, int sweeps, int threads) {
  const int64_t count = d.groups * d.channels;
  std::atomic<int64_t> next{0};
  parallel(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, count))), [&](int) {
    for (int64_t i = next++; i < count; i = next++) channel(d, i, sweeps);
  });
}

}  // namespace haq
