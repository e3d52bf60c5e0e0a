// The epilogue eight channels at a time. Only files compiled for AVX2 may include this.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
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
      : epilogue_(epilogue), doublings_(doublings) {
    const size_t padded = (static_cast<size_t>(channels) + 15) / 16 * 16;
    multiplier_.resize(padded), odd_multiplier_.resize(padded), up_.resize(padded), down_.resize(padded), offset_.resize(padded);
    // The zero point is added to saturated int16, and wide codes need more than that.
    vector_ = !epilogue.wide && epilogue.zero_point >= -16384 && epilogue.zero_point < 16384;
    for (int n = 0; n < channels; ++n) vector_ = vector_ && prepare(n, bound);
    for (int n = 0; n < channels; ++n) shifts_up_ = shifts_up_ || up_[n] != 0;
    tiles_.resize(padded / 16);
    quick_ = vector_;
    for (int n = 0; n < channels; ++n) quick_ = quick_ && tiles_[n / 16].set(epilogue, n, bound, doublings);
    if (!quick_)
      for (TileConstants& tile : tiles_) std::fill_n(tile.start, 16, 0);
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

  // Where the sums of a tile for store_tile() begin: eight of each eight channels from `channel` on.
  const int32_t* start(int channel) const { return tiles_[static_cast<size_t>(channel) / 16].start + channel % 16; }

  // The same for a tile of pixels, sums begun at start(): acc[p][h] has channels channel + 8 h .. of pixel p (channel a
  // multiple of 16), whose first code goes to targets[p] + to.
  template <int Pixels, int Halves>
  inline __attribute__((always_inline)) void store_tile(uint8_t* const* targets, std::ptrdiff_t to, int channel, int count,
                                                        __m256i (&acc)[Pixels][Halves]) const {
    if (__builtin_expect(!quick_, 0)) {
      __m256i copy[Pixels][Halves];  // of acc, which can stay in registers then
      for (int p = 0; p < Pixels; ++p)
        for (int h = 0; h < Halves; ++h) copy[p][h] = acc[p][h];
      return store_pixels(targets, to, channel, count, &copy[0][0], Pixels, Halves);
    }
    const TileConstants& constants = tiles_[static_cast<size_t>(channel) / 16];
    if (constants.shifts_up) {
#pragma GCC unroll 6
      for (int p = 0; p < Pixels; ++p)
#pragma GCC unroll 2
        for (int h = 0; h < Halves; ++h) acc[p][h] = _mm256_sllv_epi32(acc[p][h], load(constants.up + 8 * h));
    }
    const __m256i low = _mm256_broadcastsi128_si256(low_), high = _mm256_broadcastsi128_si256(high_);
    // a lane's channels 0 2 1 3 put in order, then lanes undone
    const __m256i fours = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
    const __m256i lanes = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
#pragma GCC unroll 6
    for (int p = 0; p < Pixels; p += 2) {
      const int q = p + 1 < Pixels ? p + 1 : p;
      const auto pixel = [&](int i) {
        return _mm256_packs_epi32(constants.scale(acc[i][0], 0), constants.scale(acc[i][Halves - 1], 8 * (Halves - 1)));
      };
      const __m256i first = pixel(p), mixed = _mm256_packus_epi16(first, q == p ? first : pixel(q));
      const __m256i clamped = _mm256_min_epu8(_mm256_max_epu8(mixed, low), high);
      const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(clamped, fours), lanes);
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

  // Of sixteen channels, for sums that begin with what of the offset is a multiple of the multiplier. What is left of it is half
  // a unit of the result, which can wait for the upper dword: floor((x + 2^(d - 1 + 32)) / 2^(d + 32)) is
  // floor((floor(x / 2^32) + 2^(d - 1)) / 2^d). So can the zero point. Sums of a shift below 33 are shifted up first.
  struct alignas(32) TileConstants {
    int32_t start[16] = {}, multiplier[16] = {}, odd_multiplier[16] = {}, up[16] = {};
    int32_t rest[16] = {}, down[16] = {};  // fours as channels 0 2 1 3, as the upper dwords come
    bool shifts_up = false;

    __m256i scale(__m256i acc, int first) const {
      const __m256i even = _mm256_mul_epi32(acc, load(multiplier + first));
      const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(acc, 32), load(odd_multiplier + first));
      const __m256i upper = _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd), 0xdd));
      return _mm256_srav_epi32(_mm256_add_epi32(upper, load(rest + first)), load(down + first));
    }

    // Whether channel `n` of the epilogue, lane n % 16, can be done so.
    bool set(const Epilogue& e, int n, int64_t bound, int doublings) {
      const int lane = n % 16, above = e.shift[n] + doublings - 32, left_shift = std::max(0, 1 - above);
      const int shift = above + left_shift;
      if (shift > 29 || doublings + left_shift > 30) return false;
      const int64_t half = int64_t(1) << (e.shift[n] - 1), whole = e.offset[n] - half, m = e.multiplier[n];
      const int64_t left = int64_t(e.zero_point) * (int64_t(1) << shift) + (int64_t(1) << (shift - 1));
      if (m ? whole % m != 0 : whole != 0) return false;
      const int64_t first = m ? whole / m : 0, room = INT32_MAX >> (doublings + left_shift);
      if (std::abs(first) > room - bound || std::abs(left) >= 1 << 30) return false;
      start[lane] = static_cast<int32_t>(first * (1 << doublings));
      up[lane] = left_shift, shifts_up = shifts_up || left_shift;
      multiplier[lane] = e.multiplier[n];
      if (lane % 2 == 1) odd_multiplier[lane - 1] = e.multiplier[n];
      const int place = lane / 4 * 4 + lane % 2 * 2 + lane % 4 / 2;
      rest[place] = static_cast<int32_t>(left), down[place] = shift;
      return true;
    }
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

  // store_tile() without haste.
  __attribute__((noinline, cold)) void store_pixels(uint8_t* const* targets, std::ptrdiff_t to, int channel, int count,
                                                    const __m256i* acc, int pixels, int halves) const {
    for (int p = 0; p < pixels; ++p, acc += halves) store(targets[p] + to, channel, count, acc[0], acc[halves - 1]);
  }

  void store_slowly(uint8_t* to, int channel, int count, __m256i a, __m256i b) const {
    alignas(32) int32_t acc[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(acc), a);
    _mm256_store_si256(reinterpret_cast<__m256i*>(acc + 8), b);
    for (int i = 0; i < count; ++i)
      haq::store(epilogue_, to, i, requantize(epilogue_, acc[i] >> doublings_, channel + i));
  }

  Epilogue epilogue_;
  int doublings_;
  bool vector_ = false, shifts_up_ = false, quick_ = false;
  std::vector<TileConstants> tiles_;
  std::vector<int32_t> multiplier_, odd_multiplier_, up_, down_;
  std::vector<int64_t> offset_;
  __m128i low_, high_;
  __m256i zero_point_;
};

}  // namespace haq::avx2
