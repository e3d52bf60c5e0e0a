// 3 x 3 convolution by Winograd's minimal filtering in integers, two by two outputs at a time.
// Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016, section 4.1:
//   Y = A' [(G g G') * (B' d B)] A,  summed over the input channels before A is applied.
//
// Transformed codes and weights lie in int16 (see avx2_winograd.h), or with few bits in bytes. Sums are taken modulo
// 2^32, where additions in any order agree; the result is right since |acc| * 2^doublings < 2^31 is asked for.
//
// Products that count alike in A' [] A, a class of rows and columns, are summed together: a cell.
#include <algorithm>
#include <new>

#include "avx2_conv.h"
#include "avx2_epilogue.h"
#include "avx2_tile.h"
#include "avx2_winograd.h"

namespace haq::avx2 {
namespace {

constexpr int kPanelTiles = 12;  // transformed at a time
constexpr int64_t kCacheBytes = 512 * 1024, kNearBytes = 2 * 1024 * 1024;

struct Panel {
  const uint8_t* transformed[kPanelTiles];
  uint8_t* target[kPanelTiles][4];  // the four output pixels; beyond the image: a place nobody reads
  int count = 0;
};

// Walks over the tiles of all images, row by row.
struct Place {
  Place(int64_t index, int down, int across)
      : x(static_cast<int>(index % across)),
        y(static_cast<int>(index / across % down)),
        image(index / across / down),
        down(down),
        across(across) {}

  void next() {
    if (++x < across) return;
    x = 0;
    if (++y == down) y = 0, ++image;
  }

  int x, y;
  int64_t image;
  int down, across;
};

template <typename Algorithm, typename Lanes>
class Winograd final : public Op {
 public:
  explicit Winograd(const ConvSpec& spec)
      : pad_h_(spec.pad_h),
        pad_w_(spec.pad_w),
        outputs_(spec.out_channels),
        blocks_((spec.out_channels + kTileChannels - 1) / kTileChannels),
        depth_((spec.in_channels + 15) / 16 * 16),
        raise_(kBytes ? 2 * spec.input_high : 0),
        requantizer_(spec.folded(), spec.out_channels, spec.bound(), Algorithm::kDoublings) {
    usable_ = requantizer_.vector() && 2 * raise_ <= 255;
    packed_.reset(static_cast<Weight*>(::operator new(packed_bytes(), std::align_val_t(64))));
    std::fill_n(packed_.get(), packed_bytes() / sizeof(Weight), Weight(0));
    raised_.resize(size_t(blocks_) * kCells * kTileChannels);
    for (int n = 0; n < spec.out_channels; ++n)
      for (int c = 0; c < spec.in_channels; ++c) pack(spec.weight.data() + (size_t(n) * spec.in_channels + c) * 9, n, c);
    if (kBytes && usable_) cut_runs();
    if (kBytes && usable_) take_off_raise();
  }

  // Whether the operands fit, and the epilogue is done in vectors.
  bool usable() const { return usable_; }

  // Pairs of rows.
  int64_t units(const View& out, int images) const override { return int64_t(images) * ((out.height + 1) / 2); }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    thread_local std::vector<uint8_t> memory;
    thread_local std::vector<uint8_t> beyond;
    const size_t tile = size_t(kPositions) * depth_ * kCodeBytes + 64;  // 64: tiles do not fall on the same cache sets
    if (memory.size() < tile * kPanelTiles) memory.resize(tile * kPanelTiles);
    if (beyond.size() < size_t(blocks_) * kTileChannels * 2) beyond.resize(size_t(blocks_) * kTileChannels * 2);
    const Offsets rows(out.height, in->row), columns(out.width, in->pixel);
    const int across = (out.width + 1) / 2;
    Place place(first * across, (out.height + 1) / 2, across);
    Panel panel;
    for (int64_t done = first * across; done < end * across; done += panel.count) {
      panel.count = static_cast<int>(std::min<int64_t>(kPanelTiles, end * across - done));
      for (int i = 0; i < panel.count; ++i, place.next()) {
        uint8_t* const to = memory.data() + i * tile;
        panel.transformed[i] = to;
        aim(out, place, beyond.data(), panel.target[i]);
        transform(in->at(place.image, 2 * kStride * place.y - pad_h_, 2 * kStride * place.x - pad_w_),
                  rows.of(place.y), columns.of(place.x), to);
      }
      for (int block = 0; block < blocks_; ++block) multiply(panel, block);
    }
  }

  const char* method() const override { return kBytes ? "avx2 winograd int8" : "avx2 winograd"; }
  int64_t packed_bytes() const override { return int64_t(blocks_) * block_codes() * static_cast<int>(sizeof(Weight)); }

 private:
  static constexpr int kStride = Algorithm::kStride, kTile = Algorithm::kTile, kPositions = kTile * kTile;
  static constexpr int kCodeBytes = Lanes::kCodeBytes, kPerStep = 4 / kCodeBytes;
  static constexpr int kVector = 32 / kCodeBytes;  // channels of a register
  static constexpr bool kBytes = kCodeBytes == 1;
  static constexpr Order<Algorithm> kOrder{};
  static constexpr int kClasses = Algorithm::kClasses, kCells = kClasses * kClasses;
  static constexpr int kMiddle = Order<Algorithm>::cell_of(kTile + 1);  // counts once in every output
  using Weight = typename Lanes::Weight;

  int64_t block_codes() const { return int64_t(kPositions) * depth_ * kTileChannels; }

  // packed_: [block][place][step][16 outputs][2 or 4 inputs]
  void pack(const int8_t* weight, int n, int c) {
    int rows[3][kTile], u[kTile][kTile];
    for (int y = 0; y < 3; ++y) {
      const int g[3] = {weight[3 * y], weight[3 * y + 1], weight[3 * y + 2]};
      Algorithm::weights(g, rows[y]);
    }
    for (int x = 0; x < kTile; ++x) {
      const int g[3] = {rows[0][x], rows[1][x], rows[2][x]};
      int column[kTile];
      Algorithm::weights(g, column);
      for (int y = 0; y < kTile; ++y) u[y][x] = column[y];
    }
    Weight* to = packed_.get() + n / kTileChannels * block_codes();
    for (int position = 0; position < kPositions; ++position) {
      const int weight_here = u[position / kTile][position % kTile];
      usable_ = usable_ && weight_here == static_cast<Weight>(weight_here);
      const int step = (kOrder.place[position] * depth_ + c) / kPerStep;
      to[(step * kTileChannels + n % kTileChannels) * kPerStep + c % kPerStep] = static_cast<Weight>(weight_here);
      const size_t cell = size_t(n / kTileChannels) * kCells + kOrder.cell_of(position);
      if (Algorithm::signed_at(position)) raised_[cell * kTileChannels + n % kTileChannels] += weight_here;
    }
  }

  // Blocks of int16 sums for every block of channels and cell; not worth it where they are short.
  void cut_runs() {
    usable_ = pairs_fit(reinterpret_cast<const int8_t*>(packed_.get()), packed_bytes(), 2 * raise_);
    for (int i = 0; usable_ && i < blocks_ * kCells; ++i) {
      for (int steps : cut_blocks(weights(i / kCells, i % kCells), steps(i % kCells), 2 * raise_))
        runs_.push_back({0, steps, true});
      first_run_.push_back(static_cast<int>(runs_.size()));
      std::ptrdiff_t offset = 0;
      for (int r = first_run_[i]; r < first_run_[i + 1]; offset += 4 * runs_[r++].steps) runs_[r].offset = offset;
    }
    usable_ = usable_ && runs_.size() * 3 * kPerStep <= size_t(blocks_) * kPositions * depth_;
  }

  // What the raised codes add to the four results of a tile: the output transform of raise * sum of the weights.
  void take_off_raise() {
    correction_.resize(size_t(blocks_) * 4 * kTileChannels);
    for (int block = 0; block < blocks_; ++block) {
      alignas(32) int32_t sums[kCells][kTileChannels];
      for (int i = 0; i < kCells * kTileChannels; ++i)
        sums[i / kTileChannels][i % kTileChannels] = -raise_ * raised_[size_t(block) * kCells * kTileChannels + i];
      __m256i acc[4][2];
      transform_output(sums, acc);
      std::memcpy(&correction_[size_t(block) * 4 * kTileChannels], acc, sizeof acc);
    }
  }

  // Bytes from a tile's first row (or column) to each of them. Those that only outputs beyond the image would need are
  // replaced by the last one there is.
  struct Offsets {
    Offsets(int outputs, std::ptrdiff_t stride) : last((outputs + 1) / 2 - 1) {
      for (int k = 0; k < kTile; ++k) {
        inner[k] = k * stride;
        outer[k] = std::min(k, kStride * (outputs - 1 - 2 * last) + 2) * stride;
      }
    }

    const std::ptrdiff_t* of(int tile) const { return tile == last ? outer : inner; }

    int last;
    std::ptrdiff_t inner[kTile], outer[kTile];
  };

  static void aim(const View& out, const Place& place, uint8_t* beyond, uint8_t** target) {
    uint8_t* const corner = out.at(place.image, 2 * place.y, 2 * place.x);
    const bool right = 2 * place.x + 1 < out.width, below = 2 * place.y + 1 < out.height;
    target[0] = corner;
    target[1] = right ? corner + out.pixel : beyond;
    target[2] = below ? corner + out.row : beyond;
    target[3] = right && below ? corner + out.row + out.pixel : beyond;
  }

  // Channels beyond the input's are whatever lies there: their weights are zero. Rows first, one transformed row at a time:
  // all of them would not fit the registers.
  void transform(const uint8_t* from, const std::ptrdiff_t* rows, const std::ptrdiff_t* columns, uint8_t* to) const {
    int c = 0;
    for (; c + kVector <= depth_; c += kVector) transform<kVector>(from + c, rows, columns, to + c * kCodeBytes);
    if (c < depth_) transform<16>(from + c, rows, columns, to + c * kCodeBytes);
  }

  // Channels of a register, or 16 at the end.
  template <int Channels>
  inline __attribute__((always_inline)) void transform(const uint8_t* from, const std::ptrdiff_t* rows,
                                                       const std::ptrdiff_t* columns, uint8_t* to) const {
    const __m256i raise = _mm256_set1_epi8(static_cast<char>(raise_));
    const std::ptrdiff_t apart = std::ptrdiff_t(depth_) * kCodeBytes;  // of positions
    const auto load = [&](int y) {
      const uint8_t* at = from + rows[y];
      asm("" : "+r"(at));  // gcc would keep the 25 sums of rows and columns, and has no registers for them
      Row<kTile> d;
#pragma GCC unroll 5
      for (int x = 0; x < kTile; ++x) d.column[x] = Lanes::load(at + columns[x]);
      return d;
    };
    const auto store = [&](int y, const Row<kTile>& t) {
      __m256i v[kTile];
      Algorithm::template input<Lanes>(t.column, v);
#pragma GCC unroll 5
      for (int x = 0; x < kTile; ++x) {
        const int position = kTile * y + x;
        if (kBytes && Algorithm::signed_at(position)) v[x] = Lanes::add(v[x], raise);
        uint8_t* const place = to + kOrder.place[position] * apart;
        if (Channels == kVector) _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), v[x]);
        else _mm_storeu_si128(reinterpret_cast<__m128i*>(place), _mm256_castsi256_si128(v[x]));
      }
    };
    Algorithm::template rows<Lanes>(load, store);
  }

  void multiply(const Panel& panel, int block) const {
    alignas(32) int32_t sums[kPanelTiles][kCells][kTileChannels];
    for (int cell = 0; cell < kCells; ++cell)
      for (int i = 0; i < panel.count; i += kTilePixels) {
        fetch(weights(block, cell), weights(block, cell + 1), i, panel.count);
        const Job job{panel.transformed + i, sums + i, block, cell};
        switch (panel.count - i) {
          case 1: tiles<1>(job); break;
          case 2: tiles<2>(job); break;
          case 3: tiles<3>(job); break;
          case 4: tiles<4>(job); break;
          case 5: tiles<5>(job); break;
          default: tiles<6>(job);
        }
      }
    for (int i = 0; i < panel.count; ++i) finish(panel.target[i], block, sums[i]);
  }

  // Steps of a cell, and its weights; those of the cell behind a block's last are the next block's.
  int steps(int cell) const { return (kOrder.first[cell + 1] - kOrder.first[cell]) * depth_ / kPerStep; }
  const int8_t* weights(int block, int cell) const {
    const Weight* const begin = packed_.get() + block * block_codes();
    return reinterpret_cast<const int8_t*>(begin + std::ptrdiff_t(kOrder.first[cell]) * depth_ * kTileChannels);
  }

  // Asks for as many weights as these tiles work on, from `next` on: large layers read them from beyond the cache.
  void fetch(const int8_t* here, const int8_t* next, int tile, int tiles) const {
    const int8_t* const end = reinterpret_cast<const int8_t*>(packed_.get()) + packed_bytes();
    if (packed_bytes() <= kCacheBytes) return;
    const std::ptrdiff_t bytes = next - here;
    const int8_t* const stop = std::min(end, next + bytes * std::min(tile + kTilePixels, tiles) / tiles);
    for (next += bytes * tile / tiles; next < stop; next += 64)
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
  }

  // The product of up to six tiles with the weights of one cell and block.
  struct Job {
    const uint8_t* const* transformed;
    int32_t (*sums)[kCells][kTileChannels];
    int block, cell;
  };

  template <int Tiles>
  void tiles(const Job& job) const {
    if constexpr (kBytes) {
      const int i = job.block * kCells + job.cell;
      const Run *run = runs_.data() + first_run_[i], *end = runs_.data() + first_run_[i + 1];
      if (end - run == 1) tiles<Kind::kWhole, Tiles>(job, run, end);
      else tiles<Kind::kBlocks, Tiles>(job, run, end);
    } else {
      const Run run{0, steps(job.cell), true};
      tiles<Kind::kWide, Tiles>(job, &run, &run + 1);
    }
  }

  template <Kind kind, int Tiles>
  void tiles(const Job& job, const Run* run, const Run* end) const {
    alignas(32) static constexpr int32_t zeros[kTileChannels] = {};
    __m256i acc[Tiles][2];
    accumulate<kind, Tiles, 2>(job.transformed, std::ptrdiff_t(kOrder.first[job.cell]) * depth_ * kCodeBytes, run, end,
                               weights(job.block, job.cell),
                               job.cell == kMiddle ? requantizer_.start(job.block * kTileChannels) : zeros, acc);
#pragma GCC unroll 6
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h)
        _mm256_store_si256(reinterpret_cast<__m256i*>(job.sums[i][job.cell] + 8 * h), acc[i][h]);
  }

  static void transform_output(const int32_t (&sums)[kCells][kTileChannels], __m256i (&acc)[4][2]) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i half[2][kClasses];
#pragma GCC unroll 4
      for (int x = 0; x < kClasses; ++x) {
        __m256i m[kClasses], y[2];
#pragma GCC unroll 4
        for (int k = 0; k < kClasses; ++k)
          m[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[kClasses * k + x] + 8 * h));
        Algorithm::output(m, y);
        half[0][x] = y[0], half[1][x] = y[1];
      }
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        __m256i y[2];
        Algorithm::output(half[k], y);
        acc[2 * k][h] = y[0], acc[2 * k + 1][h] = y[1];
      }
    }
  }

  void finish(uint8_t* const* targets, int block, const int32_t (&sums)[kCells][kTileChannels]) const {
    __m256i acc[4][2];
    transform_output(sums, acc);
    if constexpr (kBytes)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const int32_t* correction = &correction_[(size_t(block) * 4 + k) * kTileChannels + 8 * h];
          acc[k][h] = _mm256_add_epi32(acc[k][h], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(correction)));
        }
    const int channel = block * kTileChannels;
    requantizer_.store_tile<4, 2>(targets, std::ptrdiff_t(channel) * (requantizer_.wide() ? 2 : 1), channel,
                                  std::min(kTileChannels, outputs_ - channel), acc);
  }

  struct Free {
    void operator()(Weight* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  int pad_h_, pad_w_, outputs_, blocks_, depth_;
  int raise_;  // added to transformed codes that may be negative
  bool usable_ = false;
  Requantizer requantizer_;
  std::unique_ptr<Weight, Free> packed_;
  std::vector<int32_t> raised_, correction_;  // raised_: sums of the weights that meet raised codes, of each cell
  std::vector<Run> runs_;
  std::vector<int> first_run_ = {0};
};

template <typename Algorithm, typename Lanes>
OpPointer make(const ConvSpec& spec) {
  if (spec.bound() > INT32_MAX >> Algorithm::kDoublings) return nullptr;
  auto op = std::make_unique<Winograd<Algorithm, Lanes>>(spec);
  return op->usable() ? std::move(op) : nullptr;
}

template <typename Lanes>
OpPointer make(const ConvSpec& spec) {
  return spec.stride_h == 1 ? make<StrideOne, Lanes>(spec) : make<StrideTwo, Lanes>(spec);
}

}  // namespace

OpPointer make_winograd(const ConvSpec& s, double steps_a_block) {
  const bool fits = s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == s.stride_w && s.stride_h <= 2 &&
                    s.dilation_h == 1 && s.dilation_w == 1 && s.groups == 1;
  // Few channels: the transforms cost more than they save.
  if (!fits || s.in_channels < 12 || s.out_channels < 12) return nullptr;
  if (steps_a_block > 8 && s.in_channels < 32) return nullptr;
  if (s.weight_bits <= 6 && s.input_high < 64)
    if (OpPointer op = make<Bytes>(s)) return op;
  // The saving is smaller for stride 2, and where direct int8 sums go on for many steps.
  if (s.stride_h == 2 && steps_a_block > 1.5) return nullptr;
  OpPointer op = make<Words>(s);
  // It is lost where the weights, more than twice the direct ones, do not stay near.
  const int64_t near = s.stride_h == 2 ? kNearBytes : steps_a_block > 4 ? 2 * kNearBytes : INT64_MAX;
  return op && op->packed_bytes() > near ? nullptr : std::move(op);
}

}  // namespace haq::avx2
