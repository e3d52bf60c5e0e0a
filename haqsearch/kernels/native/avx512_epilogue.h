// The epilogue in AVX-512: accumulators of a tile of pixels -> codes, exactly as `requantize` of epilogue.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <vector>

#include "epilogue.h"
#include "op.h"

namespace haq::avx512 {

inline constexpr int kBlock = 16;      // channels of a vector of accumulators
inline constexpr int kTilePixels = 28;  // the most pixels of a tile

// The constants of 16 channels. `offset` holds the zero point too: adding it times 2^shift before the shift is the same.
struct alignas(64) Constants {
  int32_t multiplier[kBlock], multiplier_odd[kBlock];  // the second with the odd channels' at the even places
  int64_t offset_even[kBlock / 2], offset_odd[kBlock / 2];
  int32_t shift[kBlock];                                   // of the high half: the whole shift less 32
  int32_t left[kBlock];                                    // by how much the accumulator goes left first
  int64_t shift_even[kBlock / 2], shift_odd[kBlock / 2];  // whole
};

enum class Rounding {
  kHigh,     // every shift >= 32: the high halves of the 64-bit sums, shifted on
  kShifted,  // the same after the accumulator went left by the bits that lack, for which it has room
  kLong,     // whatever else: 64-bit shifts and clamps
};

inline __m512i load(const void* from) { return _mm512_load_si512(from); }

// Even lanes of the first, odd lanes of the second, both moved to the place of their channel.
inline __m512i join_high(__m512i even, __m512i odd) {
  return _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
}

class Requantizer {
 public:
  // `e` is of the accumulators as they come (ConvSpec::folded()); `bound` is the largest magnitude of one of them.
  Requantizer(const Epilogue& e, int64_t bound)
      : e_(e), blocks_((e.multiplier.size() + kBlock - 1) / kBlock), rounding_(choose(e, bound)) {
    const int channels = static_cast<int>(e.multiplier.size());
    for (int n = 0; n < static_cast<int>(blocks_.size()) * kBlock; ++n) {
      Constants& b = blocks_[n / kBlock];
      const int i = n % kBlock, half = i / 2;
      const bool odd = i % 2, real = n < channels;
      const int32_t multiplier = real ? e.multiplier[n] : 0, shift = real ? e.shift[n] : 32;
      const int left = rounding_ == Rounding::kShifted ? std::max(0, 32 - shift) : 0;
      int64_t offset = real ? e.offset[n] : 0;
      if (rounding_ != Rounding::kLong && real)
        offset = (offset + e.zero_point * (int64_t(1) << shift)) * (int64_t(1) << left);
      b.multiplier[i] = multiplier;
      if (odd) b.multiplier_odd[i - 1] = multiplier;
      (odd ? b.offset_odd : b.offset_even)[half] = offset;
      (odd ? b.shift_odd : b.shift_even)[half] = shift;
      b.shift[i] = std::max(0, shift - 32);
      b.left[i] = left;
    }
  }

  // Codes of 16 * Blocks channels from channel 16 * block on, for `pixels` pixels: accumulators[pixel][Blocks][16] (aligned)
  // -> to[pixel] + channel. Channels beyond the last are not written.
  template <int Blocks>
  void store(const int32_t* accumulators, uint8_t* const* to, int pixels, int block) const {
    static_assert(Blocks == 1 || Blocks == 2);
    if (e_.wide) return store_wide(accumulators, to, pixels, block, Blocks);
    switch (rounding_) {
      case Rounding::kHigh: return store_codes<Blocks, Rounding::kHigh>(accumulators, to, pixels, block);
      case Rounding::kShifted: return store_codes<Blocks, Rounding::kShifted>(accumulators, to, pixels, block);
      case Rounding::kLong: return store_codes<Blocks, Rounding::kLong>(accumulators, to, pixels, block);
    }
  }

  const Epilogue& epilogue() const { return e_; }
  int channels() const { return static_cast<int>(e_.multiplier.size()); }

 private:
  static Rounding choose(const Epilogue& e, int64_t bound) {
    Rounding rounding = Rounding::kHigh;
    for (size_t n = 0; n < e.multiplier.size(); ++n) {
      const int left = std::max(0, 32 - e.shift[n]);
      const __int128 one = 1;
      const __int128 largest = ((e.offset[n] < 0 ? -one : one) * e.offset[n] + one * bound * e.multiplier[n] +
                                (one * std::abs(e.zero_point) << e.shift[n]))
                               << left;
      if (largest >= (one << 62) || (one * bound << left) >= (one << 31)) return Rounding::kLong;
      if (left) rounding = Rounding::kShifted;
    }
    return rounding;
  }

  // int32 codes before the clamp; kLong: after it.
  template <Rounding rounding>
  __m512i scale(__m512i acc, const Constants& c) const {
    if constexpr (rounding == Rounding::kShifted) acc = _mm512_sllv_epi32(acc, load(c.left));
    __m512i even = _mm512_add_epi64(_mm512_mul_epi32(acc, load(c.multiplier)), load(c.offset_even));
    __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(acc, 32), load(c.multiplier_odd)), load(c.offset_odd));
    if constexpr (rounding == Rounding::kLong) {
      const __m512i low = _mm512_set1_epi64(e_.low - e_.zero_point), high = _mm512_set1_epi64(e_.high - e_.zero_point);
      even = _mm512_min_epi64(_mm512_max_epi64(_mm512_srav_epi64(even, load(c.shift_even)), low), high);
      odd = _mm512_min_epi64(_mm512_max_epi64(_mm512_srav_epi64(odd, load(c.shift_odd)), low), high);
      const __m512i code = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
      return _mm512_add_epi32(code, _mm512_set1_epi32(e_.zero_point));
    } else {
      return _mm512_srav_epi32(join_high(even, odd), load(c.shift));
    }
  }

  // Four vectors of codes, clamped and packed: 16 bytes of the first, 16 of the second ...
  __m512i pack(__m512i a, __m512i b, __m512i c, __m512i d) const {
    const __m512i gather = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i codes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    const __m512i low = _mm512_set1_epi8(static_cast<char>(e_.low)), high = _mm512_set1_epi8(static_cast<char>(e_.high));
    return _mm512_permutexvar_epi32(gather, _mm512_min_epu8(_mm512_max_epu8(codes, low), high));
  }

  template <int Blocks, Rounding rounding>
  void store_codes(const int32_t* accumulators, uint8_t* const* to, int pixels, int block) const {
    const int first = block * kBlock, left = channels() - first;
    const __mmask32 mask = left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
    constexpr int kStep = 4 / Blocks;  // pixels of 64 codes
    for (int p = 0; p < pixels; p += kStep) {
      __m512i codes[4];
      for (int i = 0; i < 4; ++i) {
        const int pixel = std::min(p + i / Blocks, pixels - 1);  // the last pixel again rather than none
        codes[i] = scale<rounding>(load(accumulators + (pixel * Blocks + i % Blocks) * kBlock), blocks_[block + i % Blocks]);
      }
      const __m512i packed = pack(codes[0], codes[1], codes[2], codes[3]);
      if constexpr (Blocks == 2) {
        _mm256_mask_storeu_epi8(to[p] + first, mask, _mm512_castsi512_si256(packed));
        if (p + 1 < pixels) _mm256_mask_storeu_epi8(to[p + 1] + first, mask, _mm512_extracti64x4_epi64(packed, 1));
      } else {
        const auto put = [&](int i, __m128i quarter) {
          if (p + i < pixels) _mm_mask_storeu_epi8(to[p + i] + first, static_cast<__mmask16>(mask), quarter);
        };
        put(0, _mm512_castsi512_si128(packed));
        put(1, _mm512_extracti32x4_epi32(packed, 1));
        put(2, _mm512_extracti32x4_epi32(packed, 2));
        put(3, _mm512_extracti32x4_epi32(packed, 3));
      }
    }
  }

  void store_wide(const int32_t* accumulators, uint8_t* const* to, int pixels, int block, int blocks) const {
    const int first = block * kBlock, count = std::min(blocks * kBlock, channels() - first);
    for (int p = 0; p < pixels; ++p)
      for (int n = 0; n < count; ++n)
        haq::store(e_, to[p], first + n, requantize(e_, accumulators[p * blocks * kBlock + n], first + n));
  }

  Epilogue e_;
  std::vector<Constants> blocks_;
  Rounding rounding_;
};

}  // namespace haq::avx512
