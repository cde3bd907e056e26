/* Boards as data, by PCI device id, and the simple physics of power, heat and clocks that NVML reports. */
#include "nvml_board.h"

#include "nvml_common.h"

#define TESLA NVML_BRAND_TESLA
#define NVIDIA NVML_BRAND_NVIDIA
#define GEFORCE NVML_BRAND_GEFORCE_RTX

/* A row for each card of cards.csv: id; brand, cooling, idle state; PCIe generation, NVLinks, their version;
 * watts: limit, least, at rest; MHz: memory, SMs at rest; bus width; degrees: shutdown, slowdown, highest of
 * GPU and memory; part number, VBIOS, InfoROM. Limits and clocks are the data sheets'; the texts are such as
 * one board has. */
/* clang-format off */
static const struct sim_board boards[] = {
    /* V100-SXM2-16GB */
    {0x1db1, TESLA, SIM_PASSIVE, SIM_IDLE_P0, 3, 6, 2, 300, 150, 40, 877, 135, 4096, 90, 87, 83, 85,
     "900-2G503-0000-000", "88.00.4F.00.09", "G503.0201.00.03"},
    /* V100-SXM2-32GB */
    {0x1db5, TESLA, SIM_PASSIVE, SIM_IDLE_P0, 3, 6, 2, 300, 150, 42, 877, 135, 4096, 90, 87, 83, 85,
     "900-2G503-0010-000", "88.00.80.00.01", "G503.0204.00.02"},
    /* T4 */
    {0x1eb8, TESLA, SIM_PASSIVE, SIM_IDLE_P8, 3, 0, 0, 70, 60, 9, 5001, 300, 256, 96, 93, 85, 0,
     "900-2G183-0000-001", "90.04.38.00.03", "G183.0200.00.02"},
    /* A100-SXM4-40GB */
    {0x20b0, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 4, 12, 3, 400, 100, 50, 1215, 210, 5120, 92, 89, 85, 95,
     "692-2G506-0200-002", "92.00.45.00.03", "G506.0200.00.04"},
    /* A100-PCIE-40GB */
    {0x20f1, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 4, 0, 0, 250, 150, 33, 1215, 210, 5120, 92, 89, 85, 95,
     "900-21001-0000-000", "92.00.25.00.08", "1001.0200.00.03"},
    /* A100-SXM4-80GB */
    {0x20b2, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 4, 12, 3, 400, 100, 60, 1593, 210, 5120, 92, 89, 85, 95,
     "692-2G506-0212-002", "92.00.81.00.06", "G506.0212.00.02"},
    /* A100-PCIE-80GB */
    {0x20b5, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 4, 0, 0, 300, 150, 44, 1512, 210, 5120, 92, 89, 85, 95,
     "900-21001-0020-100", "92.00.68.00.01", "1001.0230.00.03"},
    /* A30 */
    {0x20b7, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 4, 0, 0, 165, 100, 28, 1215, 210, 3072, 92, 89, 85, 95,
     "900-21001-0040-100", "92.00.66.00.02", "1001.0205.00.03"},
    /* A10 */
    {0x2236, NVIDIA, SIM_PASSIVE, SIM_IDLE_P8, 4, 0, 0, 150, 100, 15, 6251, 210, 384, 98, 95, 88, 0,
     "900-2G133-0020-000", "94.02.5C.00.04", "G133.0212.00.02"},
    /* GeForce RTX 3090 */
    {0x2204, GEFORCE, SIM_FANS, SIM_IDLE_P8, 4, 0, 0, 350, 100, 20, 9751, 210, 384, 98, 95, 93, 0,
     "900-1G136-2510-000", "94.02.27.00.0A", "G001.0000.03.03"},
    /* GeForce RTX 4090 */
    {0x2684, GEFORCE, SIM_FANS, SIM_IDLE_P8, 4, 0, 0, 450, 150, 18, 10501, 210, 384, 100, 97, 90, 0,
     "900-1G136-2530-000", "95.02.18.80.5F", "G002.0000.00.03"},
    /* L4 */
    {0x27b8, NVIDIA, SIM_PASSIVE, SIM_IDLE_P8, 4, 0, 0, 72, 40, 12, 6251, 210, 192, 98, 95, 85, 0,
     "900-2G193-0000-000", "95.04.29.00.06", "G193.0200.00.01"},
    /* L40S */
    {0x26b9, NVIDIA, SIM_PASSIVE, SIM_IDLE_P8, 4, 0, 0, 350, 100, 26, 9001, 210, 384, 98, 95, 92, 0,
     "900-2G133-0080-000", "95.02.66.00.02", "G133.0242.00.03"},
    /* H100-SXM5-80GB */
    {0x2330, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 5, 18, 4, 700, 200, 70, 2619, 345, 5120, 92, 89, 87, 95,
     "692-2G520-0200-000", "96.00.5E.00.01", "G520.0200.00.05"},
    /* H100-PCIE-80GB */
    {0x2331, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 5, 0, 0, 350, 200, 47, 1593, 345, 5120, 92, 89, 87, 95,
     "900-21010-0000-000", "96.00.30.00.01", "1010.0200.00.02"},
    /* H100-NVL */
    {0x2321, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 5, 0, 0, 400, 200, 58, 2619, 345, 6144, 92, 89, 87, 95,
     "900-21010-0020-000", "96.00.88.00.05", "1010.0210.00.01"},
    /* H200-SXM */
    {0x2335, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 5, 18, 4, 700, 200, 75, 3201, 345, 6144, 92, 89, 87, 95,
     "692-2G520-0280-000", "96.00.99.00.01", "G520.0280.00.03"},
    /* B200 */
    {0x2901, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 5, 18, 5, 1000, 200, 140, 3996, 120, 8192, 92, 89, 87, 95,
     "692-2G525-0200-000", "97.00.82.00.18", "G525.0200.00.03"},
    /* GB200 */
    {0x2941, NVIDIA, SIM_PASSIVE, SIM_IDLE_P0, 5, 18, 5, 1200, 200, 170, 3996, 120, 8192, 92, 89, 87, 95,
     "699-2G548-0201-830", "97.00.B9.00.3A", "G548.0201.00.06"},
    /* RTX PRO 6000 Blackwell Server Edition */
    {0x2bb5, NVIDIA, SIM_PASSIVE, SIM_IDLE_P8, 5, 0, 0, 600, 300, 32, 12481, 180, 512, 98, 95, 92, 0,
     "900-2G153-0000-000", "98.02.81.00.04", "G153.0200.00.01"},
};
/* clang-format on */

/* Where a device id is unknown: a PCIe board of the generation. */
static const struct {
    uint32_t capability; /* 10 * major + minor, at least */
    uint16_t pci_device_id;
} generations[] = {
    {120, 0x2bb5}, {100, 0x2901}, {90, 0x2331}, {89, 0x27b8},
    {86, 0x2236},  {80, 0x20f1},  {75, 0x1eb8}, {0, 0x1db1},
};

static const struct sim_board *find(uint32_t id) {
    for (size_t i = 0; i < sizeof boards / sizeof boards[0]; i++)
        if (boards[i].pci_device_id == id)
            return &boards[i];
    return NULL;
}

const struct sim_board *sim_board(const struct sim_nvml_card *card) {
    uint32_t id = card->pci_device_id;
    const struct sim_board *board = find(id > 0xffff ? id >> 16 : id);
    for (size_t i = 0; !board && i < sizeof generations / sizeof generations[0]; i++)
        if (10 * card->major + card->minor >= generations[i].capability)
            board = find(generations[i].pci_device_id);
    return board;
}

bool sim_board_at_rest(const struct sim_nvml_card *card) {
    return card->process_count == 0;
}

/* A tenth of the way from rest to the limit is paid for being clocked up, the rest for working. */
uint32_t sim_board_power_mw(const struct sim_nvml_card *card) {
    const struct sim_board *board = sim_board(card);
    uint32_t rest = board->idle_w * 1000U, span = (board->power_w - board->idle_w) * 1000U;
    uint32_t standing = sim_board_at_rest(card) ? 0 : span / 10;
    return rest + standing + (uint32_t)((uint64_t)(span - standing) * card->sm_percent / 100);
}

uint64_t sim_board_energy_mj(const struct sim_nvml_card *card) {
    const struct sim_board *board = sim_board(card);
    uint64_t span_w = (uint64_t)(board->power_w - board->idle_w);
    return card->since_ns / 1000000 * board->idle_w + card->busy_ns / 1000000 * span_w; /* W * ms = mJ */
}

uint32_t sim_board_temperature_c(const struct sim_nvml_card *card) {
    return 31 + (sim_board_at_rest(card) ? 0 : 4) + card->sm_percent * 36 / 100;
}

uint32_t sim_board_sm_mhz(const struct sim_nvml_card *card) {
    return sim_board_at_rest(card) ? sim_board(card)->idle_sm_mhz : card->max_sm_mhz;
}

uint32_t sim_board_memory_mhz(const struct sim_nvml_card *card) {
    const struct sim_board *board = sim_board(card);
    return sim_board_at_rest(card) && board->idle == SIM_IDLE_P8 ? 405 : board->memory_mhz;
}

/* Data-centre and workstation cards have it and have it on. */
bool sim_board_has_ecc(const struct sim_nvml_card *card) {
    return sim_board(card)->brand != GEFORCE;
}

uint32_t sim_board_cores(const struct sim_nvml_card *card) {
    uint32_t capability = 10 * card->major + card->minor;
    return card->sms * (capability >= 86 ? 128 : capability == 61 ? 128 : 64);
}
