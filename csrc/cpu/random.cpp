#include "cpu/random.h"

#include "common/philox.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fastsmc::cpu {
namespace {

// Calls row(first block of 4 words) for every block of every slot.
template <class PerBlock>
void for_blocks(int64_t slots, int64_t blocks, uint64_t seed, uint32_t first_slot, uint32_t iteration, uint32_t stream,
                PerBlock use) {
  const philox::Key key = philox::key_of(seed);
  for_each(slots, slots * blocks * 4 > kParallelFrom, [&](int64_t slot) {
    for (int64_t block = 0; block < blocks; ++block)
      use(slot, block,
          philox::philox4x32(
              {{static_cast<uint32_t>(block), first_slot + static_cast<uint32_t>(slot), iteration, stream}}, key));
  });
}

}  // namespace

void philox_integers(uint32_t* out, int64_t slots, int64_t dim, uint64_t seed, uint32_t first_slot, uint32_t iteration,
                     uint32_t stream) {
  for_blocks(slots, (dim + 3) / 4, seed, first_slot, iteration, stream,
             [=](int64_t slot, int64_t block, const philox::Counter& c) {
               for (int64_t k = 0; k < 4 && 4 * block + k < dim; ++k) out[slot * dim + 4 * block + k] = c.word[k];
             });
}

void uniform(double* out, int64_t slots, int64_t dim, uint64_t seed, uint32_t first_slot, uint32_t iteration,
             uint32_t stream) {
  for_blocks(slots, (dim + 1) / 2, seed, first_slot, iteration, stream,
             [=](int64_t slot, int64_t block, const philox::Counter& c) {
               for (int64_t k = 0; k < 2 && 2 * block + k < dim; ++k)
                 out[slot * dim + 2 * block + k] = philox::uniform53(c.word[2 * k], c.word[2 * k + 1]);
             });
}

void standard_normal(float* out, int64_t slots, int64_t dim, uint64_t seed, uint32_t first_slot, uint32_t iteration,
                     uint32_t stream) {
  const auto normal = kernels().update.normal;
  for_each(slots, slots * dim > kParallelFrom, [&](int64_t slot) {
    normal(out + slot * dim, dim, seed, first_slot + static_cast<uint32_t>(slot), iteration, stream);
  });
}

}  // namespace fastsmc::cpu
