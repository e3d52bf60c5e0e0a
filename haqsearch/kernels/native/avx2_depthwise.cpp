// Depthwise convolution with vpmaddubsw, 32 channels (or rows times channels) at a time. Exact: whether the sums of two
// products fit int16, and how many of those may be added up, is decided by the weights as they are.
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "avx2_depthwise.h"
#include "avx2_epilogue.h"

namespace haq {
namespace {

enum class Width {
  kPair,   // one product each, then int32: always fits
  kInt,    // two products each, then int32
  kShort,  // int16 until the window is done
};

// The epilogue of sums in pairs of int16, which need not be added up first: with M = 2^16 * high + low and C alike,
//   ((a + b) * M + C) >> shift = ((a + b) * high + high_c + (((a + b) * low + low_c) >> 16)) >> (shift - 16),
// and vpmaddwd makes (a + b) * high of a, b and high, high.
class PairRequantizer {
 public:
  PairRequantizer(const Epilogue& e, int64_t) : constants_(e.multiplier.size() / 8), low_(e.low), high_(e.high) {
    for (size_t n = 0; n < e.multiplier.size(); ++n) {
      Constants& c = constants_[n / 8];
      const size_t i = n % 8;
      const int64_t offset = e.offset[n] + e.zero_point * (int64_t(1) << e.shift[n]);
      const int32_t high = high_half(e.multiplier[n]), low = e.multiplier[n] - high * 65536;
      c.high[i] = twice(high), c.low[i] = twice(low);
      c.high_offset[i] = static_cast<int32_t>(offset >> 16), c.low_offset[i] = static_cast<int32_t>(offset & 0xFFFF);
      c.shift[i] = e.shift[n] - 16;
    }
  }

  // bound: of |a + b|
  static bool fits(const Epilogue& e, int64_t bound) {
    for (size_t n = 0; n < e.multiplier.size(); ++n) {
      if (e.shift[n] < 16 || e.shift[n] > 45 || e.multiplier[n] >= INT32_MAX - (1 << 15)) return false;
      const int64_t limit = int64_t(1) << 46, point = e.zero_point * (int64_t(1) << e.shift[n]);
      if (std::abs(e.offset[n]) >= limit - std::abs(point)) return false;
      const int64_t offset = std::abs(e.offset[n] + point) >> 16;
      if (bound * (high_half(e.multiplier[n]) + 1) + offset + (1 << 16) > INT32_MAX) return false;
    }
    return bound < (1 << 16) - 2 && std::abs(e.zero_point) < (1 << 15);
  }

  // 32 codes of four registers of pairs, from channel `channel` of the interleaved order on.
  __m256i codes(const __m256i (&pairs)[4], int channel) const {
    const Constants* c = &constants_[channel / 8];
    const __m256i front = _mm256_packs_epi32(scale(pairs[0], c[0]), scale(pairs[1], c[1]));
    const __m256i back = _mm256_packs_epi32(scale(pairs[2], c[2]), scale(pairs[3], c[3]));
    const __m256i low = _mm256_set1_epi8(static_cast<char>(low_)), high = _mm256_set1_epi8(static_cast<char>(high_));
    return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(front, back), low), high);
  }

 private:
  struct alignas(32) Constants {
    int32_t high[8], low[8], high_offset[8], low_offset[8], shift[8];
  };

  static int32_t twice(int32_t half) {
    return static_cast<int32_t>((static_cast<uint32_t>(half) << 16) | (static_cast<uint32_t>(half) & 0xFFFF));
  }

  static int32_t high_half(int32_t multiplier) { return (multiplier + (1 << 15)) >> 16; }

  static __m256i scale(__m256i pairs, const Constants& c) {
    const auto load = [](const int32_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); };
    const __m256i below = _mm256_add_epi32(_mm256_madd_epi16(pairs, load(c.low)), load(c.low_offset));
    const __m256i above = _mm256_add_epi32(_mm256_madd_epi16(pairs, load(c.high)), load(c.high_offset));
    return _mm256_srav_epi32(_mm256_add_epi32(above, _mm256_srai_epi32(below, 16)), load(c.shift));
  }

  std::vector<Constants> constants_;
  int low_, high_;
};

using avx2::LongRequantizer;

template <Width width>
struct Avx2 {
  static constexpr int kLanes = 2, kColumns = 2;
  static constexpr const char* kMethod = width == Width::kPair  ? "avx2 maddubs in halves, channels"
                                         : width == Width::kInt ? "avx2 maddubs, channels"
                                                                : "avx2 maddubs in int16, channels";
  using Bytes = __m256i;
  using Sum = __m256i;

  // One register of weights; of kPair two, so that each product stays alone.
  struct alignas(64) Weights {
    static constexpr int kTerms = width == Width::kPair ? 2 : 1;
    int8_t value[kTerms][32] = {};
    void set(int place, int8_t weight) { value[place % kTerms][place] = weight; }
  };

  using Requantizer = std::conditional_t<width == Width::kShort, PairRequantizer, LongRequantizer>;

  static Sum zero() { return _mm256_setzero_si256(); }

  static void spill(int32_t* to, Sum sum) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), sum); }

  static Sum add(Sum sum, Bytes pixels, const Weights& w) {
    const auto products = [&](int term) {
      return _mm256_maddubs_epi16(pixels, _mm256_load_si256(reinterpret_cast<const __m256i*>(w.value[term])));
    };
    if constexpr (width == Width::kShort) return _mm256_add_epi16(sum, products(0));
    for (int term = 0; term < Weights::kTerms; ++term)
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products(term), _mm256_set1_epi16(1)));
    return sum;
  }

  template <int Rows>
  static Bytes load(const uint8_t* const* row, std::ptrdiff_t at) {
    return avx2::load_rows<Rows>(row, at);
  }

  static void interleave(Bytes a, Bytes b, Bytes c, Bytes d, Bytes* quad) {
    const __m256i front_ab = _mm256_unpacklo_epi8(a, b), back_ab = _mm256_unpackhi_epi8(a, b);
    const __m256i front_cd = _mm256_unpacklo_epi8(c, d), back_cd = _mm256_unpackhi_epi8(c, d);
    quad[0] = _mm256_unpacklo_epi16(front_ab, front_cd), quad[1] = _mm256_unpackhi_epi16(front_ab, front_cd);
    quad[2] = _mm256_unpacklo_epi16(back_ab, back_cd), quad[3] = _mm256_unpackhi_epi16(back_ab, back_cd);
  }

  template <int Rows>
  static void store(const Requantizer& requantizer, int panel, int channels, const int32_t* sums, const int* columns,
                    int count, uint8_t* const* to, std::ptrdiff_t pixel) {
    for (int i = 0; i < count; ++i, sums += 32) {
      __m256i sum[4];
      for (int k = 0; k < 4; ++k) sum[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + 8 * k));
      const __m256i codes = requantizer.codes(sum, 32 * panel);
      avx2::store_rows<Rows>(to, columns[i] * pixel, channels, codes);
    }
  }
};

// The narrowest sums that hold whatever the inputs are. A 16-bit place adds up two neighbouring taps of each quad.
Width narrowest(const ConvSpec& s) {
  int largest_pair = 0, largest_sum = 0;
  for (int c = 0; c < s.out_channels; ++c)
    for (int place = 0; place < 4; ++place) {  // the first tap of the two, modulo 4, when the weights are moved or not
      int sum = 0;
      for (int ky = 0; ky < s.kernel_h; ++ky)
        for (int kx = place - 1; kx < s.kernel_w; kx += 4) {
          const int8_t* row = &s.weight[(size_t(c) * s.kernel_h + ky) * s.kernel_w];
          const auto weight = [&](int x) { return x < 0 || x >= s.kernel_w ? 0 : std::abs(int(row[x])); };
          const int pair = weight(kx) + weight(kx + 1);
          largest_pair = std::max(largest_pair, pair);
          sum += pair;
        }
      largest_sum = std::max(largest_sum, sum);
    }
  if (largest_sum * s.input_high <= INT16_MAX && PairRequantizer::fits(s.folded(), s.bound())) return Width::kShort;
  return largest_pair * s.input_high <= INT16_MAX ? Width::kInt : Width::kPair;
}

}  // namespace

OpPointer avx2_depthwise(const ConvSpec& spec) {
  if (spec.epilogue.wide) return nullptr;
  if (OpPointer short_sums = avx2::make_depthwise3(spec)) return short_sums;
  switch (narrowest(spec)) {
    case Width::kShort: return std::make_unique<Depthwise<Avx2<Width::kShort>>>(spec);
    case Width::kInt: return std::make_unique<Depthwise<Avx2<Width::kInt>>>(spec);
    default: return std::make_unique<Depthwise<Avx2<Width::kPair>>>(spec);
  }
}

}  // namespace haq
