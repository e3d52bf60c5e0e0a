// Linear layers of few rows, bound by reading their weights: 1 to 4 bits each, packed densely, taken apart in registers;
// more bits a byte each.
//
// 1 to 3 bits: bit planes and tables. Four inputs have 16 sums of subsets, and four bits of a plane say which one an output
// takes: vpshufb looks up 32 outputs at once. A sum has ten bits: two tables of five, so that eight of them add up in a byte.
// 4 bits: two inputs a byte, vpmaddubsw with the inputs made signed, which halves the sums: eight fit int16.
#include <cstring>
#include <type_traits>

#include "avx2_epilogue.h"
#include "kernels.h"
#include "packed_bits.h"

namespace haq {
namespace {

constexpr int kBytes = 32;  // of a vector

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
inline void add_to(int32_t* to, __m256i value) { store(to, _mm256_add_epi32(load(to), value)); }
inline __m256i both_lanes(const uint8_t* from) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }

// The sums of the subsets of four inputs: 16 bytes of their lower five bits, then 16 of the upper five.
inline void subset_sums(const uint8_t* four, uint8_t* tables) {
  const auto bits = [](int subset) {  // a byte for each input: whether it is in
    return (subset & 1) | (subset >> 1 & 1) << 8 | (subset >> 2 & 1) << 16 | (subset >> 3 & 1) << 24;
  };
  int32_t word;
  std::memcpy(&word, four, 4);
  const __m256i x = _mm256_set1_epi32(word), ones = _mm256_set1_epi16(1);
  const __m256i first = _mm256_setr_epi32(bits(0), bits(1), bits(2), bits(3), bits(8), bits(9), bits(10), bits(11));
  const __m256i second = _mm256_setr_epi32(bits(4), bits(5), bits(6), bits(7), bits(12), bits(13), bits(14), bits(15));
  const __m256i sums = _mm256_packs_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(x, first), ones),
                                          _mm256_madd_epi16(_mm256_maddubs_epi16(x, second), ones));
  const __m256i halves = _mm256_packus_epi16(_mm256_and_si256(sums, _mm256_set1_epi16(31)), _mm256_srli_epi16(sums, 5));
  store(tables, _mm256_permute4x64_epi64(halves, 0xd8));
}

// Nothing is moved across this: gcc 12 puts additions off, and then has too few registers.
inline void settle(__m256i& value) { asm volatile("" : "+x"(value)); }

// A panel's planes of bits. A word is 32 bytes, each four inputs of one plane in its low and four in its high half. The two
// bytes of an int16 lane are planes 0 and 1 of one output (a pair), or one plane of two outputs (a single word): one bit has
// single words, two bits have pairs, three bits pairs and a single word for plane 2.
template <int Bits>
class Planes {
  static constexpr int kPairs = Bits == 1 ? 0 : Bits == 2 ? 4 : 2, kSingles = Bits == 1 ? 2 : Bits == 2 ? 0 : 1;
  static constexpr int kWords = kPairs + kSingles;

 public:
  static constexpr int kOutputs = Bits <= 2 ? 64 : 32;
  static constexpr int kInputs = 8;         // of a step
  static constexpr int kStepBytes = kBytes * kWords;
  static constexpr int kTable = 64;         // bytes of tables for a step: twice two
  static constexpr const char* kName = Bits == 1 ? "avx2 tables, 1-bit weights"
                                       : Bits == 2 ? "avx2 tables, 2-bit weights" : "avx2 tables, 3-bit weights";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int word = 0; word < kWords; ++word)
      for (int i = 0; i < kBytes; ++i) {
        const bool pair = word < kPairs;
        const int plane = pair ? i % 2 : Bits - 1;
        const int n = output + place(i / 2) + (pair ? 16 * word : 32 * (word - kPairs) + i % 2 * 16);
        for (int k = 0; k < kInputs; ++k)
          step[word * kBytes + i] |= static_cast<uint8_t>((codes.at(n, input + k) >> plane & 1) << k);
      }
  }

  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int group = 0; group < 2 * steps; ++group) subset_sums(x + 4 * group, tables + kBytes * group);
  }

  // sum of code * input for each output of a panel, in their order
  static void multiply(const uint8_t* weight, const uint8_t* tables, int steps, int32_t* sums) {
    std::memset(sums, 0, kOutputs * sizeof(int32_t));
    for (int k = 0; k < steps; k += kBlock)
      add_block(weight + k * kStepBytes, tables + k * kTable, std::min(kBlock, steps - k), sums);
  }

 private:
  // Steps that int16 holds: a fourth part of them the largest pair, 8 * (31 + 2 * 31), or the largest upper byte, 8 * 31.
  static constexpr int kBlock = kPairs ? 176 : 528;
  static constexpr int kBytewise = 4;  // steps: 8 times 31 still is a byte
  static constexpr int kPlaneWeight = 1 << (Bits - 1);  // of single words

  using Digits = __m256i[kWords][2];  // sums of the tables' two digits, in bytes

  // The same in int16: of a pair its planes by their weights, of a single word all lanes as they are and their upper bytes.
  struct Wide {
    __m256i pairs[kPairs + 1][2], lanes[kSingles + 1][2], uppers[kSingles + 1][2];
  };

  // The output whose sums are in an int16 lane, when vpunpck?wd has put the lanes into two registers.
  static constexpr int place(int lane) { return lane / 4 == 1 ? lane + 4 : lane / 4 == 2 ? lane - 4 : lane; }

  static void add_block(const uint8_t* weight, const uint8_t* tables, int steps, int32_t* sums) {
    Wide wide;
    for (int digit = 0; digit < 2; ++digit) {
      for (int i = 0; i < kPairs; ++i) wide.pairs[i][digit] = _mm256_setzero_si256();
      for (int i = 0; i < kSingles; ++i) wide.lanes[i][digit] = wide.uppers[i][digit] = _mm256_setzero_si256();
    }
    Digits digits;
    for (; steps >= kBytewise; steps -= kBytewise, weight += kBytewise * kStepBytes, tables += kBytewise * kTable) {
      clear(digits);
#pragma GCC unroll 4
      for (int i = 0; i < kBytewise; ++i) look_up(weight + i * kStepBytes, tables + i * kTable, digits);
      widen(digits, wide);
    }
    if (steps > 0) {
      clear(digits);
#pragma GCC unroll 1
      for (int i = 0; i < steps; ++i) look_up(weight + i * kStepBytes, tables + i * kTable, digits);
      widen(digits, wide);
    }
    finish(wide, sums);
  }

  static inline __attribute__((always_inline)) void clear(Digits& digits) {
#pragma GCC unroll 4
    for (auto& word : digits) word[0] = word[1] = _mm256_setzero_si256();
  }

  static inline __attribute__((always_inline)) void look_up(const uint8_t* weight, const uint8_t* tables, Digits& digits) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i low = both_lanes(tables + kBytes * half), high = both_lanes(tables + kBytes * half + 16);
#pragma GCC unroll 4
      for (int word = 0; word < kWords; ++word) {
        const __m256i w = load(weight + word * kBytes);
        const __m256i four = low_nibbles(half ? _mm256_srli_epi16(w, 4) : w);
        digits[word][0] = _mm256_add_epi8(digits[word][0], _mm256_shuffle_epi8(low, four));
        digits[word][1] = _mm256_add_epi8(digits[word][1], _mm256_shuffle_epi8(high, four));
        settle(digits[word][0]), settle(digits[word][1]);
      }
    }
  }

  static inline __attribute__((always_inline)) void widen(const Digits& digits, Wide& wide) {
    const __m256i planes = _mm256_set1_epi16(0x0201);
#pragma GCC unroll 4
    for (int word = 0; word < kWords; ++word)
#pragma GCC unroll 2
      for (int digit = 0; digit < 2; ++digit) {
        const __m256i bytes = digits[word][digit];
        if (word < kPairs) {
          __m256i& pair = wide.pairs[word][digit];
          pair = _mm256_add_epi16(pair, _mm256_maddubs_epi16(bytes, planes));
        } else {
          __m256i &lanes = wide.lanes[word - kPairs][digit], &uppers = wide.uppers[word - kPairs][digit];
          lanes = _mm256_add_epi16(lanes, bytes);
          uppers = _mm256_add_epi16(uppers, _mm256_srli_epi16(bytes, 8));
        }
      }
  }

  static void finish(const Wide& wide, int32_t* sums) {
    for (int i = 0; i < kPairs; ++i) add_digits(sums + 16 * i, wide.pairs[i], 1);
    for (int i = 0; i < kSingles; ++i) {
      __m256i lower[2];  // what is left without the upper bytes, modulo 2^16
      for (int digit = 0; digit < 2; ++digit)
        lower[digit] = _mm256_sub_epi16(wide.lanes[i][digit], _mm256_slli_epi16(wide.uppers[i][digit], 8));
      add_digits(sums + 32 * i, lower, kPlaneWeight);
      add_digits(sums + 32 * i + 16, wide.uppers[i], kPlaneWeight);
    }
  }

  static void add_digits(int32_t* sums, const __m256i (&digits)[2], int weight) {
    const __m256i weights = _mm256_set1_epi32(weight | 32 * weight << 16);
    add_to(sums, _mm256_madd_epi16(_mm256_unpacklo_epi16(digits[0], digits[1]), weights));
    add_to(sums + 8, _mm256_madd_epi16(_mm256_unpackhi_epi16(digits[0], digits[1]), weights));
  }
};

// 4 bits: a word is eight outputs, each four inputs in the low halves of its bytes and four in the high ones.
class Nibbles {
  static constexpr int kWords = 4;

 public:
  static constexpr int kOutputs = 8 * kWords;
  static constexpr int kInputs = 8;
  static constexpr int kStepBytes = kBytes * kWords;
  static constexpr int kTable = 8;
  static constexpr const char* kName = "avx2 int16 blocks, 4-bit weights";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int n = 0; n < kOutputs; ++n)
      for (int k = 0; k < 4; ++k)
        step[4 * n + k] =
            static_cast<uint8_t>(codes.at(output + n, input + k) | codes.at(output + n, input + 4 + k) << 4);
  }

  // Inputs less 128. What that takes from the sums is given back by `Linear`: 128 times the sum of the codes.
  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int i = 0; i < steps * kInputs; ++i) tables[i] = x[i] ^ 0x80;
  }

  static void multiply(const uint8_t* weight, const uint8_t* x, int steps, int32_t* sums) {
    __m256i total[kWords];
    for (auto& word : total) word = _mm256_setzero_si256();
    for (; steps >= kNarrow; steps -= kNarrow, weight += kNarrow * kStepBytes, x += kNarrow * kInputs) {
      __m256i narrow[kWords];
      for (auto& word : narrow) word = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int i = 0; i < kNarrow; ++i) add(weight + i * kStepBytes, x + i * kInputs, narrow);
      widen(narrow, total);
    }
    if (steps > 0) {
      __m256i narrow[kWords];
      for (auto& word : narrow) word = _mm256_setzero_si256();
#pragma GCC unroll 1
      for (int i = 0; i < steps; ++i) add(weight + i * kStepBytes, x + i * kInputs, narrow);
      widen(narrow, total);
    }
    for (int word = 0; word < kWords; ++word) store(sums + 8 * word, total[word]);
  }

 private:
  static constexpr int kNarrow = 4;  // steps: 4 * 2 * 2 * 15 * 128 fits int16

  static __m256i four(const uint8_t* x) {
    int32_t bytes;
    std::memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
  }

  static inline __attribute__((always_inline)) void add(const uint8_t* weight, const uint8_t* x, __m256i* narrow) {
    const __m256i front = four(x), back = four(x + 4);
#pragma GCC unroll 4
    for (int word = 0; word < kWords; ++word) {
      const __m256i w = load(weight + word * kBytes), high = low_nibbles(_mm256_srli_epi16(w, 4));
      narrow[word] = _mm256_add_epi16(narrow[word], _mm256_maddubs_epi16(low_nibbles(w), front));
      narrow[word] = _mm256_add_epi16(narrow[word], _mm256_maddubs_epi16(high, back));
      settle(narrow[word]);
    }
  }

  static inline __attribute__((always_inline)) void widen(const __m256i* narrow, __m256i* total) {
    for (int word = 0; word < kWords; ++word)
      total[word] = _mm256_add_epi32(total[word], _mm256_madd_epi16(narrow[word], _mm256_set1_epi16(1)));
  }
};

// 5 to 8 bits, a byte each: pairs of inputs of 8 outputs a half vector, widened to int16 on loading, so exact.
class Wide {
 public:
  static constexpr int kWords = 4;
  static constexpr int kOutputs = 8 * kWords;
  static constexpr int kInputs = 2;
  static constexpr int kStepBytes = 16 * kWords;
  static constexpr int kTable = 4;
  static constexpr const char* kName = "avx2 int16, weights in bytes";

  static void pack(const Codes& codes, int output, int input, uint8_t* step) {
    for (int i = 0; i < kOutputs; ++i)
      for (int k = 0; k < kInputs; ++k) step[kInputs * i + k] = static_cast<uint8_t>(codes.at(output + i, input + k));
  }

  static void prepare(const uint8_t* x, int steps, uint8_t* tables) {
    for (int i = 0; i < steps * kInputs; ++i) tables[2 * i] = x[i], tables[2 * i + 1] = 0;
  }

  static void multiply(const uint8_t* weight, const uint8_t* x, int steps, int32_t* sums) {
    __m256i total[kWords];
    for (auto& word : total) word = _mm256_setzero_si256();
    for (int k = 0; k < steps; ++k)
      for (int word = 0; word < kWords; ++word) add(weight + (k * kWords + word) * 16, x + 4 * k, total[word]);
    for (int word = 0; word < kWords; ++word) store(sums + 8 * word, total[word]);
  }

 private:
  static void add(const uint8_t* weight, const uint8_t* x, __m256i& total) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    const __m256i w = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight)));
    total = _mm256_add_epi32(total, _mm256_madd_epi16(w, _mm256_set1_epi32(pair)));
  }
};

template <typename Form>
class Linear final : public Op {
 public:
  explicit Linear(const Codes& codes)
      : inputs_(codes.spec.in_channels), outputs_(codes.spec.out_channels),
        steps_((inputs_ + Form::kInputs - 1) / Form::kInputs),
        panels_((outputs_ + Form::kOutputs - 1) / Form::kOutputs), levels_(codes.levels),
        requantizer_(codes.spec.folded(), outputs_, codes.spec.bound()) {
    memory_.resize(size_t(packed_bytes()) + kLine - 1);
    packed_ = memory_.data() + -reinterpret_cast<uintptr_t>(memory_.data()) % kLine;
    uint8_t* step = packed_;
    for (int panel = 0; panel < panels_; ++panel)
      for (int k = 0; k < steps_; ++k, step += Form::kStepBytes)
        Form::pack(codes, panel * Form::kOutputs, k * Form::kInputs, step);
    if (kSigned) {
      code_sums_.resize(size_t(panels_) * Form::kOutputs);
      for (int n = 0; n < outputs_; ++n)
        for (int k = 0; k < inputs_; ++k) code_sums_[n] += 128 * codes.at(n, k);
    }
  }

  int64_t units(const View&, int images) const override { return int64_t(images) * panels_; }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const size_t table = size_t(steps_) * Form::kTable;
    std::vector<uint8_t> inputs(size_t(steps_) * Form::kInputs);  // zeros behind the last input
    thread_local std::vector<uint8_t> tables;                     // kept: it is too large to be cleared for every row
    if (tables.size() < kRows * table) tables.resize(kRows * table);
    uint8_t* to[kRows];
    int32_t sums[kRows];
    const auto prepare = [&](const Row* rows, int count) {
      for (int r = 0; r < count; ++r) {
        std::memcpy(inputs.data(), rows[r].from, inputs_);
        Form::prepare(inputs.data(), steps_, tables.data() + r * table);
        to[r] = rows[r].to;
        sums[r] = std::accumulate(rows[r].from, rows[r].from + inputs_, 0);
      }
    };
    for_rows(*in, out, panels_, first, end, prepare, [&](int panel, int row, int count) {
      for (int r = row; r < row + count; ++r) finish(panel, tables.data() + r * table, to[r], sums[r]);
    });
  }

  const char* method() const override { return Form::kName; }
  int64_t packed_bytes() const override { return panels_ * static_cast<int64_t>(panel_bytes()); }

 private:
  static constexpr bool kSigned = std::is_same_v<Form, Nibbles>;
  static constexpr size_t kLine = 64;

  size_t panel_bytes() const { return size_t(steps_) * Form::kStepBytes; }

  void finish(int panel, const uint8_t* tables, uint8_t* to, int32_t sum) const {
    alignas(32) int32_t acc[Form::kOutputs];
    Form::multiply(packed_ + panel * panel_bytes(), tables, steps_, acc);
    const int first = panel * Form::kOutputs, count = std::min(Form::kOutputs, outputs_ - first);
    for (int n = 0; n < Form::kOutputs; ++n) {
      const int32_t codes = acc[n] + (kSigned ? code_sums_[first + n] : 0);
      acc[n] = levels_.base * sum + levels_.step * codes;
    }
    const int code_bytes = requantizer_.wide() ? 2 : 1;
    for (int n = 0; n < count; n += 16)
      requantizer_.store(to + code_bytes * (first + n), first + n, std::min(16, count - n), load(acc + n), load(acc + n + 8));
  }

  int inputs_, outputs_, steps_, panels_;
  Levels levels_;
  avx2::Requantizer requantizer_;
  std::vector<uint8_t> memory_;
  uint8_t* packed_ = nullptr;       // in `memory_`, at the beginning of a cache line
  std::vector<int32_t> code_sums_;  // 128 times the sum of each output's codes
};

}  // namespace

OpPointer avx2_linear(const ConvSpec& spec) {
  // The sum of the inputs times any weight must stay in int32.
  if (int64_t(spec.in_channels) * 255 * 255 > INT32_MAX || spec.out_channels < 64) return nullptr;
  const Codes codes(spec);
  switch (codes.levels.bits) {
    case 1: return std::make_unique<Linear<Planes<1>>>(codes);
    case 2: return std::make_unique<Linear<Planes<2>>>(codes);
    case 3: return std::make_unique<Linear<Planes<3>>>(codes);
    case 4: return std::make_unique<Linear<Nibbles>>(codes);
    default: return std::make_unique<Linear<Wide>>(codes);
  }
}

}  // namespace haq
