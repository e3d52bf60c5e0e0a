// Weights of 3 bits, multiplied in bytes: Form of avx2_linear.cpp. Only that file includes this.
//
// Three bytes hold eight codes of one output. Two of them lie at the ends of each byte, bits 0-2 and 5-7; the other two are
// made of what is left. vpmaddubsw wants a code in the lower bits of a byte, where its products with inputs less 128 have room
// in int16: a place that is taken in every byte, but for one that is shifted by less than 5 bits. So the last codes are the
// exclusive or of one byte with another, shifted, and what the packed bits are follows from that.
//
// For 128 products that is some 16 instructions where bit planes and tables take 18, and as fast as 4 bits. Inputs lie
// ready as whole vectors: fetched from there by the multiplication itself, they cost nothing.
#pragma once

#include <cstring>

#include "avx2_vectors.h"
#include "packed_bits.h"

namespace haq {
namespace {

class Threes {
  static constexpr int kWords = 4;           // of eight outputs, each with four neighbouring inputs in its four bytes
  static constexpr int kThree = 3 * kBytes;  // three words: the eight codes in each of their bytes are 4 inputs apart

 public:
  static constexpr int kOutputs = 8 * kWords;
  static constexpr int kInputs = 32;
  static constexpr int kStepBytes = kThree * kWords;
  static constexpr int kTable = 8 * kBytes;
  static constexpr bool kSigned = true;
  static constexpr const char* kName = "avx2 int16 blocks, 3-bit weights";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int n = 0; n < kOutputs; ++n)
      for (int k = 0; k < 4; ++k) {
        int c[8];
        for (int i = 0; i < 8; ++i) c[i] = codes.at(output + n, input + 4 * i + k);
        // Bits 2-4 of (first ^ third >> 1) are c[6], of (second ^ third >> 2) c[7].
        const int third = c[2] | ((c[6] ^ c[0] >> 2) & 1) << 3 | ((c[7] ^ c[1] >> 2) & 1) << 4 | c[5] << 5;
        const int first = c[0] | ((c[6] >> 1 ^ third >> 4) & 3) << 3 | c[3] << 5;
        const int second = c[1] | ((c[7] >> 1 ^ third >> 5) & 3) << 3 | c[4] << 5;
        uint8_t* byte = step + n / 8 * kThree + n % 8 * 4 + k;
        byte[0] = static_cast<uint8_t>(first), byte[kBytes] = static_cast<uint8_t>(second);
        byte[2 * kBytes] = static_cast<uint8_t>(third);
      }
  }

  // Inputs less 128, every four of them as a vector.
  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int group = 0; group < 8 * steps; ++group) {
      int32_t four;
      std::memcpy(&four, x + 4 * group, 4);
      store(tables + kBytes * group, _mm256_xor_si256(_mm256_set1_epi32(four), _mm256_set1_epi8(static_cast<char>(0x80))));
    }
  }

  static void multiply(const uint8_t* weight, const uint8_t* x, int steps, int32_t* sums) {
    __m256i total[kWords];
    for (auto& word : total) word = _mm256_setzero_si256();
    for (; steps >= 2; steps -= 2, weight += 2 * kStepBytes, x += 2 * kTable) add<2>(weight, x, total);
    if (steps > 0) add<1>(weight, x, total);
    for (int word = 0; word < kWords; ++word) store(sums + 8 * word, _mm256_srai_epi32(total[word], 2));
  }

 private:
  // Adds four times the sums of one or two steps: in int16, 2 * 6 * 2 * 7 * 128 and 2 * 2 * 2 * 28 * 128 fit.
  template <int Steps>
  static inline __attribute__((always_inline)) void add(const uint8_t* weight, const uint8_t* x, __m256i* total) {
    const uint8_t* ahead = weight;
#pragma GCC unroll 4
    for (int word = 0; word < kWords; ++word, weight += kThree, ahead += Steps * kThree) {
      fetch_ahead<Steps * kThree>(ahead);
      __m256i once = _mm256_setzero_si256(), fourfold = _mm256_setzero_si256();
      add_three(weight, x, once, fourfold);
      if (Steps == 2) add_three(weight + kStepBytes, x + kTable, once, fourfold);
      const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(once, _mm256_set1_epi16(4)),
                                           _mm256_madd_epi16(fourfold, _mm256_set1_epi16(1)));
      total[word] = _mm256_add_epi32(total[word], sum);
    }
  }

  // The sums of codes at the lower end of their bytes, and those of codes two bits above it.
  static inline __attribute__((always_inline)) void add_three(const uint8_t* weight, const uint8_t* x, __m256i& once,
                                                              __m256i& fourfold) {
    const __m256i low = _mm256_set1_epi8(0x07), middle = _mm256_set1_epi8(0x1c);
    const __m256i first = load(weight), second = load(weight + kBytes), third = load(weight + 2 * kBytes);
    const auto product = [x](__m256i codes, int group) { return _mm256_maddubs_epi16(codes, load(x + group * kBytes)); };
    const auto lower = [&](__m256i word, int group) {
      once = _mm256_add_epi16(once, product(_mm256_and_si256(word, low), group));
    };
    const auto shared = [&](__m256i word, __m256i other, int group) {
      fourfold = _mm256_add_epi16(fourfold, product(_mm256_and_si256(_mm256_xor_si256(word, other), middle), group));
    };
    lower(first, 0), lower(second, 1), lower(third, 2);
    lower(_mm256_srli_epi16(first, 5), 3), lower(_mm256_srli_epi16(second, 5), 4), lower(_mm256_srli_epi16(third, 5), 5);
    shared(first, _mm256_srli_epi16(third, 1), 6), shared(second, _mm256_srli_epi16(third, 2), 7);
    settle(once), settle(fourfold);
  }
};

}  // namespace
}  // namespace haq
