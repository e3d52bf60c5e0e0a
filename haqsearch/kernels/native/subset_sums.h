// The tables that linear layers of few bits look up. Each file that includes this gets a copy of its own: they are compiled
// for different instructions.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace haq {
namespace {

// The sums of the subsets of four inputs: 16 bytes of their lower five bits, then 16 of the upper five.
inline void subset_sums(const uint8_t* four, uint8_t* tables) {
  const auto bits = [](int subset) {  // a byte for each input: whether it is in
    return (subset & 1) | (subset >> 1 & 1) << 8 | (subset >> 2 & 1) << 16 | (subset >> 3 & 1) << 24;
  };
  int32_t word;
  std::memcpy(&word, four, 4);
  const __m256i x = _mm256_set1_epi32(word), ones = _mm256_set1_epi16(1);
  const __m256i first = _mm256_setr_epi32(bits(0), bits(1), bits(2), bits(3), bits(8), bits(9), bits(10), bits(11));
  const __m256i second = _mm256_setr_epi32(bits(4), bits(5), bits(6), bits(7), bits(12), bits(13), bits(14), bits(15));
  const __m256i sums = _mm256_packs_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(x, first), ones),
                                          _mm256_madd_epi16(_mm256_maddubs_epi16(x, second), ones));
  const __m256i halves = _mm256_packus_epi16(_mm256_and_si256(sums, _mm256_set1_epi16(31)), _mm256_srli_epi16(sums, 5));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(tables), _mm256_permute4x64_epi64(halves, 0xd8));
}

}  // namespace
}  // namespace haq
