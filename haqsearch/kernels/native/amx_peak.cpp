// What AMX can do at most.
#include "amx_tile.h"
#include "peak.h"

namespace haq {
namespace {

int64_t tile_products(int64_t iterations) {
  amx::Configuration configuration;
  configuration.set(amx::kRows, amx::kBytes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  return iterations * 4 * amx::kRows * amx::kChannels * amx::kBytes;
}

}  // namespace

std::vector<Peak> amx_peaks() { return {{"amx int8 (up to 8 x 8 bits, exact)", tile_products}}; }

}  // namespace haq
