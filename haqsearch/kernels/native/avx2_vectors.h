// What the forms of avx2_linear.cpp share. Only files compiled for AVX2 may include this.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace haq {
namespace {

constexpr int kBytes = 32;  // of a vector

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }

// Nothing is moved across this: gcc 12 puts additions off, and then has too few registers.
inline void settle(__m256i& value) { asm volatile("" : "+x"(value)); }

}  // namespace
}  // namespace haq
