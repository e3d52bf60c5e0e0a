// What AVX-512 VNNI can do at most.
#include <immintrin.h>

#include "peak.h"

namespace haq {
namespace {

constexpr int kChains = 24;

int64_t dot_products(int64_t iterations) {
  __m512i sums[kChains];
#pragma GCC unroll 32
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  __m512i x = _mm512_set1_epi8(1), w = _mm512_set1_epi8(1);
  asm volatile("" : "+v"(x), "+v"(w));  // not constants, as far as the compiler knows
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, x, w);
      asm volatile("" : "+v"(sum));  // nothing is merged with its neighbour, or moved out of the loop
    }
  }
  __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 32
  for (const __m512i& sum : sums) total = _mm512_xor_si512(total, sum);
  volatile int keep = _mm512_reduce_add_epi32(total);
  (void)keep;
  return iterations * kChains * 64;
}

}  // namespace

std::vector<Peak> avx512_peaks() { return {{"avx512 vnni (up to 8 x 8 bits, exact)", dot_products}}; }

}  // namespace haq
