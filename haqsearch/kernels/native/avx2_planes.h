// Weights of 1 or 2 bits in bit planes, multiplied by looking up: Form of avx2_linear.cpp. Only that file includes this.
//
// Four inputs have 16 sums of subsets, and four bits of a plane say which one an output takes: vpshufb looks up 32 outputs at
// once. A sum has ten bits: two tables of five, so that eight of them add up in a byte.
#pragma once

#include <algorithm>
#include <cstring>

#include "avx2_vectors.h"
#include "packed_bits.h"
#include "subset_sums.h"

namespace haq {
namespace {

inline void add_to(int32_t* to, __m256i value) { store(to, _mm256_add_epi32(load(to), value)); }
inline __m256i both_lanes(const uint8_t* from) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// A panel's planes of bits. A word is 32 bytes, each four inputs of one plane in its low and four in its high half. The two
// bytes of an int16 lane are one plane of two outputs, or planes 0 and 1 of one output (a pair).
template <int Bits>
class Planes {
  static_assert(Bits == 1 || Bits == 2);
  static constexpr bool kPaired = Bits == 2;
  static constexpr int kWords = kPaired ? 4 : 2, kWordOutputs = kPaired ? 16 : 32;

 public:
  static constexpr int kOutputs = kWordOutputs * kWords;
  static constexpr int kInputs = 8;         // of a step
  static constexpr int kStepBytes = kBytes * kWords;
  static constexpr int kTable = 64;         // bytes of tables for a step: twice two
  static constexpr bool kSigned = false;
  static constexpr const char* kName = kPaired ? "avx2 tables, 2-bit weights" : "avx2 tables, 1-bit weights";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int word = 0; word < kWords; ++word)
      for (int i = 0; i < kBytes; ++i) {
        const int plane = kPaired ? i % 2 : 0;
        const int n = output + word * kWordOutputs + place(i / 2) + (kPaired ? 0 : i % 2 * 16);
        for (int k = 0; k < kInputs; ++k)
          step[word * kBytes + i] |= static_cast<uint8_t>((codes.at(n, input + k) >> plane & 1) << k);
      }
  }

  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int group = 0; group < 2 * steps; ++group) subset_sums(x + 4 * group, tables + kBytes * group);
  }

  // sum of code * input for each output of a panel, in their order
  static void multiply(const uint8_t* weight, const uint8_t* tables, int steps, int32_t* sums) {
    std::memset(sums, 0, kOutputs * sizeof(int32_t));
    for (int k = 0; k < steps; k += kBlock)
      add_block(weight + k * kStepBytes, tables + k * kTable, std::min(kBlock, steps - k), sums);
  }

 private:
  // Steps that int16 holds: a fourth part of them the largest pair, 8 * (31 + 2 * 31), or the largest upper byte, 8 * 31.
  static constexpr int kBlock = kPaired ? 176 : 528;
  static constexpr int kBytewise = 4;  // steps: 8 times 31 still is a byte

  using Digits = __m256i[kWords][2];  // sums of the tables' two digits, in bytes

  // The same in int16: of a pair its planes by their weights; else all lanes as they are, and their upper bytes.
  struct Wide {
    __m256i lanes[kWords][2], uppers[kWords][2];
  };

  // The output whose sums are in an int16 lane, when vpunpck?wd has put the lanes into two registers.
  static constexpr int place(int lane) { return lane / 4 == 1 ? lane + 4 : lane / 4 == 2 ? lane - 4 : lane; }

  static void add_block(const uint8_t* weight, const uint8_t* tables, int steps, int32_t* sums) {
    Wide wide;
    for (int word = 0; word < kWords; ++word)
      for (int digit = 0; digit < 2; ++digit) wide.lanes[word][digit] = wide.uppers[word][digit] = _mm256_setzero_si256();
    Digits digits;
    for (; steps >= kBytewise; steps -= kBytewise, weight += kBytewise * kStepBytes, tables += kBytewise * kTable) {
      look_up<true>(weight, tables, digits);
#pragma GCC unroll 3
      for (int i = 1; i < kBytewise; ++i) look_up<false>(weight + i * kStepBytes, tables + i * kTable, digits);
      widen(digits, wide);
    }
    if (steps > 0) {
      look_up<true>(weight, tables, digits);
#pragma GCC unroll 1
      for (int i = 1; i < steps; ++i) look_up<false>(weight + i * kStepBytes, tables + i * kTable, digits);
      widen(digits, wide);
    }
    finish(wide, sums);
  }

  // One step. First: of the digits' sums, which are not cleared before.
  template <bool First>
  static inline __attribute__((always_inline)) void look_up(const uint8_t* weight, const uint8_t* tables, Digits& digits) {
    fetch_ahead<kStepBytes>(weight);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i low = both_lanes(tables + kBytes * half), high = both_lanes(tables + kBytes * half + 16);
#pragma GCC unroll 4
      for (int word = 0; word < kWords; ++word) {
        const __m256i w = load(weight + word * kBytes);
        const __m256i four = low_nibbles(half ? _mm256_srli_epi16(w, 4) : w);
        const __m256i found[2] = {_mm256_shuffle_epi8(low, four), _mm256_shuffle_epi8(high, four)};
#pragma GCC unroll 2
        for (int digit = 0; digit < 2; ++digit) {
          const bool first = First && half == 0;
          digits[word][digit] = first ? found[digit] : _mm256_add_epi8(digits[word][digit], found[digit]);
          settle(digits[word][digit]);
        }
      }
    }
  }

  static inline __attribute__((always_inline)) void widen(const Digits& digits, Wide& wide) {
    const __m256i planes = _mm256_set1_epi16(0x0201);
#pragma GCC unroll 4
    for (int word = 0; word < kWords; ++word)
#pragma GCC unroll 2
      for (int digit = 0; digit < 2; ++digit) {
        const __m256i bytes = digits[word][digit];
        __m256i& lanes = wide.lanes[word][digit];
        lanes = _mm256_add_epi16(lanes, kPaired ? _mm256_maddubs_epi16(bytes, planes) : bytes);
        if (!kPaired) {
          __m256i& uppers = wide.uppers[word][digit];
          uppers = _mm256_add_epi16(uppers, _mm256_srli_epi16(bytes, 8));
        }
      }
  }

  static void finish(const Wide& wide, int32_t* sums) {
    for (int word = 0; word < kWords; ++word, sums += kWordOutputs) {
      if (kPaired) {
        add_digits(sums, wide.lanes[word]);
        continue;
      }
      __m256i lower[2];  // what is left without the upper bytes, modulo 2^16
      for (int digit = 0; digit < 2; ++digit)
        lower[digit] = _mm256_sub_epi16(wide.lanes[word][digit], _mm256_slli_epi16(wide.uppers[word][digit], 8));
      add_digits(sums, lower);
      add_digits(sums + 16, wide.uppers[word]);
    }
  }

  static void add_digits(int32_t* sums, const __m256i (&digits)[2]) {
    const __m256i weights = _mm256_set1_epi32(1 | 32 << 16);
    add_to(sums, _mm256_madd_epi16(_mm256_unpacklo_epi16(digits[0], digits[1]), weights));
    add_to(sums + 8, _mm256_madd_epi16(_mm256_unpackhi_epi16(digits[0], digits[1]), weights));
  }
};

}  // namespace
}  // namespace haq
