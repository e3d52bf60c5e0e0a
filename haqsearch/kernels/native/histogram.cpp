#include "histogram.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "threads.h"

namespace haq {

namespace {

constexpr int64_t kBlock = 1024, kShare = 1 << 18;
constexpr int kLanes = 4;  // histograms in turn: adding to a bin just added to waits for it, and many neighbours are zeros

}  // namespace

void histogram(const float* values, int64_t count, float low, float step, int64_t* counts, int bins, int threads) {
  const int64_t shares = (count + kShare - 1) / kShare;
  std::atomic<int64_t> next{0};
  std::mutex adding;
  parallel(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, shares))), [&](int) {
    std::vector<uint32_t> lanes(size_t(kLanes) * bins);  // of a share, which fits; small, for the cache
    std::vector<int64_t> sums(bins);
    int32_t places[kBlock];
    for (int64_t share = next++; share < shares; share = next++) {
      const int64_t end = std::min(count, (share + 1) * kShare);
      for (int64_t first = share * kShare; first < end; first += kBlock) {
        const int64_t size = std::min(kBlock, end - first);
        for (int64_t i = 0; i < size; ++i) {
          const float place = (values[first + i] - low) / step;
          places[i] = static_cast<int32_t>(std::min(std::max(0.0f, place), float(bins - 1)));  // NaN: the first
        }
        for (int64_t i = 0; i < size; ++i) ++lanes[(i % kLanes) * bins + places[i]];
      }
      for (size_t i = 0; i < lanes.size(); ++i) sums[i % bins] += lanes[i];
      std::fill(lanes.begin(), lanes.end(), 0);
    }
    const std::lock_guard<std::mutex> lock(adding);
    for (int bin = 0; bin < bins; ++bin) counts[bin] += sums[bin];
  });
}

}  // namespace haq
