// Convolutions of 1 or 2 bits on both sides: table_conv.h with vpermb.
#include "avx512_epilogue.h"
#include "kernels.h"
#include "table_conv.h"

namespace haq {
namespace {

// Codes of a pixel -> places of tables, one for each group of channels: spread to 4 or 8 bytes a group, then multiply-add.
class Packer {
 public:
  Packer(const TablePlan& plan, int channels) : plan_(plan), channels_(channels), slot_(plan.together <= 4 ? 4 : 8) {
    for (int i = 0; i < 64; ++i) {
      const int in_slot = i % slot_;
      spread_[i] = static_cast<uint8_t>(i / slot_ * plan.together + in_slot);
      used_ |= uint64_t(in_slot < plan.together) << i;
    }
  }

  // Writes up to 16 places more than the pixel has.
  void operator()(const uint8_t* codes, uint16_t* places) const {
    const int bits = plan_.input_bits, step = 64 / slot_ * plan_.together;
    const __m512i pairs = _mm512_set1_epi16(static_cast<int16_t>(1 | 1 << (8 + bits)));
    const __m512i fours = _mm512_set1_epi32(1 | 1 << (16 + 2 * bits));
    for (int c = 0; c < channels_; c += step, places += 64 / slot_) {
      const int left = channels_ - c;
      const __m512i some = _mm512_maskz_loadu_epi8(left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1, codes + c);
      const __m512i slots = _mm512_maskz_permutexvar_epi8(used_, avx512::load(spread_), some);
      const __m512i sums = _mm512_madd_epi16(_mm512_maddubs_epi16(slots, pairs), fours);
      if (slot_ == 4) {
        const __m256i index = _mm512_cvtepi32_epi16(sums);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(places), _mm256_slli_epi16(index, 6));
      } else {
        // the upper half of a slot counts 2^(4 * bits) times as much; what else the shift leaves is cut off
        const __m512i joined = _mm512_or_si512(sums, _mm512_srl_epi64(sums, _mm_cvtsi32_si128(32 - 4 * bits)));
        const __m128i index = _mm512_cvtepi64_epi16(joined);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(places), _mm_slli_epi16(index, 6));
      }
    }
  }

 private:
  TablePlan plan_;
  int channels_, slot_;
  alignas(64) uint8_t spread_[64];
  uint64_t used_ = 0;
};

struct Avx512 {
  using Vector = __m512i;
  using Requantizer = avx512::Requantizer;
  using Packer = haq::Packer;
  static constexpr const char* kName = "avx512 tables of products";
  static constexpr int kIndexBits = 6, kTable = 64, kLanes = 64, kVectors = 1, kPixels = 8, kSpare = 16;

  static Requantizer requantizer(const ConvSpec& s) { return {s.folded(), s.bound()}; }
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Vector load_table(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Vector look_up(Vector table, Vector index) { return _mm512_permutexvar_epi8(index, table); }
  static Vector add8(Vector a, Vector b) { return _mm512_add_epi8(a, b); }
  static Vector add16(Vector a, Vector b) { return _mm512_add_epi16(a, b); }
  static Vector upper_bytes(Vector v) { return _mm512_srli_epi16(v, 8); }

  static void accumulators(const Vector* wide, int32_t constant, int32_t* acc) {
    put(_mm512_sub_epi16(wide[0], _mm512_slli_epi16(wide[1], 8)), constant, acc);
    put(wide[1], constant, acc + 32);
  }

  static void put(__m512i values, int32_t constant, int32_t* acc) {
    const __m512i add = _mm512_set1_epi32(constant);
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(values));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(values, 1));
    _mm512_store_si512(acc, _mm512_add_epi32(low, add));
    _mm512_store_si512(acc + 16, _mm512_add_epi32(high, add));
  }

  static void store(const Requantizer& r, const int32_t* acc, uint8_t* pixel, int first, int count) {
    const int block = first / avx512::kBlock;
    for (int n = 0; n < count; n += 32) {
      if (count - n > 16) r.store<2>(acc + n, &pixel, 1, block + n / 16);
      else r.store<1>(acc + n, &pixel, 1, block + n / 16);
    }
  }
};

}  // namespace

OpPointer avx512_binary(const ConvSpec& spec) {
  const TablePlan plan(spec, Avx512::kIndexBits);
  if (!plan.fits(spec) || plan.together < 2 || plan.additions() < 3) return nullptr;
  if (spec.in_channels < 16 || spec.out_channels < 16) return nullptr;
  return std::make_unique<TableConv<Avx512>>(spec, plan);
}

}  // namespace haq
