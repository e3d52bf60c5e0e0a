// Transformed weights as they lie in memory, G of avx2_winograd.cpp, which alone includes this.
#pragma once

#include <algorithm>
#include <climits>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "avx2_epilogue.h"
#include "avx2_tile.h"
#include "avx2_winograd.h"
#include "op.h"

namespace haq::avx2 {
namespace {

// [block of sixteen outputs][place][step][16 outputs][2 or 4 inputs], and where the sums of each block and cell start.
template <typename Algorithm, typename Lanes>
class WinogradWeights {
 public:
  using Weight = typename Lanes::Weight;

  // raise: what InputTransform adds to codes. epilogue: knows what outputs start at.
  WinogradWeights(const ConvSpec& spec, int raise, const Requantizer& epilogue)
      : blocks_((spec.out_channels + kTileChannels - 1) / kTileChannels),
        depth_((spec.in_channels + 15) / 16 * 16),
        raise_(raise),
        fit_(2 * raise <= 255) {
    packed_.reset(static_cast<Weight*>(::operator new(bytes(), std::align_val_t(64))));
    std::fill_n(packed_.get(), bytes() / sizeof(Weight), Weight(0));
    start_.resize(size_t(blocks_) * kCells * kTileChannels);
    for (int n = 0; n < spec.out_channels; ++n)
      for (int c = 0; c < spec.in_channels; ++c) pack(spec.weight.data() + (size_t(n) * spec.in_channels + c) * 9, n, c);
    if (kBytes && fit_) cut_runs();
    if (fit_) add_bias(epilogue);
  }

  // Whether all of them, and sums of their products, fit their operands.
  bool fit() const { return fit_; }

  int blocks() const { return blocks_; }
  int depth() const { return depth_; }  // channels, of whole vectors
  int64_t bytes() const { return int64_t(blocks_) * block_codes() * static_cast<int>(sizeof(Weight)); }

  // Steps of a cell, and its weights; those of the cell behind a block's last are the next block's.
  int steps(int cell) const { return (kOrder.first[cell + 1] - kOrder.first[cell]) * depth_ / kPerStep; }
  const int8_t* of(int block, int cell) const {
    const Weight* const begin = packed_.get() + block * block_codes();
    return reinterpret_cast<const int8_t*>(begin + std::ptrdiff_t(kOrder.first[cell]) * depth_ * kTileChannels);
  }
  const int8_t* end() const { return reinterpret_cast<const int8_t*>(packed_.get()) + bytes(); }

  // What tiles are multiplied by for one cell and block, but for their pixels. whole: the run of one that is not cut.
  Factors factors(int block, int cell, const Run& whole) const {
    const size_t i = size_t(block) * kCells + cell;
    Factors factors{};
    factors.from = std::ptrdiff_t(kOrder.first[cell]) * depth_ * Lanes::kCodeBytes;
    factors.run = kBytes ? runs_.data() + first_run_[i] : &whole;
    factors.end = kBytes ? runs_.data() + first_run_[i + 1] : &whole + 1;
    factors.weights = of(block, cell);
    factors.start = reinterpret_cast<const int32_t*>(&start_[i * kTileChannels]);
    factors.blocks_start = kBytes ? &run_start_[size_t(first_run_[i]) * kStartLanes] : nullptr;
    return factors;
  }

 private:
  static constexpr int kTile = Algorithm::kTile, kPositions = kTile * kTile, kCells = Order<Algorithm>::kCells;
  static constexpr bool kBytes = Lanes::kCodeBytes == 1;
  static constexpr int kPerStep = 4 / Lanes::kCodeBytes;
  static constexpr Order<Algorithm> kOrder{};
  static constexpr int kMiddle = Order<Algorithm>::cell_of(kTile + 1);  // counts once in every output

  int64_t block_codes() const { return int64_t(kPositions) * depth_ * kTileChannels; }

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
      fit_ = fit_ && weight_here == static_cast<Weight>(weight_here);
      const int step = (kOrder.place[position] * depth_ + c) / kPerStep;
      to[(step * kTileChannels + n % kTileChannels) * kPerStep + c % kPerStep] = static_cast<Weight>(weight_here);
      const size_t cell = size_t(n / kTileChannels) * kCells + kOrder.cell_of(position);
      if (!Algorithm::signed_at(position)) continue;
      start_[cell * kTileChannels + n % kTileChannels] -= static_cast<uint32_t>(raise_ * weight_here);
    }
  }

  // Blocks of int16 sums for every block of channels and cell; not worth it where they are short.
  void cut_runs() {
    fit_ = pairs_fit(reinterpret_cast<const int8_t*>(packed_.get()), bytes(), 2 * raise_);
    for (int i = 0; fit_ && i < blocks_ * kCells; ++i) {
      const Blocks cut = cut_blocks(of(i / kCells, i % kCells), steps(i % kCells), 2 * raise_);
      std::ptrdiff_t offset = 0;
      for (int steps : cut.steps) runs_.push_back({offset, steps, true}), offset += 4 * steps;
      first_run_.push_back(static_cast<int>(runs_.size()));
      run_start_.insert(run_start_.end(), cut.start.begin(), cut.start.end());
      for (int n = 0; n < kTileChannels; ++n) start_[size_t(i) * kTileChannels + n] -= cut.started(n);
    }
    fit_ = fit_ && runs_.size() * 3 * kPerStep <= size_t(blocks_) * kPositions * depth_;
  }

  // Where the sums of one cell start.
  void add_bias(const Requantizer& epilogue) {
    for (int block = 0; block < blocks_; ++block)
      for (int n = 0; n < kTileChannels; ++n)
        start_[(size_t(block) * kCells + kMiddle) * kTileChannels + n] +=
            uint32_t(Algorithm::kTimes) * static_cast<uint32_t>(epilogue.start(block * kTileChannels)[n]);
  }

  struct Free {
    void operator()(Weight* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  int blocks_, depth_;
  int raise_;
  bool fit_;
  std::unique_ptr<Weight, Free> packed_;
  std::vector<uint32_t> start_;  // of each cell's sums, modulo 2^32: less what raised codes and blocks of sums add
  std::vector<Run> runs_;
  std::vector<int16_t> run_start_;
  std::vector<int> first_run_ = {0};
};

}  // namespace
}  // namespace haq::avx2
