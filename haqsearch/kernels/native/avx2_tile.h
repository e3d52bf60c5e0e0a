// The tile all dense AVX2 convolutions share: up to 6 pixels x 16 output channels, accumulators in registers.
//
// A step takes four bytes of each pixel (four codes, or two codes widened to int16) and 64 bytes of weights (sixteen
// channels x the same four bytes). What a step does with them is the Kind:
//   kWide    int16 x int16 pairs by vpmaddwd: exact for every 8-bit operand.
//   kPairs   vpmaddubsw, then vpmaddwd with ones: exact where no pair of products leaves int16.
//   kBlocks  vpmaddubsw summed in int16 over the steps of a block, then widened: exact where no block's sums leave int16.
//   kWhole   kBlocks with a single block.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace haq::avx2 {

enum class Kind { kWide, kPairs, kBlocks, kWhole };

inline constexpr int kTilePixels = 6, kTileChannels = 16, kStepBytes = 64;

// `steps` steps, the pixels' bytes at `offset` behind their pointers; `widen`: a block ends here.
struct Run {
  std::ptrdiff_t offset = 0;
  int steps = 0;
  bool widen = true;
};

// Cuts `steps` packed steps of int8 weights into the longest blocks whose int16 sums cannot overflow, whatever codes within
// 0 .. largest they meet; the steps of each block. It follows from the weights themselves, not from their width. Pairs of
// one step must fit.
inline std::vector<int> cut_blocks(const int8_t* weights, int steps, int largest) {
  constexpr int kLanes = 2 * kTileChannels;
  int32_t above[kLanes] = {}, below[kLanes] = {};  // the largest and the smallest sum each int16 lane can hold
  const auto add = [&](const int8_t* step) {
    bool fits = true;
    for (int i = 0; i < kStepBytes; ++i) {
      int32_t* const sums = step[i] > 0 ? above : below;
      sums[i / 2] += step[i] * largest;
      fits = fits && above[i / 2] <= INT16_MAX && below[i / 2] >= INT16_MIN;
    }
    return fits;
  };
  std::vector<int> blocks;
  int length = 0;
  for (int step = 0; step < steps; ++step, ++length) {
    if (add(weights + step * kStepBytes)) continue;
    if (length) blocks.push_back(length);
    std::fill_n(above, kLanes, 0), std::fill_n(below, kLanes, 0);
    add(weights + step * kStepBytes);
    length = 0;
  }
  blocks.push_back(length);
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

// acc[p][h]: int32 sums of pixel p, channels 8 h .. 8 h + 8, begun at start[8 h] .., aligned. With Halves = 1 only the first
// eight channels are done.
template <Kind kind, int Pixels, int Halves>
inline __attribute__((always_inline)) void accumulate(const uint8_t* const* pixels, std::ptrdiff_t from, const Run* run,
                                                      const Run* end, const int8_t* weights, const int32_t* start,
                                                      __m256i (&acc)[Pixels][Halves]) {
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* pixel[Pixels];
  __m256i sum[Pixels][Halves];  // int16 within a block (kBlocks, kWhole), else the result itself
  __m256i first[Halves];
#pragma GCC unroll 2
  for (int h = 0; h < Halves; ++h) first[h] = _mm256_load_si256(reinterpret_cast<const __m256i*>(start) + h);
#pragma GCC unroll 6
  for (int p = 0; p < Pixels; ++p) {
    pixel[p] = pixels[p] + from;
#pragma GCC unroll 2
    for (int h = 0; h < Halves; ++h) {
      acc[p][h] = first[h];
      sum[p][h] = kind == Kind::kBlocks || kind == Kind::kWhole ? _mm256_setzero_si256() : first[h];
    }
  }
  for (; run != end; ++run) {
    const int8_t* const stop = weights + std::ptrdiff_t(run->steps) * kStepBytes;
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
    if (kind == Kind::kBlocks && run->widen) {
#pragma GCC unroll 6
      for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
        for (int h = 0; h < Halves; ++h) {
          acc[p][h] = _mm256_add_epi32(acc[p][h], _mm256_madd_epi16(sum[p][h], ones));
          sum[p][h] = _mm256_setzero_si256();
        }
    }
  }
  if constexpr (kind != Kind::kBlocks)
#pragma GCC unroll 6
    for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
      for (int h = 0; h < Halves; ++h)
        acc[p][h] = kind == Kind::kWhole ? _mm256_add_epi32(acc[p][h], _mm256_madd_epi16(sum[p][h], ones)) : sum[p][h];
}

}  // namespace haq::avx2
