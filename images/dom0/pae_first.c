/*
 * Sets CR4.PAE on virtual CPU 0 of a PVH or HVM domain before the domain is first unpaused.
 *
 * Why: under QEMU without KVM (TCG 7.2, 10.0, 11.1), the hypervisor can hang when a guest such as FreeBSD enters long mode.
 * A guest whose vCPU starts with PAE set avoids the defect (docs/lab.md).
 *
 * How: xl preloads this library, which overrides xc_domain_unpause() of libxenctrl. Each domain start calls that function:
 * `xl create`, `xl unpause`, and the new domain after a reboot. The guest's image stays unchanged.
 * Save records are { uint16 type, uint16 instance, uint32 length, data }; type 2 is the CPU record, in which cr0, cr2,
 * cr3, cr4 follow 512 bytes of FPU state, 16 general registers, rip and rflags (xen/include/public/arch-x86/hvm/save.h).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CPU_RECORD 2
#define CR0_OFFSET (512 + 16 * 8 + 16)
#define CR4_OFFSET (CR0_OFFSET + 3 * 8)
#define CR0_PG 0x80000000ull
#define CR4_PAE 0x20ull

typedef int getcontext_t(void *, uint32_t, uint8_t *, uint32_t);
typedef int unpause_t(void *, uint32_t);

/* Do not preload into the programs that xl starts: device model, bootloader, hotplug scripts. */
__attribute__((constructor)) static void alone(void) { unsetenv("LD_PRELOAD"); }

static void pae_first(void *xch, uint32_t domid)
{
    getcontext_t *getcontext = (getcontext_t *)dlsym(RTLD_NEXT, "xc_domain_hvm_getcontext");
    getcontext_t *setcontext = (getcontext_t *)dlsym(RTLD_NEXT, "xc_domain_hvm_setcontext");
    int size = getcontext && setcontext ? getcontext(xch, domid, NULL, 0) : -1;
    uint8_t *context = size > 0 ? malloc(size) : NULL;

    if (!context) /* a PV domain has no such context */
        return;
    if (getcontext(xch, domid, context, size) >= 0) {
        for (int at = 0; at + 8 <= size;) {
            uint16_t type, instance;
            uint32_t length;
            uint64_t cr0, cr4;

            memcpy(&type, context + at, 2);
            memcpy(&instance, context + at + 2, 2);
            memcpy(&length, context + at + 4, 4);
            at += 8;
            if (length > (uint32_t)(size - at))
                break;
            if (type == CPU_RECORD && instance == 0 && length >= CR4_OFFSET + 8) {
                memcpy(&cr0, context + at + CR0_OFFSET, 8);
                memcpy(&cr4, context + at + CR4_OFFSET, 8);
                if (!(cr0 & CR0_PG) && !(cr4 & CR4_PAE)) {
                    cr4 |= CR4_PAE;
                    memcpy(context + at + CR4_OFFSET, &cr4, 8);
                    setcontext(xch, domid, context, size);
                }
                break;
            }
            at += length;
        }
    }
    free(context);
}

int xc_domain_unpause(void *xch, uint32_t domid)
{
    pae_first(xch, domid);
    return ((unpause_t *)dlsym(RTLD_NEXT, "xc_domain_unpause"))(xch, domid);
}
