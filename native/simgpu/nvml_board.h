/* What a board says of itself beyond what the simulator's model needs: power, clocks, links, part numbers. */
#ifndef SIM_NVML_BOARD_H
#define SIM_NVML_BOARD_H

#include <stdbool.h>
#include <stdint.h>

#include "nvml_state.h"

enum sim_cooling {
    SIM_PASSIVE, /* by the server's fans: NVML knows of none */
    SIM_FANS,
};

/* How idle the memory clock goes, and with it the performance state. */
enum sim_idle {
    SIM_IDLE_P0, /* HBM cards stay in P0 */
    SIM_IDLE_P8,
};

struct sim_board {
    uint16_t pci_device_id;
    uint8_t brand; /* nvmlBrandType_t */
    uint8_t cooling, idle;
    uint8_t pcie_generation;
    uint8_t links, link_version; /* NVLinks; 0 on PCIe cards */
    uint16_t power_w, power_min_w, idle_w;
    uint16_t memory_mhz, idle_sm_mhz, bus_bits;
    uint16_t shutdown_c, slowdown_c, max_c, memory_max_c;
    const char *part, *vbios, *inforom;
};

/* The board of a card; one of its generation's where the device id is not in the table. */
const struct sim_board *sim_board(const struct sim_nvml_card *card);

/* What follows from the board and from how busy the card is. */
uint32_t sim_board_power_mw(const struct sim_nvml_card *card);
uint64_t sim_board_energy_mj(const struct sim_nvml_card *card);
uint32_t sim_board_temperature_c(const struct sim_nvml_card *card);
bool sim_board_at_rest(const struct sim_nvml_card *card); /* nobody has a context */
uint32_t sim_board_sm_mhz(const struct sim_nvml_card *card);
uint32_t sim_board_memory_mhz(const struct sim_nvml_card *card);
bool sim_board_has_ecc(const struct sim_nvml_card *card);
uint32_t sim_board_cores(const struct sim_nvml_card *card);

#endif
