// Residual adds, rescaling and pooling in AVX2.
#include <cstring>

#include "avx2_epilogue.h"
#include "elementwise.h"

namespace haq {
namespace {

inline __m256i load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline void store(uint8_t* to, __m256i codes) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes); }

// The first `count` bytes of a vector; the others are zero.
inline __m256i load(const uint8_t* from, int64_t count) {
  if (count >= 32) return load(from);
  alignas(32) uint8_t bytes[32] = {};
  std::memcpy(bytes, from, static_cast<size_t>(count));
  return load(bytes);
}

inline void store(uint8_t* to, __m256i codes, int64_t count) {
  if (count >= 32) return store(to, codes);
  alignas(32) uint8_t bytes[32];
  store(bytes, codes);
  std::memcpy(to, bytes, static_cast<size_t>(count));
}

// Inputs: 1 or 2. One input is a sum of two whose second counts nothing.
template <int Inputs>
class Add final : public Op {
 public:
  explicit Add(const SplitSum& split) : s_(split) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const __m256i low = _mm256_set1_epi32(s_.low), high = _mm256_set1_epi32(s_.high);
    const __m256i low_offset = _mm256_set1_epi32(s_.low_offset), high_offset = _mm256_set1_epi32(s_.high_offset);
    const __m256i least = _mm256_set1_epi8(static_cast<char>(s_.least));
    const __m256i largest = _mm256_set1_epi8(static_cast<char>(s_.largest)), zero = _mm256_setzero_si256();
    const __m128i shift = _mm_cvtsi32_si128(s_.shift);
    const auto sum = [&](__m256i pairs) {  // of eight pairs of int16
      const __m256i carry = _mm256_srai_epi32(_mm256_add_epi32(_mm256_madd_epi16(pairs, low), low_offset), 16);
      const __m256i above = _mm256_add_epi32(_mm256_madd_epi16(pairs, high), high_offset);
      return _mm256_sra_epi32(_mm256_add_epi32(above, carry), shift);
    };
    const auto eight = [&](__m256i bytes) {  // of each 16-byte lane: a0 b0 a1 b1 ... -> eight int16
      return _mm256_packs_epi32(sum(_mm256_unpacklo_epi8(bytes, zero)), sum(_mm256_unpackhi_epi8(bytes, zero)));
    };
    for_each_stretch<Inputs>(in, out, first, end, [&](const uint8_t* const* from, uint8_t* to, int64_t bytes) {
      for (int64_t i = 0; i < bytes; i += 32) {
        const __m256i a = load(from[0] + i, bytes - i), b = Inputs == 2 ? load(from[Inputs - 1] + i, bytes - i) : zero;
        const __m256i codes = _mm256_packus_epi16(eight(_mm256_unpacklo_epi8(a, b)), eight(_mm256_unpackhi_epi8(a, b)));
        store(to + i, _mm256_min_epu8(_mm256_max_epu8(codes, least), largest), bytes - i);
      }
    });
  }

  const char* method() const override { return "avx2 split int16"; }

 private:
  SplitSum s_;
};

class Average final : public Op {
 public:
  explicit Average(const PoolSpec& s)
      : s_(s), requantizer_(repeated(s.epilogue, kLanes), kLanes, int64_t(255) * s.kernel_h * s.kernel_w) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for_each_window(s_, *in, out, first, end, [&](const Taps& taps, uint8_t* to) {
      const __m256i start = _mm256_set1_epi32(-s_.zero_point * taps.rows * taps.columns);
      for (int c = 0; c < out.channels; c += kLanes) {
        __m256i front = start, back = start;
        taps.each([&](const uint8_t* tap) {  // reads behind the last channel: there is slack
          const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tap + c));
          front = _mm256_add_epi32(front, _mm256_cvtepu8_epi32(q));
          back = _mm256_add_epi32(back, _mm256_cvtepu8_epi32(_mm_srli_si128(q, 8)));
        });
        requantizer_.store(to + c, 0, std::min(kLanes, out.channels - c), front, back);
      }
    });
  }

  const char* method() const override { return "avx2 channels"; }

 private:
  static constexpr int kLanes = 16;
  PoolSpec s_;
  avx2::Requantizer requantizer_;
};

class Maximum final : public Op {
 public:
  explicit Maximum(const PoolSpec& s) : s_(s) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for_each_window(s_, *in, out, first, end, [&](const Taps& taps, uint8_t* to) {
      for (int c = 0; c < out.channels; c += 32) {
        __m256i largest = _mm256_setzero_si256();
        taps.each([&](const uint8_t* tap) { largest = _mm256_max_epu8(largest, load(tap + c)); });
        store(to + c, largest, out.channels - c);
      }
    });
  }

  const char* method() const override { return "avx2 channels"; }

 private:
  PoolSpec s_;
};

}  // namespace

OpPointer avx2_weighted_sum(const SumSpec& spec) {
  const std::optional<SplitSum> split = SplitSum::of(spec);
  if (!split) return nullptr;
  if (spec.multipliers.size() == 1) return std::make_unique<Add<1>>(*split);
  return std::make_unique<Add<2>>(*split);
}

OpPointer avx2_average(const PoolSpec& spec) { return spec.epilogue.wide ? nullptr : std::make_unique<Average>(spec); }

OpPointer avx2_maximum(const PoolSpec& spec) { return std::make_unique<Maximum>(spec); }

}  // namespace haq
