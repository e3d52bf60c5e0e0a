// Depthwise convolution with vpdpbusd, 64 channels (or rows times channels) at a time. Exact at every width.
#include "avx512_epilogue.h"
#include "depthwise.h"

namespace haq {
namespace {

struct Avx512 {
  static constexpr int kLanes = 4, kColumns = 4;
  static constexpr const char* kMethod = "avx512 vnni, channels";
  using Bytes = __m512i;
  using Sum = __m512i;
  using Requantizer = avx512::Requantizer;

  struct alignas(64) Weights {
    int8_t value[64] = {};
    void set(int place, int8_t weight) { value[place] = weight; }
  };

  static Sum zero() { return _mm512_setzero_si512(); }
  static void spill(int32_t* to, Sum sum) { _mm512_store_si512(to, sum); }
  static Sum add(Sum sum, Bytes pixels, const Weights& w) { return _mm512_dpbusd_epi32(sum, pixels, avx512::load(&w)); }

  // 64 / Rows bytes of each row.
  template <int Rows>
  static Bytes load(const uint8_t* const* row, std::ptrdiff_t at) {
    if constexpr (Rows == 1) return _mm512_loadu_si512(row[0] + at);
    if constexpr (Rows == 2) return _mm512_inserti64x4(_mm512_castsi256_si512(half(row[0] + at)), half(row[1] + at), 1);
    if constexpr (Rows == 4) {
      const auto two = [&](int r) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(row[r] + at)), quarter(row[r + 1] + at), 1);
      };
      const __m256i front = two(0), back = two(2);
      return _mm512_inserti64x4(_mm512_castsi256_si512(front), back, 1);
    }
  }

  static void interleave(Bytes a, Bytes b, Bytes c, Bytes d, Bytes* quad) {
    const __m512i front_ab = _mm512_unpacklo_epi8(a, b), back_ab = _mm512_unpackhi_epi8(a, b);
    const __m512i front_cd = _mm512_unpacklo_epi8(c, d), back_cd = _mm512_unpackhi_epi8(c, d);
    quad[0] = _mm512_unpacklo_epi16(front_ab, front_cd), quad[1] = _mm512_unpackhi_epi16(front_ab, front_cd);
    quad[2] = _mm512_unpacklo_epi16(back_ab, back_cd), quad[3] = _mm512_unpackhi_epi16(back_ab, back_cd);
  }

  template <int Rows>
  static void store(const Requantizer& requantizer, int panel, int channels, const int32_t* sums, const int* columns,
                    int count, uint8_t* const* to, std::ptrdiff_t pixel) {
    const __mmask64 mask = ~__mmask64(0) >> (64 - channels);
    requantizer.interleaved(sums, count, 4 * panel, [&](int i, __m512i codes) {
      const std::ptrdiff_t at = columns[i] * pixel;
      if constexpr (Rows == 1) _mm512_storeu_si512(to[0] + at, codes);
      if constexpr (Rows == 2) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[0] + at), _mm512_castsi512_si256(codes));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to[1] + at), _mm512_extracti64x4_epi64(codes, 1));
      }
      if constexpr (Rows == 4) {
        put(to[0] + at, mask, _mm512_castsi512_si128(codes));
        put(to[1] + at, mask, _mm512_extracti32x4_epi32(codes, 1));
        put(to[2] + at, mask, _mm512_extracti32x4_epi32(codes, 2));
        put(to[3] + at, mask, _mm512_extracti32x4_epi32(codes, 3));
      }
    });
  }

 private:
  static __m256i half(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static __m128i quarter(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

  static void put(uint8_t* to, __mmask64 mask, __m128i codes) {
    if (mask == 0xFFFF) _mm_storeu_si128(reinterpret_cast<__m128i*>(to), codes);
    else _mm_mask_storeu_epi8(to, static_cast<__mmask16>(mask), codes);
  }
};

}  // namespace

OpPointer avx512_depthwise(const ConvSpec& spec) {
  return spec.epilogue.wide ? nullptr : std::make_unique<Depthwise<Avx512>>(spec);
}

}  // namespace haq
