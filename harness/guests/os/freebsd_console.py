# SPDX-License-Identifier: BSD-2-Clause
"""FreeBSD's console: the stages of a boot, its debugger and mountroot prompts, and the machinery in its backtraces."""

from __future__ import annotations

import re

from harness.console.machinery import Machinery, Row
from harness.console.stages import stage
from harness.console.tables import Banner, ConsoleTables, Question

_KERNEL = b"The FreeBSD Project"
# FreeBSD 8 to 15. These lines are the same in 13.2, 14.2 and 15.1: sys/kern/init_main.c, vfs_mountroot.c, sys/dev/xen, sys/x86/xen,
# libexec/rc/rc.d, and for the loaders stand/common/newvers.sh and load_elf.c. A line of an i386 PV kernel begins with a CR: its
# console driver prints one after each LF (sys/dev/xen/console/console.c of 10).
_STAGES = (
    # BdsDxe: starting Boot0001 "UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)/Pci(0x4,0x0)/Sata(0x0,0xFFFF,0x0)
    # HVM with UEFI (edk2 MdeModulePkg/Universal/BdsDxe); a BIOS prints on the screen only.
    stage("firmware", b"BdsDxe: ", rb"BdsDxe: (?:loading|starting) Boot[0-9A-Fa-f]{4} ", 300),
    # Only if the loader prints on the same console (HVM):
    # BTX loader 1.00  BTX version is 1.02     CD Loader 1.20     PXE Loader 1.00      (BIOS, first)
    # FreeBSD/x86 bootstrap loader, Revision 1.1     FreeBSD/x86 ZFS enabled bootstrap loader, Revision 1.1     (BIOS)
    # >> FreeBSD EFI boot block                                 (boot1.efi, up to 12)
    # FreeBSD/amd64 EFI loader, Revision 3.0                    (UEFI)
    # /boot/kernel/kernel text=0xa8080 ...                      (ELF sizes: load_elf.c)
    stage(
        "loader",
        b"o",
        rb"FreeBSD/\w+ (?:[\w ]{1,24} )?(?:bootstrap|EFI) loader, |^/?\S*/boot/kernel/kernel (?:text|data)=|(?:BTX|CD|PXE) [Ll]oader \d"
        rb"|>> FreeBSD EFI boot block",
        300,
    ),
    # Copyright (c) 1992-2021 The FreeBSD Project.
    stage("kernel", _KERNEL, rb"Copyright \(c\) 1992-\d{4} The FreeBSD Project", 60),
    # XEN: Hypervisor version 4.17 detected.   /   Hypervisor: Origin = "XenVMMXenVMM"   /   i386 PV: Xen reported: 2599.996 MHz processor.
    stage(
        "xen",
        b"or",
        rb"XEN: Hypervisor version [\d.]+ detected|Hypervisor: Origin = \"XenVMMXenVMM\"|Xen reported: [\d.]+ MHz processor",
        90,
    ),
    # xenbusb_front0: <Xen Frontend Devices> on xenstore0
    stage("xenbus", b"Xen Frontend Devices", rb"<Xen Frontend Devices>", 60),
    # xbd0: 256MB <Virtual Block Device> at device/vbd/51712 on xenbusb_front0
    stage("disk", b"Virtual Block Device", rb"<Virtual Block Device> at device/vbd/\d+", 60),
    # Trying to mount root from ufs:/dev/xbd0 []...
    stage("mountroot", b"Trying to mount root", rb"Trying to mount root from ", 60),
    # Setting hostuuid: ...  /  Starting file system checks:  /  Mounting local filesystems:.
    stage(
        "rc",
        b"ing ",
        rb"^\r*(?:Setting hostuuid|Starting file system checks|Mounting local file ?systems|Loading kernel modules)",
        180,
    ),
    # login:
    stage("login", b"login: ", rb"^\r*(?:\S+ )?login: ", 0),
)

# The first line of a boot: the loader's, or the firmware's.
_BOOTS = (
    # ---<<BOOT>>---
    stage("boot", b"---<<BOOT>>---", rb"^\r*---<<BOOT>>---", 0),
    # FreeBSD/x86 bootstrap loader, Revision 1.1     FreeBSD/amd64 EFI loader, Revision 3.0
    stage("boot", b" loader, Revision", rb"^\r*FreeBSD/\w+ (?:[\w ]{1,24} )?(?:bootstrap|EFI) loader, Revision", 0),
    # BdsDxe: loading Boot0001 "UEFI QEMU HARDDISK QM00001 " from PciRoot(0x0)
    stage("boot", b"BdsDxe: loading Boot", rb"^\r*BdsDxe: loading Boot[0-9A-Fa-f]{4} ", 0),
)
# login(1) of FreeBSD up to 9 prints the first line of the banner at a login, but not the following lines.
# Copyright (c) 1992-2021 The FreeBSD Project.
# Copyright (c) 1979, 1980, 1983, 1986, 1988, 1989, 1991, 1992, 1993, 1994
#         The Regents of the University of California. All rights reserved.
# FreeBSD is a registered trademark of The FreeBSD Foundation.
_BANNER = Banner(
    stage("boot", _KERNEL, rb"^\r*Copyright \(c\) 1992-\d{4} The FreeBSD Project", 0),
    re.compile(rb"^\r*FreeBSD is a registered trademark of The FreeBSD Foundation", re.MULTILINE),
    # The output ends within the banner: it was cut off, or the kernel stopped there.
    re.compile(rb"(?:[ \t\r]*(?:(?:Copyright|The Regents|FreeBSD )[^\n]*)?(?:\n|\Z))*"),
)
_QUESTIONS = {
    "ddb": Question(b"db> ", ("bt", "show pcpu", "ps", "show lockchain all")),
    "mountroot": Question(b"mountroot> ", ("?",)),
}

_MACHINERY = (
    # No row has kdb_sysctl_panic(), which `sysctl debug.kdb.panic=1` calls: it is the faulting function of that panic.
    # A kernel with global symbols only prints X_db_symbol_values in place of db_trace_self_wrapper.
    Row("debugger", r"db_(?:trace_\w+|fetch_ksymtab|command(?:_loop)?|trap|stack_trace|script_\w+)|X_db_symbol_values",
        "db_trace_self_wrapper db_trace_self db_trace_thread db_fetch_ksymtab db_command_loop db_trap X_db_symbol_values"),
    Row("debugger's entries", r"kdb_(?:backtrace(?:_thread)?|enter|trap|reenter\w*|break\w*|alt_break\w*|cpu_trap)|gdb_trap|stack_save\w*",
        "kdb_backtrace kdb_enter kdb_trap kdb_reenter kdb_break stack_save"),
    Row("panic", r"v?panic(?:_cpu)?|kern_reboot|kern_psignal_panic|boot", "panic vpanic kern_reboot"),
    Row("assertions", r"kassert_panic|spl_(?:panic|dumpstack|assert\w*)|vop_panic|assfail3?|v?cmn_err|zfs_panic_recover|vpanic_\w+|__assert\w*",
        "kassert_panic spl_panic vop_panic assfail assfail3 vcmn_err cmn_err zfs_panic_recover __assert"),
    Row("assertions of a subsystem", r"\w+_assert(?:_\w+)?|_?vm_map_(?:un)?lock\w*",
        "xyz_lock_assert inp_lock_assert vm_page_assert_locked vm_object_busy_assert_held _vm_map_lock vm_map_unlock_read"),
    Row("assertions of vnodes", r"assert_v(?:op|i)_\w+|vfs_badlock|vop_\w+_debug(?:pre|post)|VOP_\w+_APV|vop_\w+_pre|vop_(?:std)?(?:un)?lock|vop_sigdefer",
        "assert_vop_elocked assert_vop_locked assert_vi_locked vfs_badlock vop_lock_debugpre VOP_LOCK1_APV vop_stdlock vop_sigdefer vop_rename_pre"),
    # sys/kern/subr_ubsan.c and subr_{asan,msan,csan}.c; the compiler calls the names with two underscores.
    Row("sanitizers", r"_*k?(?:asan|msan|csan|tsan|ubsan|sanitizer|sancov)_\w+|_*(?:asan|msan|tsan|ubsan)_\w+",
        "__asan_load8_noabort __asan_storeN_noabort __msan_warning kmsan_report_hook kmsan_copyout kasan_report kcsan_copyin "
        "__tsan_read4 __ubsan_handle_shift_out_of_bounds ubsan_report __sanitizer_cov_trace_pc kasan_memcpy __asan_memset"),
    Row("UBSan's handlers", r"Handle(?:Overflow|NegateOverflow|TypeMismatch|ShiftOutOfBounds|OutOfBounds|BuiltinUnreachable|VLABound\w*"
        r"|LoadInvalidValue|InvalidBuiltin|FunctionTypeMismatch|NonnullArg|PointerOverflow|AlignmentAssumption\w*|CFIBadType)|Report|isAlreadyReported",
        "HandleOverflow HandleOutOfBounds HandleTypeMismatch HandleShiftOutOfBounds Report isAlreadyReported"),
    Row("checks of the compiler", r"__stack_chk_fail(?:_local)?|__\w+_chk|__chk_fail", "__stack_chk_fail __memcpy_chk __strcpy_chk"),
    # Of every kind of lock: its functions, their slow paths, its assertions, and the callbacks of its class.
    Row("mutexes", r"_{0,2}(?:mtx|thread_lock)_?\w*|mtx_\w+|_thread_lock|thread_lock_\w+",
        "__mtx_assert __mtx_lock_flags __mtx_lock_sleep __mtx_unlock_flags _mtx_lock_spin_cookie __mtx_lock_spin_flags mtx_destroy "
        "_mtx_destroy _mtx_trylock_flags_ mtx_spin_wait_unlocked _mtx_lock_indefinite_check _thread_lock thread_lock_flags_"),
    Row("reader/writer locks", r"_{0,2}(?:rw|rm|rms)_(?:\w*(?:lock|cookie|assert|destroy|init|downgrade|upgrade|wowned)\w*)",
        "__rw_wlock_hard __rw_rlock_hard _rw_wlock_cookie __rw_assert _rw_destroy _rw_runlock_cookie __rw_try_upgrade _rm_rlock "
        "_rm_wlock_debug _rm_assert rm_destroy rms_rlock rw_init_flags __rw_downgrade rw_wowned"),
    Row("sx locks", r"_{0,2}sx_\w+", "_sx_xlock _sx_xlock_hard _sx_slock_int _sx_xunlock _sx_assert sx_destroy sx_init_flags sx_try_xlock_"),
    Row("lockmgr", r"_{0,2}lockmgr_\w+|lock(?:destroy|init|mgr)|_?vn_lock(?:_pair)?|ffs_lock|assert_(?:mtx|rw|rm|sx|lockmgr)",
        "__lockmgr_args lockmgr_xlock_hard lockmgr_lock_flags _lockmgr_assert lockdestroy lockinit _vn_lock vn_lock ffs_lock assert_mtx"),
    Row("lock objects", r"lock_(?:destroy|init|delay|profile_\w+)|_?callout_(?:lock|cc_\w+|stop_safe|reset_\w+)|(?:un)?lock_(?:mtx|rw|rm|sx|lockmgr|spin)|spinlock_(?:enter|exit)|_?busdma_(?:dflt_lock|lock_mutex)",
        "lock_destroy lock_init lock_mtx unlock_mtx unlock_rw lock_delay spinlock_enter _busdma_dflt_lock busdma_lock_mutex callout_lock _callout_stop_safe callout_reset_sbt_on"),
    Row("witness", r"witness_\w+", "witness_checkorder witness_warn witness_debugger witness_unlock"),
    Row("waiting", r"sleepq_\w+|_?m?sleep(?:_\w+)?|_cv_\w*wait\w*|turnstile_\w+|propagate_priority|mi_switch|sched_switch|choosethread|ck_epoch_\w+|epoch_\w+|_epoch_\w+|_blockcount_\w+",
        "sleepq_add sleepq_wait sleepq_switch _sleep msleep_spin_sbt _cv_wait _cv_timedwait_sbt turnstile_wait propagate_priority "
        "mi_switch _epoch_enter_preempt ck_epoch_synchronize_wait sched_switch epoch_exit _blockcount_sleep"),
    Row("reference counts", r"_{0,2}refcount_\w+|zfs_refcount_\w+", "_refcount_update_saturated refcount_release_last refcount_overflow zfs_refcount_remove"),
    Row("traps", r"trap(?:_\w+)?|(?:nmi_|mchk_|dbl)?calltrap|alltraps\w*|nmi_(?:call_kdb\w*|handle_intr|calltrap)|ipi_nmi_handler|cpustop_handler\w*|isa_nmi"
        r"|dblfault_handler|mca_\w+|cmc_\w+|syscall_trap|user_trap",
        "trap trap_fatal trap_pfault trap_check calltrap nmi_calltrap mchk_calltrap alltraps alltraps_with_regs_pushed nmi_call_kdb "
        "nmi_handle_intr dblfault_handler mca_intr isa_nmi cpustop_handler"),
    # IDTVEC() of sys/amd64/amd64/exception.S and sys/i386/i386/exception.s.
    Row("vectors", r"X(?:div|dbg|nmi|bpt|ofl|bnd|ill|dna|fpusegm|dblfault|tss|missing|stk|prot|page|rsvd|fpu|align|mchk|xmm|kasan)(?:_\w+)?",
        "Xpage Xpage_pti Xdblfault Xdblfault_pti Xprot Xnmi Xmchk Xdiv Xbpt Xill"),
    Row("traps of arm64 and riscv", r"(?:do|handle)_el\d\w*_\w+|data_abort|align_abort|(?:cpu_)?exception_handler\w*|do_trap_\w+|print_registers"
        r"|print_gp_register|unhandled_exception|page_fault_handler",
        "do_el1h_sync handle_el1h_sync data_abort align_abort cpu_exception_handler_supervisor do_trap_supervisor print_registers"),
    # These declare a fault on a page that must not fault; their callers touched the page.

    Row("page faults", r"vm_fault(?:_(?:trap|hold|lookup|fault|quick_hold_pages|nofault))?", "vm_fault vm_fault_trap vm_fault_lookup"),
    Row("allocator's checks", r"m?trash_(?:ctor|dtor|init|fini)|uma_dbg_\w+|uma_z\w+|item_(?:ctor|dtor)|cache_(?:alloc|free)(?:_retry)?"
        r"|zone_(?:alloc_item|free_item|import|release|alloc_bucket|free_bucket)\w*|(?:slab|keg)_\w+|bucket_(?:alloc|free|drain)\w*|free(?:_dbg|_domain)?|zfree|malloc(?:_\w+)?|realloc(?:f)?|contig(?:malloc|free)|memguard_\w+|redzone_\w+"
        r"|m_free(?:m|_raw)?|mb_(?:free_ext|free_notready|dupcl|ctor_\w+|dtor_\w+)|m_get(?:m2?|jcl|cl|2)?|m_clget|kmem_(?:malloc|free)",
        "trash_ctor mtrash_ctor uma_dbg_free uma_zalloc_arg uma_zfree_arg item_dtor zone_free_item zone_import zone_release slab_alloc_item slab_free_item keg_fetch_slab bucket_drain free free_dbg zfree malloc malloc_dbg "
        "realloc contigfree memguard_free redzone_check m_freem mb_free_ext m_getm2 m_clget kmem_malloc kmem_free"),
    Row("OpenZFS's allocator", r"kmem_cache_(?:alloc|free)\w*", "kmem_cache_alloc kmem_cache_free"),
    Row("queues' checks", r"_{0,2}(?:qmd|queue)_\w+|qmd_trace_\w+", "__qmd_panic"),
)  # fmt: skip

CONSOLE = ConsoleTables(_STAGES, boots=_BOOTS, banner=_BANNER, questions=_QUESTIONS, machinery=Machinery(_MACHINERY))
