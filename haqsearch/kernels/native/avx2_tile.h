// The tile all dense AVX2 convolutions share: up to 6 pixels x 16 output channels, accumulators in registers.
//
// A step takes four bytes of each pixel (four codes, or two codes widened to int16) and 64 bytes of weights (sixteen
// channels x the same four bytes). What a step does with them is the Kind:
//   kWide    int16 x int16 pairs by vpmaddwd: exact for every 8-bit operand.
//   kPairs   vpmaddubsw, then vpmaddwd with ones: exact where no pair of products leaves int16.
//   kBlocks  vpmaddubsw summed in int16 over the steps of a block, then widened: exact where no block's sums leave int16.
//   kWhole   kBlocks with a single block.
//   kTwos    kBlocks with blocks of two steps: where one side has seven bits, two always fit.
//
// A block's sums do not start at zero but where the whole of what they can reach lies within int16: all that matters is that the
// largest and the smallest are less than 2^16 apart. What they start at is taken off the int32 sums beforehand.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace haq::avx2 {

enum class Kind { kWide, kPairs, kTwos, kBlocks, kWhole };

inline constexpr int kTilePixels = 6, kTwosPixels = 4, kTileChannels = 16, kStepBytes = 64, kStartLanes = kStepBytes / 2;

// How many of `left` pixels to take next, `most` at most, for parts of about one size. Of a panel: whole tiles, unless that
// leaves little for the last part.
inline int share(int64_t left, int most, int tile = 1) {
  if (left >= 2 * most) return most / tile * tile;
  const int rest = static_cast<int>(left), parts = rest > most ? 2 : 1;
  const int even = (rest + parts - 1) / parts, whole = (even + tile - 1) / tile * tile;
  const bool takes_whole = whole <= most && 2 * (rest - (parts - 1) * whole) >= whole;
  return takes_whole ? std::min(rest, whole) : even;
}

// `steps` steps, the pixels' bytes at `offset` behind their pointers; `widen`: a block ends here.
struct Run {
  std::ptrdiff_t offset = 0;
  int steps = 0;
  bool widen = true;
};

// Blocks of steps whose sums fit int16: how many steps each has, and where each of its 32 sums starts (see above).
struct Blocks {
  std::vector<int> steps;
  std::vector<int16_t> start;

  // What channel n's two sums start at, over all blocks.
  int32_t started(int n) const {
    int32_t sum = 0;
    for (size_t lane = 2 * size_t(n); lane < start.size(); lane += kStartLanes) sum += start[lane] + start[lane + 1];
    return sum;
  }
};

// Cuts `steps` packed steps of int8 weights into the longest blocks, of `most` steps at most, whose int16 sums cannot overflow,
// whatever codes within 0 .. largest they meet. It follows from the weights themselves, not from their width. Pairs of one step
// must fit.
inline Blocks cut_blocks(const int8_t* weights, int steps, int largest, int most = INT_MAX) {
  int32_t above[kStartLanes] = {}, below[kStartLanes] = {};  // the largest and the smallest sum each int16 lane can hold
  const auto add = [&](const int8_t* step, int codes) {
    bool fits = true;
    for (int i = 0; i < kStepBytes; ++i) {
      int32_t* const sums = step[i] > 0 ? above : below;
      sums[i / 2] += step[i] * codes;
      fits = fits && above[i / 2] - below[i / 2] <= UINT16_MAX;
    }
    return fits;
  };
  Blocks blocks;
  int length = 0;
  const auto cut = [&] {
    blocks.steps.push_back(length);
    for (int lane = 0; lane < kStartLanes; ++lane)
      blocks.start.push_back(static_cast<int16_t>(std::min(INT16_MAX - above[lane], 0) + std::max(INT16_MIN - below[lane], 0)));
    std::fill_n(above, kStartLanes, 0), std::fill_n(below, kStartLanes, 0);
    length = 0;
  };
  for (int step = 0; step < steps; ++step, ++length) {
    const int8_t* const here = weights + step * kStepBytes;
    if (length < most && add(here, largest)) continue;
    if (length < most) add(here, -largest);
    cut();
    add(here, largest);
  }
  cut();
  return blocks;
}

// Whether the two products of every pair of one step stay within int16: what vpmaddubsw asks for.
inline bool pairs_fit(const int8_t* weights, int64_t bytes, int largest) {
  for (int64_t i = 0; i < bytes; i += 2) {
    const int a = weights[i], b = weights[i + 1];
    if ((std::max(a, 0) + std::max(b, 0)) * largest > INT16_MAX) return false;
    if ((std::min(a, 0) + std::min(b, 0)) * largest < INT16_MIN) return false;
  }
  return true;
}

inline __m256i broadcast4(const uint8_t* bytes) {
  int32_t four;
  std::memcpy(&four, bytes, 4);
  return _mm256_set1_epi32(four);
}

template <Kind kind>
inline __m256i multiply_add(__m256i acc, __m256i codes, __m256i weights) {
  if constexpr (kind == Kind::kWide) return _mm256_add_epi32(acc, _mm256_madd_epi16(codes, weights));
  const __m256i pairs = _mm256_maddubs_epi16(codes, weights);
  if constexpr (kind == Kind::kPairs) return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  return _mm256_add_epi16(acc, pairs);
}

inline void store(void* to, __m256i value) { _mm256_store_si256(static_cast<__m256i*>(to), value); }
inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// What accumulate() multiplies: pixels' bytes at `from` behind their pointers by packed weights, in runs.
struct Factors {
  const uint8_t* const* pixels;
  std::ptrdiff_t from;
  const Run *run, *end;
  const int8_t* weights;
  const int32_t* start;         // of sixteen channels' sums
  const int16_t* blocks_start;  // of a block's sums, 32 a block (Blocks::start); not for kWide and kPairs
};

// acc[p][h]: int32 sums of pixel p, channels 8 h .. 8 h + 8. With Halves = 1 only the first eight channels are done.
template <Kind kind, int Pixels, int Halves>
inline __attribute__((always_inline)) void accumulate(const Factors& f, __m256i (&acc)[Pixels][Halves]) {
  constexpr bool kNarrow = kind == Kind::kBlocks || kind == Kind::kWhole;
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* pixel[Pixels];
  __m256i sum[Pixels][Halves];  // int16 within a block (kNarrow), else the result itself
  alignas(32) int32_t memory[Pixels][Halves][8];
  auto* before = memory;   // sums of the blocks before; there are no registers for them,
  asm("" : "+r"(before));  // and gcc would copy them from one place to another
  const int8_t* weights = f.weights;
  const int16_t* block = f.blocks_start;
  const int32_t* start = f.start;
  asm volatile("" : "+r"(start));  // nothing is loaded, and kept, before the caller has chosen among the numbers of pixels
  __m256i first[Halves], first_sum[Halves];
#pragma GCC unroll 2
  for (int h = 0; h < Halves; ++h) {
    first[h] = load(start + 8 * h);
    first_sum[h] = kNarrow ? load(block + 16 * h) : first[h];
  }
#pragma GCC unroll 6
  for (int p = 0; p < Pixels; ++p) {
    pixel[p] = f.pixels[p] + f.from;
#pragma GCC unroll 2
    for (int h = 0; h < Halves; ++h) {
      sum[p][h] = first_sum[h];
      if (kind == Kind::kBlocks) store(before[p][h], first[h]);
    }
  }
  for (const Run* run = f.run; run != f.end; ++run) {
    const int8_t* const stop = weights + std::ptrdiff_t(run->steps) * kStepBytes;
#pragma GCC unroll 2  // runs are short: half the turns
    for (std::ptrdiff_t at = run->offset; weights != stop; weights += kStepBytes, at += 4) {
      __m256i w[Halves];
#pragma GCC unroll 2
      for (int h = 0; h < Halves; ++h) w[h] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights) + h);
#pragma GCC unroll 6
      for (int p = 0; p < Pixels; ++p) {
        const __m256i codes = broadcast4(pixel[p] + at);
#pragma GCC unroll 2
        for (int h = 0; h < Halves; ++h) sum[p][h] = multiply_add<kind>(sum[p][h], codes, w[h]);
      }
    }
    if (kind == Kind::kBlocks && run->widen && run + 1 != f.end) {
      block += kStartLanes;
#pragma GCC unroll 6
      for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
        for (int h = 0; h < Halves; ++h) {
          store(before[p][h], _mm256_add_epi32(load(before[p][h]), _mm256_madd_epi16(sum[p][h], ones)));
          sum[p][h] = load(block + 16 * h);
        }
    }
  }
  asm("" : "+r"(start));  // loaded again: no register holds it meanwhile
#pragma GCC unroll 6
  for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
    for (int h = 0; h < Halves; ++h) {
      const __m256i others = load(kind == Kind::kBlocks ? before[p][h] : start + 8 * h);
      acc[p][h] = kNarrow ? _mm256_add_epi32(others, _mm256_madd_epi16(sum[p][h], ones)) : sum[p][h];
    }
}

// The same for kTwos, whose runs have an even number of steps.
template <int Pixels, int Halves>
inline __attribute__((always_inline)) void accumulate_twos(const Factors& f, __m256i (&acc)[Pixels][Halves]) {
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* pixel[Pixels];
  const int8_t* weights = f.weights;
  const int16_t* block = f.blocks_start;
#pragma GCC unroll 6
  for (int p = 0; p < Pixels; ++p) {
    pixel[p] = f.pixels[p] + f.from;
#pragma GCC unroll 2
    for (int h = 0; h < Halves; ++h) acc[p][h] = load(f.start + 8 * h);
  }
  for (const Run* run = f.run; run != f.end; ++run) {
    const int8_t* const stop = weights + std::ptrdiff_t(run->steps) * kStepBytes;
    for (std::ptrdiff_t at = run->offset; weights != stop; weights += 2 * kStepBytes, block += kStartLanes, at += 8) {
#pragma GCC unroll 2
      for (int h = 0; h < Halves; ++h) {
        asm("" : "+r"(at));  // gcc would keep the codes for the other half, and has no registers for them
        const __m256i first = load(weights + 32 * h), second = load(weights + 32 * h + kStepBytes), begin = load(block + 16 * h);
#pragma GCC unroll 6
        for (int p = 0; p < Pixels; ++p) {
          const __m256i a = _mm256_maddubs_epi16(broadcast4(pixel[p] + at), first);
          const __m256i b = _mm256_maddubs_epi16(broadcast4(pixel[p] + at + 4), second);
          const __m256i sum = _mm256_add_epi16(_mm256_add_epi16(a, begin), b);
          acc[p][h] = _mm256_add_epi32(acc[p][h], _mm256_madd_epi16(sum, ones));
        }
      }
    }
  }
}

}  // namespace haq::avx2
