/* A pretended libnvidia-ml.so.1: the real binding runs against it; the environment says what it answers. */
#include <stdio.h>
#include <stdlib.h>

#define GIB (1ULL << 30)
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned gpu, memory; } rates_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;
typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_t;

static int number(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

/* What a call about the GPU returns: 0, FAKE_NVML_ERROR for the GPU of FAKE_NVML_LOST, else NOT_SUPPORTED. */
static int status(void *handle) {
    if (number("FAKE_NVML_LOST", 0) == (int)(long)handle) return number("FAKE_NVML_ERROR", 15);
    return 0;
}
static int optional(void *handle) {
    int failed = status(handle);
    return failed ? failed : number("FAKE_NVML_BARE", 0) ? NOT_SUPPORTED : 0;
}

/* With FAKE_NVML_VARY set, a little more or less at each call, as of a card at work. */
static unsigned jitter(unsigned range) {
    static unsigned state = 1;
    if (!getenv("FAKE_NVML_VARY")) return 0;
    state = state * 1103515245u + 12345u;
    return (state >> 16) % range;
}

static int started = 0;
int nvmlInit_v2(void) {
    FILE *log = fopen(getenv("FAKE_NVML_LOG") ? getenv("FAKE_NVML_LOG") : "/dev/null", "a");
    if (log) { fputs("init\n", log); fclose(log); }
    started++;
    return number("FAKE_NVML_INIT", 0);
}
int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { started--; return 0; }
const char *nvmlErrorString(int code) { (void)code; return "pretended"; }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_NVML_COUNT", 1); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(long)(index + 1);
    return status(*handle);
}
int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    const char *name = getenv("FAKE_NVML_NAME");
    snprintf(text, size, "%s", name ? name : "NVIDIA GeForce RTX 4090");
    return status(handle);
}
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    snprintf(text, size, "GPU-%ld", (long)handle);
    return status(handle);
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory->total = 24 * GIB; memory->used = 4 * GIB; memory->free = 20 * GIB;
    return optional(handle);
}
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2_t *memory) {
    memory->total = 24 * GIB; memory->reserved = GIB; memory->used = 3 * GIB + ((unsigned long long)jitter(2048) << 20); memory->free = 20 * GIB;
    return optional(handle);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process_t *processes) {
    int failed = optional(handle);
    if (failed) return failed;
    if (*count < 2) { *count = 2; return INSUFFICIENT_SIZE; }
    *count = 2;
    processes[0] = (process_t){number("FAKE_NVML_PID", 1), GIB, ~0u, ~0u};
    processes[1] = (process_t){999999999, ~0ULL, ~0u, ~0u}; /* "not available" */
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *processes) {
    int failed = optional(handle);
    if (failed) return failed;
    if (*count < 1) { *count = 1; return INSUFFICIENT_SIZE; }
    *count = 1;
    processes[0] = (process_t){number("FAKE_NVML_PID", 1), 2 * GIB, ~0u, ~0u};
    return 0;
}
#endif
int nvmlDeviceGetUtilizationRates(void *handle, rates_t *rates) {
    rates->gpu = 87 - jitter(80); rates->memory = 20;
    return optional(handle);
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *degrees) {
    (void)sensor; *degrees = 61 - jitter(8);
    return optional(handle);
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    *milliwatts = 215300 + 1000 * jitter(200);
    return number("FAKE_NVML_NO_POWER", 0) ? 4 /* NO_PERMISSION */ : optional(handle);
}
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) { *milliwatts = 450000; return optional(handle); }
int nvmlDeviceGetClockInfo(void *handle, int type, unsigned *mhz) {
    *mhz = type == 2 ? 10501 : 2520 - 15 * jitter(20);
    return optional(handle);
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    *major = 8; *minor = 9;
    return optional(handle);
}
int nvmlDeviceGetPciInfo_v3(void *handle, pci_t *pci) {
    pci->pci_device_id = 0x268410de;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:0%ld:00.0", (long)handle);
    return optional(handle);
}
int nvmlDeviceGetGpuMaxPcieLinkGeneration(void *handle, unsigned *generation) { *generation = 4; return optional(handle); }
int nvmlDeviceGetMaxPcieLinkWidth(void *handle, unsigned *width) { *width = 16; return optional(handle); }
