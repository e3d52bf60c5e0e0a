// The epilogue eight channels at a time. Only files compiled for AVX2 may include this.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "epilogue.h"

namespace haq::avx2 {

// Turns accumulators into codes, exactly as requantize() does. The 64-bit product is taken on even and odd lanes; a shift of
// 32 is free (the high dwords), the rest is an arithmetic shift of 32 bits: the floor of a floor is the floor. A shift below
// 32 becomes one of 32 by shifting the accumulator left first, where its bound leaves room; else plain C++ does it.
//
// Channels are numbered 0 .. channels; constants are padded with zeros to a multiple of 16, so that vectors may run over.
class Requantizer {
 public:
  // bound: the largest |accumulator|. doublings: accumulators come multiplied by 2^doublings (so may `bound` not be).
  Requantizer(const Epilogue& epilogue, int channels, int64_t bound, int doublings = 0)
      : epilogue_(epilogue), channels_(channels), doublings_(doublings) {
    const size_t padded = (static_cast<size_t>(channels) + 15) / 16 * 16;
    multiplier_.resize(padded), odd_multiplier_.resize(padded), up_.resize(padded), down_.resize(padded), offset_.resize(padded);
    // The zero point is added to saturated int16, and wide codes need more than that.
    vector_ = !epilogue.wide && epilogue.zero_point >= -16384 && epilogue.zero_point < 16384;
    for (int n = 0; n < channels; ++n) vector_ = vector_ && prepare(n, bound);
    for (int n = 0; n < channels; ++n) shifts_up_ = shifts_up_ || up_[n] != 0;
    low_ = _mm_set1_epi8(static_cast<char>(epilogue.low));
    high_ = _mm_set1_epi8(static_cast<char>(epilogue.high));
    zero_point_ = _mm256_set1_epi16(static_cast<int16_t>(epilogue.zero_point));
  }

  // Writes channels channel .. channel + count (count <= 16, channel a multiple of 8) of one pixel to `to`, where the code
  // of `channel` goes; a has the first eight.
  void store(uint8_t* to, int channel, int count, __m256i a, __m256i b) const {
    if (!vector_) return store_slowly(to, channel, count, a, b);
    write(to, count, sixteen(a, b, channel));
  }

  // The same for a tile of pixels, constants loaded once: acc[p][h] has channels channel + 8 h .. of pixel p, whose first
  // code goes to targets[p] + to.
  template <int Pixels, int Halves>
  inline __attribute__((always_inline)) void store_tile(uint8_t* const* targets, std::ptrdiff_t to, int channel, int count,
                                                        __m256i (&acc)[Pixels][Halves]) const {
    if (!vector_ || shifts_up_) {
      for (int p = 0; p < Pixels; ++p) store(targets[p] + to, channel, count, acc[p][0], acc[p][Halves - 1]);
      return;
    }
#pragma GCC unroll 2
    for (int h = 0; h < Halves; ++h) {
      const Constants constants(*this, channel + 8 * h);
#pragma GCC unroll 6
      for (int p = 0; p < Pixels; ++p) acc[p][h] = constants.scale(acc[p][h]);
    }
    const __m256i low = _mm256_broadcastsi128_si256(low_), high = _mm256_broadcastsi128_si256(high_);
#pragma GCC unroll 6
    for (int p = 0; p < Pixels; p += 2) {
      const int q = p + 1 < Pixels ? p + 1 : p;
      const __m256i first = _mm256_adds_epi16(_mm256_packs_epi32(acc[p][0], acc[p][Halves - 1]), zero_point_);
      const __m256i second = _mm256_adds_epi16(_mm256_packs_epi32(acc[q][0], acc[q][Halves - 1]), zero_point_);
      const __m256i mixed = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(first, second), low), high);
      // packing works on 128-bit lanes: put the fours back in order
      const __m256i codes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      write(targets[p] + to, count, _mm256_castsi256_si128(codes));
      if (q != p) write(targets[q] + to, count, _mm256_extracti128_si256(codes, 1));
    }
  }

  // Codes of channels channel .. channel + 32 whose order is such that packing, which works on 128-bit lanes, leaves the codes
  // in the order they are wanted in.
  __m256i interleaved(const __m256i (&acc)[4], int channel) const {
    const auto scale = [&](int i) {
      const __m256i a = shifts_up_ ? _mm256_sllv_epi32(acc[i], load(&up_[channel + 8 * i])) : acc[i];
      return Constants(*this, channel + 8 * i).scale(a);
    };
    const __m256i front = _mm256_adds_epi16(_mm256_packs_epi32(scale(0), scale(1)), zero_point_);
    const __m256i back = _mm256_adds_epi16(_mm256_packs_epi32(scale(2), scale(3)), zero_point_);
    const __m256i low = _mm256_broadcastsi128_si256(low_), high = _mm256_broadcastsi128_si256(high_);
    return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(front, back), low), high);
  }

  bool wide() const { return epilogue_.wide; }

  // Whether sixteen() may be used; store() sees to it by itself.
  bool vector() const { return vector_; }

  // Codes of channels channel .. channel + 16.
  __m128i sixteen(__m256i a, __m256i b, int channel) const {
    if (shifts_up_) {
      a = _mm256_sllv_epi32(a, load(&up_[channel]));
      b = _mm256_sllv_epi32(b, load(&up_[channel + 8]));
    }
    const __m256i packed = _mm256_packs_epi32(Constants(*this, channel).scale(a), Constants(*this, channel + 8).scale(b));
    const __m256i shifted = _mm256_adds_epi16(_mm256_permute4x64_epi64(packed, 0xd8), zero_point_);
    const __m128i codes = _mm_packus_epi16(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1));
    return _mm_min_epu8(_mm_max_epu8(codes, low_), high_);
  }

 private:
  template <typename T>
  static __m256i load(const T* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }

  // The constants of eight channels.
  struct Constants {
    Constants(const Requantizer& r, int channel)
        : multiplier(load(&r.multiplier_[channel])),
          odd_multiplier(load(&r.odd_multiplier_[channel])),
          offset(load(&r.offset_[channel])),
          odd_offset(load(&r.offset_[channel + 4])),
          down(load(&r.down_[channel])) {}

    // Eight times (acc * multiplier + offset) >> shift.
    __m256i scale(__m256i acc) const {
      const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(acc, multiplier), offset);
      const __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(acc, 32), odd_multiplier), odd_offset);
      return _mm256_srav_epi32(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa), down);
    }

    __m256i multiplier, odd_multiplier, offset, odd_offset, down;
  };

  static void write(uint8_t* to, int count, __m128i codes) {
    if (count == 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), codes);
    } else if (count == 8) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to), codes);
    } else {
      alignas(16) uint8_t bytes[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(bytes), codes);
      std::memcpy(to, bytes, static_cast<size_t>(count));
    }
  }

  bool prepare(int n, int64_t bound) {
    const int shift = epilogue_.shift[n] + doublings_;
    const int up = shift < 32 ? 32 - shift : 0;
    const int64_t room = int64_t(1) << (61 - up - doublings_), offset = epilogue_.offset[n];
    if ((bound << doublings_) > (INT32_MAX >> up) || offset >= room || offset <= -room) return false;
    multiplier_[n] = epilogue_.multiplier[n];
    if (n % 2 == 1) odd_multiplier_[n - 1] = epilogue_.multiplier[n];  // where vpmuldq reads it
    up_[n] = up;
    down_[n] = shift + up - 32;
    // eight channels as 0 2 4 6, 1 3 5 7: what even and odd lanes need
    offset_[n / 8 * 8 + n % 2 * 4 + n % 8 / 2] = offset * (int64_t(1) << (up + doublings_));
    return true;
  }

  void store_slowly(uint8_t* to, int channel, int count, __m256i a, __m256i b) const {
    alignas(32) int32_t acc[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(acc), a);
    _mm256_store_si256(reinterpret_cast<__m256i*>(acc + 8), b);
    for (int i = 0; i < count; ++i)
      haq::store(epilogue_, to, i, requantize(epilogue_, acc[i] >> doublings_, channel + i));
  }

  Epilogue epilogue_;
  int channels_, doublings_;
  bool vector_ = false, shifts_up_ = false;
  std::vector<int32_t> multiplier_, odd_multiplier_, up_, down_;
  std::vector<int64_t> offset_;
  __m128i low_, high_;
  __m256i zero_point_;
};

}  // namespace haq::avx2
