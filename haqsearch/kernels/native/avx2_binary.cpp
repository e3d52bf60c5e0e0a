// Convolutions of 1 or 2 bits on both sides: table_conv.h with vpshufb.
#include "avx2_epilogue.h"
#include "kernels.h"
#include "table_conv.h"

namespace haq {
namespace {

inline __m256i load256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// Codes of a pixel -> places of tables, one for each group of channels.
class Packer {
 public:
  Packer(const TablePlan& plan, int channels) : plan_(plan), channels_(channels) {}

  // Writes up to 16 places more than the pixel has.
  void operator()(const uint8_t* codes, uint16_t* places) const {
    const int bits = plan_.input_bits;
    const __m256i pairs = _mm256_set1_epi16(static_cast<int16_t>(1 | 1 << (8 + bits)));
    const __m256i fours = _mm256_set1_epi32(1 | 1 << (16 + 2 * bits));
    if (plan_.together == 2) {
      for (int c = 0; c < channels_; c += 32, places += 16)
        store(places, _mm256_slli_epi16(_mm256_maddubs_epi16(some(codes, c), pairs), 4));
    } else {
      for (int c = 0; c < channels_; c += 64, places += 16) {
        const __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(some(codes, c), pairs), fours);
        const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(some(codes, c + 32), pairs), fours);
        store(places, _mm256_slli_epi16(_mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8), 4));
      }
    }
  }

 private:
  static void store(uint16_t* to, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }

  // The 32 codes from channel c on, 0 beyond the last.
  __m256i some(const uint8_t* codes, int c) const {
    if (c >= channels_) return _mm256_setzero_si256();
    const __m256i v = load256(codes + c);
    if (c + 32 <= channels_) return v;
    const __m256i lanes = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
                                           23, 24, 25, 26, 27, 28, 29, 30, 31);
    return _mm256_and_si256(v, _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(channels_ - c)), lanes));
  }

  TablePlan plan_;
  int channels_;
};

struct Avx2 {
  using Vector = __m256i;
  using Requantizer = avx2::Requantizer;
  using Packer = haq::Packer;
  static constexpr const char* kName = "avx2 tables of products";
  static constexpr int kIndexBits = 4, kTable = 16, kLanes = 32, kVectors = 2, kPixels = 4, kSpare = 16;

  static Requantizer requantizer(const ConvSpec& s) { return {s.folded(), s.out_channels, s.bound()}; }
  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector load(const uint8_t* from) { return load256(from); }
  static Vector load_table(const uint8_t* from) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Vector look_up(Vector table, Vector index) { return _mm256_shuffle_epi8(table, index); }
  static Vector add8(Vector a, Vector b) { return _mm256_add_epi8(a, b); }
  static Vector add16(Vector a, Vector b) { return _mm256_add_epi16(a, b); }
  static Vector upper_bytes(Vector v) { return _mm256_srli_epi16(v, 8); }

  static void accumulators(const Vector* wide, int32_t constant, int32_t* acc) {
    const __m256i even = _mm256_sub_epi16(wide[0], _mm256_slli_epi16(wide[1], 8));
    put(even, constant, acc);
    put(wide[1], constant, acc + 16);
  }

  static void put(__m256i values, int32_t constant, int32_t* acc) {
    const __m256i add = _mm256_set1_epi32(constant);
    const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(values));
    const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(values, 1));
    _mm256_store_si256(reinterpret_cast<__m256i*>(acc), _mm256_add_epi32(low, add));
    _mm256_store_si256(reinterpret_cast<__m256i*>(acc + 8), _mm256_add_epi32(high, add));
  }

  static void store(const Requantizer& r, const int32_t* acc, uint8_t* pixel, int first, int count) {
    const int code_bytes = r.wide() ? 2 : 1;
    for (int n = 0; n < count; n += 16)
      r.store(pixel + code_bytes * (first + n), first + n, std::min(16, count - n), load256(acc + n), load256(acc + n + 8));
  }
};

}  // namespace

OpPointer avx2_binary(const ConvSpec& spec) {
  const TablePlan plan(spec, Avx2::kIndexBits);
  // Two or four channels an index: the packer's forms. Fewer than three additions to a byte, and widening takes it all.
  if (!plan.fits(spec) || (plan.together != 2 && plan.together != 4) || plan.additions() < 3) return nullptr;
  // Where it was measured to beat vpmaddubsw on bytes: packing and requantizing cost the same for few channels as for many.
  if (std::min(spec.in_channels, spec.out_channels) < 64) return nullptr;
  return std::make_unique<TableConv<Avx2>>(spec, plan);
}

}  // namespace haq
