// Residual adds, rescaling and pooling in AVX-512.
#include <array>

#include "avx512_epilogue.h"
#include "elementwise.h"

namespace haq {
namespace {

inline __mmask64 first_bytes(int64_t count) { return count >= 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1; }

// Calls body(offset, mask) for 64 bytes after another; only the last of them may be fewer.
template <typename Body>
void for_each_64(int64_t bytes, const Body& body) {
  for (int64_t i = 0; i < bytes; i += 64) body(i, first_bytes(bytes - i));
}

inline void store(uint8_t* to, __mmask64 mask, __m512i codes) {
  if (mask == ~__mmask64(0)) _mm512_storeu_si512(to, codes);
  else _mm512_mask_storeu_epi8(to, mask, codes);
}

class Add final : public Op {
 public:
  explicit Add(const SplitSum& split) : s_(split) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const __m512i low = _mm512_set1_epi32(s_.low), high = _mm512_set1_epi32(s_.high);
    const __m512i low_offset = _mm512_set1_epi32(s_.low_offset), high_offset = _mm512_set1_epi32(s_.high_offset);
    const __m512i least = _mm512_set1_epi8(static_cast<char>(s_.least));
    const __m512i largest = _mm512_set1_epi8(static_cast<char>(s_.largest)), zero = _mm512_setzero_si512();
    const auto sum = [&, shift = static_cast<unsigned>(s_.shift)](__m512i pairs) {  // of 16 pairs of int16
      const __m512i carry = _mm512_srai_epi32(_mm512_dpwssd_epi32(low_offset, pairs, low), 16);
      return _mm512_srai_epi32(_mm512_add_epi32(_mm512_dpwssd_epi32(high_offset, pairs, high), carry), shift);
    };
    const auto eight = [&](__m512i bytes) {  // of each 16-byte lane: a0 b0 a1 b1 ... -> eight int16
      return _mm512_packs_epi32(sum(_mm512_unpacklo_epi8(bytes, zero)), sum(_mm512_unpackhi_epi8(bytes, zero)));
    };
    for_each_stretch<2>(in, out, first, end, [&](const uint8_t* const* from, uint8_t* to, int64_t bytes) {
      for_each_64(bytes, [&](int64_t i, __mmask64 mask) {
        const __m512i a = _mm512_maskz_loadu_epi8(mask, from[0] + i), b = _mm512_maskz_loadu_epi8(mask, from[1] + i);
        const __m512i codes = _mm512_packus_epi16(eight(_mm512_unpacklo_epi8(a, b)), eight(_mm512_unpackhi_epi8(a, b)));
        store(to + i, mask, _mm512_min_epu8(_mm512_max_epu8(codes, least), largest));
      });
    });
  }

  const char* method() const override { return "avx512 split int16"; }

 private:
  SplitSum s_;
};

// One input: a code for each of the 256 codes, four registers of them.
class Rescale final : public Op {
 public:
  explicit Rescale(const SumSpec& spec) {
    for (int q = 0; q < 256; ++q) {
      const int64_t sum = (q - int64_t(spec.zero_points[0])) * spec.multipliers[0];
      table_[q] = static_cast<uint8_t>(requantize(spec.epilogue, sum, 0));
    }
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const __m512i a = _mm512_loadu_si512(&table_[0]), b = _mm512_loadu_si512(&table_[64]);
    const __m512i c = _mm512_loadu_si512(&table_[128]), d = _mm512_loadu_si512(&table_[192]);
    for_each_stretch<1>(in, out, first, end, [&](const uint8_t* const* from, uint8_t* to, int64_t bytes) {
      for_each_64(bytes, [&](int64_t i, __mmask64 mask) {
        const __m512i q = _mm512_maskz_loadu_epi8(mask, from[0] + i);
        const __m512i front = _mm512_permutex2var_epi8(a, q, b), back = _mm512_permutex2var_epi8(c, q, d);
        store(to + i, mask, _mm512_mask_blend_epi8(_mm512_movepi8_mask(q), front, back));
      });
    });
  }

  const char* method() const override { return "avx512 table"; }

 private:
  std::array<uint8_t, 256> table_;
};

class Average final : public Op {
 public:
  explicit Average(const PoolSpec& s)
      : s_(s), requantizer_(repeated(s.epilogue, 2 * kLanes), int64_t(255) * s.kernel_h * s.kernel_w) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for_each_window(s_, *in, out, first, end, [&](const Taps& taps, uint8_t* to) {
      for (int c = 0; c < out.channels; c += 2 * kLanes) pool(taps, c, std::min(2 * kLanes, out.channels - c), to + c);
    });
  }

  const char* method() const override { return "avx512 channels"; }

 private:
  static constexpr int kLanes = avx512::kBlock;

  void pool(const Taps& taps, int channel, int count, uint8_t* to) const {
    const __m512i start = _mm512_set1_epi32(-s_.zero_point * taps.rows * taps.columns);
    const __mmask32 mask = static_cast<__mmask32>(first_bytes(count));
    __m512i front = start, back = start;
    taps.each([&](const uint8_t* tap) {
      const __m256i q = _mm256_maskz_loadu_epi8(mask, tap + channel);
      front = _mm512_add_epi32(front, _mm512_cvtepu8_epi32(_mm256_castsi256_si128(q)));
      back = _mm512_add_epi32(back, _mm512_cvtepu8_epi32(_mm256_extracti128_si256(q, 1)));
    });
    alignas(64) int32_t sums[2 * kLanes];
    alignas(32) uint8_t codes[2 * kLanes];
    uint8_t* place = codes;
    _mm512_store_si512(sums, front);
    _mm512_store_si512(sums + kLanes, back);
    requantizer_.store<2>(sums, &place, 1, 0);
    _mm256_mask_storeu_epi8(to, mask, _mm256_load_si256(reinterpret_cast<const __m256i*>(codes)));
  }

  PoolSpec s_;
  avx512::Requantizer requantizer_;
};

class Maximum final : public Op {
 public:
  explicit Maximum(const PoolSpec& s) : s_(s) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for_each_window(s_, *in, out, first, end, [&](const Taps& taps, uint8_t* to) {
      for_each_64(out.channels, [&](int64_t c, __mmask64 mask) {
        __m512i largest = _mm512_setzero_si512();
        taps.each([&](const uint8_t* tap) {
          largest = _mm512_max_epu8(largest, _mm512_maskz_loadu_epi8(mask, tap + c));
        });
        store(to + c, mask, largest);
      });
    });
  }

  const char* method() const override { return "avx512 channels"; }

 private:
  PoolSpec s_;
};

}  // namespace

OpPointer avx512_weighted_sum(const SumSpec& spec) {
  if (spec.multipliers.size() == 1 && !spec.epilogue.wide) return std::make_unique<Rescale>(spec);
  const std::optional<SplitSum> split = SplitSum::of(spec);
  return split && spec.multipliers.size() == 2 ? std::make_unique<Add>(*split) : nullptr;
}

OpPointer avx512_average(const PoolSpec& spec) {
  return spec.epilogue.wide ? nullptr : std::make_unique<Average>(spec);
}

OpPointer avx512_maximum(const PoolSpec& spec) { return std::make_unique<Maximum>(spec); }

}  // namespace haq
