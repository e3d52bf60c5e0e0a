// The epilogue in AVX-512: accumulators of a tile of pixels -> codes, exactly as `requantize` of epilogue.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <vector>

#include "epilogue.h"
#include "op.h"

namespace haq::avx512 {

inline constexpr int kBlock = 16;  // channels of a vector of accumulators

// The constants of 16 channels. `offset` holds the zero point too: added times 2^shift before the shift it is the same.
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

  // Codes of 16 * Blocks channels from channel 16 * block on, for `pixels` pixels: accumulators[pixel][Blocks][16] ->
  // to[pixel] + channel. Channels beyond the last are not written. The accumulators are aligned to 64 bytes.
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

  // put(pixel, 64 codes) for accumulators[pixel][4][16] whose channels are in the order that packing turns into the
  // natural one: each 16-byte lane of the codes has 4 channels of the first 16, 4 of the second ...
  template <typename Put>
  void interleaved(const int32_t* accumulators, int pixels, int block, const Put& put) const {
    switch (rounding_) {
      case Rounding::kHigh: return put_interleaved<Rounding::kHigh>(accumulators, pixels, block, put);
      case Rounding::kShifted: return put_interleaved<Rounding::kShifted>(accumulators, pixels, block, put);
      case Rounding::kLong: return put_interleaved<Rounding::kLong>(accumulators, pixels, block, put);
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

  // The constants of a block in registers: as the compiler sees it, storing codes could change what lies in memory.
  template <Rounding rounding>
  struct Lanes {
    __m512i multiplier, multiplier_odd, offset_even, offset_odd, shift, extra;  // extra: left, or the odd shifts
    __m512i low, high, zero_point;                                              // of kLong

    Lanes(const Constants& c, const Epilogue& e)
        : multiplier(load(c.multiplier)),
          multiplier_odd(load(c.multiplier_odd)),
          offset_even(load(c.offset_even)),
          offset_odd(load(c.offset_odd)),
          shift(rounding == Rounding::kLong ? load(c.shift_even) : load(c.shift)),
          extra(rounding == Rounding::kLong ? load(c.shift_odd) : load(c.left)),
          low(_mm512_set1_epi64(e.low - e.zero_point)),
          high(_mm512_set1_epi64(e.high - e.zero_point)),
          zero_point(_mm512_set1_epi32(e.zero_point)) {}

    // int32 codes before the clamp; kLong: after it.
    __m512i scale(__m512i acc) const {
      if constexpr (rounding == Rounding::kShifted) acc = _mm512_sllv_epi32(acc, extra);
      __m512i even = _mm512_add_epi64(_mm512_mul_epi32(acc, multiplier), offset_even);
      __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(acc, 32), multiplier_odd), offset_odd);
      if constexpr (rounding == Rounding::kLong) {
        even = _mm512_min_epi64(_mm512_max_epi64(_mm512_srav_epi64(even, shift), low), high);
        odd = _mm512_min_epi64(_mm512_max_epi64(_mm512_srav_epi64(odd, extra), low), high);
        return _mm512_add_epi32(_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)), zero_point);
      } else {
        return _mm512_srav_epi32(join_high(even, odd), shift);
      }
    }
  };

  // The packed codes of 4 / Blocks pixels to their places.
  template <int Blocks>
  static void put(__m512i packed, uint8_t* const* to, int first) {
    const auto at = [&](int i) { return reinterpret_cast<__m128i*>(to[i] + first); };
    if constexpr (Blocks == 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at(0)), _mm512_castsi512_si256(packed));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at(1)), _mm512_extracti64x4_epi64(packed, 1));
    } else {
      _mm_storeu_si128(at(0), _mm512_castsi512_si128(packed));
      _mm_storeu_si128(at(1), _mm512_extracti32x4_epi32(packed, 1));
      _mm_storeu_si128(at(2), _mm512_extracti32x4_epi32(packed, 2));
      _mm_storeu_si128(at(3), _mm512_extracti32x4_epi32(packed, 3));
    }
  }

  // Fewer pixels, or not all channels of the blocks.
  template <int Blocks>
  static void put_some(__m512i packed, uint8_t* const* to, int first, int pixels, int channels) {
    alignas(64) uint8_t codes[64];
    _mm512_store_si512(codes, packed);
    const __mmask32 mask = 0xFFFFFFFFu >> (32 - std::min(channels, Blocks * kBlock));
    for (int i = 0; i < pixels; ++i)
      _mm256_mask_storeu_epi8(to[i] + first, mask, _mm256_maskz_loadu_epi8(mask, codes + i * Blocks * kBlock));
  }

  template <int Blocks, Rounding rounding>
  void store_codes(const int32_t* accumulators, uint8_t* const* to, int pixels, int block) const {
    const int first = block * kBlock, left = channels() - first;
    constexpr int kStep = 4 / Blocks;  // pixels of 64 codes
    const Lanes<rounding> a(blocks_[block], e_), b(blocks_[block + Blocks - 1], e_);
    const __m512i gather = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i low = _mm512_set1_epi8(static_cast<char>(e_.low));
    const __m512i high = _mm512_set1_epi8(static_cast<char>(e_.high));
    const auto codes = [&](const auto& at) {  // at(i): 16 accumulators
      const __m512i front = _mm512_packs_epi32(a.scale(load(at(0))), b.scale(load(at(1))));
      const __m512i back = _mm512_packs_epi32(a.scale(load(at(2))), b.scale(load(at(3))));
      const __m512i clamped = _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(front, back), low), high);
      return _mm512_permutexvar_epi32(gather, clamped);
    };
    int p = 0;
    for (; p + kStep <= pixels; p += kStep, accumulators += 4 * kBlock) {
      const __m512i packed = codes([&](int i) { return accumulators + i * kBlock; });
      if (left >= Blocks * kBlock) put<Blocks>(packed, to + p, first);
      else put_some<Blocks>(packed, to + p, first, kStep, left);
    }
    if (p == pixels) return;
    // Behind the last pixel the first of these again: nothing is read that is not there.
    const auto at = [&](int i) { return accumulators + (i < (pixels - p) * Blocks ? i : 0) * kBlock; };
    put_some<Blocks>(codes(at), to + p, first, pixels - p, left);
  }

  template <Rounding rounding, typename Put>
  void put_interleaved(const int32_t* accumulators, int pixels, int block, const Put& put) const {
    const Lanes<rounding> a(blocks_[block], e_), b(blocks_[block + 1], e_), c(blocks_[block + 2], e_),
        d(blocks_[block + 3], e_);
    const __m512i low = _mm512_set1_epi8(static_cast<char>(e_.low));
    const __m512i high = _mm512_set1_epi8(static_cast<char>(e_.high));
    for (int p = 0; p < pixels; ++p, accumulators += 4 * kBlock) {
      const __m512i front = _mm512_packs_epi32(a.scale(load(accumulators)), b.scale(load(accumulators + kBlock)));
      const __m512i back =
          _mm512_packs_epi32(c.scale(load(accumulators + 2 * kBlock)), d.scale(load(accumulators + 3 * kBlock)));
      put(p, _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(front, back), low), high));
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
