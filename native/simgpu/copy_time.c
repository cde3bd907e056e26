/* How long copies take: the bus carries what PCIe 3.0 x16 does; within a card every byte is read and written.
 */
#include "driver.h"

#define BUS_GBS 12U
#define LATENCY_NS 1000U

uint64_t sim_copy_ns(uint32_t card, uint64_t bytes, bool on_card) {
    uint64_t gbs = on_card ? sim_machine()->cards[card].model.bandwidth_gbs / 2 : BUS_GBS;
    return LATENCY_NS + bytes / (gbs ? gbs : 1);
}
