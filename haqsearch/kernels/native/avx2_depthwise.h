// What the depthwise convolutions of AVX2 share: registers of one row's channels, or of two rows' in a 128-bit lane each.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "avx2_epilogue.h"
#include "depthwise.h"

namespace haq::avx2 {

// 3 x 3, undilated, stride 1 or 2 across, with sums that fit int16; null for anything else.
OpPointer make_depthwise3(const ConvSpec& spec);

// 32 / Rows bytes of each row.
template <int Rows>
inline __m256i load_rows(const uint8_t* const* row, std::ptrdiff_t at) {
  if constexpr (Rows == 1) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[0] + at));
  const auto half = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[r] + at)); };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(half(0)), half(Rows - 1), 1);
}

// The first `channels` codes of each row; with one row these are all.
template <int Rows>
inline void store_rows(uint8_t* const* to, std::ptrdiff_t at, int channels, __m256i codes) {
  if constexpr (Rows == 1) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[0] + at), codes);
  const __m128i halves[2] = {_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)};
  for (int r = 0; r < Rows; ++r) {
    if (channels == 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(to[r] + at), halves[r]);
    else std::memcpy(to[r] + at, &halves[r], static_cast<size_t>(channels));
  }
}

// The epilogue of sums of int32, 32 at a time in the interleaved order.
struct LongRequantizer : Requantizer {
  LongRequantizer(const Epilogue& e, int64_t bound)
      : Requantizer(e, static_cast<int>(e.multiplier.size()), bound) {}

  __m256i codes(const __m256i (&sums)[4], int channel) const {
    if (vector()) return interleaved(sums, channel);
    alignas(32) uint8_t codes[48];  // 16 bytes of room for wide ones, which never come here
    store(codes, channel, 16, sums[0], sums[1]);
    store(codes + 16, channel + 16, 16, sums[2], sums[3]);
    // fours of channels 0 4 1 5 2 6 3 7 -> 0 1 2 3 4 5 6 7
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm256_permutevar8x32_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(codes)), order);
  }
};

}  // namespace haq::avx2
