// What AVX2 can do at most: chains of the multiply-adds the kernels are made of, all in registers.
#include <immintrin.h>

#include "peak.h"

namespace haq {
namespace {

constexpr int kChains = 12;  // as many accumulators as a register tile has

template <typename Step>
int64_t chains(int64_t iterations, int products, Step step) {
  __m256i sums[kChains];
#pragma GCC unroll 16
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  __m256i x = _mm256_set1_epi8(1), w = _mm256_set1_epi8(1);
  asm volatile("" : "+x"(w));  // not a constant, as far as the compiler knows
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 16
    for (__m256i& sum : sums) {
      sum = step(sum, x, w);
      asm volatile("" : "+x"(sum), "+x"(x));  // nothing is merged with its neighbour, or moved out of the loop
    }
  }
  __m256i total = _mm256_setzero_si256();
#pragma GCC unroll 16
  for (const __m256i& sum : sums) total = _mm256_xor_si256(total, sum);
  volatile int keep = _mm256_extract_epi32(total, 0);
  (void)keep;
  return iterations * kChains * products;
}

}  // namespace

std::vector<Peak> avx2_peaks() {
  return {
      {"avx2 int16 (8 x 8 bits, exact)",
       [](int64_t n) {
         return chains(n, 16, [](__m256i s, __m256i x, __m256i w) { return _mm256_add_epi32(s, _mm256_madd_epi16(x, w)); });
       }},
      {"avx2 int8 pairs (one side of 7 bits)",
       [](int64_t n) {
         return chains(n, 32, [](__m256i s, __m256i x, __m256i w) {
           const __m256i pairs = _mm256_maddubs_epi16(x, w);
           return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
         });
       }},
      {"avx2 int8 sums in int16 (few bits)",
       [](int64_t n) {
         return chains(n, 32, [](__m256i s, __m256i x, __m256i w) { return _mm256_add_epi16(s, _mm256_maddubs_epi16(x, w)); });
       }},
  };
}

}  // namespace haq
